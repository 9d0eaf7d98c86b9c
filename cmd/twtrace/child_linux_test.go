package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/testenv"
)

// worldEnv makes the test binary act as twtrace; its value is the world that it
// finds itself in.
const (
	worldEnv   = "TWTRACE_TEST_WORLD"
	worldPlain = "plain"
	worldNoBTF = "no BTF" // in a mount namespace of its own
	// worldFewFiles: with a limit on open files that a storm needs many threads for.
	worldFewFiles = "few files"
	// worldLoopback: with the loopback device up, in a network namespace of its own.
	worldLoopback = "loopback"
	// worldNoPortRange: IP_LOCAL_PORT_RANGE is answered as a kernel before 6.3 does.
	worldNoPortRange = "no port range"
)

// pollLimit bounds the wait for what the kernel does in the background.
const pollLimit = 20 * time.Second

func child(world string) int {
	enter := map[string]func() error{
		worldNoBTF:       hideBTF,
		worldFewFiles:    fewFiles,
		worldLoopback:    loopbackUp,
		worldNoPortRange: refusePortRange,
		worldOwnAddress:  addOwnAddresses,
	}[world]
	if enter != nil {
		if err := enter(); err != nil {
			fmt.Println(err)
			return 99
		}
	}
	main() // which exits
	return 0
}

// hideBTF covers the kernel's own BTF, and every place where a copy may be
// (btf.findVMLinux).
func hideBTF() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, dir := range []string{"/sys/kernel/btf", "/boot", "/lib/modules", "/usr/lib/modules", "/usr/lib/debug"} {
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
			return fmt.Errorf("cover %s: %w", dir, err)
		}
	}
	return nil
}

func fewFiles() error {
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 128, Max: 128})
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// refusePortRange has every thread's setsockopt() of IP_LOCAL_PORT_RANGE fail with
// ENOPROTOOPT (do_ip_setsockopt of a kernel that does not know it).
func refusePortRange() error {
	const nr, arg1, arg2 = 0, 24, 32 // offsets in struct seccomp_data; the low halves of the second and third argument
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: nr},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_SETSOCKOPT, Jf: 5},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: arg1},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_IP, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: arg2},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IP_LOCAL_PORT_RANGE, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOPROTOOPT)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if e != 0 {
		return fmt.Errorf("filter system calls: %w", e)
	}
	return nil
}

// command is twtrace as a child, by a path that every user can follow.
func command(t *testing.T, world string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	cmd.Args[0] = "twtrace"
	cmd.Env = append(os.Environ(), worldEnv+"="+world)
	cmd.Dir = "/"
	cmd.SysProcAttr = new(syscall.SysProcAttr)
	return cmd
}

// finish runs cmd to its end.
func finish(t *testing.T, cmd *exec.Cmd) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// asNobody makes a child run without privilege.
func asNobody(cmd *exec.Cmd) {
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
}

func TestNotRoot(t *testing.T) {
	testenv.Require(t, testenv.Root) // to become nobody
	for _, tt := range []struct {
		args string
		says []string
	}{
		{"run", []string{"sudo"}},
		{"run --net loopback", []string{"sudo"}},
		{"run --net loopback --no-trace", []string{"sudo", "--no-trace --net host"}},
		{"run --net host", []string{"sudo", "--no-trace"}},
	} {
		t.Run(tt.args, func(t *testing.T) {
			cmd := command(t, worldPlain, strings.Fields(tt.args)...)
			asNobody(cmd)
			code, stdout, stderr := finish(t, cmd)
			if code != exitMachine || stdout != "" || !isOneLine(stderr) {
				t.Errorf("exit code %d, want %d with one line; stdout %q, stderr %q", code, exitMachine, stdout, stderr)
			}
			for _, s := range tt.says {
				if !strings.Contains(stderr, s) {
					t.Errorf("stderr does not say %q: %s", s, stderr)
				}
			}
		})
	}
	t.Run("without a trace on the host", func(t *testing.T) {
		cmd := command(t, worldPlain, "run", "--net", "host", "--no-trace", "--loops", "2", "--connections", "20", "-o", "json")
		asNobody(cmd)
		code, stdout, stderr := finish(t, cmd)
		if code != exitDone || stderr != "" {
			t.Fatalf("exit code %d, stderr %q", code, stderr)
		}
		s := summary(t, stdout)
		if s.Totals.Finished != 40 || s.Net != "host" {
			t.Errorf("%+v", s)
		}
	})
}

