package watch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/eventline"
)

func sh(t *testing.T, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	t.Cleanup(func() {
		if cmd.Process != nil && cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
		}
	})
	return cmd
}

// TestCommand: the trace ends with the command and passes on how that ended, as
// sh(1p) has it.
func TestCommand(t *testing.T) {
	for script, want := range map[string]int{
		"exit 0": 0, "exit 7": 7, "exit 255": 255, "kill -TERM $$": 128 + 15, "kill -KILL $$": 128 + 9,
	} {
		t.Run(script, func(t *testing.T) {
			src := newScripted()
			account, err := run(t.Context(), src, []space{here{}}, Options{
				Snapshot: true, Command: sh(t, script), Writer: func(Start) eventline.Writer { return &lines{} },
			})
			if err != nil || account.Exit != want {
				t.Errorf("%+v, %v; want exit code %d", account, err, want)
			}
		})
	}
}

// TestCommandOrder: the command finds the trace at work and the snapshot done.
func TestCommandOrder(t *testing.T) {
	src := newScripted()
	cmd := sh(t, "")
	src.list = func() error {
		if cmd.Process != nil {
			t.Error("the command was started before the snapshot was done")
		}
		return nil
	}
	if _, err := run(t.Context(), src, []space{here{}}, Options{
		Snapshot: true, Command: cmd, Writer: func(Start) eventline.Writer { return &lines{} },
	}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"start", "snapshot", "stop", "close"}; !slices.Equal(src.calls, want) {
		t.Errorf("%v, want %v", src.calls, want)
	}
	if cmd.ProcessState == nil {
		t.Error("the command did not run")
	}
}

// TestCommandSurvives: the end of the trace is not that of the command.
func TestCommandSurvives(t *testing.T) {
	src := newScripted()
	cmd := sh(t, "read line; exit 9")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-src.stopped
		in.Close()
	}()
	src.ring <- connect(1)
	account, err := run(t.Context(), src, nil, Options{
		Max: 1, Command: cmd, Writer: func(Start) eventline.Writer { return &lines{} },
	})
	// The shell is not started at all if the line was written before that.
	if err != nil || account.Recorded != 1 || cmd.Process != nil && account.Exit != 9 {
		t.Errorf("%+v, %v", account, err)
	}
}

// TestCommandInterrupted: Ctrl-C ends a command that has not got it itself.
func TestCommandInterrupted(t *testing.T) {
	src := newScripted()
	cmd := sh(t, `trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done`)
	stdout, ready, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	cmd.Stdout = ready
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	go func() {
		_, _ = io.ReadFull(stdout, make([]byte, len("ready")))
		interrupt()
	}()
	account, err := run(ctx, src, nil, Options{Command: cmd, Writer: func(Start) eventline.Writer { return &lines{} }})
	ready.Close()
	if err != nil || account.Exit != 5 {
		t.Errorf("%+v, %v", account, err)
	}
}

// TestNoCommand: what can be known is said before anything is traced.
func TestNoCommand(t *testing.T) {
	_, err := Run(t.Context(), Options{Command: exec.Command("no-such-command-anywhere")})
	if !errors.Is(err, ErrNoCommand) || !errors.Is(err, exec.ErrNotFound) {
		t.Error(err)
	}
	for path, want := range map[string]error{"/no/such/command": os.ErrNotExist, t.TempDir(): os.ErrPermission} {
		src := newScripted()
		_, err := run(t.Context(), src, nil, Options{
			Command: exec.Command(path), Writer: func(Start) eventline.Writer { return &lines{} },
		})
		if !errors.Is(err, ErrNoCommand) || !errors.Is(err, want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestCheckProcesses(t *testing.T) {
	if err := checkProcesses([]uint32{uint32(os.Getpid()), 1}); err != nil {
		t.Error(err)
	}
	// The number of a process that has ended and was waited for.
	ended := exec.Command("true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	err := checkProcesses([]uint32{uint32(os.Getpid()), uint32(ended.Process.Pid)})
	if !errors.Is(err, ErrNoProcess) {
		t.Error(err)
	}

	tid := make(chan int)
	release := make(chan struct{})
	defer close(release)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		tid <- unix.Gettid()
		<-release
	}()
	id := <-tid
	if id == os.Getpid() {
		t.Skip("the goroutine got the main thread")
	}
	if err := checkProcesses([]uint32{uint32(id)}); !errors.Is(err, ErrNoProcess) || !strings.Contains(err.Error(), "thread of process") {
		t.Errorf("a thread: %v", err)
	}
}

// TestEPIPE is the real thing: a pipe that nobody reads any more.
func TestEPIPE(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Close()
	src := newScripted()
	src.ring <- connect(1)
	account, err := run(t.Context(), src, nil, Options{
		Writer: func(Start) eventline.Writer { return eventline.NewText(w, eventline.Options{}) },
	})
	if err != nil || !account.Unwritten {
		t.Errorf("%+v, %v", account, err)
	}
	var whole bytes.Buffer
	src = newScripted()
	src.ring <- connect(1)
	account, err = run(t.Context(), src, nil, Options{
		Max: 1, Writer: func(Start) eventline.Writer { return eventline.NewText(&whole, eventline.Options{}) },
	})
	if err != nil || account.Unwritten || !strings.Contains(whole.String(), "SYN_SENT") {
		t.Errorf("%+v, %v: %s", account, err, whole.String())
	}
}
