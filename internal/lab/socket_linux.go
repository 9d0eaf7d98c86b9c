package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/tcp"
)

// Socket is a TCP socket of an experiment, a plain file descriptor: nothing of Go's own, which sets options by itself.
type Socket struct {
	FD     int
	Cookie tcp.Cookie // asked for before anything else, so that TIME_WAITs have it
	ipv6   bool
	closed bool
}

// Option is a setting of a socket before it is used.
type Option func(fd int) error

func number(level, name, value int) Option {
	return func(fd int) error { return unix.SetsockoptInt(fd, level, name, value) }
}

// ReuseAddr is SO_REUSEADDR.
func ReuseAddr(fd int) error { return number(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)(fd) }

// ReusePort is SO_REUSEPORT.
func ReusePort(fd int) error { return number(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)(fd) }

// Linger is SO_LINGER {1, seconds}.
func Linger(seconds int) Option {
	return func(fd int) error {
		return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: int32(seconds)})
	}
}

// SynRetries is TCP_SYNCNT: how often a SYN is sent again.
func SynRetries(n int) Option { return number(unix.IPPROTO_TCP, unix.TCP_SYNCNT, n) }

// KeepAlive has the kernel ask a silent peer after idle seconds, and every interval seconds again, probes times.
func KeepAlive(idle, interval, probes int) Option {
	return func(fd int) error {
		return errors.Join(
			number(unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)(fd),
			number(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, idle)(fd),
			number(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, interval)(fd),
			number(unix.IPPROTO_TCP, unix.TCP_KEEPCNT, probes)(fd),
		)
	}
}

// UserTimeout is TCP_USER_TIMEOUT.
func UserTimeout(d time.Duration) Option {
	return number(unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
}

// Filters of a socket (SO_ATTACH_FILTER): what is dropped of that which arrives for it.
var (
	dropAll = []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
	// dropAcks leaves SYNs alone, so that a listener's handshakes begin and don't end.
	dropAcks = []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 13}, // the flags
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: uint32(syn), Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 18},
	}
)