// TestNoPortRange: said before anything is made or shown; without the flag nothing is asked.
func TestNoPortRange(t *testing.T) {
	testenv.Require(t, testenv.Root) // to filter system calls
	args := []string{"run", "--net", "host", "--no-trace", "--linger", "--loops", "1", "--connections", "10"}
	code, stdout, stderr := finish(t, command(t, worldNoPortRange, append(args, "--local-port-range", "40000-50000")...))
	if code != exitMachine || stdout != "" || !isOneLine(stderr) {
		t.Errorf("exit code %d, want %d with one line; stdout %q, stderr %q", code, exitMachine, stdout, stderr)
	}
	for _, s := range []string{"IP_LOCAL_PORT_RANGE", "6.3", "--port-range"} {
		if !strings.Contains(stderr, s) {
			t.Errorf("stderr does not say %q: %s", s, stderr)
		}
	}
	if code, _, stderr := finish(t, command(t, worldNoPortRange, args...)); code != exitDone {
		t.Errorf("without the flag: exit code %d, stderr %q", code, stderr)
	}
}

func TestNoBTF(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.BPF)
	cmd := command(t, worldNoBTF, "run", "--net", "loopback")
	cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNS
	code, stdout, stderr := finish(t, cmd)
	if code != exitMachine || stdout != "" || !isOneLine(stderr) {
		t.Errorf("exit code %d, want %d with one line; stdout %q, stderr %q", code, exitMachine, stdout, stderr)
	}
	for _, s := range []string{"BTF", "CONFIG_DEBUG_INFO_BTF", "--no-trace"} {
		if !strings.Contains(stderr, s) {
			t.Errorf("stderr does not say %q: %s", s, stderr)
		}
	}
}

// TestUnroutable is in a network namespace without a link that is up, so that
// nothing can be sent whatever the program does.
func TestUnroutable(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS)
	for _, host := range []string{"240.0.0.1", "192.0.2.1", "2001:db8::1"} {
		t.Run(host, func(t *testing.T) {
			cmd := command(t, worldPlain, "run", "--no-trace", "--target", net.JoinHostPort(host, "80"), "--yes-i-may-load", host)
			cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNET
			code, stdout, stderr := finish(t, cmd)
			if code != exitFailed || stdout != "" || !isOneLine(stderr) {
				t.Errorf("exit code %d, want %d with one line; stdout %q, stderr %q", code, exitFailed, stdout, stderr)
			}
			if !strings.Contains(stderr, host) || !strings.Contains(stderr, "ip route get") {
				t.Errorf("stderr does not say what to do: %s", stderr)
			}
		})
	}
}

// document is what is read of a summary.
type document struct {
	Schema, Net string
	Interrupted bool
	Totals      struct{ Attempts, Finished int }
}

func summary(t *testing.T, stdout string) document {
	t.Helper()
	var d document
	dec := json.NewDecoder(strings.NewReader(stdout))
	if err := dec.Decode(&d); err != nil {
		t.Fatalf("%v in %q", err, stdout)
	}
	if _, err := dec.Token(); err != io.EOF {
		t.Errorf("more than one document: %v", err)
	}
	if d.Schema != "twtrace.summary/1" {
		t.Errorf("schema %q", d.Schema)
	}
	return d
}

// TestNothingLeft ends twtrace in each way there is and looks for what is left.
// Other test binaries may be at work at the same time: what a child makes is
// noted while it lives, by names that the kernel gives once (program numbers,
// namespace cookies).
func TestNothingLeft(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.Veth, testenv.BPF)
	for _, tt := range []struct {
		name    string
		clients int
		loops   int
		end     unix.Signal // once a loop is done; 0: it ends by itself
		group   bool        // the signal goes to the whole process group, as Ctrl-C does
		code    int
		says    string
	}{
		{"its own end", 1, 3, 0, false, exitDone, "TIME_WAIT"},
		{"SIGINT", 1, 1_000_000, unix.SIGINT, false, exitDone, "stopped before it was done"},
		{"SIGTERM", 1, 1_000_000, unix.SIGTERM, false, exitDone, "stopped before it was done"},
		{"SIGKILL", 1, 1_000_000, unix.SIGKILL, false, -1, "LOOP"},
		{"three clients", 3, 3, 0, false, exitDone, "  done"},
		{"three clients, SIGINT", 3, 1_000_000, unix.SIGINT, false, exitDone, "stopped before it was done"},
		{"three clients, Ctrl-C", 3, 1_000_000, unix.SIGINT, true, exitDone, "stopped before it was done"},
		{"three clients, SIGKILL", 3, 1_000_000, unix.SIGKILL, false, -1, "LOOP"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			links := linkNames(t)
			settings := hostSettings(t)

			cmd := command(t, worldPlain, "run", "--clients", strconv.Itoa(tt.clients), "--loops", strconv.Itoa(tt.loops),
				"--connections", "200", "--linger", "--tw-reuse", "1", "--fin-timeout", "7", "--port-range", "20000-60000")
			cmd.SysProcAttr.Setpgid = true
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			pid := cmd.Process.Pid
			lines := bufio.NewReader(stdout)
			var text strings.Builder
			for !strings.Contains(text.String(), "LOOP") { // the header, and the storm begins
				line, err := lines.ReadString('\n')
				if text.WriteString(line); err != nil {
					t.Fatalf("%v after %q; stderr %q", err, text.String(), stderr.String())
				}
			}
			programs := testenv.Programs(t, strconv.Itoa(pid))
			spaces := cookiesOf(t, fmt.Sprint(pid))
			if tt.end != 0 {
				if len(programs) == 0 || len(spaces) != 2 {
					t.Errorf("programs %v and %d namespaces while it runs: the test sees nothing", programs, len(spaces))
				}
				line, err := lines.ReadString('\n') // one loop is done, the next under way
				if text.WriteString(line); err != nil {
					t.Fatal(err)
				}
				to := pid
				if tt.group {
					to = -pid
				}
				if err := unix.Kill(to, tt.end); err != nil {
					t.Fatal(err)
				}
			}
			rest, err := io.ReadAll(lines)
			if err != nil {
				t.Fatal(err)
			}
			text.Write(rest)
			err = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != tt.code || stderr.Len() > 0 {
				t.Errorf("exit code %d (%v), want %d; stderr %q", code, err, tt.code, stderr.String())
			}
			if !strings.Contains(text.String(), tt.says) {
				t.Errorf("stdout does not say %q:\n%s", tt.says, text.String())
			}

			gone(t, programs, spaces)
			if got := linkNames(t); !slices.Equal(got, links) {
				t.Errorf("links %v, before %v", got, links)
			}
			after := hostSettings(t)
			for path, value := range settings {
				if after[path] != value {
					t.Errorf("%s is %q, before %q", path, after[path], value)
				}
			}
		})
	}
}

