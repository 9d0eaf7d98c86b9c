package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/privilege"
	"github.com/twtrace/twtrace/internal/testenv"
)

// asUserWith makes a child run as an ordinary user with these capabilities alone.
func asUserWith(cmd *exec.Cmd, caps []privilege.Capability) {
	asNobody(cmd)
	for _, c := range caps {
		cmd.SysProcAttr.AmbientCaps = append(cmd.SysProcAttr.AmbientCaps, uintptr(c))
	}
}

// TestPrivilegeDropped looks at every thread of a storm that is under way.
func TestPrivilegeDropped(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.Veth, testenv.BPF)
	for _, tt := range []struct {
		args  string
		world string
	}{
		{"run", worldPlain},
		{"run --net loopback -6", worldPlain},
		{"run --net loopback --no-trace", worldPlain},
		{"run --net host", worldPlain},
		{"run --clients 3", worldPlain},
		{"run --net loopback", worldFewFiles}, // many shards: threads with tables and namespaces of their own
	} {
		t.Run(tt.args+" "+tt.world, func(t *testing.T) {
			args := append(strings.Fields(tt.args), "--loops", "1000000", "--connections", "200", "--linger")
			cmd := command(t, tt.world, args...)
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
			for loops := -1; loops < 1; { // the first loop is done, the next under way
				line, err := lines.ReadString('\n')
				if err != nil {
					t.Fatalf("%v; stderr %q", err, stderr.String())
				}
				if loops >= 0 || strings.Contains(line, "LOOP") {
					loops++
				}
			}
			paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", cmd.Process.Pid))
			if err != nil || len(paths) < 4 {
				t.Fatalf("threads %v, %v", paths, err)
			}
			if strings.Contains(tt.args, "--clients 3") {
				children := threadsOfChildren(t, cmd.Process.Pid)
				if len(children) < 3*4 {
					t.Errorf("only %d threads of clients: the test does not see what it is for", len(children))
				}
				paths = append(paths, children...)
			}
			if tt.world == worldFewFiles && len(paths) < 15 {
				t.Errorf("only %d threads: the test does not see what it is for", len(paths))
			}
			const none = "0000000000000000"
			want := map[string]string{
				"CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": none, "CapAmb": none, "NoNewPrivs": "1",
			}
			for _, p := range paths {
				text, err := os.ReadFile(p)
				if err != nil {
					t.Error(err)
					continue
				}
				got := make(map[string]string)
				for line := range strings.Lines(string(text)) {
					if name, value, _ := strings.Cut(line, ":"); want[name] != "" {
						got[name] = strings.TrimSpace(value)
					}
				}
				if !maps.Equal(got, want) {
					t.Errorf("%s: %v", p, got)
				}
			}
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(lines)
			if err != nil {
				t.Fatal(err)
			}
			// How much of it the trace saw is not the question here.
			err = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != exitDone && code != exitIncomplete || stderr.Len() > 0 {
				t.Errorf("%v, stderr %q\n%s", err, stderr.String(), rest)
			}
		})
	}
}

// threadsOfChildren returns the status of every thread of the processes that one started.
func threadsOfChildren(t *testing.T, pid int) (paths []string) {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for _, child := range strings.Fields(string(text)) {
			found, err := filepath.Glob("/proc/" + child + "/task/*/status")
			if err != nil {
				t.Fatal(err)
			}
			paths = append(paths, found...)
		}
	}
	return paths
}

