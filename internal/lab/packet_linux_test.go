package lab

import (
	"bufio"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/fault"
	"github.com/twtrace/twtrace/internal/testenv"
)

// session is one that ends with the test.
func session(t *testing.T) *Session {
	t.Helper()
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.Veth, testenv.BPF)
	s := &Session{ctx: t.Context(), opts: &Options{}, entry: &Entry{Name: t.Name()}, answer: &Answer{Evidence: Evidence{}}}
	t.Cleanup(func() {
		if err := s.end(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// capturedPort is the client's; segments from probePort ask whether tshark has begun.
const capturedPort, probePort = 41000, 1

// TestCapture has tshark capture a connection whose last ACK is lost twice, beside the lab's own capture.
func TestCapture(t *testing.T) {
	testenv.Require(t, testenv.Tshark)
	s := session(t)
	w, err := s.wire()
	if err != nil {
		t.Fatal(err)
	}
	lines, end := tshark(t, w)
	client, server, err := w.pair(capturedPort)
	if err != nil {
		t.Fatal(err)
	}
	if err := sendAcross(client, server, "hello"); err != nil {
		t.Fatal(err)
	}
	f, err := w.faults(w.server, fault.Rule{Flags: fault.ACK, Mask: controlFlags, Payload: fault.None, Last: 2, Action: fault.Drop})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CloseFirst(client, server); err != nil {
		t.Fatal(err)
	}
	if err := w.acted(f, 0, 2); err != nil {
		t.Fatal(err)
	}
	if err := w.gone(); err != nil {
		t.Fatal(err)
	}
	all, err := w.capture.Segments() // also what tshark's own programs send over loopback
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for i := range all {
		g := &all[i]
		if g.From.Port() != capturedPort && g.To.Port() != capturedPort {
			continue
		}
		want = append(want, fmt.Sprintf("%d %d 0x%04x %d %d %d %d", g.From.Port(), g.To.Port(), uint8(g.Flags), g.Seq, g.Ack, g.Len, g.TSVal))
	}
	if len(want) < 10 {
		t.Fatalf("%d segments, want a handshake, data, and three FINs with ACKs at least:\n%s", len(want), strings.Join(want, "\n"))
	}
	var got []string
	for len(got) < len(want) {
		select {
		case line := <-lines:
			if f := strings.Fields(line); f[0] == strconv.Itoa(capturedPort) || f[1] == strconv.Itoa(capturedPort) {
				got = append(got, line)
			}
		case <-time.After(patience):
			t.Fatalf("tshark saw\n%s\nand no more; the capture\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	end()
	if !slices.Equal(got, want) {
		t.Errorf("tshark saw\n%s\nthe capture\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// tshark captures at the client's end; it has begun when tshark returns.
func tshark(t *testing.T, w *wire) (lines <-chan string, end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, "tshark", "-n", "-l", "-i", "veth0", "-o", "tcp.relative_sequence_numbers:FALSE",
		"-o", "tcp.analyze_sequence_numbers:FALSE", "-Y", "tcp", "-T", "fields", "-E", "separator= ",
		"-e", "tcp.srcport", "-e", "tcp.dstport", "-e", "tcp.flags", "-e", "tcp.seq_raw", "-e", "tcp.ack_raw", "-e", "tcp.len", "-e", "tcp.options.timestamp.tsval")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGINT) } // it removes its file then
	if err := w.client.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	out := make(chan string, 1000) // more than a test sends
	go func() {
		for scan := bufio.NewScanner(stdout); scan.Scan(); {
			out <- scan.Text()
		}
	}()
	end = func() {
		cancel()
		_ = cmd.Wait()
	}
	t.Cleanup(end)
	// It says that it captures before it does; a segment shows when.
	probe := func() bool {
		if err := w.SendSyn(w.client, w.from(probePort), w.at, 1); err != nil {
			t.Fatal(err)
		}
		select {
		case <-out:
			return true
		case <-time.After(100 * time.Millisecond):
			return false
		}
	}
	for begun := time.Now(); !probe(); {
		if time.Since(begun) > patience {
			t.Fatal("tshark captures nothing")
		}
	}
	return out, end
}
