package netlab

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// currentNetNS is the network namespace of the thread that opens it; /proc/self
// would be that of the main thread.
const currentNetNS = "/proc/thread-self/ns/net"

var errGoexit = errors.New("the function ended its goroutine (runtime.Goexit) and returned nothing")

// onOwnThread runs f on a new OS thread, waits for it, and lets the thread die,
// whatever f did to it. The thread starts in the namespace of the process: Go
// clones the threads that follow a locked one from a template thread of its own
// (runtime/proc.go, startTemplateThread).
//
// f never runs on the main thread, because the runtime parks that thread forever
// instead of ending it (runtime/proc.go, mexit), and it would hold whatever
// namespace it is in.
func onOwnThread(f func() error) error {
	result := make(chan error, 1) // one result; the goroutine must not wait for the reader
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// While this goroutine keeps the main thread, another gets another.
			result <- onOwnThread(f)
			runtime.UnlockOSThread()
			return
		}
		err := errGoexit
		defer func() { result <- err }()
		err = f()
	}()
	return <-result
}

// inOwnNamespace is onOwnThread for an f that moves the thread to another
// namespace: it moves it back before it reports, so that the namespace is not
// held for as long as the thread takes to die.
func inOwnNamespace(f func() error) error {
	return onOwnThread(func() error {
		home, err := os.Open(currentNetNS)
		if err != nil {
			return fmt.Errorf("open the network namespace of this process: %w", err)
		}
		defer home.Close()
		// If this fails the thread dies inside, a moment later.
		defer func() { _ = enter(home) }()
		return f()
	})
}

// enter moves the calling thread into the namespace.
func enter(namespace *os.File) error {
	conn, err := namespace.SyscallConn()
	if err != nil {
		return ErrClosed
	}
	var setns error
	if err := conn.Control(func(fd uintptr) { setns = unix.Setns(int(fd), unix.CLONE_NEWNET) }); err != nil {
		return ErrClosed // Control fails only on a closed file
	}
	if setns != nil {
		return fmt.Errorf("enter the network namespace: %w", permission(setns))
	}
	return nil
}

// permission adds what is missing to an EPERM.
func permission(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: %w", ErrNotPermitted, err)
	}
	return err
}
