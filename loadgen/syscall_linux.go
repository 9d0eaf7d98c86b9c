package loadgen

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of the hot loops. They are raw: none of them blocks, because every
// socket is non-blocking, so that the scheduler need not be told (25-80 ns each).
// The two that can block are marked, and tell it. Pointers point into shards,
// which live on the heap, so that nothing escapes per call.

// sysSocket opens a non-blocking TCP socket.
func sysSocket(family int) (int, unix.Errno) {
	fd, _, e := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family),
		unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	return int(fd), e
}

func sysSetsockopt(fd int, o *sockopt) unix.Errno {
	_, _, e := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(o.level), uintptr(o.name),
		uintptr(unsafe.Pointer(&o.value[0])), uintptr(o.size), 0)
	return e
}

// sysGetsockopt fills the size bytes at p, and returns how many the kernel wrote.
func sysGetsockopt(fd, level, name int, p unsafe.Pointer, size uint32) (uint32, unix.Errno) {
	_, _, e := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(p), uintptr(unsafe.Pointer(&size)), 0)
	return size, e
}

func sysConnect(fd int, a *sockaddr) unix.Errno {
	_, _, e := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&a.raw)), uintptr(a.size))
	return e
}

func sysBind(fd int, a *sockaddr) unix.Errno {
	_, _, e := unix.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&a.raw)), uintptr(a.size))
	return e
}

// sysGetsockname fills a.
func sysGetsockname(fd int, a *sockaddr) unix.Errno {
	a.size = uint32(unsafe.Sizeof(a.raw))
	_, _, e := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd),
		uintptr(unsafe.Pointer(&a.raw)), uintptr(unsafe.Pointer(&a.size)))
	return e
}

// sysSend sends n bytes at p; without SIGPIPE. 0 bytes are worth sending: the
// kernel checks the state and the error of the socket first (tcp_sendmsg_locked).
func sysSend(fd int, p *byte, n int) (int, unix.Errno) {
	for {
		r, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(p)), uintptr(n),
			unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT, 0, 0)
		if e != unix.EINTR {
			return int(r), e
		}
	}
}

func sysRecv(fd int, p *byte, n int) (int, unix.Errno) {
	for {
		r, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(p)), uintptr(n),
			unix.MSG_DONTWAIT, 0, 0)
		if e != unix.EINTR {
			return int(r), e
		}
	}
}

func sysAccept(fd int) (int, unix.Errno) {
	for {
		r, _, e := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), 0, 0,
			unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		if e != unix.EINTR {
			return int(r), e
		}
	}
}

// sysClose closes fd. On Linux the descriptor is gone whatever it returns, and
// EINTR is no error: the wait that it interrupted was SO_LINGER's.
func sysClose(fd int) unix.Errno {
	_, _, e := unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
	return unlessInterrupted(e)
}

// sysCloseBlocking is sysClose for sockets with SO_LINGER of more than 0 seconds,
// for which close() waits, non-blocking or not (inet_release, tcp_close).
func sysCloseBlocking(fd int) unix.Errno {
	_, _, e := unix.Syscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
	return unlessInterrupted(e)
}

func unlessInterrupted(e unix.Errno) unix.Errno {
	if e == unix.EINTR {
		return 0
	}
	return e
}

// sysEpollAdd watches fd; its events carry fd and generation.
func sysEpollAdd(epfd, fd int, events uint32, generation int32, scratch *unix.EpollEvent) unix.Errno {
	return sysEpollCtl(epfd, unix.EPOLL_CTL_ADD, fd, events, generation, scratch)
}

func sysEpollCtl(epfd, op, fd int, events uint32, generation int32, scratch *unix.EpollEvent) unix.Errno {
	*scratch = unix.EpollEvent{Events: events, Fd: int32(fd), Pad: generation}
	_, _, e := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epfd), uintptr(op), uintptr(fd),
		uintptr(unsafe.Pointer(scratch)), 0, 0)
	return e
}

// sysEpollPoll takes what is ready.
func sysEpollPoll(epfd int, events []unix.EpollEvent) (int, unix.Errno) {
	n, _, e := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd),
		uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	return int(n), e
}