// gone waits until the kernel has let go of programs and namespaces.
func gone(t *testing.T, programs []ebpf.ProgramID, spaces map[uint64]bool) {
	t.Helper()
	deadline := time.Now().Add(pollLimit)
	for {
		var left []string
		for _, id := range testenv.ProgramsLeft(t, programs) {
			left = append(left, fmt.Sprint("program ", id))
		}
		for cookie := range cookiesOf(t, "[0-9]*") {
			if spaces[cookie] {
				left = append(left, fmt.Sprint("namespace ", cookie))
			}
		}
		if len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind: %s", strings.Join(left, ", "))
		}
		time.Sleep(10 * time.Millisecond)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), "nsfs") {
		t.Errorf("a namespace is mounted somewhere (%v)", err)
	}
}

// cookiesOf returns the cookies of the network namespaces, this one's excepted,
// that the threads of processes are in or that they have open. Inode numbers
// would not do: the kernel gives them again at once.
func cookiesOf(t *testing.T, processes string) map[uint64]bool {
	t.Helper()
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	paths := make(map[string]string) // one for each namespace
	for _, pattern := range []string{"/task/*/ns/net", "/fd/*"} {
		found, _ := filepath.Glob("/proc/" + processes + pattern)
		for _, p := range found {
			if name, err := os.Readlink(p); err == nil && name != home && strings.HasPrefix(name, "net:[") {
				paths[name] = p
			}
		}
	}
	cookies := make(map[uint64]bool)
	done := make(chan error)
	for _, p := range paths {
		go inside(p, done, func() error {
			cookie, err := netnsCookie()
			if err == nil {
				cookies[cookie] = true
			}
			return err
		})
		if err := <-done; err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Logf("%s: %v", p, err) // its process has ended meanwhile
		}
	}
	return cookies
}

// inside runs f in a namespace, on a thread that ends with it, and sends what came
// of it. Never on the main thread, which Go parks instead of ending it: while
// this goroutine keeps that one, another gets another.
func inside(path string, done chan<- error, f func() error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		other := make(chan error)
		go inside(path, other, f)
		done <- <-other
		runtime.UnlockOSThread()
		return
	}
	done <- enterAnd(path, f)
}

func enterAnd(path string, f func() error) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(home)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return err
	}
	// So that the dying thread is not seen there.
	return errors.Join(f(), unix.Setns(home, unix.CLONE_NEWNET))
}

func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
}

func linkNames(t *testing.T) (names []string) {
	t.Helper()
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		names = append(names, l.Name)
	}
	slices.Sort(names)
	return names
}

// hostSettings reads every setting of TCP and IP in this namespace.
func hostSettings(t *testing.T) map[string]string {
	t.Helper()
	settings := make(map[string]string)
	for _, dir := range []string{"ipv4", "core"} {
		paths, err := filepath.Glob("/proc/sys/net/" + dir + "/*")
		if err != nil || len(paths) == 0 {
			t.Fatalf("%v, %v", paths, err)
		}
		for _, p := range paths {
			if text, err := os.ReadFile(p); err == nil { // or it is a directory, or only for writing
				settings[p] = string(text)
			}
		}
	}
	return settings
}
