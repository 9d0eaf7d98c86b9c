package privilege

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"github.com/twtrace/twtrace/internal/testenv"
)

// childEnv makes the test binary a process that drops its privilege; its value
// says what it will do later.
const childEnv = "PRIVILEGE_TEST_LATER"

func TestMain(m *testing.M) {
	if later, ok := os.LookupEnv(childEnv); ok {
		if err := child(later); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// laters is what a child says that it will do after Drop.
var laters = map[string][]Later{
	"nothing": nil,
	// A kernel until 5.18, which wants CAP_BPF in effect.
	"asks": {ReadStats(func() error {
		held, err := Effective()
		if err == nil && !held.Has(cap.BPF) {
			err = fmt.Errorf("read the counters: %w", unix.EPERM)
		}
		return err
	})},
	"does not ask": {ReadStats(func() error { return nil })},
	"fails":        {ReadStats(func() error { return unix.EIO })},
}

// child drops privilege while several threads are locked, and prints what each
// thread has then.
func child(later string) error {
	hold := make(chan struct{})
	locked := make(chan struct{})
	const threads = 5
	for range threads {
		go func() {
			runtime.LockOSThread()
			locked <- struct{}{}
			<-hold
		}()
	}
	// One of them in a system call, as a shard in epoll_wait() is.
	go func() {
		var pipe [2]int
		if err := unix.Pipe(pipe[:]); err != nil {
			panic(err)
		}
		runtime.LockOSThread()
		locked <- struct{}{}
		for {
			if _, err := unix.Read(pipe[0], make([]byte, 1)); err != unix.EINTR {
				panic(err)
			}
		}
	}()
	for range threads + 1 {
		<-locked
	}
	if err := Drop(laters[later]...); err != nil {
		return err
	}
	sets, n, err := threadSets("self")
	if err != nil {
		return err
	}
	if n <= threads {
		return fmt.Errorf("only %d threads", n)
	}
	for name, value := range sets {
		fmt.Println(name, value)
	}
	close(hold)
	return nil
}

// threadSets returns the capability sets and no_new_privs of a process's threads,
// from proc_pid_status(5), all of which must be the same.
func threadSets(process string) (sets map[string]string, threads int, err error) {
	paths, err := filepath.Glob("/proc/" + process + "/task/*/status")
	if err != nil {
		return nil, 0, err
	}
	for _, p := range paths {
		text, err := os.ReadFile(p)
		if err != nil {
			return nil, 0, err
		}
		one := make(map[string]string)
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(line, ":")
			if strings.HasPrefix(name, "Cap") || name == "NoNewPrivs" {
				one[name] = strings.TrimSpace(value)
			}
		}
		if sets != nil && !maps.Equal(sets, one) {
			return nil, 0, fmt.Errorf("threads differ: %v and %v", sets, one)
		}
		sets = one
	}
	return sets, len(paths), nil
}

func TestDrop(t *testing.T) {
	testenv.Require(t, testenv.Root)
	const (
		none  = "0000000000000000"
		bpf   = "0000008000000000" // 1 << 39
		admin = "0000000000200000" // 1 << 21
	)
	// The bounding set goes with CAP_SETPCAP alone, and is the test's own otherwise.
	own, _, err := threadSets("self")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		later   string
		ambient []Capability // of an ordinary user; nil: root
		left    string
		bound   string
	}{
		{"nothing", nil, none, none},
		{"does not ask", nil, none, none},
		{"fails", nil, none, none},
		{"asks", nil, bpf, bpf},
		{"nothing", []Capability{cap.SYS_ADMIN, cap.BPF, cap.SETPCAP}, none, none},
		{"nothing", []Capability{cap.SYS_ADMIN, cap.BPF}, none, own["CapBnd"]},
		{"asks", []Capability{cap.NET_ADMIN, cap.BPF, cap.SYS_ADMIN}, bpf, own["CapBnd"]},
		{"asks", []Capability{cap.NET_ADMIN, cap.SYS_ADMIN}, admin, own["CapBnd"]}, // which includes it
		{"asks", []Capability{cap.NET_ADMIN}, none, own["CapBnd"]},
		{"nothing", []Capability{}, none, own["CapBnd"]},
	} {
		t.Run(fmt.Sprintf("%s of %v", tt.later, tt.ambient), func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
			cmd.Env = append(os.Environ(), childEnv+"="+tt.later)
			cmd.Dir = "/"
			cmd.SysProcAttr = new(syscall.SysProcAttr)
			if tt.ambient != nil {
				cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
				for _, c := range tt.ambient {
					cmd.SysProcAttr.AmbientCaps = append(cmd.SysProcAttr.AmbientCaps, uintptr(c))
				}
			}
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %s%s", err, out, stderr.String())
			}
			got := make(map[string]string)
			for line := range strings.Lines(string(out)) {
				name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
				got[name] = value
			}
			want := map[string]string{
				"CapEff": tt.left, "CapPrm": tt.left, "CapInh": none, "CapAmb": none,
				"CapBnd": tt.bound, "NoNewPrivs": "1",
			}
			if !maps.Equal(got, want) {
				t.Errorf("left %v, want %v", got, want)
			}
		})
	}
}

func TestWithout(t *testing.T) {
	before, err := Effective()
	if err != nil {
		t.Fatal(err)
	}
	failure := errors.New("as it was told")
	err = Without(func() error {
		held, err := Effective()
		if err != nil {
			return err
		}
		if held != 0 {
			return fmt.Errorf("it has %s", listed(held))
		}
		return failure
	})
	if !errors.Is(err, failure) {
		t.Errorf("%v", err)
	}
	// Nothing of that stays, on any thread.
	want, n, err := threadSets("self")
	if err != nil || n < 2 {
		t.Fatalf("%d threads: %v", n, err)
	}
	after, err := Effective()
	if err != nil {
		t.Fatal(err)
	}
	if after != before || want["NoNewPrivs"] != "0" {
		t.Errorf("%s, before %s; %v", listed(after), listed(before), want)
	}
}
