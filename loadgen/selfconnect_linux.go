package loadgen

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A connect() to a port of this host that nobody listens on can succeed: if the
// kernel happens to choose that very port as the source port, the SYN meets the
// socket that sent it (a simultaneous open, RFC 9293 section 3.5). The check costs a
// getsockname() per connection, so it is made only where this can happen.

// canSelfConnect reports whether target is an address of the calling thread's
// network namespace, with a port that the kernel may choose.
func canSelfConnect(target netip.AddrPort) (bool, error) {
	low, high, ok := localPortRange()
	if ok && (target.Port() < low || target.Port() > high) {
		return false, nil
	}
	a := newSockaddr(netip.AddrPortFrom(target.Addr(), 0))
	fd, e := sysSocket(a.family())
	if e != 0 {
		return false, fmt.Errorf("open a socket: %w", e)
	}
	defer func() { _ = sysClose(fd) }()
	// Only addresses of this host can be bound; the option keeps bind() from
	// taking a port. An older kernel than 4.2 refuses it, and a port is taken.
	noPort := intOption(unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	_ = sysSetsockopt(fd, &noPort)
	return sysBind(fd, &a) == 0, nil
}

// localPortRange reads ip_local_port_range of the calling thread's network
// namespace. ok is false where it can't be read.
func localPortRange() (low, high uint16, ok bool) {
	// Not os.ReadFile: a shard's files must not meet the runtime's poller.
	fd, err := unix.Open("/proc/sys/net/ipv4/ip_local_port_range", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, false
	}
	defer unix.Close(fd)
	var buf [64]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return 0, 0, false
	}
	_, err = fmt.Sscan(string(buf[:n]), &low, &high)
	return low, high, err == nil
}
