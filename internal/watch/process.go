package watch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Errors that a caller can decide on, with [errors.Is].
var (
	// ErrNoProcess: a process to be traced does not exist.
	ErrNoProcess = errors.New("no such process")
	// ErrNoCommand: the command can't be run. It wraps exec.ErrNotFound where there is none.
	ErrNoCommand = errors.New("can't run the command")
)

// A command that goes on after the end of the context gets SIGTERM, and then SIGKILL.
// A Ctrl-C on the terminal it has got itself: it is given the time to act on that.
const (
	termAfter = time.Second
	killAfter = 5 * time.Second
)

// checkProcesses finds the numbers that nothing would ever be traced of. The kernel
// side compares with process numbers; those of other threads look the same to a
// user.
func checkProcesses(pids []uint32) error {
	for _, pid := range pids {
		text, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/status")
		if err != nil {
			return fmt.Errorf("trace process %d: %w", pid, ErrNoProcess)
		}
		for line := range strings.Lines(string(text)) {
			tgid, ok := strings.CutPrefix(line, "Tgid:")
			if tgid = strings.TrimSpace(tgid); ok && tgid != strconv.FormatUint(uint64(pid), 10) {
				return fmt.Errorf("trace process %d: %w: it is a thread of process %s", pid, ErrNoProcess, tgid)
			}
		}
	}
	return nil
}

// checkCommand says before anything is traced that there is nothing to run.
func checkCommand(cmd *exec.Cmd) error {
	if cmd == nil || cmd.Err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrNoCommand, cmd.Err)
}

// command runs the command to its end and notes how it ended.
func (s *session) command(ctx context.Context) error {
	cmd := s.opts.Command
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w: %w", ErrNoCommand, err)
	}
	readyErr := s.ready() // the command has what the caller had
	ended := make(chan struct{})
	told := make(chan struct{})
	go func() {
		defer close(told)
		select {
		case <-ended:
			return
		case <-ctx.Done():
		}
		for _, step := range []struct {
			after  time.Duration
			signal os.Signal
		}{{termAfter, unix.SIGTERM}, {killAfter, unix.SIGKILL}} {
			select {
			case <-ended:
				return
			case <-time.After(step.after):
				_ = cmd.Process.Signal(step.signal) // it may have ended just now
			}
		}
	}()
	err := cmd.Wait()
	close(ended)
	<-told
	s.account.Exit = exitStatus(cmd.ProcessState)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		return errors.Join(readyErr, fmt.Errorf("run the command: %w", err))
	}
	return readyErr
}

// exitStatus is how a shell tells the end of a process (sh(1p), 2.8.2).
func exitStatus(state *os.ProcessState) int {
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return state.ExitCode()
}
