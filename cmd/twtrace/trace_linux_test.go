package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/testenv"
)

// traced is a fresh network namespace with a listener, and a file that stands for it.
type traced struct {
	ns   *netlab.Namespace
	path string
	ln   net.Listener
}

func newTraced(t *testing.T) *traced {
	t.Helper()
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.BPF)
	lab, err := netlab.New(netlab.Options{Kind: netlab.Loopback})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lab.Close() })
	w := &traced{ns: lab.Client()}

	// A thread of this process is inside and stays until the end of the test.
	inside, leave, left := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		left <- w.ns.Do(func() (err error) {
			w.path = fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
			w.ln, err = net.Listen("tcp4", "127.0.0.1:0")
			close(inside)
			<-leave
			return err
		})
	}()
	<-inside
	t.Cleanup(func() {
		close(leave)
		if err := <-left; err != nil {
			t.Error(err)
		}
	})
	if w.ln == nil {
		t.FailNow()
	}
	t.Cleanup(func() { w.ln.Close() })
	return w
}

func (w *traced) port() int { return w.ln.Addr().(*net.TCPAddr).Port }

// dial opens a connection and returns its two ends.
func (w *traced) dial(t *testing.T) (client, server net.Conn) {
	t.Helper()
	err := w.ns.Do(func() (err error) {
		client, err = net.Dial("tcp4", w.ln.Addr().String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if server, err = w.ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return client, server
}

// connect opens and closes n connections one after the other; the client closes first, and so
// gets the TIME_WAIT, which is there when connect returns.
func (w *traced) connect(t *testing.T, n int) {
	t.Helper()
	for range n {
		client, server := w.dial(t)
		if err := client.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		// Its own FIN follows the client's: the end of the stream says that it came.
		if _, err := io.Copy(io.Discard, server); err != nil {
			t.Fatal(err)
		}
		server.Close()
		if _, err := io.Copy(io.Discard, client); err != nil {
			t.Fatal(err)
		}
		client.Close()
	}
}

// timeWaits is the kernel's own count of TIME_WAITs made.
func (w *traced) timeWaits(t *testing.T) int {
	t.Helper()
	c, err := w.ns.Counters()
	if err != nil {
		t.Fatal(err)
	}
	return int(c["TcpExt.TW"])
}

// output is a stdout that a test can wait on.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{} // one token: something was written since the last look
}

func newOutput() *output { return &output{more: make(chan struct{}, 1)} }

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	select {
	case o.more <- struct{}{}:
	default: // there is a token already
	}
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// await waits until there are so many lines.
func (o *output) await(t *testing.T, lines int) {
	t.Helper()
	deadline := time.After(pollLimit)
	for strings.Count(o.String(), "\n") < lines {
		select {
		case <-o.more:
		case <-deadline:
			t.Fatalf("no %d lines in:\n%s", lines, o)
		}
	}
}

// running is a `twtrace trace` under way in this process.
type running struct {
	stdout    *output
	stderr    *output
	interrupt context.CancelFunc
	code      chan int
}

func startTrace(t *testing.T, args ...string) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{newOutput(), newOutput(), cancel, make(chan int, 1)}
	go func() { r.code <- Main(ctx, append([]string{"trace"}, args...), r.stdout, r.stderr) }()
	return r
}

// wait returns the exit code.
func (r *running) wait(t *testing.T) int {
	t.Helper()
	select {
	case code := <-r.code:
		return code
	case <-time.After(pollLimit):
		t.Fatalf("twtrace does not end; stderr: %s", r.stderr)
		return -1
	}
}

// account reads the closing lines.
func account(t *testing.T, stderr string) (recorded int) {
	t.Helper()
	m := regexp.MustCompile(`(?m)^(\d+) events recorded.*\n(\d+) events lost in the ring\n(\d+) events skipped by the kernel \((\d+) of them rescued\)$`).
		FindStringSubmatch(stderr)
	if m == nil {
		t.Fatalf("no account in %q", stderr)
	}
	if m[2] != "0" || m[3] != m[4] {
		t.Errorf("something was lost: %q", m[0])
	}
	recorded, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return recorded
}

// TestTraceText holds the life of one connection to RFC 9293 (figures 5 and 12), and the form
// of its lines to tcpstates.
func TestTraceText(t *testing.T) {
	w := newTraced(t)
	r := startTrace(t, "--netns", w.path, "--no-snapshot")
	r.stdout.await(t, 1) // the header: the programs are attached
	w.connect(t, 1)
	r.stdout.await(t, 1+6+5)
	r.interrupt()
	if code := r.wait(t); code != exitDone {
		t.Errorf("exit code %d, stderr %q", code, r.stderr)
	}
	lines := strings.Split(strings.TrimSuffix(r.stdout.String(), "\n"), "\n")
	if got, want := strings.Fields(lines[0]), strings.Fields("TIME PID COMM LADDR LPORT RADDR RPORT EVENT MS"); !slices.Equal(got, want) {
		t.Errorf("header %q", lines[0])
	}
	if n := account(t, r.stderr.String()); n != len(lines)-1 {
		t.Errorf("%d events recorded, %d lines", n, len(lines)-1)
	}
	row := regexp.MustCompile(`^ *\d+\.\d{6} +(?:\d+|-) \S.* 127\.0\.0\.1 +(\d+|-) (127\.0\.0\.1 +\d+|0\.0\.0\.0 +-) (\S.*\S) +(\d+\.\d{3}|-)$`)
	sides := map[bool][]string{} // by: is the server's
	for _, line := range lines[1:] {
		m := row.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("not the line of a connection: %q", line)
			continue
		}
		// 100, if the time in the state is below 10 ms.
		if n := len(strings.TrimRight(strings.TrimSuffix(line, m[4]), " ")); n > 94 {
			t.Errorf("%d columns without the last: %q", n, line)
		}
		// Until 6.12 a child has its peer's address only after its first state.
		if strings.HasPrefix(m[2], "0.0.0.0") && m[3] != "LISTEN -> SYN_RECV" {
			t.Errorf("a connection without a peer: %q", line)
		}
		isServer := m[1] == strconv.Itoa(w.port())
		sides[isServer] = append(sides[isServer], strings.TrimSpace(m[3]))
		if begins := strings.HasPrefix(m[3], "CLOSE ->") || strings.HasPrefix(m[3], "LISTEN ->"); m[4] == "-" && !begins &&
			m[3] != "SYN_RECV -> ESTABLISHED" { // the child's cookie can come after its first state
			t.Errorf("the time in the state before is not known: %q", line)
		}
	}
	if got, want := strings.Join(sides[false], ", "), "CLOSE -> SYN_SENT, SYN_SENT -> ESTABLISHED, ESTABLISHED -> FIN_WAIT1, "+
		"FIN_WAIT1 -> FIN_WAIT2, tw-enter TIME_WAIT, FIN_WAIT2 -> CLOSE"; got != want {
		t.Errorf("client: %s\nwant %s", got, want)
	}
	if got, want := strings.Join(sides[true], ", "), "LISTEN -> SYN_RECV, SYN_RECV -> ESTABLISHED, ESTABLISHED -> CLOSE_WAIT, "+
		"CLOSE_WAIT -> LAST_ACK, LAST_ACK -> CLOSE"; got != want {
		t.Errorf("server: %s\nwant %s", got, want)
	}
}

