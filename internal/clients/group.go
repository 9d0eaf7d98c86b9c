package clients

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/loadgen"
)

// Max is the largest number of clients in a Group.
const Max = tcp.MaxClients

// Account is what one client came to.
type Account struct {
	PID                        int
	Attempts, Finished, Failed int
	Errors                     map[tcp.Errno]int
	// NotReported is how many more attempts it had begun when it was killed.
	NotReported int
	// Ended says how: Done, Interrupted, "killed by SIGKILL" or another signal, or "exit status N".
	Ended string
}

// How a client ended that could say so itself: it did all of the storm, or was stopped before
// it had, with the run or by a signal of its own.
const (
	Done        = "done"
	Interrupted = "interrupted"
)

// Group is some client processes. They wait for Run, which is for one storm.
type Group struct {
	procs []*process
	over  chan struct{} // closed when all have ended
	held  chan error    // what became of the thread that they were started from; one result

	closing  sync.Once
	closeErr error
}

// process is a client as the parent sees it. What is not said to be atomic belongs to the
// goroutine that follows it while there is one.
type process struct {
	number int // from 0
	cmd    *exec.Cmd
	link   *link
	page   []byte // shared with it
	// silent: the parent killed it because it did not answer.
	silent bool
	// stopping: what is not answered soon will never be.
	stopping atomic.Bool
	outcome  *outcome // nil: it has not told

	// What it has reported, for who asks while it runs.
	reported, failed atomic.Int64

	reap  sync.Once
	state *os.ProcessState
	tally Account
}

// Start starts n clients on the thread on which inside calls its argument, and so in the
// network namespace of that thread. It may be the caller's thread, or one that lasts as long.
func Start(n int, inside func(func() error) error) (*Group, error) {
	g := &Group{over: make(chan struct{}), held: make(chan error, 1)}
	started := make(chan error, 1)
	// Its parent-death signal comes to a process when the thread that started it ends, not
	// the process of that thread (prctl(2), PR_SET_PDEATHSIG). So the thread stays.
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		g.held <- inside(func() error {
			err := g.start(n)
			started <- err
			<-g.over
			return nil
		})
	}()
	select {
	case err := <-started:
		if err != nil {
			return nil, errors.Join(err, g.Close())
		}
		return g, nil
	case err := <-g.held: // it never got inside
		return nil, fmt.Errorf("start client processes: %w", err)
	}
}

func (g *Group) start(n int) error {
	for i := range n {
		p, err := startProcess(i)
		if err != nil {
			return fmt.Errorf("start client process %d: %w", i+1, err)
		}
		g.procs = append(g.procs, p)
	}
	return nil
}

func startProcess(number int) (_ *process, err error) {
	p := &process{number: number}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.free())
		}
	}()
	theirs, err := p.connect()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	shared, err := p.share()
	if err != nil {
		return nil, err
	}
	defer shared.Close()

	p.cmd = exec.Command("/proc/self/exe", Command)
	p.cmd.Args[0] = os.Args[0]
	p.cmd.Stderr = os.Stderr // where a panic would go
	p.cmd.ExtraFiles = []*os.File{linkFD - 3: theirs, begunFD - 3: shared}
	// In the process group of its parent, so that Ctrl-C comes to both.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	p.tally = Account{PID: p.cmd.Process.Pid, Errors: make(map[tcp.Errno]int)}
	return p, nil
}

// connect makes the link, and returns the client's end.
func (p *process) connect() (*os.File, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(ends[0]), "client"), os.NewFile(uintptr(ends[1]), "parent")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, errors.Join(err, theirs.Close())
	}
	p.link = &link{conn: conn.(*net.UnixConn)}
	return theirs, nil
}

// share makes the page of memory, and returns the file that it is of.
func (p *process) share() (*os.File, error) {
	fd, err := unix.MemfdCreate("begun", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("begun", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("make shared memory: %w", err)
	}
	file := os.NewFile(uintptr(fd), "begun")
	size := os.Getpagesize()
	if err := file.Truncate(int64(size)); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	if p.page, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, errors.Join(fmt.Errorf("map shared memory: %w", err), file.Close())
	}
	return file, nil
}

// begun is how many attempts the client has begun.
func (p *process) begun() int {
	return int((*atomic.Uint64)(unsafe.Pointer(&p.page[0])).Load())
}

// progress is how far it is. An attempt that it has not reported counts as open.
func (p *process) progress() (c loadgen.ProgressCounts) {
	reported := p.reported.Load()
	c.Failed = p.failed.Load()
	c.Started = max(int64(p.begun()), reported)
	c.Finished = max(0, reported-c.Failed)
	c.Open = c.Started - reported
	return c
}

// free lets go of all but the process.
func (p *process) free() error {
	var errs []error
	if p.link != nil {
		errs = append(errs, p.link.conn.Close())
	}
	if p.page != nil {
		errs = append(errs, unix.Munmap(p.page))
		p.page = nil
	}
	return errors.Join(errs...)
}

// kill is SIGKILL; that it has ended already is as good.
func (p *process) kill() { _ = p.cmd.Process.Kill() }

// wait returns when the process has ended, all its threads and sockets with it.
func (p *process) wait() {
	p.reap.Do(func() {
		// How it ended is in the state, and is a result, not an error.
		_ = p.cmd.Wait()
		p.state = p.cmd.ProcessState
	})
}

// stopLimit is how long a client may be silent once it was told to stop; then it is killed. It
// reports every few hundred connections that it closes.
const stopLimit = 3 * time.Second

// stop tells the client to end what is under way, and sees to it that it does.
func (p *process) stop() {
	p.stopping.Store(true)
	// Errors of either are those of a connection whose other end is gone, which whoever
	// follows the client hears of too.
	_ = p.link.conn.SetReadDeadline(time.Now().Add(stopLimit))
	_ = p.link.send(kindStop, nil)
}

// PIDs are the process numbers of the clients.
func (g *Group) PIDs() []int {
	pids := make([]int, len(g.procs))
	for i, p := range g.procs {
		pids[i] = p.tally.PID
	}
	return pids
}

// Accounts is what the clients came to, once Run has returned.
func (g *Group) Accounts() []Account {
	accounts := make([]Account, len(g.procs))
	for i, p := range g.procs {
		accounts[i] = p.tally
	}
	return accounts
}

// Close kills what still runs, and returns when nothing does. It must not be called while Run
// is at work, and may be called more than once.
func (g *Group) Close() error {
	g.closing.Do(func() {
		var errs []error
		for _, p := range g.procs {
			p.kill()
		}
		for _, p := range g.procs {
			p.wait()
			errs = append(errs, p.free())
		}
		close(g.over)
		g.closeErr = errors.Join(append(errs, <-g.held)...)
	})
	return g.closeErr
}

// ended says how the process did.
func (p *process) ended() string {
	status, ok := p.state.Sys().(syscall.WaitStatus)
	switch {
	case p.outcome != nil && p.outcome.Canceled:
		return Interrupted
	case p.outcome != nil:
		return Done
	case p.silent:
		return "killed because it did not stop"
	case ok && status.Signaled():
		return "killed by " + unix.SignalName(status.Signal())
	}
	return p.state.String()
}

// take adds attempts up.
func (a *Account) take(attempts []loadgen.Attempt) {
	for i := range attempts {
		a.Attempts++
		if !attempts[i].Failed() {
			a.Finished++
			continue
		}
		a.Failed++
		a.Errors[attempts[i].Errno]++
	}
}