// TestNeeds is the measurement behind privilege.Needs: each command works with what
// its row says, and with no less.
func TestNeeds(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.Veth, testenv.BPF)
	for _, need := range privilege.Needs {
		words := strings.Fields(need.Command)
		switch words[0] {
		case "run":
		case "trace":
			words = append(words, "--duration", "100ms", "--kind", "state,tw-enter")
		default:
			continue
		}
		child := func(t *testing.T, caps []privilege.Capability, more ...string) (code int, stdout, stderr string) {
			args := append(slices.Concat(words, more), "-o", "json")
			if words[0] == "run" {
				args = append(args, "--loops", "1", "--connections", "20")
			}
			cmd := command(t, worldPlain, args...)
			asUserWith(cmd, caps)
			return finish(t, cmd)
		}
		t.Run(need.Command, func(t *testing.T) {
			code, stdout, stderr := child(t, slices.Concat(need.Must, need.Should))
			if words[0] == "trace" {
				if code != exitDone || strings.Contains(stderr, "not observable") {
					t.Errorf("exit code %d, stderr %q", code, stderr)
				}
				return
			}
			if code != exitDone || stderr != "" {
				t.Fatalf("exit code %d, stderr %q", code, stderr)
			}
			// Whether they finish is the host's affair: its loopback may be down.
			if s := summary(t, stdout); s.Totals.Attempts != 20 {
				t.Errorf("%+v", s)
			}
			if need.Loses != "" && strings.Contains(stdout, `"time-wait-enter": "not observable"`) {
				t.Errorf("%s, with all that it should have", need.Loses)
			}
		})
		if words[0] == "run" {
			t.Run(need.Command+" with two clients", func(t *testing.T) {
				code, stdout, stderr := child(t, slices.Concat(need.Must, need.Should), "--clients", "2")
				if code != exitDone || stderr != "" {
					t.Fatalf("exit code %d, stderr %q", code, stderr)
				}
				if s := summary(t, stdout); s.Totals.Attempts != 40 {
					t.Errorf("%+v", s)
				}
			})
		}
		for i, c := range need.Must {
			name := privilege.Names([]privilege.Capability{c})
			t.Run(need.Command+" without "+name, func(t *testing.T) {
				less := slices.Concat(need.Must[:i], need.Must[i+1:], need.Should)
				code, stdout, stderr := child(t, less)
				wantLack(t, code, stdout, stderr, "has no "+name+")", "sudo", "twtrace doctor")
			})
		}
		if len(need.Should) == 0 {
			continue
		}
		t.Run(need.Command+" without "+privilege.Names(need.Should), func(t *testing.T) {
			if addressesForAll(t) {
				t.Skip("this kernel shows its symbols' addresses to everybody")
			}
			code, stdout, stderr := child(t, need.Must)
			if words[0] == "trace" {
				if code != exitDone || !strings.Contains(stderr, "not observable on this kernel") || !strings.Contains(stderr, "tw-enter") {
					t.Errorf("exit code %d, stderr %q", code, stderr)
				}
				return
			}
			if code != exitDone || !strings.Contains(stdout, `"time-wait-enter": "not observable"`) {
				t.Errorf("exit code %d, stdout:\n%s", code, stdout)
			}
			for _, says := range []string{"WARN", need.Loses, privilege.Names(need.Should)} {
				if !strings.Contains(stderr, says) {
					t.Errorf("stderr does not say %q: %s", says, stderr)
				}
			}
		})
	}
}

// addressesForAll: kernel/kallsyms.c, kallsyms_show_value.
func addressesForAll(t *testing.T) bool {
	t.Helper()
	read := func(name string) string {
		text, err := os.ReadFile("/proc/sys/kernel/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	paranoid := read("perf_event_paranoid")
	return read("kptr_restrict") == "0" && (paranoid == "1" || paranoid == "0" || strings.HasPrefix(paranoid, "-"))
}

// TestServeLowPort is in a network namespace of its own, where nobody listens.
func TestServeLowPort(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS)
	cmd := command(t, worldPlain, "serve", "--listen", "127.0.0.1:80")
	cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNET
	asNobody(cmd)
	code, stdout, stderr := finish(t, cmd)
	if code != exitMachine || stdout != "" || !isOneLine(stderr) || !strings.Contains(stderr, "CAP_NET_BIND_SERVICE") {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

// TestServeDropped: a server that was started by root listens below 1024, and has nothing
// left once it says so.
func TestServeDropped(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS)
	cmd := command(t, worldLoopback, "serve", "--listen", "127.0.0.1:80")
	cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNET
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(stdout)
	if line, err := lines.ReadString('\n'); err != nil || line != "listening on 127.0.0.1:80\n" {
		t.Fatalf("%q, %v", line, err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil || !strings.Contains(string(status), "\nCapEff:\t0000000000000000\n") {
		t.Errorf("%v:\n%s", err, status)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// asRootless makes a child root of a user namespace of its own, and nobody outside: what
// `unshare -r` and rootless containers do.
func asRootless(cmd *exec.Cmd) {
	cmd.SysProcAttr.Credential = &syscall.Credential{}
	cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWUSER
	cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 65534, Size: 1}}
	cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 65534, Size: 1}}
}

// TestRootless: the storm alone needs no privilege of the host, whose capabilities it
// does not have and does not drop.
func TestRootless(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.Veth)
	if text, err := os.ReadFile("/proc/sys/user/max_user_namespaces"); err != nil || string(text) == "0\n" {
		t.Skipf("no user namespaces here: %v", err)
	}
	cmd := command(t, worldPlain, "run", "--no-trace", "--loops", "2", "--connections", "20", "--tw-reuse", "1", "-o", "json")
	asRootless(cmd)
	code, stdout, stderr := finish(t, cmd)
	if code != exitDone || stderr != "" {
		t.Fatalf("exit code %d, stderr %q", code, stderr)
	}
	if s := summary(t, stdout); s.Totals.Finished != 40 {
		t.Errorf("%+v", s)
	}
}

// wantLack checks that a command has said in one line what it lacks.
func wantLack(t *testing.T, code int, stdout, stderr string, says ...string) {
	t.Helper()
	if code != exitMachine || stdout != "" || !isOneLine(stderr) {
		t.Errorf("exit code %d, want %d with one line; stdout %q, stderr %q", code, exitMachine, stdout, stderr)
	}
	for _, text := range says {
		if !strings.Contains(stderr, text) {
			t.Errorf("stderr does not say %q: %s", text, stderr)
		}
	}
}
