package netlab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Namespace is one network namespace. All its methods may be called from any
// goroutine. Once the lab is closed those that return an error return ErrClosed;
// on Host, only Counters does.
type Namespace struct {
	host   bool // the namespace of the process
	cookie uint64
	self   *os.File // nsfs; holds the namespace

	// A file of /proc/net belongs to the namespace in which it was opened,
	// whoever reads it (fs/proc/proc_net.c, single_open_net), and begins anew
	// at each read from offset 0.
	snmp, netstat, sockstat *os.File

	buf   sync.Mutex
	bytes []byte
}

// newNamespace makes a fresh namespace, in which no device is up.
func newNamespace() (*Namespace, error) {
	ns := &Namespace{}
	err := inOwnNamespace(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			err = permission(err)
			if errors.Is(err, unix.ENOSPC) {
				err = fmt.Errorf("%w: too many namespaces (sysctl user.max_net_namespaces)", err)
			}
			if errors.Is(err, unix.EINVAL) {
				err = fmt.Errorf("%w: this kernel has no network namespaces (CONFIG_NET_NS)", err)
			}
			return fmt.Errorf("make a network namespace: %w", err)
		}
		return ns.open()
	})
	if err != nil {
		return nil, errors.Join(err, ns.close())
	}
	return ns, nil
}

// hostNamespace returns the namespace of the process.
func hostNamespace() (*Namespace, error) {
	ns := &Namespace{host: true}
	if err := onOwnThread(ns.open); err != nil {
		return nil, errors.Join(err, ns.close())
	}
	return ns, nil
}

// open takes hold of the namespace of the calling thread.
func (ns *Namespace) open() (err error) {
	for path, file := range map[string]**os.File{
		currentNetNS:                     &ns.self,
		"/proc/thread-self/net/snmp":     &ns.snmp,
		"/proc/thread-self/net/netstat":  &ns.netstat,
		"/proc/thread-self/net/sockstat": &ns.sockstat,
	} {
		if *file, err = os.Open(path); err != nil {
			return fmt.Errorf("open a network namespace: %w", err)
		}
	}
	ns.cookie, err = readCookie()
	return err
}

func readCookie() (uint64, error) {
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("make a socket to read the namespace's cookie: %w", err)
	}
	defer unix.Close(s)
	cookie, err := unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read the namespace's cookie: %w", err)
	}
	return cookie, nil
}

func (ns *Namespace) close() error {
	var problems []error
	for _, f := range []*os.File{ns.self, ns.snmp, ns.netstat, ns.sockstat} {
		if f != nil {
			problems = append(problems, f.Close())
		}
	}
	return errors.Join(problems...)
}

// Cookie returns the number that names this namespace among all that this
// kernel has had since boot (SO_NETNS_COOKIE, since 5.14; the same number as
// bpf_get_netns_cookie). It is 0 on a kernel that does not tell. Inode numbers
// do not name a namespace: they are given again at once.
func (ns *Namespace) Cookie() uint64 { return ns.cookie }

// Enter moves the calling OS thread into the namespace. The calling goroutine
// must have locked the thread with [runtime.LockOSThread] and must never unlock
// it, so that the thread ends with the goroutine; it must not be the main
// thread. On Host it does nothing. The errors are ErrClosed and ErrNotPermitted.
func (ns *Namespace) Enter() error {
	if ns.host {
		return nil
	}
	return enter(ns.self)
}

// Do runs f on an OS thread of its own inside the namespace, waits for it, and
// returns its error. The thread is never used for anything else. Sockets that f
// makes itself, and processes it starts, are inside; other goroutines it starts
// are not. A panic of f is a panic of the process.
func (ns *Namespace) Do(f func() error) error {
	if ns.host {
		return onOwnThread(f)
	}
	return inOwnNamespace(func() error {
		if err := ns.Enter(); err != nil {
			return err
		}
		return f()
	})
}

// Sysctl returns the value that a setting below net. has in this namespace, with
// one space between the parts of a value that has several. The key is spelt as
// for [ParseSysctl]. The errors are ErrNoSetting (also on the host), ErrClosed,
// and what reading the file gives (EACCES for a setting that can only be
// written).
func (ns *Namespace) Sysctl(key string) (string, error) {
	key, err := canonicalKey(key)
	if err != nil {
		return "", err
	}
	var value string
	err = ns.Do(func() (err error) {
		value, err = readSysctl(key)
		return err
	})
	return value, err
}

// Counters reads the SNMP counters of the namespace: all of /proc/net/snmp,
// /proc/net/netstat and /proc/net/sockstat. The files are read one after the other, and the kernel
// sums its per-CPU counters without a lock, so a reading taken while packets
// flow is not of one instant.
func (ns *Namespace) Counters() (Counters, error) {
	ns.buf.Lock()
	defer ns.buf.Unlock()
	c := make(Counters, 512) // 6.18 has about 400
	for _, f := range []*os.File{ns.snmp, ns.netstat, ns.sockstat} {
		text, err := ns.readWhole(f)
		if errors.Is(err, os.ErrClosed) {
			return nil, ErrClosed
		}
		if err != nil {
			return nil, fmt.Errorf("read SNMP counters: %w", err)
		}
		parse := c.parse
		if f == ns.sockstat {
			parse = c.parseSockstat
		}
		if err := parse(text); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
	}
	return c, nil
}

// readWhole returns the file by one read from offset 0: a second read at a
// further offset would make the kernel produce the whole text again, with newer
// numbers.
func (ns *Namespace) readWhole(f *os.File) (string, error) {
	for size := max(16<<10, len(ns.bytes)); ; size *= 2 {
		if size > len(ns.bytes) {
			ns.bytes = make([]byte, size)
		}
		n, err := readOnce(f, ns.bytes)
		if err != nil {
			return "", err
		}
		if n < len(ns.bytes) {
			return string(ns.bytes[:n]), nil
		}
	}
}

// readOnce is one pread; [os.File.ReadAt] would go on until the buffer is full.
func readOnce(f *os.File, b []byte) (n int, err error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return 0, os.ErrClosed
	}
	control := conn.Control(func(fd uintptr) {
		for {
			if n, err = unix.Pread(int(fd), b, 0); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	})
	if control != nil {
		return 0, os.ErrClosed
	}
	return n, err
}

// readSysctl reads a canonical key in the namespace of the calling thread.
func readSysctl(key string) (string, error) {
	f, err := os.Open(sysctlPath(key))
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%s: %w", key, ErrNoSetting)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", key, err)
	}
	defer f.Close()
	return readSysctlFile(key, f)
}

// readSysctlFile reads the value anew from an open file, on any thread: the file
// stays with the namespace in which it was opened (fs/proc/proc_sysctl.c).
func readSysctlFile(key string, f *os.File) (string, error) {
	text, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
	if err != nil {
		return "", fmt.Errorf("%s: %w", key, err)
	}
	return strings.Join(strings.Fields(string(text)), " "), nil
}
