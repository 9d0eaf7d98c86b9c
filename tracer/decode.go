package tracer

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/bpf"
	"github.com/twtrace/twtrace/internal/tcp"
)

// decode turns what the kernel side wrote into an Event without Seq.
func decode(w *bpf.ProbesEvent, ev *Event) {
	*ev = Event{
		MonoNS: int64(w.MonoNs),
		Cookie: tcp.Cookie(w.Cookie),
		NetNS:  NetNS(w.Netns),
		Tuple: tcp.FourTuple{
			Local: addrPort(w.Family, &w.Local, w.LocalPort),
			Peer:  addrPort(w.Family, &w.Peer, w.PeerPort),
		},
		Reason:   w.Reason,
		Ticks:    w.Ticks,
		Kind:     Kind(w.Kind),
		Old:      tcp.State(w.OldState),
		New:      tcp.State(w.NewState),
		Substate: tcp.State(w.Substate),
		Cause:    tcp.Cause(w.Cause),
		Flags:    tcp.Flags(w.Flags),
		Errno:    tcp.Errno(w.Err),
	}
	if ev.Flags&tcp.FlagOwner != 0 {
		ev.Owner = tcp.Owner{PID: w.Pid, Cgroup: w.Cgroup, Comm: w.Comm}
	}
	if ev.Flags&tcp.FlagRefusals != 0 {
		ev.Refusals = tcp.Refusals{
			TooYoung:     w.Refusals[bpf.ProbesRefusalREFUSED_TOO_YOUNG],
			NotAllowed:   w.Refusals[bpf.ProbesRefusalREFUSED_NOT_ALLOWED],
			NoTimestamps: w.Refusals[bpf.ProbesRefusalREFUSED_NO_TIMESTAMPS],
			Taken:        w.Refusals[bpf.ProbesRefusalREFUSED_TAKEN],
		}
	}
	if ev.Kind == tcp.KindBindFailed && w.Substate != 0 {
		ev.Holder = tcp.Holder{
			State: ev.Substate, Cookie: holderCookie(w.Refusals), Addr: netip.AddrFrom16(w.Peer).Unmap(),
		}
		ev.Substate, ev.Tuple.Peer = tcp.StateNone, addrPort(w.Family, new([16]byte), 0)
	}
}

// addrPort reads an address of the wire: IPv4 in the first four bytes. An IPv6
// socket that speaks IPv4 has mapped addresses, which come out as IPv4.
func addrPort(family uint8, b *[16]byte, port uint16) netip.AddrPort {
	switch family {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[:4])), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(*b).Unmap(), port)
	}
	return netip.AddrPortFrom(netip.Addr{}, port)
}

// holderCookie puts together what lies in the place of four small numbers.
func holderCookie(r [4]uint16) tcp.Cookie {
	return tcp.Cookie(uint64(r[0]) | uint64(r[1])<<16 | uint64(r[2])<<32 | uint64(r[3])<<48)
}
