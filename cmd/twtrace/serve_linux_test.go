package main

import (
	"bufio"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/twtrace/twtrace/internal/control"
)

// serving starts `twtrace serve` with args and returns where it listens.
func serving(t *testing.T, args ...string) (addr netip.AddrPort, cmd *exec.Cmd, stderr *output) {
	t.Helper()
	cmd = command(t, worldPlain, append([]string{"serve", "--listen", "127.0.0.1:0"}, args...)...)
	stderr = newOutput()
	cmd.Stderr = stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("%v; stderr %q", err, stderr)
	}
	addr, err = netip.ParseAddrPort(strings.TrimSpace(strings.TrimPrefix(line, "listening on ")))
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return addr, cmd, stderr
}

// interrupted sends SIGINT and waits for the end.
func interrupted(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// accounted is what a run toward addr says of its server.
type accounted struct {
	Server *struct {
		Accepted, Closed int
		NeverAccepted    *int `json:"never_accepted"`
	}
	Totals struct{ Finished, Failed int }
	Notes  []string
}

func runToward(t *testing.T, addr netip.AddrPort, args ...string) (a accounted) {
	t.Helper()
	args = append([]string{
		"run", "--no-trace", "--target", addr.String(), "--loops", "1", "--connections", "30", "--linger", "-o", "json",
	}, args...)
	code, stdout, stderr := finish(t, command(t, worldPlain, args...))
	if code != exitDone || stderr != "" {
		t.Fatalf("exit code %d, stderr %q", code, stderr)
	}
	if err := json.Unmarshal([]byte(stdout), &a); err != nil {
		t.Fatal(err)
	}
	return a
}

// TestServeTold: what the server in another process accepted is in the client's summary,
// by default and by a port of its own; and unknown where nobody tells.
func TestServeTold(t *testing.T) {
	addr, cmd, stderr := serving(t, "--server-first", "256")
	if stderr.String() != "" { // the port after a port that the kernel chose may be taken
		t.Skipf("%s", stderr)
	}
	a := runToward(t, addr, "--server-first", "256")
	if a.Server == nil || a.Server.Accepted != 30 || a.Server.Closed != 30 || a.Server.NeverAccepted == nil || *a.Server.NeverAccepted != 0 {
		t.Errorf("%+v", a)
	}
	if a := runToward(t, addr, "--server-first", "256", "--control", "none"); a.Server != nil || a.Totals.Finished != 30 {
		t.Errorf("--control none: %+v", a)
	}
	interrupted(t, cmd)
	if !strings.Contains(stderr.String(), "60 accepted, 60 closed") {
		t.Errorf("the server's own account: %q", stderr)
	}

	l, err := net.Listen("tcp4", "127.0.0.1:0") // for a port that is free
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	addr, cmd, _ = serving(t, "--server", "never-accept", "--control", port)
	a = runToward(t, addr, "--timeout", "200ms", "--control", port)
	if a.Server == nil || a.Server.Accepted != 0 || a.Server.NeverAccepted == nil || *a.Server.NeverAccepted != 30 || a.Totals.Failed != 30 {
		t.Errorf("--control %s: %+v", port, a)
	}
	interrupted(t, cmd)
}

func TestServeUntold(t *testing.T) {
	addr, cmd, _ := serving(t, "--control", "none", "--server", "rst")
	a := runToward(t, addr)
	if a.Server != nil || a.Totals.Finished != 30 || !strings.Contains(strings.Join(a.Notes, " "), "not known") {
		t.Errorf("%+v", a)
	}
	interrupted(t, cmd)
}

// TestServeControlTaken: a port that was asked for must be had; the default one need not.
func TestServeControlTaken(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	code, stdout, stderr := finish(t, command(t, worldPlain, "serve", "--listen", "127.0.0.1:0", "--control", port))
	if code != exitFailed || stdout != "" || !isOneLine(stderr) || !strings.Contains(stderr, "--control "+port) {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

// TestServeInterrupted: Ctrl-C ends a server in the middle of a long delay, while someone
// holds on to its control channel.
func TestServeInterrupted(t *testing.T) {
	addr, cmd, stderr := serving(t, "--accept-delay", "1h")
	if stderr.String() != "" {
		t.Skipf("%s", stderr)
	}
	told := netip.AddrPortFrom(addr.Addr(), addr.Port()+1)
	c, err := net.Dial("tcp4", told.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 2 { // the second is in the queue, for an hour
		c, err := net.Dial("tcp4", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	for deadline := time.Now().Add(pollLimit); ; time.Sleep(time.Millisecond) {
		counts, err := control.Ask(t.Context(), told, addr.Port())
		if err == nil && counts.Accepted == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v, %v", counts, err)
		}
	}
	interrupted(t, cmd) // else the test binary's own limit
	if !strings.Contains(stderr.String(), "1 accepted, 1 closed") {
		t.Errorf("%q", stderr)
	}
}