// event is what is read of a JSON line.
type event struct {
	Schema, Kind, Time string
	Seq                uint64
	MonoNS             int64 `json:"mono_ns"`
	NetNS, Cookie      uint64
	Local, Peer        struct {
		Addr string
		Port int
	}
	Substate string
	NewState string   `json:"new_state"`
	TimeLeft float64  `json:"time_left_ms"`
	InState  *float64 `json:"ms_in_state"`
}

func events(t *testing.T, stdout string) (list []event) {
	t.Helper()
	for line := range strings.Lines(stdout) {
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		if e.Schema != "twtrace.event/1" {
			t.Errorf("schema of %q", line)
		}
		list = append(list, e)
	}
	return list
}

// TestTraceKind: as many TIME_WAITs as the kernel itself counted, and nothing else.
func TestTraceKind(t *testing.T) {
	w := newTraced(t)
	other := newTraced(t)
	r := startTrace(t, "--netns", w.path, "--no-snapshot", "--kind", "tw-enter", "-o", "json")
	for before := time.Now(); strings.Count(r.stdout.String(), "\n") == 0; { // JSON has no header to wait for
		w.connect(t, 1)
		if time.Since(before) > pollLimit {
			t.Fatal("no line")
		}
	}
	began := w.timeWaits(t)
	seen := strings.Count(r.stdout.String(), "\n")
	other.connect(t, 3)
	w.connect(t, 7)
	made := w.timeWaits(t) - began
	r.stdout.await(t, seen+made)
	r.interrupt()
	if code := r.wait(t); code != exitDone {
		t.Errorf("exit code %d, stderr %q", code, r.stderr)
	}
	list := events(t, r.stdout.String())
	if n := account(t, r.stderr.String()); n != len(list) {
		t.Errorf("%d events recorded, %d lines", n, len(list))
	}
	if made != 7 {
		t.Fatalf("the kernel made %d TIME_WAITs, want 7", made)
	}
	// The last of those before may not have been written yet when they were counted.
	if n := len(list) - made; n > began || n < seen {
		t.Errorf("%d lines: %d before and %d after, of which the kernel counted %d and %d", len(list), n, made, began, made)
	}
	cookies := make(map[uint64]bool)
	for i, e := range list {
		if e.Kind != "tw-enter" || e.NetNS != w.ns.Cookie() || e.Peer.Port != w.port() || e.Substate != "time_wait" {
			t.Errorf("%+v", e)
		}
		if e.TimeLeft < 59_000 || e.TimeLeft > 61_000 { // TCP_TIMEWAIT_LEN
			t.Errorf("a TIME_WAIT of %v ms", e.TimeLeft)
		}
		// Known from kinds that are only read along. The first may have been opened
		// while the programs were being attached.
		if e.InState == nil && i >= len(list)-made {
			t.Errorf("no time in the state before: %+v", e)
		}
		if stamp, err := time.Parse(time.RFC3339Nano, e.Time); err != nil || time.Since(stamp).Abs() > time.Hour {
			t.Errorf("time %q: %v", e.Time, err)
		}
		if cookies[e.Cookie] && e.Cookie != 0 {
			t.Errorf("cookie %d twice", e.Cookie)
		}
		cookies[e.Cookie] = true
	}
}