// Drop has the kernel drop what a filter says of that which arrives for the socket; nil: nothing any more.
func (k *Socket) Drop(filter []unix.SockFilter) error {
	if filter == nil {
		return unix.SetsockoptInt(k.FD, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
	}
	return unix.SetsockoptSockFprog(k.FD, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
}

// Drops is how much of what arrived for the socket the kernel has dropped (sk_drops, by SO_MEMINFO).
func (k *Socket) Drops() (uint32, error) {
	const drops, number = 8, 9 // SK_MEMINFO_DROPS and SK_MEMINFO_VARS, include/uapi/linux/sock_diag.h
	var vars [number]uint32
	size := uint32(unsafe.Sizeof(vars))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(k.FD), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&vars)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 || uintptr(size) < unsafe.Sizeof(vars) {
		return 0, fmt.Errorf("SO_MEMINFO: %d bytes, %w", size, errno)
	}
	return vars[drops], nil
}

// Socket makes a socket in a namespace; it is closed when the entry ends.
func (s *Session) Socket(ns *netlab.Namespace, ipv6 bool, options ...Option) (*Socket, error) {
	family := unix.AF_INET
	if ipv6 {
		family = unix.AF_INET6
	}
	sock := &Socket{ipv6: ipv6}
	err := ns.Do(func() (err error) {
		sock.FD, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	s.Defer(sock.Close)
	cookie, err := unix.GetsockoptUint64(sock.FD, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return nil, fmt.Errorf("SO_COOKIE: %w", err)
	}
	sock.Cookie = tcp.Cookie(cookie)
	for _, set := range options {
		if err := set(sock.FD); err != nil {
			return nil, fmt.Errorf("setsockopt: %w", err)
		}
	}
	return sock, nil
}

// Close closes it. It may be called again.
func (k *Socket) Close() error {
	if k.closed {
		return nil
	}
	k.closed = true
	// Else a process that is just being started, or a thread of a storm, may have a copy for a moment, and the kernel
	// would see the close only when that is gone.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return unix.Close(k.FD)
}

// sockaddr is an address as the kernel takes it.
func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// Bind is bind(2).
func (k *Socket) Bind(a netip.AddrPort) error { return unix.Bind(k.FD, sockaddr(a)) }

// Listen is listen(2).
func (k *Socket) Listen(backlog int) error { return unix.Listen(k.FD, backlog) }

// Connect is connect(2), for at most limit; ETIMEDOUT says that limit has passed, or that the kernel gave up.
func (k *Socket) Connect(to netip.AddrPort, limit time.Duration) error {
	if err := unix.SetNonblock(k.FD, true); err != nil {
		return err
	}
	defer func() { _ = unix.SetNonblock(k.FD, false) }()
	err := unix.Connect(k.FD, sockaddr(to))
	if !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	if ok, err := k.poll(unix.POLLOUT, limit); err != nil || !ok {
		return errors.Join(err, unix.ETIMEDOUT)
	}
	return k.Error()
}

// Begin is connect(2) that does not wait; nil: it is under way, or done.
func (k *Socket) Begin(to netip.AddrPort) error {
	if err := unix.SetNonblock(k.FD, true); err != nil {
		return err
	}
	if err := unix.Connect(k.FD, sockaddr(to)); !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	return nil
}

// Connected waits for the end of a connect() that Begin began, for at most limit: nil, what it failed with, or
// EINPROGRESS.
func (k *Socket) Connected(limit time.Duration) error {
	if ok, err := k.poll(unix.POLLOUT, limit); err != nil || !ok {
		return errors.Join(err, unix.EINPROGRESS)
	}
	return k.Error()
}

// Error is what the socket's owner has yet to learn (SO_ERROR); nil: nothing.
func (k *Socket) Error() error {
	no, err := unix.GetsockoptInt(k.FD, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil || no == 0 {
		return err
	}
	return unix.Errno(no)
}

// poll waits for one of events; false: it did not come in time.
func (k *Socket) poll(events int16, limit time.Duration) (bool, error) {
	deadline := time.Now().Add(limit)
	for {
		left := max(0, time.Until(deadline))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(k.FD), Events: events}}, int(left.Milliseconds())+1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return n > 0, err
	}
}

// Accept is accept(2), for at most limit; ETIMEDOUT: nothing came.
func (s *Session) Accept(k *Socket, limit time.Duration) (*Socket, netip.AddrPort, error) {
	if ok, err := k.poll(unix.POLLIN, limit); err != nil || !ok {
		return nil, netip.AddrPort{}, errors.Join(err, unix.ETIMEDOUT)
	}
	fd, peer, err := unix.Accept4(k.FD, unix.SOCK_CLOEXEC)
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	child := &Socket{FD: fd, ipv6: k.ipv6}
	s.Defer(child.Close)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return nil, netip.AddrPort{}, fmt.Errorf("SO_COOKIE: %w", err)
	}
	child.Cookie = tcp.Cookie(cookie)
	return child, addrPort(peer), nil
}

// Local is getsockname(2).
func (k *Socket) Local() (netip.AddrPort, error) {
	sa, err := unix.Getsockname(k.FD)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return addrPort(sa), nil
}

// State is the socket's own, by TCP_INFO.
func (k *Socket) State() (tcp.State, error) {
	info, err := unix.GetsockoptTCPInfo(k.FD, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return tcp.StateNone, err
	}
	return tcp.State(info.State), nil
}

// Send writes all of b.
func (k *Socket) Send(b []byte) error {
	for len(b) > 0 {
		n, err := unix.SendmsgN(k.FD, b, nil, nil, unix.MSG_NOSIGNAL)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// Receive reads what comes next, for at most limit; no bytes and no error are the end of the stream.
func (k *Socket) Receive(b []byte, limit time.Duration) (int, error) {
	if ok, err := k.poll(unix.POLLIN, limit); err != nil || !ok {
		return 0, errors.Join(err, unix.ETIMEDOUT)
	}
	for {
		n, err := unix.Read(k.FD, b)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// Shutdown is shutdown(2) of what is sent.
func (k *Socket) Shutdown() error { return unix.Shutdown(k.FD, unix.SHUT_WR) }

// Errno is the error number in err as its name; "ok" for none.
func Errno(err error) string {
	var no unix.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &no):
		return unix.ErrnoName(no)
	}
	return err.Error()
}

// patience is how long an entry waits for what takes the kernel a moment.
const patience = 10 * time.Second

// Listener makes a socket that listens on a port of an address.
func (s *Session) Listener(ns *netlab.Namespace, at netip.AddrPort, backlog int, options ...Option) (*Socket, error) {
	k, err := s.Socket(ns, at.Addr().Is6(), options...)
	if err != nil {
		return nil, err
	}
	if err := k.Bind(at); err != nil {
		return nil, fmt.Errorf("bind %s: %w", at, err)
	}
	if err := k.Listen(backlog); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return k, nil
}

// PairTo connects from a namespace to an address of a listener; from is what the client binds, if it is valid.
func (s *Session) PairTo(ns *netlab.Namespace, listener *Socket, to, from netip.AddrPort, options ...Option) (client, server *Socket, err error) {
	if client, err = s.Socket(ns, to.Addr().Is6(), options...); err != nil {
		return nil, nil, err
	}
	if from.IsValid() {
		if err := client.Bind(from); err != nil {
			return nil, nil, fmt.Errorf("bind %s: %w", from, err)
		}
	}
	if err := client.Connect(to, patience); err != nil {
		return nil, nil, fmt.Errorf("connect to %s: %w", to, err)
	}
	server, _, err = s.Accept(listener, patience)
	if err != nil {
		return nil, nil, fmt.Errorf("accept: %w", err)
	}
	return client, server, nil
}

// CloseFirst has one end close, and the other when it has seen that; the first then has the TIME_WAIT.
func (s *Session) CloseFirst(first, second *Socket) error {
	if err := first.Close(); err != nil {
		return err
	}
	if _, err := second.Receive(make([]byte, 1), patience); err != nil {
		return fmt.Errorf("wait for the end of the stream: %w", err)
	}
	return second.Close()
}

// TimeWaits waits until there are n TIME_WAITs in a namespace, by the kernel's own count.
func (s *Session) TimeWaits(ns *netlab.Namespace, n uint64) error {
	return s.Wait(fmt.Sprintf("%d TIME_WAITs", n), patience, func() (bool, error) {
		c, err := ns.Counters()
		return err == nil && c["sockstat.TCP.tw"] == n, err
	})
}
