package loadgen

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// interruptEvery is the pause between two signals to a thread that may be in a close()
// which waits for SO_LINGER's time: one could come just before the call.
const interruptEvery = 5 * time.Millisecond

// interrupt ends a close() of a thread of this process that waits for SO_LINGER's time
// (sk_stream_wait_close); the connection is then closed as without. The signal is the one by which
// Go's runtime preempts its own threads, whose handler expects it at any time.
func interrupt(thread int) { _ = unix.Tgkill(unix.Getpid(), thread, unix.SIGURG) }

// onDisposableThread runs f on an operating-system thread that nothing else will
// run on and that ends with the calling goroutine, which must do nothing else
// afterwards. f may change what is the thread's own: its namespaces, its
// file-descriptor table. The runtime never clones a locked thread (it has a
// template thread for that), so none of it spreads.
//
// The process's first thread is not used: the runtime would park it instead of
// ending it, and /proc/self would show its file-descriptor table as the
// process's.
func onDisposableThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return // still locked: the thread ends with the goroutine
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		onDisposableThread(f)
	}()
	<-done
	runtime.UnlockOSThread()
}
