package tcp

import "net/netip"

// Cookie is the kernel's name for one socket, unique until reboot (SO_COOKIE in
// user space, bpf_get_socket_cookie in BPF, idiag_cookie in sock_diag). The
// kernel copies it into the TIME_WAIT minisock, so a connection and its
// TIME_WAIT share it. Zero: not known.
type Cookie uint64

// NetNS is the cookie of a network namespace (SO_NETNS_COOKIE, since Linux
// 5.14). Unlike the inode number of /proc/PID/ns/net it is never used twice.
type NetNS uint64

// FourTuple names a connection from one end: its own address and port, and the
// peer's. The port is 0 where the kernel had not chosen one.
type FourTuple struct {
	Local, Peer netip.AddrPort
}

// Reverse is the same connection seen from the other end.
func (t FourTuple) Reverse() FourTuple { return FourTuple{Local: t.Peer, Peer: t.Local} }

// String prints "local > peer".
func (t FourTuple) String() string { return t.Local.String() + " > " + t.Peer.String() }
