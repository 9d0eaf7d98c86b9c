package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/testenv"
)

// programs is where TestMain has what is built for the tests.
var programs string

func TestMain(m *testing.M) {
	var err error
	if programs, err = os.MkdirTemp("", "twtrace-bench-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := os.RemoveAll(programs); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// build makes the program as a user has it.
var build = sync.OnceValues(func() (string, error) {
	path := filepath.Join(programs, "twtrace")
	out, err := exec.Command("go", "build", "-o", path, "../cmd/twtrace").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, out)
	}
	return path, nil
})

func buildTwtrace(t *testing.T) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// testRig needs all that rows need, tools of others excepted.
func testRig(t *testing.T) *rig {
	t.Helper()
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.Veth, testenv.BPF, testenv.CC)
	r, err := newRig(buildTwtrace(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.close(); err != nil {
			t.Error(err)
		}
		noChildren(t)
	})
	return r
}

// noChildren asks the kernel whether this process has any: nothing was left running.
func noChildren(t *testing.T) {
	t.Helper()
	if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); !errors.Is(err, unix.ECHILD) {
		t.Errorf("a process was left (wait4: %d, %v)", pid, err)
	}
}

// TestTables runs every row of every table once, with small storms: each does as many
// connections as it was told.
func TestTables(t *testing.T) {
	r := testRig(t)
	small := shapes{
		loops: 2, connections: 40, many: 60, concurrency: []int{10}, toolConcurrency: 10, toolTime: time.Second,
		held: 30, heldBig: 60, hold: time.Second, holdBig: time.Second, sources: 2, filled: []int{0, 1}, searches: 12,
	}
	want := map[string]int{
		"shape": 80, "ends": 80, "cores": 80, "fin": 80, "concurrency": 60, "trace": 80, "record": 80, "memory": 30, "tools": 60, "big": 60, "search": 12, "classic": 80,
	}
	for _, table := range tables(small) {
		t.Run(table.name, func(t *testing.T) {
			rows, missing := r.able(table.rows)
			if len(missing) > 0 {
				t.Log("left out:", missing)
			}
			table.rows, table.rounds = rows, 1
			measured, err := table.measure(t.Context(), r, t.Output())
			if err != nil {
				t.Fatal(err)
			}
			if len(measured) != len(rows) {
				t.Errorf("%d measurements of %d rows", len(measured), len(rows))
			}
			for _, m := range measured {
				finished := want[table.name]
				switch {
				case strings.HasPrefix(m.Row, "wrk"):
					finished = m.Finished // it counts time
				case strings.Contains(m.Row, "1 × 1") || strings.HasPrefix(m.Row, "1, "):
					finished = 1
				}
				if m.Finished != finished || m.Finished == 0 || m.Failed != 0 {
					t.Errorf("%s: %d finished, %d failed; want %d", m.Row, m.Finished, m.Failed, finished)
				}
				// A client of twelve connects is gone before its memory can be looked at.
				if m.Seconds <= 0 || m.User+m.System <= 0 || m.PeakKB <= 0 && table.name != "search" {
					t.Errorf("%s: a quantity is missing: %+v", m.Row, m)
				}
			}
			for _, m := range measured {
				// The kernel's count; all have been opened long before the first closes.
				if (table.name == "memory" || table.name == "big") && m.Open != m.Finished {
					t.Errorf("%s: %d of %d open at once", m.Row, m.Open, m.Finished)
				}
			}
			var text bytes.Buffer
			table.write(&text, measured, missing, 1)
			if strings.Contains(text.String(), "NaN") {
				t.Errorf("a cell has no number:\n%s", &text)
			}
		})
	}
}

// TestRefused: the reference ends, and counts, when the last of its connects fail and
// nothing is open that epoll could tell of. Nobody listens, so that each is refused
// (RFC 9293, 3.10.7.1).
func TestRefused(t *testing.T) {
	r := testRig(t)
	lab, err := netlab.New(netlab.Options{Kind: netlab.Loopback})
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	refused := storm{kind: netlab.Loopback, loops: 2, connections: 13}
	var m measurement
	if err := m.run(ctx, lab.Client(), part{argv: append([]string{r.cref}, refused.cref("client", "127.0.0.1", 1)...)}, parseCref); err != nil {
		t.Fatal(err)
	}
	if m.sumUp(); m.Finished != 0 || m.Failed != 26 {
		t.Errorf("%d finished, %d failed; want 0 and 26", m.Finished, m.Failed)
	}
}

// TestProgram is the whole program: flags in, table and JSON out.
func TestProgram(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.Veth, testenv.CC)
	file := filepath.Join(t.TempDir(), "all.json")
	var stdout, stderr bytes.Buffer
	args := []string{"-twtrace", buildTwtrace(t), "-rounds", "2", "-rows", "1, no trace", "-json", file, "memory"}
	if code := run(t.Context(), args, &stdout, &stderr); code != 0 {
		t.Fatalf("exit code %d: %s", code, &stderr)
	}
	if !strings.Contains(stdout.String(), "| 1, no trace |") || !strings.Contains(stdout.String(), "| 0 of 2 |") {
		t.Errorf("no such row in\n%s", &stdout)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var doc document
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Measurements) != 2 || len(doc.Commands) != 1 || doc.Schema != "twtrace.bench/1" {
		t.Errorf("%s", text)
	}
	noChildren(t)

	var again bytes.Buffer
	if code := run(t.Context(), []string{"-twtrace", "/nowhere", "-from", file}, &again, &stderr); code != 0 || again.String() != stdout.String() {
		t.Errorf("the same again, exit code %d: %s\n%s\nnot as it was:\n%s", code, &stderr, &again, &stdout)
	}
	if code := run(t.Context(), []string{"-from", "bench_linux_test.go"}, &again, &stderr); code != 1 {
		t.Errorf("a file of something else: exit code %d", code)
	}
}

// TestInterrupted stops the program while the reference's client is at work: what was
// started is ended and waited for, and what was measured is printed.
func TestInterrupted(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.Veth, testenv.CC)
	twtrace := buildTwtrace(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := make(chan bool, 1)
	go func() {
		defer cancel()
		seen <- awaitChild(t.Context(), " client ")
	}()
	var stdout, stderr bytes.Buffer
	if code := run(ctx, []string{"-twtrace", twtrace, "-rounds", "1000", "-rows", "C", "fin"}, &stdout, &stderr); code != 1 {
		t.Errorf("exit code %d", code)
	}
	if !<-seen || !strings.Contains(stderr.String(), "interrupted") {
		t.Errorf("it does not say so: %s", &stderr)
	}
	noChildren(t)
}

// awaitChild waits until this process has a child with these words in its command line.
func awaitChild(ctx context.Context, words string) bool {
	for ; ctx.Err() == nil; time.Sleep(time.Millisecond) {
		lists, err := filepath.Glob("/proc/self/task/*/children")
		if err != nil {
			return false
		}
		for _, list := range lists {
			pids, err := os.ReadFile(list)
			if err != nil {
				continue // the thread has ended
			}
			for _, pid := range strings.Fields(string(pids)) {
				line, err := os.ReadFile("/proc/" + pid + "/cmdline")
				if err == nil && strings.Contains(strings.ReplaceAll(string(line), "\x00", " "), words) {
					return true
				}
			}
		}
	}
	return false
}