// TestTraceMax: exactly so many lines, and the end comes by itself.
func TestTraceMax(t *testing.T) {
	w := newTraced(t)
	r := startTrace(t, "--netns", w.path, "--no-snapshot", "--max", "3")
	r.stdout.await(t, 1)
	w.connect(t, 2)
	if code := r.wait(t); code != exitDone {
		t.Errorf("exit code %d, stderr %q", code, r.stderr)
	}
	if n := strings.Count(r.stdout.String(), "\n"); n != 1+3 {
		t.Errorf("%d lines:\n%s", n, r.stdout)
	}
	if n := account(t, r.stderr.String()); n != 3 {
		t.Errorf("%d events recorded", n)
	}
}

// TestTraceDuration: it ends by itself, and says that nothing happened.
func TestTraceDuration(t *testing.T) {
	w := newTraced(t)
	r := startTrace(t, "--netns", w.path, "--no-snapshot", "--duration", "50ms")
	if code := r.wait(t); code != exitDone {
		t.Errorf("exit code %d, stderr %q", code, r.stderr)
	}
	if n := strings.Count(r.stdout.String(), "\n"); n != 1 {
		t.Errorf("not only a header:\n%s", r.stdout)
	}
	if n := account(t, r.stderr.String()); n != 0 {
		t.Errorf("%d events recorded", n)
	}
	if !strings.Contains(r.stderr.String(), "hint: ") {
		t.Errorf("no hint: %s", r.stderr)
	}
}

// TestTraceCommand: the command's exit code is passed on; its output is not mixed with the lines.
func TestTraceCommand(t *testing.T) {
	w := newTraced(t)
	for script, want := range map[string]int{"true": 0, "echo hello; exit 7": 7, "kill -TERM $$": 143} {
		t.Run(script, func(t *testing.T) {
			r := startTrace(t, "--netns", w.path, "--no-snapshot", "-o", "json", "--", "sh", "-c", script)
			if code := r.wait(t); code != want {
				t.Errorf("exit code %d, want %d; stderr %q", code, want, r.stderr)
			}
			account(t, r.stderr.String())
			if r.stdout.String() != "" || strings.Contains(script, "hello") != strings.Contains(r.stderr.String(), "hello\n") {
				t.Errorf("stdout %q, stderr %q", r.stdout, r.stderr)
			}
		})
	}
	for name, tt := range map[string]struct {
		command string
		code    int
	}{
		"none":           {"no-such-command-anywhere", 127},
		"no such file":   {"/no/such/command", 127},
		"not executable": {t.TempDir(), 126},
	} {
		t.Run(name, func(t *testing.T) {
			r := startTrace(t, "--netns", w.path, "--", tt.command)
			if code := r.wait(t); code != tt.code || !strings.Contains(r.stderr.String(), "can't run the command") {
				t.Errorf("exit code %d, want %d; stderr %q", code, tt.code, r.stderr)
			}
		})
	}
}

