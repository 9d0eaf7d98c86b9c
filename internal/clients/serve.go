package clients

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/loadgen"
)

// Command is the argument with which a Group starts the program again.
const Command = "client"

// The descriptors that a client is started with.
const (
	linkFD  = 3
	begunFD = 4
)

// ErrByHand says that the process was not started by a Group.
var ErrByHand = errors.New("a client process is started by `twtrace run --clients`, not by hand")

// Serve is the whole life of a client process. It ends early, with everything that it
// has come to reported, when ctx does, and when the parent says so or is gone.
// onReady is called when every thread of the storm is set up, before its first socket. The
// errors are ErrByHand and those of reaching a parent that is there; of all others it is told.
func Serve(ctx context.Context, onReady func() error) error {
	up, begun, err := inherit()
	if err != nil {
		return err
	}
	nameThreads(filepath.Base(os.Args[0]))
	ctx, cancel := context.WithCancel(ctx)
	c := client{link: up, cancel: cancel, begin: make(chan struct{}, 1)}
	var listening sync.WaitGroup
	defer listening.Wait()
	defer up.conn.Close()
	defer cancel()

	var plan loadgen.Plan
	if err := c.receivePlan(&plan); err != nil {
		return err
	}
	listening.Go(func() { c.listen(ctx) })

	plan.Begun = begun
	plan.OnReady = func() error {
		if err := onReady(); err != nil {
			return err
		}
		c.tell(kindReady, nil)
		c.await(ctx)
		return nil
	}
	plan.OnAttempts = func(attempts []loadgen.Attempt) { c.tell(kindAttempts, inMemory(attempts)) }
	plan.OnLoop = func(l loadgen.LoopResult) {
		c.tell(kindLoopEnd, nil)
		if l.Loop < plan.Loops {
			c.await(ctx)
		}
	}
	if err := up.sendJSON(kindResult, storm(ctx, plan)); !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		return err
	}
	return nil // the parent is gone, and nobody is left to tell
}

// storm runs the plan, with a processor of Go's scheduler for each thread.
func storm(ctx context.Context, plan loadgen.Plan) outcome {
	s, err := loadgen.NewStorm(plan)
	if err != nil {
		return outcome{Error: err.Error()}
	}
	runtime.GOMAXPROCS(runtime.NumCPU() + s.Shards())
	result, err := s.Run(ctx)
	if err != nil {
		return outcome{Error: err.Error()}
	}
	return outcome{
		PortSkips: result.PortSkips, Stalls: result.Stalls, HeldBack: result.HeldBack,
		Canceled: result.Canceled, TimeIsUp: result.TimeIsUp,
	}
}

// inherit takes what the parent left open, and touches nothing if it was not the parent.
func inherit() (*link, *atomic.Uint64, error) {
	if peer, err := unix.GetsockoptUcred(linkFD, unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil || int(peer.Pid) != os.Getppid() {
		return nil, nil, ErrByHand
	}
	file := os.NewFile(linkFD, "the parent")
	defer file.Close() // FileConn has a copy
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, nil, ErrByHand
	}
	up, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, nil, errors.Join(ErrByHand, conn.Close())
	}
	page, err := unix.Mmap(begunFD, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, errors.Join(ErrByHand, conn.Close())
	}
	_ = unix.Close(begunFD)
	return &link{conn: up}, (*atomic.Uint64)(unsafe.Pointer(&page[0])), nil
}

// nameThreads gives the process and its threads the program's name, which later threads
// inherit: the kernel named them after the file that was executed, "exe". If it fails, so they stay.
func nameThreads(name string) {
	tasks, _ := filepath.Glob("/proc/self/task/*/comm")
	for _, path := range tasks {
		_ = os.WriteFile(path, []byte(name), 0)
	}
}

// client is what a client process knows of its parent.
type client struct {
	link   *link
	cancel context.CancelFunc
	begin  chan struct{} // loops that may begin; there is never more than one
}

func (c *client) receivePlan(plan *loadgen.Plan) error {
	k, length, err := c.link.next()
	if err == nil && k != kindPlan {
		err = errMessage
	}
	if err == nil {
		err = c.link.receiveJSON(length, plan)
	}
	if err != nil {
		return fmt.Errorf("receive the storm's plan: %w", err)
	}
	return nil
}

// listen does what the parent says until it is gone.
func (c *client) listen(ctx context.Context) {
	defer c.cancel()
	for {
		k, _, err := c.link.next()
		if err != nil || k != kindBegin {
			return
		}
		select {
		case c.begin <- struct{}{}:
		case <-ctx.Done():
			return
		}
	}
}

// await returns when the next loop may begin, or none will.
func (c *client) await(ctx context.Context) {
	select {
	case <-c.begin:
	case <-ctx.Done():
	}
}

// tell sends to the parent. If that fails the parent is gone, and there is nobody to
// run for.
func (c *client) tell(k kind, body []byte) {
	if c.link.send(k, body) != nil {
		c.cancel()
	}
}
