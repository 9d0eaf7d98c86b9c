package loadgen

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A shard's thread has a file-descriptor table of its own (unshare(2),
// CLONE_FILES), for two reasons. RLIMIT_NOFILE counts for each table, so that n
// shards can hold n times as many connections. And a table with one user needs
// no reference count per system call (fdget) and no RCU grace period to grow
// (expand_fdtable).
//
// The price is that the thread is also one of the Go runtime's. The runtime's
// network poller is an eventpoll and an eventfd which any thread may use at any
// time: netpoll(0) when the world is started after a garbage collection, a write
// to the eventfd when a timer changes or a thread gives up its processor. If they
// are not at their numbers in every table, the runtime throws ("epollwait on fd …
// failed with 9"). So they have to exist before the first unshare, and have to
// stay. Everything else has to go, because a copy would keep open what the
// process closes: pipes, BPF links, files of namespaces.

// startPoller makes the runtime create its poller, which it does with the first
// timer. It must run on a goroutine whose thread has the process's table.
func startPoller() { time.Sleep(time.Nanosecond) }

// tableCopied is held while a thread has a copy of the process's descriptors, which keeps open what the process closes
// meanwhile: a FIN would be sent a moment late. It is the lock that the syscall package holds while it forks, for the
// same reason, so that who can't have that has one lock to hold for reading.
func tableCopied() (done func()) {
	syscall.ForkLock.Lock()
	return syscall.ForkLock.Unlock
}

// privateFDs gives the calling thread a file-descriptor table of its own, and drops from
// it what is the process's: see unshareFDs and dropFDs.
func privateFDs(wake int) (highest int, err error) {
	defer tableCopied()()
	if err := unshareFDs(); err != nil {
		return 0, err
	}
	return dropFDs(wake, -1)
}

// unshareFDs gives the calling thread a copy of the process's file-descriptor table. On an
// error of this or of dropFDs the thread must not go on.
func unshareFDs() error {
	if err := unix.Unshare(unix.CLONE_FILES); err != nil {
		return fmt.Errorf("unshare the table of open files: %w", err)
	}
	return nil
}

// dropFDs closes in the calling thread's own table everything but 0, 1, 2, the epoll
// instances and the eventfds, of which there must be wake, and keep. It returns the highest
// descriptor left.
//
// The table is read after unshareFDs: nothing but this thread can open files in it
// from then on, so that no descriptor can slip in between reading and closing.
func dropFDs(wake, keep int) (highest int, err error) {
	fds, err := listFDs()
	if err != nil {
		return 0, fmt.Errorf("list the thread's open files: %w", err)
	}
	var pollers, wakes int
	for _, fd := range fds {
		kept := fd.number <= 2 || fd.number == keep
		switch fd.link {
		case "anon_inode:[eventpoll]":
			kept = true
			pollers++
		case "anon_inode:[eventfd]":
			kept = true
			if fd.number == wake {
				wakes++
			}
		}
		if kept {
			highest = max(highest, fd.number)
			continue
		}
		// An error of close() says nothing about the descriptor: it is gone.
		_ = sysClose(fd.number)
	}
	if pollers == 0 || wakes == 0 {
		// Cannot happen unless startPoller ran in another table, or the runtime
		// has changed. Better an error than its throw.
		return 0, errors.New("the Go runtime's poller is not among the thread's open files")
	}
	return highest, nil
}

type openFile struct {
	number int
	link   string
}

// listFDs returns the calling thread's open files, without the descriptor that
// it lists them with. It must not use package os, whose files belong to the
// poller; those of package unix are plain system calls.
func listFDs() ([]openFile, error) {
	const dirName = "/proc/thread-self/fd"
	dir, err := unix.Open(dirName, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dirName, Err: err}
	}
	defer unix.Close(dir)
	var (
		names []string
		buf   [4096]byte
	)
	for {
		n, err := unix.ReadDirent(dir, buf[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "getdents", Path: dirName, Err: err}
		}
		if n <= 0 {
			break
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
	files := make([]openFile, 0, len(names))
	for _, name := range names {
		var number int
		if _, err := fmt.Sscanf(name, "%d", &number); err != nil || number == dir {
			continue
		}
		n, err := unix.Readlinkat(dir, name, buf[:])
		if err != nil {
			return nil, &os.PathError{Op: "readlink", Path: dirName + "/" + name, Err: err}
		}
		files = append(files, openFile{number, string(buf[:n])})
	}
	return files, nil
}

// expandFDs makes the calling thread's table large enough for the descriptor
// top in one step, by a passing copy of the open descriptor from. Grown by doubling, a table is copied under way; in a shared one
// each step waits for RCU (measured: 23 against 30 thousand connections/s).
func expandFDs(from, top int) error {
	fd, err := unix.FcntlInt(uintptr(from), unix.F_DUPFD_CLOEXEC, top)
	if err != nil {
		return fmt.Errorf("expand the table of open files to %d: %w", top, err)
	}
	_ = sysClose(fd) // the descriptor is gone whatever it says
	return nil
}

// fdLimit returns how many descriptors one table may hold.
func fdLimit() (int, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("getrlimit RLIMIT_NOFILE: %w", err)
	}
	// fs.nr_open bounds it at 1,048,576 by default; an array is sized by it.
	return int(min(limit.Cur, 1<<20)), nil
}

// fdReserve is how many descriptors of a table are left for what is not a
// connection: standard files, the runtime's poller, epoll, a listener.
const fdReserve = 64

// shardsFor returns how many shards n open connections need, if each may hold
// fill of what the limit on open files leaves it.
func shardsFor(n, limit int, fill float64) int {
	room := max(1, int(float64(limit-fdReserve)*fill))
	if n <= limit-fdReserve {
		return 1
	}
	return (n + room - 1) / room
}

// wakeUp is an eventfd that is in every shard's table because it was made before
// they were. It is written when there is news for them, and never read: every epoll
// instance that watches it, for edges, sees each write.
type wakeUp struct{ fd int }

func newWakeUp() (wakeUp, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return wakeUp{}, fmt.Errorf("create an eventfd: %w", err)
	}
	return wakeUp{fd}, nil
}

func (w wakeUp) wake() {
	one := binary.NativeEndian.AppendUint64(nil, 1)
	for {
		// It can only fail with EAGAIN, when it has been written 2^64-2 times.
		if _, err := unix.Write(w.fd, one); err != unix.EINTR {
			return
		}
	}
}

func (w wakeUp) close() { _ = unix.Close(w.fd) }