// TestTraceSeesCommand: the trace is of the namespace it is started in, begins before the command
// does, and lasts until its end.
func TestTraceSeesCommand(t *testing.T) {
	w := newTraced(t)
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip(err) // its /dev/tcp is a connection without another program
	}
	cmd := command(t, worldPlain, "trace", "--kind", "state", "-o", "json", "--no-snapshot", "--",
		bash, "-c", fmt.Sprintf("exec 3<>/dev/tcp/127.0.0.1/%d; exit 9", w.port()))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := w.ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 9 {
		t.Errorf("exit code %d, stderr %q", code, stderr.String())
	}
	list := events(t, stdout.String())
	if len(list) != account(t, stderr.String()) || len(list) < 4 {
		t.Fatalf("%d lines, stderr %q", len(list), stderr.String())
	}
	if e := list[0]; e.Kind != "state" || e.NewState != "syn_sent" || e.Peer.Port != w.port() {
		t.Errorf("the first: %+v", e)
	}
	if e := list[len(list)-1]; e.NewState == "established" { // its end closed the socket
		t.Errorf("the last: %+v", e)
	}
}

func TestTraceNotObservable(t *testing.T) {
	w := newTraced(t)
	// Whatever this kernel shows: the line at the start and the exit code say the same.
	r := startTrace(t, "--netns", w.path, "--no-snapshot", "--strict", "--duration", "10ms")
	code := r.wait(t)
	if want := strings.Contains(r.stderr.String(), "not observable"); want != (code == exitIncomplete) || !want && code != exitDone {
		t.Errorf("exit code %d, stderr %q", code, r.stderr)
	}
	r = startTrace(t, "--netns", w.path, "--no-snapshot", "--strict", "--kind", "state", "--duration", "10ms")
	if code := r.wait(t); code != exitDone || strings.Contains(r.stderr.String(), "not observable") {
		t.Errorf("state: exit code %d, stderr %q", code, r.stderr)
	}
}

// TestTraceClosedPipe: who has seen enough (head) ends the trace, and hears nothing of it.
func TestTraceClosedPipe(t *testing.T) {
	w := newTraced(t)
	path := strings.Replace(w.path, "self", strconv.Itoa(os.Getpid()), 1)
	cmd := command(t, worldPlain, "trace", "--netns", path, "--no-snapshot", "--kind", "state")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	stdout.Close()
	w.connect(t, 1)
	err = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitDone || stderr.Len() > 0 {
		t.Errorf("exit code %d (%v), stderr %q", code, err, stderr.String())
	}
}

// TestTraceSignal: Ctrl-C is the usual end.
func TestTraceSignal(t *testing.T) {
	w := newTraced(t)
	path := strings.Replace(w.path, "self", strconv.Itoa(os.Getpid()), 1)
	for _, sig := range []os.Signal{os.Interrupt, unix.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			cmd := command(t, worldPlain, "trace", "--netns", path, "--no-snapshot", "--kind", "state")
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewReader(stdout)
			if _, err := lines.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			w.connect(t, 2)
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(lines)
			if err != nil {
				t.Fatal(err)
			}
			err = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != exitDone {
				t.Errorf("exit code %d (%v), stderr %q", code, err, stderr.String())
			}
			if n := account(t, stderr.String()); n != bytes.Count(rest, []byte("\n")) || n != 2*10 {
				t.Errorf("%d events recorded, want 20 and as many lines:\n%s", n, rest)
			}
		})
	}
}

// TestTraceNotRoot: one line that says what to do.
func TestTraceNotRoot(t *testing.T) {
	testenv.Require(t, testenv.Root) // to become nobody
	for args, code := range map[string]int{
		"trace": exitMachine, "trace --netns all": exitMachine,
		fmt.Sprintf("trace --netns /proc/%d/ns/net", os.Getpid()): exitMachine,
		"trace -p 2147483647": exitFailed, "trace --netns /dev/null": exitUsage,
	} {
		t.Run(args, func(t *testing.T) {
			cmd := command(t, worldPlain, strings.Fields(args)...)
			asNobody(cmd)
			got, stdout, stderr := finish(t, cmd)
			if got != code || stdout != "" || !isOneLine(stderr) {
				t.Errorf("exit code %d, want %d with one line; stdout %q, stderr %q", got, code, stdout, stderr)
			}
			if code == exitMachine && !strings.Contains(stderr, "sudo") {
				t.Errorf("stderr does not say what to do: %s", stderr)
			}
		})
	}
}

// TestTraceNothingLeft: a killed trace leaves no program and no namespace.
func TestTraceNothingLeft(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.BPF)
	marker := filepath.Join(t.TempDir(), "started")
	cmd := command(t, worldPlain, "trace", "--", "sh", "-c", "echo > "+marker+"; exec cat")
	cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNET
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	programs := testenv.Programs(t, strconv.Itoa(cmd.Process.Pid))
	if len(programs) == 0 {
		t.Error("no programs while it runs: the test sees nothing")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	in.Close() // the command ends by itself
	_ = cmd.Wait()
	gone(t, programs, nil)
}