// quietWait is for how long sysEpollWait does not tell the scheduler that it blocks, in
// milliseconds. In a storm the next event is not far, and each time it is told, it wakes a thread
// that takes the processor away, and polls. Who waits in vain keeps a processor of
// the scheduler's for that time, which is why it is no longer; a garbage collection does
// not have to wait for it, because the signal that it sends ends the call. A shorter one, less than
// a tick, would cost setting the processor's timer for each wait: a microsecond or two in
// a virtual machine.
const quietWait = 20

// sysEpollWait blocks for up to ms milliseconds, for ever if ms is -1.
func sysEpollWait(epfd int, events []unix.EpollEvent, ms int) (int, unix.Errno) {
	first := quietWait
	if ms >= 0 {
		first = min(ms, quietWait)
	}
	r, _, e := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd),
		uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(first), 0, 0)
	if r != 0 || e != 0 || ms == first {
		return int(r), e
	}
	if ms > 0 {
		ms -= first
	}
	r, _, e = unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd),
		uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(ms), 0, 0)
	return int(r), e
}

// sysEpollWait2 blocks for up to d, for ever if d is negative (since Linux 5.11).
func sysEpollWait2(epfd int, events []unix.EpollEvent, d time.Duration) (int, unix.Errno) {
	limit := unix.NsecToTimespec(int64(d))
	timeout := &limit
	if d < 0 {
		timeout = nil
	}
	n, _, e := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(epfd),
		uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(unsafe.Pointer(timeout)), 0, 0)
	return int(n), e
}

// sockopt is a socket option of a plan, ready to be set.
type sockopt struct {
	level, name, size int
	value             [8]byte
}

func intOption(level, name, value int) sockopt {
	o := sockopt{level: level, name: name, size: 4}
	binary.NativeEndian.PutUint32(o.value[:], uint32(value))
	return o
}

// lingerOption is SO_LINGER {onoff, seconds}.
func lingerOption(onoff, seconds int) sockopt {
	o := sockopt{level: unix.SOL_SOCKET, name: unix.SO_LINGER, size: 8}
	binary.NativeEndian.PutUint32(o.value[:4], uint32(onoff))
	binary.NativeEndian.PutUint32(o.value[4:], uint32(seconds))
	return o
}

// sockaddr is an IPv4 or IPv6 socket address as the kernel wants it.
type sockaddr struct {
	raw  unix.RawSockaddrInet6 // an IPv4 address is in the beginning of it
	size uint32
}

func newSockaddr(a netip.AddrPort) sockaddr {
	var s sockaddr
	s.setPort(a.Port())
	addr := a.Addr().Unmap()
	if addr.Is4() {
		s.raw.Family = unix.AF_INET
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(&s.raw))
		v4.Addr = addr.As4()
		s.size = unix.SizeofSockaddrInet4
		return s
	}
	s.raw.Family = unix.AF_INET6
	s.raw.Addr = addr.As16()
	zone, _ := strconv.ParseUint(addr.Zone(), 10, 32) // Validate has let only numbers pass
	s.raw.Scope_id = uint32(zone)
	s.size = unix.SizeofSockaddrInet6
	return s
}

func (s *sockaddr) family() int { return int(s.raw.Family) }

func (s *sockaddr) port() uint16 {
	return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&s.raw.Port))[:])
}

func (s *sockaddr) setPort(port uint16) {
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&s.raw.Port))[:], port)
}

func (s *sockaddr) addr() netip.Addr {
	if s.raw.Family == unix.AF_INET {
		return netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(&s.raw)).Addr)
	}
	a := netip.AddrFrom16(s.raw.Addr)
	if s.raw.Scope_id != 0 {
		a = a.WithZone(strconv.FormatUint(uint64(s.raw.Scope_id), 10))
	}
	return a
}

// newEpoll makes an epoll instance in the calling thread's table that watches wake.
func newEpoll(wake int) (int, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("create an epoll instance: %w", err)
	}
	var scratch unix.EpollEvent
	if e := sysEpollAdd(epfd, wake, unix.EPOLLIN|unix.EPOLLET, 0, &scratch); e != 0 {
		_ = sysClose(epfd)
		return -1, fmt.Errorf("watch the eventfd: %w", e)
	}
	return epfd, nil
}
