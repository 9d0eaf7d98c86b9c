// Command init is the first process of a virtual machine of internal/vmtest: it
// makes the file systems that a test expects, inserts the modules, runs the jobs of
// its plan one after the other, and powers off.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/vmtest/guest"
)

// resultsPort is the second serial port; the first one is the kernel's console.
const resultsPort = "/dev/ttyS1"

var mounts = []struct {
	source, target, data string
	flags                uintptr
}{
	{"proc", "/proc", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	{"sysfs", "/sys", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	{"devtmpfs", "/dev", "mode=0755", unix.MS_NOSUID},
	{"tmpfs", "/tmp", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
	{"tmpfs", "/run", "mode=0755", unix.MS_NOSUID | unix.MS_NODEV},
	{"tracefs", "/sys/kernel/tracing", "", 0},
	{"bpf", "/sys/fs/bpf", "", 0},
	{"cgroup2", "/sys/fs/cgroup", "", 0},
}

func main() {
	if os.Getpid() == 1 {
		first()
	}
	out, err := openResults()
	if err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
		os.Exit(1)
	}
	if err := work(out); err != nil {
		out.send(guest.Message{Kind: guest.Failed, Text: err.Error()})
	}
	// Nothing is to be lost with the power.
	if err := unix.IoctlSetInt(int(out.f.Fd()), unix.TCSBRK, 1); err != nil {
		fmt.Fprintln(os.Stderr, "init: drain the serial port:", err)
	}
}

// first is what process 1 does, and never returns: it collects the orphans, which
// os/exec would take the jobs' own from, so the work is a child's.
func first() {
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			fmt.Fprintln(os.Stderr, "init:", err)
		}
		if err := unix.Mount(m.source, m.target, m.source, m.flags, m.data); err != nil {
			fmt.Fprintf(os.Stderr, "init: mount %s: %v\n", m.target, err)
		}
	}
	child, err := syscall.ForkExec(os.Args[0], os.Args[:1], &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
	if err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
	}
	for err == nil {
		var pid int
		if pid, err = syscall.Wait4(-1, nil, 0, nil); err == nil && pid == child {
			break
		}
		if errors.Is(err, unix.EINTR) {
			err = nil
		}
	}
	fmt.Fprintln(os.Stderr, "init: power off:", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
	select {}
}

func work(out *results) error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	out.send(guest.Message{Kind: guest.Up, Text: unix.ByteSliceToString(name.Release[:])})
	text, err := os.ReadFile(guest.PlanFile)
	if err != nil {
		return err
	}
	var plan guest.Plan
	if err := json.Unmarshal(text, &plan); err != nil {
		return fmt.Errorf("read %s: %w", guest.PlanFile, err)
	}
	for _, path := range plan.Modules {
		if err := insert(path); err != nil {
			return fmt.Errorf("insert %s: %w", path, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	// All that the kernel allows (fs.nr_open). By the package syscall, so that
	// os/exec hands it on.
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 1 << 20, Max: 1 << 20}); err != nil {
		return fmt.Errorf("RLIMIT_NOFILE: %w", err)
	}
	for _, job := range plan.Jobs {
		run(out, job)
	}
	out.send(guest.Message{Kind: guest.Done})
	return nil
}

func insert(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

func run(out *results, job guest.Job) {
	out.send(guest.Message{Kind: guest.Start, Job: job.Name})
	ctx, cancel := context.WithTimeout(context.Background(), job.Limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, job.Argv[0], job.Argv[1:]...)
	cmd.Dir, cmd.Env = job.Dir, job.Env
	cmd.Stdout = stream{out, guest.Stdout, job.Name}
	cmd.Stderr = stream{out, guest.Stderr, job.Name}
	if job.Merge {
		cmd.Stderr = cmd.Stdout
	}
	// A process that a job left behind keeps its pipe open.
	cmd.WaitDelay = 10 * time.Second
	err := cmd.Run()
	end := guest.Message{Kind: guest.End, Job: job.Name, Code: -1}
	if cmd.ProcessState != nil {
		end.Code = cmd.ProcessState.ExitCode()
	}
	var exited *exec.ExitError
	switch {
	case ctx.Err() != nil:
		end.Text = fmt.Sprintf("killed after %v", job.Limit)
	case errors.As(err, &exited) && exited.Exited():
	case err != nil:
		end.Text = err.Error()
		if end.Code == 0 {
			end.Code = -1 // left its output open
		}
	}
	out.send(end)
}

// results is the way to the host.
type results struct {
	mu sync.Mutex
	f  *os.File
}

func openResults() (*results, error) {
	// Without waiting for a carrier.
	fd, err := unix.Open(resultsPort, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", resultsPort, err)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		return nil, fmt.Errorf("%s: %w", resultsPort, err)
	}
	tty, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("termios of %s: %w", resultsPort, err)
	}
	tty.Iflag, tty.Oflag, tty.Lflag = 0, 0, 0 // raw: bytes as they are, no echo
	tty.Cflag |= unix.CLOCAL
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, tty); err != nil {
		return nil, fmt.Errorf("termios of %s: %w", resultsPort, err)
	}
	return &results{f: os.NewFile(uintptr(fd), resultsPort)}, nil
}

func (r *results) send(m guest.Message) {
	line, err := json.Marshal(m)
	if err == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		_, err = r.f.Write(append(line, '\n'))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "init: tell the host:", err)
	}
}

// stream sends on what a job writes.
type stream struct {
	out  *results
	kind guest.Kind
	job  string
}

var _ io.Writer = stream{}

func (s stream) Write(p []byte) (int, error) {
	s.out.send(guest.Message{Kind: s.kind, Job: s.job, Text: string(p)})
	return len(p), nil
}
