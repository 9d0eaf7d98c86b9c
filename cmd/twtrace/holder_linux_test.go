package main

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/twtrace/twtrace/internal/testenv"
)

// TestTraceHolder: the line of a bind() that failed names the process that has the
// port, which is this one, by what it did before.
func TestTraceHolder(t *testing.T) {
	testenv.Require(t, testenv.Fentry)
	w := newTraced(t)
	r := startTrace(t, "--netns", w.path, "--no-snapshot", "--kind", "bind-failed", "--max", "1")
	r.stdout.await(t, 1) // the header: the programs are attached
	err := w.ns.Do(func() error {
		first, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer first.Close()
		second, err := net.Listen("tcp4", first.Addr().String())
		if err == nil {
			second.Close()
			t.Error("two listeners on one port")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if code := r.wait(t); code != exitDone {
		t.Fatalf("exit code %d, stderr %q", code, r.stderr)
	}
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("bind-failed EADDRINUSE held-by=LISTEN on=127.0.0.1 holder-pid=%d holder-comm=%s ", os.Getpid(), strings.TrimSpace(string(comm)))
	if line := r.stdout.String(); !strings.Contains(line, want) || strings.Count(line, "\n") != 2 {
		t.Errorf("%q, want one line with %q", line, want)
	}
}
