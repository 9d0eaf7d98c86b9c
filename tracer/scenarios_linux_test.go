package tracer

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/tcp"
)

// The ways of a socket that closes first, and of its peer.
var (
	activeClose  = []string{"CLOSE>SYN_SENT", "SYN_SENT>ESTABLISHED", "ESTABLISHED>FIN_WAIT1", "FIN_WAIT1>FIN_WAIT2", "FIN_WAIT2>CLOSE"}
	passiveClose = []string{"SYN_RECV>ESTABLISHED", "ESTABLISHED>CLOSE_WAIT", "CLOSE_WAIT>LAST_ACK", "LAST_ACK>CLOSE"}
)

// bound is a client's port where the scenario chooses it.
const bound = 41000

// scenario is something that can happen to connections. What the trace has to say
// about it in numbers is always compared with the kernel's counters, see accounts;
// counters are the figures by which the row knows that it really happened.
type scenario struct {
	name    string
	kind    netlab.Kind
	v6      bool   // over IPv6 too
	sysctls string // "key=value key=value", below net.ipv4
	traced  func(*netlab.Lab) []*netlab.Namespace
	do      func(*scene)
	// "client.TcpExt.TW": what the counter rises by
	counters map[string]uint64
	want     func(*scene)
}

var scenarios = []scenario{
	{
		name: "client closes first", v6: true,
		do:       func(s *scene) { c := s.dial(0); s.closeFirst(c.client, c.server) },
		counters: map[string]uint64{"client.TcpExt.TW": 1, "server.TcpExt.TW": 0, "server.Tcp.PassiveOpens": 1},
		want: func(s *scene) {
			c := s.conns[0]
			s.wantStates(c.clientCookie, activeClose...)
			s.wantStates(c.serverCookie, passiveClose...)
			s.wantCookie(s.one("TIME_WAIT", s.ofKind(tcp.KindTWEnter)), c.clientCookie)
			s.wantEvents(11)
			// The client's by connect(), the server's by the listener that was there
			// before the trace.
			s.wantOwner(s.one("connect()", s.filter(is(tcp.SynSent, tcp.Close))))
			s.wantOwner(s.one("the server's end", s.filter(is(tcp.Established, tcp.SynRecv))))
			s.wantOwner(s.one("snapshot of the listener", s.ofKind(tcp.KindSnapshot)))
		},
	},
	{
		name: "client closes first on loopback", kind: netlab.Loopback,
		do:       func(s *scene) { c := s.dial(0); s.closeFirst(c.client, c.server) },
		counters: map[string]uint64{"client.TcpExt.TW": 1},
		want: func(s *scene) {
			s.wantStates(s.conns[0].clientCookie, activeClose...)
			s.wantStates(s.conns[0].serverCookie, passiveClose...)
			s.wantEvents(11)
		},
	},
	{
		name: "server closes first", v6: true,
		do:       func(s *scene) { c := s.dial(0); s.closeFirst(c.server, c.client) },
		counters: map[string]uint64{"client.TcpExt.TW": 0, "server.TcpExt.TW": 1},
		want: func(s *scene) {
			c := s.conns[0]
			s.wantStates(c.serverCookie, append([]string{"SYN_RECV>ESTABLISHED"}, activeClose[2:]...)...)
			s.wantStates(c.clientCookie, append(activeClose[:2:2], passiveClose[1:]...)...)
			s.wantCookie(s.one("TIME_WAIT", s.ofKind(tcp.KindTWEnter)), c.serverCookie)
		},
	},
	{
		name: "IPv4 on an IPv6 socket",
		do: func(s *scene) {
			s.mapped = true
			c := s.dial(0)
			s.closeFirst(c.client, c.server)
		},
		counters: map[string]uint64{"client.TcpExt.TW": 1},
		want: func(s *scene) { // the addresses are checked for every scene
			s.wantStates(s.conns[0].clientCookie, activeClose...)
		},
	},
	{
		// The accept queue has room for one: the second SYN is dropped until the
		// first connection is accepted, and comes again after a second.
		name: "SYN sent again", v6: true,
		do: func(s *scene) {
			s.must("shorten the backlog", unix.Listen(s.listener, 0))
			first, err := s.tryDial(0)
			s.must("connect", err)
			second := s.socket(s.lab.Client())
			connected := make(chan error)
			go func() { connected <- connect(second, s.sockaddr(s.server)) }()
			s.awaitDrop("TcpExt.ListenDrops")
			a := s.accept(first)
			s.must("connect again", <-connected)
			b := s.accept(second)
			s.closeFirst(a.client, a.server)
			s.closeFirst(b.client, b.server)
		},
		counters: map[string]uint64{"client.TcpExt.TCPSynRetrans": 1, "server.TcpExt.ListenOverflows": 1},
		want: func(s *scene) {
			again := s.one("SYN", s.ofKind(tcp.KindRetransmit))
			s.wantCookie(again, s.conns[1].clientCookie)
			if again.Old != tcp.SynSent {
				s.Errorf("it was sent in %v", again.Old)
			}
			s.wantDrop(tcp.CauseAcceptQueue, tcp.SynSent)
		},
	},
	{
		// The ACKs of two handshakes are held back until data comes with them
		// (TCP_DEFER_ACCEPT); the accept queue has room for one. The second client
		// takes itself for connected.
		name: "last ACK dropped", v6: true,
		do: func(s *scene) {
			clients := s.heldBack(2, 0)
			for _, fd := range clients {
				s.write(fd)
			}
			s.awaitDrop("TcpExt.ListenOverflows")
			for len(clients) > 0 {
				c := s.acceptWithData(clients...)
				clients = slices.DeleteFunc(clients, func(fd int) bool { return fd == c.client })
			}
		},
		counters: map[string]uint64{"client.TcpExt.TW": 2},
		want:     func(s *scene) { s.wantDrop(tcp.CauseAcceptQueue, tcp.Established) },
	},
	{
		// As before, but the listener says so: RST to the client that it has no room for. (Of
		// two, the second is more than the SYN queue holds: it comes with a cookie, and is in the
		// accept queue at once.)
		name: "last ACK dropped with tcp_abort_on_overflow", v6: true, sysctls: "tcp_abort_on_overflow=1",
		do: func(s *scene) {
			clients := s.heldBack(2, 0)
			s.await("one in the queue", func() bool { return s.has(s.lab.Server(), tcp.Established) })
			s.write(clients[0])
			s.waitReset(clients[0])
			s.write(clients[1])
			s.acceptWithData(clients[1])
		},
		counters: map[string]uint64{"client.TcpExt.TW": 1, "server.TcpExt.ListenOverflows": 1, "server.Tcp.OutRsts": 1},
		want: func(s *scene) {
			s.wantDrop(tcp.CauseAcceptQueue, tcp.Established)
			if s.seesEveryRst() {
				s.one("RST", s.ofKind(tcp.KindRstSent))
			}
			s.one("RST received", s.ofKind(tcp.KindRstReceived))
		},
	},
	{
		// Two connections wait in SYN_RECV for data, which is more than the SYN queue
		// holds; there are no cookies.
		name: "SYN queue full", v6: true, sysctls: "tcp_syncookies=0",
		do: func(s *scene) {
			clients := s.heldBack(2, 1)
			third := s.socket(s.lab.Client())
			connected := make(chan error)
			go func() { connected <- connect(third, s.sockaddr(s.server)) }()
			s.awaitDrop("TcpExt.ListenDrops")
			for _, fd := range clients {
				s.write(fd)
				s.acceptWithData(fd)
			}
			s.must("connect", <-connected)
			s.write(third)
			s.acceptWithData(third)
		},
		counters: map[string]uint64{"server.TcpExt.ListenOverflows": 0, "client.TcpExt.TW": 3},
		want:     func(s *scene) { s.wantDrop(tcp.CauseSynQueue, tcp.SynSent) },
	},
	{
		// The listener counts in sk_drops an RST for a connection that is gone, but loses
		// nothing by it (tcp_rcv_state_process).
		name: "RST to a listener", v6: true,
		do: func(s *scene) {
			s.strayReset()
			c := s.dial(0)
			s.closeFirst(c.client, c.server)
		},
		counters: map[string]uint64{"server.TcpExt.ListenDrops": 0},
		want:     func(s *scene) { s.wantNone(tcp.KindListenDrop) },
	},
	{
		// Here the third is asked to come back with a cookie.
		name: "SYN queue full with cookies", v6: true, sysctls: "tcp_syncookies=1",
		do: func(s *scene) {
			clients := s.heldBack(2, 1)
			third := s.dial(0)
			s.closeFirst(third.client, third.server)
			for _, fd := range clients {
				s.write(fd)
				s.acceptWithData(fd)
			}
		},
		counters: map[string]uint64{
			"server.TcpExt.SyncookiesSent": 1, "server.TcpExt.SyncookiesRecv": 1, "server.TcpExt.ListenDrops": 0, "client.TcpExt.TW": 3,
		},
		want: func(s *scene) {
			s.wantNone(tcp.KindListenDrop)
			s.wantStates(s.conns[0].serverCookie, passiveClose...)
		},
	},
	{
		name: "bind conflict", v6: true,
		do: func(s *scene) {
			fd := s.socket(s.lab.Server())
			if err := unix.Bind(fd, s.sockaddr(s.server)); !errors.Is(err, unix.EADDRINUSE) {
				s.Fatalf("bind: %v, want EADDRINUSE", err)
			}
			s.close(fd)
		},
		want: func(s *scene) {
			if s.trace.Coverage()[tcp.FactBindFail] != tcp.Exact {
				s.Skip("no tracefs here")
			}
			ev := s.one("bind()", s.ofKind(tcp.KindBindFailed))
			if ev.Errno != tcp.Errno(unix.EADDRINUSE) || ev.Tuple.Local != s.server {
				s.Errorf("%+v, want EADDRINUSE of %v", ev, s.server)
			}
			s.wantOwner(ev)
		},
	},
	{
		// The listener wants data, not the bare ACK of a handshake, and asks again
		// after a second; then it makes do.
		name: "SYN+ACK sent again", v6: true,
		do: func(s *scene) {
			s.must("TCP_DEFER_ACCEPT", unix.SetsockoptInt(s.listener, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 1))
			c := s.dial(0)
			s.closeFirst(c.client, c.server)
		},
		counters: map[string]uint64{"server.TcpExt.TCPSynRetrans": 1, "server.TcpExt.TCPDeferAcceptDrop": 1},
		want: func(s *scene) {
			again := s.one("SYN+ACK", s.ofKind(tcp.KindSynAckRetransmit))
			if want := s.conns[0].tuple.Reverse(); again.Tuple != want {
				s.Errorf("it was sent for %v, want %v", again.Tuple, want)
			}
			if again.Old != tcp.NewSynRecv {
				s.Errorf("it was sent in %v", again.Old)
			}
		},
	},
	{
		// Both FINs are dropped on arrival and sent again, so that at least one
		// end gets the other's FIN before the ACK of its own.
		name: "simultaneous close", v6: true,
		do: func(s *scene) {
			c := s.dial(0)
			for _, fd := range []int{c.client, c.server} {
				s.deaf(fd, true)
			}
			for _, fd := range []int{c.client, c.server} {
				s.shutdown(fd)
			}
			for _, fd := range []int{c.client, c.server} {
				s.deaf(fd, false)
			}
			for _, fd := range []int{c.client, c.server} {
				s.waitEOF(fd)
				s.close(fd)
			}
		},
		counters: map[string]uint64{"client.TcpExt.TW": 1, "server.TcpExt.TW": 1},
		want: func(s *scene) {
			if n := len(s.filter(is(tcp.Closing, tcp.FinWait1))); n == 0 {
				s.Error("no end was in CLOSING")
			}
		},
	},
	{
		name: "half close",
		do: func(s *scene) {
			c := s.dial(0)
			s.shutdown(c.client)
			s.waitEOF(c.server)
			s.write(c.server)
			if n, err := s.read(c.client); n != 1 {
				s.Fatalf("read %d bytes, %v", n, err)
			}
			s.close(c.server)
			s.waitEOF(c.client)
			s.close(c.client)
		},
		counters: map[string]uint64{"client.TcpExt.TW": 1},
		want: func(s *scene) {
			s.wantStates(s.conns[0].clientCookie, activeClose...)
			s.wantStates(s.conns[0].serverCookie, passiveClose...)
			if ev := s.one("TIME_WAIT", s.ofKind(tcp.KindTWEnter)); ev.Substate != tcp.TimeWait {
				s.Errorf("a full socket in FIN_WAIT2 became a minisock in %v", ev.Substate)
			}
		},
	},
	{
		// The kernel counts a minisock that it keeps for at most four seconds as
		// TWKilled. When it has expired, nothing is left to answer the server's
		// FIN but RST.
		name: "FIN_WAIT2 minisock expires", v6: true, sysctls: "tcp_fin_timeout=1",
		do: func(s *scene) {
			c := s.dial(0)
			s.close(c.client)
			s.waitEOF(c.server)
			s.await("the minisock", func() bool { return s.minisocksIn(s.lab.Client(), tcp.FinWait2) == 1 })
			s.await("its end", func() bool { return len(s.minisocks(s.lab.Client())) == 0 })
			s.close(c.server)
		},
		counters: map[string]uint64{"client.TcpExt.TW": 0, "client.TcpExt.TWKilled": 1, "client.Tcp.OutRsts": 1},
		want: func(s *scene) {
			enter, end := s.one("enter", s.ofKind(tcp.KindTWEnter)), s.one("expiry", s.ended(tcp.CauseExpired))
			for _, ev := range []Event{enter, end} {
				s.wantCookie(ev, s.conns[0].clientCookie)
				if ev.Substate != tcp.FinWait2 {
					s.Errorf("%v: minisock in %v, want FIN_WAIT2", ev.Kind, ev.Substate)
				}
			}
			if hz := s.hz(); int(enter.Ticks) > 4*hz || int(enter.Ticks) < hz/2 {
				s.Errorf("set for %d jiffies of 1/%d s, tcp_fin_timeout is 1 s", enter.Ticks, hz)
			}
			if s.seesEveryRst() {
				s.wantReason(s.one("RST", s.ofKind(tcp.KindRstSent)), "NO_SOCKET")
			}
		},
	},
	{
		// The timer is moved from ten seconds to sixty: no end, no second start.
		name: "FIN_WAIT2 minisock becomes TIME_WAIT", v6: true, sysctls: "tcp_fin_timeout=10",
		do: func(s *scene) {
			c := s.dial(0)
			s.close(c.client)
			s.waitEOF(c.server)
			s.await("the minisock", func() bool { return s.minisocksIn(s.lab.Client(), tcp.FinWait2) == 1 })
			s.close(c.server)
			s.await("TIME_WAIT", func() bool { return s.minisocksIn(s.lab.Client(), tcp.TimeWait) == 1 })
		},
		counters: map[string]uint64{"client.TcpExt.TW": 1, "client.TcpExt.TWKilled": 0},
		want: func(s *scene) {
			if ev := s.one("enter", s.ofKind(tcp.KindTWEnter)); ev.Substate != tcp.FinWait2 {
				s.Errorf("minisock in %v, want FIN_WAIT2", ev.Substate)
			}
			s.wantNone(tcp.KindTWEnd)
			if s.trace.Coverage()[tcp.FactTWConvert] != tcp.Exact {
				s.wantNone(tcp.KindTWConvert) // it would show at the minisock's end
				return
			}
			ev := s.one("conversion", s.ofKind(tcp.KindTWConvert))
			s.wantCookie(ev, s.conns[0].clientCookie)
			if ev.Substate != tcp.TimeWait || ev.Flags != 0 {
				s.Errorf("%+v, want substate TIME_WAIT and the time of the FIN", ev)
			}
		},
	},
	{
		name: "linger 0", v6: true,
		do: func(s *scene) {
			c := s.dial(0)
			s.abort(c.client)
			s.waitReset(c.server)
		},
		counters: map[string]uint64{
			"client.TcpExt.TW": 0, "client.Tcp.OutRsts": 1, "client.Tcp.EstabResets": 1,
			"server.Tcp.OutRsts": 0, "server.Tcp.EstabResets": 1,
		},
		want: func(s *scene) { s.wantAborted(s.conns[0].clientCookie, s.conns[0].serverCookie) },
	},
	{
		name: "RST received",
		do: func(s *scene) {
			c := s.dial(0)
			s.abort(c.server)
			s.waitReset(c.client)
		},
		counters: map[string]uint64{"client.Tcp.EstabResets": 1, "server.Tcp.OutRsts": 1, "server.Tcp.EstabResets": 1},
		want:     func(s *scene) { s.wantAborted(s.conns[0].serverCookie, s.conns[0].clientCookie) },
	},
	{
		// Data that nobody read: RST too, but not by SO_LINGER.
		name: "close with unread data",
		do: func(s *scene) {
			c := s.dial(0)
			s.write(c.client)
			_, _, err := unix.Recvfrom(c.server, make([]byte, 1), unix.MSG_PEEK)
			s.must("peek", err)
			s.close(c.server)
			s.waitReset(c.client)
		},
		counters: map[string]uint64{"server.Tcp.OutRsts": 1, "server.TcpExt.TCPAbortOnClose": 1},
		want: func(s *scene) {
			sent := s.one("RST", s.ofKind(tcp.KindRstSent))
			s.wantCookie(sent, s.conns[0].serverCookie)
			s.wantReason(sent, "TCP_ABORT_ON_CLOSE")
			for _, ev := range s.filter(is(tcp.Close, tcp.Established)) {
				if ev.Flags != 0 {
					s.Errorf("socket %d: flags %05b, want none", ev.Cookie, ev.Flags)
				}
			}
		},
	},
	{
		name: "refused", v6: true,
		do: func(s *scene) {
			s.close(s.listener)
			fd, err := s.tryDial(bound)
			if !errors.Is(err, unix.ECONNREFUSED) {
				s.Fatalf("connect: %v, want ECONNREFUSED", err)
			}
			s.close(fd)
		},
		counters: map[string]uint64{"server.Tcp.OutRsts": 1, "client.Tcp.AttemptFails": 1, "client.Tcp.ActiveOpens": 1},
		want: func(s *scene) {
			want := tcp.FourTuple{Local: s.server, Peer: netip.AddrPortFrom(s.lab.ClientAddrs()[0], bound)}
			if s.seesEveryRst() {
				sent := s.one("RST", s.ofKind(tcp.KindRstSent))
				if sent.Tuple != want || sent.Cookie != 0 || sent.NetNS != NetNS(s.lab.Server().Cookie()) || sent.Flags&tcp.FlagActive != 0 {
					s.Errorf("RST %+v, want one without socket of %v", sent, want)
				}
				s.wantReason(sent, "NO_SOCKET")
			}
			end := s.one("the attempt's end", s.filter(is(tcp.Close, tcp.SynSent)))
			if end.Errno != tcp.ECONNREFUSED || end.Flags != 0 || end.Tuple != want.Reverse() {
				s.Errorf("the attempt ended with %v, flags %b, of %v", end.Errno, end.Flags, end.Tuple)
			}
			got := s.one("RST received", s.ofKind(tcp.KindRstReceived))
			if got.Old != tcp.SynSent || got.Cookie != end.Cookie {
				s.Errorf("RST received in %v by socket %d, want SYN_SENT by %d", got.Old, got.Cookie, end.Cookie)
			}
		},
	},
	{
		name: "ports exhausted", v6: true, sysctls: "ip_local_port_range=40000_40009 tcp_tw_reuse=0",
		do: func(s *scene) {
			for range 10 {
				c := s.dial(0)
				s.closeFirst(c.client, c.server)
			}
			fd, err := s.tryDial(0)
			if !errors.Is(err, unix.EADDRNOTAVAIL) {
				s.Fatalf("connect: %v, want EADDRNOTAVAIL", err)
			}
			s.close(fd)
		},
		counters: map[string]uint64{"client.TcpExt.TW": 10, "client.Tcp.ActiveOpens": 10, "client.Tcp.AttemptFails": 0},
		want: func(s *scene) {
			end := s.one("the attempt's end", s.filter(is(tcp.Close, tcp.SynSent)))
			s.wantCookie(end, s.noPort[0])
			if end.Flags != tcp.FlagNoSegment || end.Tuple.Local.Port() != 0 || end.Tuple.Peer != s.server || end.Errno != 0 {
				s.Errorf("%+v, want FlagNoSegment and no port", end)
			}
			s.wantFailedConnect(tcp.CausePortSearch)
		},
	},
	{
		name: "ports exhausted by bound sockets", v6: true, sysctls: "ip_local_port_range=40000_40003",
		do: func(s *scene) {
			for port := uint16(40000); port <= 40003; port++ {
				s.bind(s.socket(s.lab.Client()), netip.AddrPortFrom(s.lab.ClientAddrs()[0], port))
			}
			fd, err := s.tryDial(0)
			if !errors.Is(err, unix.EADDRNOTAVAIL) {
				s.Fatalf("connect: %v, want EADDRNOTAVAIL", err)
			}
			s.close(fd)
		},
		counters: map[string]uint64{"client.TcpExt.TW": 0, "client.Tcp.ActiveOpens": 0},
		want:     func(s *scene) { s.wantFailedConnect(tcp.CausePortSearch) },
	},
	{
		// A socket whose SYN comes back to itself.
		name: "self-connect", kind: netlab.Loopback, v6: true,
		do: func(s *scene) {
			fd, self := s.socket(s.lab.Client()), netip.AddrPortFrom(s.lab.ClientAddrs()[0], bound)
			s.bind(fd, self)
			s.must("connect", connect(fd, s.sockaddr(self)))
			s.own = s.cookie(fd)
			s.close(fd)
		},
		counters: map[string]uint64{"client.TcpExt.TW": 1, "client.Tcp.ActiveOpens": 1, "client.Tcp.PassiveOpens": 0},
		want: func(s *scene) {
			s.wantStates(s.own, "CLOSE>SYN_SENT", "SYN_SENT>SYN_RECV", "SYN_RECV>ESTABLISHED",
				"ESTABLISHED>FIN_WAIT1", "FIN_WAIT1>CLOSING", "CLOSING>CLOSE")
			s.wantCookie(s.one("TIME_WAIT", s.ofKind(tcp.KindTWEnter)), s.own)
		},
	},
	{
		name: "four-tuple busy",
		do: func(s *scene) {
			c := s.dial(bound)
			fd, err := s.tryDial(bound)
			if !errors.Is(err, unix.EADDRNOTAVAIL) {
				s.Fatalf("connect: %v, want EADDRNOTAVAIL", err)
			}
			s.close(fd)
			s.closeFirst(c.client, c.server)
		},
		counters: map[string]uint64{"client.TcpExt.TW": 1, "client.Tcp.ActiveOpens": 1},
		want: func(s *scene) {
			end := s.one("the attempt's end", s.filter(is(tcp.Close, tcp.SynSent)))
			s.wantCookie(end, s.noPort[0])
			if end.Flags != tcp.FlagNoSegment || end.Tuple != s.conns[0].tuple {
				s.Errorf("%+v, want FlagNoSegment and %v", end, s.conns[0].tuple)
			}
			s.wantFailedConnect(tcp.CauseFourTupleBusy)
		},
	},
	{
		name: "reused by connect", v6: true,
		sysctls: "ip_local_port_range=40000_40001 tcp_tw_reuse=1 tcp_tw_reuse_delay=1",
		do: func(s *scene) {
			for range 20 {
				fd := -1
				s.await("a port", func() bool {
					var err error
					if fd, err = s.tryDial(0); errors.Is(err, unix.EADDRNOTAVAIL) {
						s.close(fd) // younger than tcp_tw_reuse_delay
						return false
					}
					s.must("connect", err)
					return true
				})
				c := s.accept(fd)
				s.closeFirst(c.client, c.server)
			}
		},
		counters: map[string]uint64{"client.TcpExt.TW": 20},
		want: func(s *scene) {
			// As many as the kernel counted, which is checked for every scene: 18, or 19 if
			// the first is old enough before the second port is needed.
			if n := len(s.ended(tcp.CauseReusedByConnect)); n != 18 && n != 19 {
				s.Errorf("%d reused by 20 connections over 2 ports", n)
			}
			s.Logf("%d connects found no port that was old enough", len(s.noPort))
		},
	},
	{
		name: "reused by a bound port", v6: true, sysctls: "tcp_tw_reuse=0",
		do: func(s *scene) {
			for range 2 {
				c := s.dial(bound)
				s.closeFirst(c.client, c.server)
				s.settle()
			}
		},
		counters: map[string]uint64{"client.TcpExt.TW": 2, "client.TcpExt.TWRecycled": 1},
		want: func(s *scene) {
			s.wantCookie(s.one("reuse", s.ended(tcp.CauseReusedByConnect)), s.conns[0].clientCookie)
		},
	},
	{
		// The server still has its end. It answers the SYN with an ACK that the client
		// does not expect, and is reset for it; the next SYN meets nothing.
		name: "FIN_WAIT2 minisock reused by a bound port", sysctls: "tcp_tw_reuse=0",
		do: func(s *scene) {
			first := s.dial(bound)
			s.close(first.client)
			s.waitEOF(first.server)
			s.await("the minisock", func() bool { return s.minisocksIn(s.lab.Client(), tcp.FinWait2) == 1 })
			second := s.dial(bound)
			s.close(first.server)
			s.closeFirst(second.client, second.server)
		},
		counters: map[string]uint64{"client.TcpExt.TW": 2, "client.TcpExt.TWRecycled": 1, "client.Tcp.OutRsts": 1},
		want: func(s *scene) {
			reuse := s.one("reuse", s.ended(tcp.CauseReusedByConnect))
			s.wantCookie(reuse, s.conns[0].clientCookie)
			if reuse.Substate != tcp.FinWait2 {
				s.Errorf("reused in %v, want FIN_WAIT2", reuse.Substate)
			}
			s.wantCookie(s.one("RST received", s.ofKind(tcp.KindRstReceived)), s.conns[0].serverCookie)
		},
	},
	{
		name: "replaced by SYN", v6: true, sysctls: "tcp_timestamps=1",
		do: func(s *scene) {
			for range 2 {
				c := s.dial(bound)
				s.closeFirst(c.server, c.client)
				s.settle()
			}
		},
		counters: map[string]uint64{"server.TcpExt.TW": 2, "server.TcpExt.TWRecycled": 0, "client.TcpExt.TW": 0},
		want: func(s *scene) {
			s.wantCookie(s.one("replacement", s.ended(tcp.CauseReplacedBySyn)), s.conns[0].serverCookie)
		},
	},
	{
		name: "data for a FIN_WAIT2 minisock", v6: true,
		do: func(s *scene) {
			c := s.dial(0)
			s.close(c.client)
			s.waitEOF(c.server)
			s.await("the minisock", func() bool { return s.minisocksIn(s.lab.Client(), tcp.FinWait2) == 1 })
			s.write(c.server)
			s.awaitReset()
			s.await("its end", func() bool { return len(s.minisocks(s.lab.Client())) == 0 })
			s.close(c.server)
		},
		counters: map[string]uint64{"client.TcpExt.TW": 1, "client.Tcp.OutRsts": 1, "server.Tcp.EstabResets": 1},
		want: func(s *scene) {
			c := s.conns[0]
			if s.seesEveryRst() { // also what the data was answered with, and so why the minisock ended
				s.wantCookie(s.one("kill", s.ended(tcp.CauseKilledByRst)), c.clientCookie)
				sent := s.one("RST", s.ofKind(tcp.KindRstSent))
				s.wantCookie(sent, c.clientCookie)
				s.wantReason(sent, "TCP_TIMEWAIT_SOCKET")
			}
			s.wantCookie(s.one("RST received", s.ofKind(tcp.KindRstReceived)), c.serverCookie)
		},
	},
	{
		name: "RST into TIME_WAIT", v6: true, sysctls: "tcp_rfc1337=0", traced: clientOnly,
		do: func(s *scene) {
			s.resetTimeWait()
			s.await("the end of TIME_WAIT", func() bool { return len(s.minisocks(s.lab.Client())) == 0 })
		},
		counters: map[string]uint64{"client.TcpExt.TW": 1, "client.Tcp.OutRsts": 0},
		want: func(s *scene) {
			s.wantCookie(s.one("kill", s.ended(tcp.CauseKilledByRst)), s.conns[0].clientCookie)
		},
	},
	{
		name: "RST into TIME_WAIT with tcp_rfc1337", sysctls: "tcp_rfc1337=1", traced: clientOnly,
		do:       func(s *scene) { s.resetTimeWait() },
		counters: map[string]uint64{"client.TcpExt.TW": 1},
		want: func(s *scene) {
			s.wantNone(tcp.KindTWEnd)
			if n := s.minisocksIn(s.lab.Client(), tcp.TimeWait); n != 1 {
				s.Errorf("%d in TIME_WAIT, want 1", n)
			}
		},
	},
	overflow(0), overflow(1), overflow(2),
	noOverflow("linger 0", func(s *scene, c conn) { s.abort(c.client) }),
	noOverflow("disconnected", func(s *scene, c conn) {
		// connect() to no address at all (AF_UNSPEC) ends a connection.
		unspec := unix.RawSockaddr{Family: unix.AF_UNSPEC}
		_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(c.client), uintptr(unsafe.Pointer(&unspec)), unsafe.Sizeof(unspec))
		if errno != 0 {
			s.Fatalf("connect: %v", errno)
		}
	}),
	noOverflow("unread data", func(s *scene, c conn) {
		s.write(c.server)
		_, _, err := unix.Recvfrom(c.client, make([]byte, 1), unix.MSG_PEEK)
		s.must("peek", err)
		s.close(c.client)
	}),
	noOverflow("TCP_LINGER2 below 0", func(s *scene, c conn) {
		s.must("TCP_LINGER2", unix.SetsockoptInt(c.client, unix.IPPROTO_TCP, unix.TCP_LINGER2, -1))
		s.close(c.client)
	}),
	{
		name: "TCP_LINGER2 below 0 of an orphan, and no room for a TIME_WAIT", sysctls: "tcp_max_tw_buckets=0",
		do: func(s *scene) {
			c := s.dial(0)
			s.must("TCP_LINGER2", unix.SetsockoptInt(c.client, unix.IPPROTO_TCP, unix.TCP_LINGER2, -1))
			s.close(c.client)
			s.waitEOF(c.server)
			s.awaitReset()
			s.close(c.server)
		},
		counters: map[string]uint64{"client.TcpExt.TCPTimeWaitOverflow": 0, "client.Tcp.OutRsts": 1},
		want:     func(s *scene) { s.wantNone(tcp.KindTWOverflow) },
	},
	{
		name: "TIME_WAIT destroyed", v6: true,
		do: func(s *scene) {
			c := s.dial(0)
			s.closeFirst(c.client, c.server)
			s.await("TIME_WAIT", func() bool { return s.minisocksIn(s.lab.Client(), tcp.TimeWait) == 1 })
			s.destroy(c)
		},
		counters: map[string]uint64{"client.TcpExt.TW": 1, "client.Tcp.OutRsts": 0},
		want: func(s *scene) {
			s.wantCookie(s.one("destruction", s.ended(tcp.CauseDestroyed)), s.conns[0].clientCookie)
		},
	},
	{
		name: "connection destroyed", v6: true,
		do: func(s *scene) {
			c := s.dial(0)
			s.destroy(c)
			s.waitReset(c.server)
			if _, err := s.read(c.client); !errors.Is(err, unix.ECONNABORTED) {
				s.Fatalf("read: %v, want ECONNABORTED", err)
			}
			s.close(c.client)
		},
		counters: map[string]uint64{"client.TcpExt.TW": 0, "client.Tcp.OutRsts": 1, "server.Tcp.EstabResets": 1},
		want: func(s *scene) {
			s.wantCookie(s.one("RST", s.ofKind(tcp.KindRstSent)), s.conns[0].clientCookie)
			s.wantCookie(s.one("RST received", s.ofKind(tcp.KindRstReceived)), s.conns[0].serverCookie)
			for _, ev := range s.ofKind(tcp.KindError) {
				if ev.Cookie == s.conns[0].clientCookie && ev.Errno != tcp.Errno(unix.ECONNABORTED) {
					s.Errorf("the client got %v, want ECONNABORTED", ev.Errno)
				}
			}
		},
	},
	{
		name: "trace of the client's namespace only", traced: clientOnly,
		do:       func(s *scene) { c := s.dial(0); s.closeFirst(c.client, c.server) },
		counters: map[string]uint64{"client.TcpExt.TW": 1},
		want: func(s *scene) {
			s.wantStates(s.conns[0].clientCookie, activeClose...)
			s.wantEvents(6)
		},
	},
	{
		name: "trace of the server's namespace only", traced: serverOnly,
		do:       func(s *scene) { c := s.dial(0); s.closeFirst(c.client, c.server) },
		counters: map[string]uint64{"server.Tcp.PassiveOpens": 1},
		want: func(s *scene) {
			s.wantStates(s.conns[0].serverCookie, passiveClose...)
			s.wantEvents(5)
		},
	},
	{
		// An MPTCP socket reports its own states too (sk_protocol 262); what is
		// wanted are those of the TCP connection below it, once.
		name: "MPTCP",
		do: func(s *scene) {
			s.close(s.listener)
			s.mptcpConnection()
		},
		counters: map[string]uint64{"client.Tcp.ActiveOpens": 1, "server.Tcp.PassiveOpens": 1, "client.TcpExt.TW": 1},
		want: func(s *scene) {
			s.one("the listener", s.filter(is(tcp.Listen, tcp.Close)))
			s.one("the client", s.filter(is(tcp.SynSent, tcp.Close)))
			s.one("the server", s.filter(is(tcp.Established, tcp.SynRecv)))
			if n := len(s.filter(is(tcp.Close, tcp.Close))); n != 0 {
				s.Errorf("%d changes from CLOSE to CLOSE", n)
			}
		},
	},
}

func clientOnly(lab *netlab.Lab) []*netlab.Namespace { return []*netlab.Namespace{lab.Client()} }
func serverOnly(lab *netlab.Lab) []*netlab.Namespace { return []*netlab.Namespace{lab.Server()} }

// overflow closes five connections where there is room for fewer TIME_WAITs.
func overflow(room uint64) scenario {
	digit := string(rune('0' + room))
	return scenario{
		name: "TIME_WAIT overflow with room for " + digit, v6: room == 1,
		sysctls: "tcp_max_tw_buckets=" + digit,
		do: func(s *scene) {
			for range 5 {
				c := s.dial(0)
				s.closeFirst(c.client, c.server)
			}
		},
		counters: map[string]uint64{"client.TcpExt.TW": room, "client.TcpExt.TCPTimeWaitOverflow": 5 - room},
		want: func(s *scene) {
			made := make(map[tcp.Cookie]bool)
			for _, ev := range s.ofKind(tcp.KindTWEnter) {
				made[ev.Cookie] = true
			}
			for _, ev := range s.ofKind(tcp.KindTWOverflow) {
				if made[ev.Cookie] {
					s.Errorf("socket %d has a TIME_WAIT and has none", ev.Cookie)
				}
				made[ev.Cookie] = true
			}
			for _, c := range s.conns {
				if !made[c.clientCookie] {
					s.Errorf("socket %d has neither a TIME_WAIT nor an overflow", c.clientCookie)
				}
			}
		},
	}
}

// noOverflow ends a half-closed connection in a way that makes no TIME_WAIT, where
// there would be no room for one.
func noOverflow(name string, end func(*scene, conn)) scenario {
	return scenario{
		name: name + " in FIN_WAIT2, and no room for a TIME_WAIT", sysctls: "tcp_max_tw_buckets=0",
		do: func(s *scene) {
			c := s.dial(0)
			s.shutdown(c.client)
			s.waitEOF(c.server)
			s.await("FIN_WAIT2", func() bool { return s.has(s.lab.Client(), tcp.FinWait2) })
			end(s, c)
			s.awaitReset()
			for _, fd := range []int{c.client, c.server} {
				if s.open[fd] {
					s.close(fd)
				}
			}
		},
		counters: map[string]uint64{"client.TcpExt.TCPTimeWaitOverflow": 0, "client.Tcp.OutRsts": 1},
		want:     func(s *scene) { s.wantNone(tcp.KindTWOverflow) },
	}
}

// destroy ends the client's side as ss -K does.
func (s *scene) destroy(c conn) {
	s.Helper()
	s.must("SOCK_DESTROY", s.lab.Client().Do(func() error {
		req := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
		req.AddRawData(diagRequest(c.tuple))
		_, err := req.Execute(unix.NETLINK_SOCK_DIAG, 0)
		return err
	}))
}

// diagRequest asks sock_diag for one socket (struct inet_diag_req_v2; the library
// makes it for IPv4 only).
func diagRequest(t tcp.FourTuple) []byte {
	req := make([]byte, 56)
	req[0], req[1] = unix.AF_INET, unix.IPPROTO_TCP
	if t.Local.Addr().Is6() {
		req[0] = unix.AF_INET6
	}
	binary.NativeEndian.PutUint32(req[4:], ^uint32(0)) // in any state
	binary.BigEndian.PutUint16(req[8:], t.Local.Port())
	binary.BigEndian.PutUint16(req[10:], t.Peer.Port())
	copy(req[12:], t.Local.Addr().AsSlice())
	copy(req[28:], t.Peer.Addr().AsSlice())
	binary.NativeEndian.PutUint64(req[48:], ^uint64(0)) // INET_DIAG_NOCOOKIE
	return req
}

// has reports whether sock_diag shows a socket in one of these states.
func (s *scene) has(ns *netlab.Namespace, states ...tcp.State) bool {
	s.Helper()
	return slices.ContainsFunc(s.sockets(ns), func(sock *netlink.Socket) bool {
		return slices.Contains(states, tcp.State(sock.State))
	})
}

func TestScenarios(t *testing.T) {
	for _, sc := range scenarios {
		for _, v6 := range []bool{false, true} {
			if v6 && !sc.v6 {
				continue
			}
			name := sc.name + "/IPv4"
			if v6 {
				name = sc.name + "/IPv6"
			}
			t.Run(name, func(t *testing.T) {
				o := setup{Options: netlab.Options{Kind: sc.kind, IPv6: v6}, traced: sc.traced}
				for text := range strings.FieldsSeq(sc.sysctls) {
					sysctl, err := netlab.ParseSysctl("net.ipv4." + strings.ReplaceAll(text, "_4", " 4"))
					if err != nil {
						t.Fatal(err)
					}
					o.Sysctls = append(o.Sysctls, sysctl)
				}
				twice(t, func(try *trial) {
					s := sceneOf(try, o)
					sc.do(s)
					s.finish()
					for name, want := range sc.counters {
						s.wantCounter(name, want)
					}
					sc.want(s)
					if t.Failed() || len(try.kept) > 0 {
						t.Logf("%+v\n%s", s.stats, s.list())
					}
				})
			})
		}
	}
}

func (s *scene) wantCounter(name string, want uint64) {
	s.Helper()
	side, counter, _ := strings.Cut(name, ".")
	ns := s.lab.Client()
	if side == "server" {
		ns = s.lab.Server()
	}
	if got := s.counted[ns][counter]; got != want {
		s.Errorf("the scenario went wrong: %s rose by %d, not by %d", name, got, want)
	}
}

func (s *scene) wantCookie(ev Event, want tcp.Cookie) {
	s.Helper()
	if ev.Cookie != want {
		s.Errorf("%v is of socket %d, want %d", ev.Kind, ev.Cookie, want)
	}
}

// wantEvents leaves out the conversions (there is one if the peer's FIN came after the
// ACK, and its socket was closed already) and the snapshot of the listener.
func (s *scene) wantEvents(n int) {
	s.Helper()
	if got := len(s.events) - len(s.ofKind(tcp.KindTWConvert)) - len(s.ofKind(tcp.KindSnapshot)); got != n {
		s.Errorf("%d events, want %d", got, n)
	}
}

// heldBack connects clients whose last ACK the listener holds back until data comes with
// it (TCP_DEFER_ACCEPT).
func (s *scene) heldBack(n, backlog int) (clients []int) {
	s.Helper()
	s.must("TCP_DEFER_ACCEPT", unix.SetsockoptInt(s.listener, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 10))
	s.must("shorten the backlog", unix.Listen(s.listener, backlog))
	for range n {
		fd, err := s.tryDial(0)
		s.must("connect", err)
		clients = append(clients, fd)
	}
	return clients
}

// acceptWithData accepts one of the clients that were held back, reads its data, and
// has it closed.
func (s *scene) acceptWithData(clients ...int) conn {
	s.Helper()
	c := s.accept(clients...)
	if n, err := s.read(c.server); n != 1 {
		s.Fatalf("read %d bytes, %v", n, err)
	}
	s.closeFirst(c.client, c.server)
	return c
}

// wantFailedConnect checks the event of the only connect() that failed.
func (s *scene) wantFailedConnect(cause tcp.Cause) {
	s.Helper()
	ev := s.one("connect()", s.ofKind(tcp.KindConnectFailed))
	s.wantCookie(ev, s.noPort[0])
	if ev.Cause != cause || ev.Errno != tcp.Errno(unix.EADDRNOTAVAIL) {
		s.Errorf("connect() failed by %q with %v, want %q and EADDRNOTAVAIL", ev.Cause, ev.Errno, cause)
	}
}

// wantDrop checks the drops of the listener: there is one at least, as many as the
// kernel counted are checked for every scene.
func (s *scene) wantDrop(cause tcp.Cause, peer tcp.State) {
	s.Helper()
	if s.trace.Coverage()[tcp.FactListenDrop] != tcp.Exact {
		return
	}
	drops := s.ofKind(tcp.KindListenDrop)
	if len(drops) == 0 {
		s.Error("no drop")
	}
	for _, ev := range drops {
		if ev.Cause != cause || ev.Substate != peer || ev.Tuple.Local != s.server || ev.Cookie == 0 {
			s.Errorf("%+v, want a drop by %q of what a peer in %v sent to %v", ev, cause, peer, s.server)
		}
	}
}

// wantOwner checks that an event is of this process.
func (s *scene) wantOwner(ev Event) {
	s.Helper()
	comm, err := os.ReadFile("/proc/self/comm")
	s.must("read the own name", err)
	if ev.Flags&tcp.FlagOwner == 0 || ev.Owner.PID != uint32(os.Getpid()) || ev.Owner.Comm.String() != strings.TrimSpace(string(comm)) {
		s.Errorf("%v %v>%v is of %+v (flags %b), want process %d, %s", ev.Kind, ev.Old, ev.New, ev.Owner, ev.Flags, os.Getpid(), comm)
	}
}

func (s *scene) wantNone(k Kind) {
	s.Helper()
	if n := len(s.ofKind(k)); n != 0 {
		s.Errorf("%d events %v, want none", n, k)
	}
}

// seesEveryRst: until 6.9 the kernel reports those of full sockets only.
func (s *scene) seesEveryRst() bool { return s.trace.Coverage()[tcp.FactRstSent] == tcp.Exact }

func (s *scene) wantReason(ev Event, want string) {
	s.Helper()
	if s.trace.Coverage()[tcp.FactRstReason] != tcp.Exact {
		return
	}
	if got := s.trace.RstReasons()[ev.Reason]; got != want {
		s.Errorf("RST because of %s (%d), want %s", got, ev.Reason, want)
	}
}

// wantAborted checks a connection that from ended with SO_LINGER {1,0}.
func (s *scene) wantAborted(from, to tcp.Cookie) {
	s.Helper()
	sent := s.one("RST", s.ofKind(tcp.KindRstSent))
	s.wantCookie(sent, from)
	if sent.Flags&tcp.FlagActive == 0 || sent.Old != tcp.Close && sent.Old != tcp.Established {
		s.Errorf("RST with flags %05b in %v", sent.Flags, sent.Old)
	}
	s.wantCookie(s.one("RST received", s.ofKind(tcp.KindRstReceived)), to)
	for _, ev := range s.filter(is(tcp.Close, tcp.Established)) {
		linger, reset := ev.Flags&tcp.FlagLinger0 != 0, ev.Errno == tcp.ECONNRESET
		if linger != (ev.Cookie == from) || reset != (ev.Cookie == to) {
			s.Errorf("socket %d: flags %05b, error %v", ev.Cookie, ev.Flags, ev.Errno)
		}
	}
	s.wantNone(tcp.KindTWEnter)
}

// hz is the number of jiffies a second.
func (s *scene) hz() int {
	s.Helper()
	hz, err := s.trace.HZ()
	s.must("HZ", err)
	return hz
}

// waitReset waits until the peer's RST is there, and closes.
func (s *scene) waitReset(fd int) {
	s.Helper()
	if n, err := s.read(fd); !errors.Is(err, unix.ECONNRESET) {
		s.Fatalf("read %d bytes, %v; want ECONNRESET", n, err)
	}
	s.close(fd)
}

// awaitReset waits until the peer's RST has ended the server's half-open connection. Its
// socket would not say so: it has read the FIN, and every read() after that gives 0.
func (s *scene) awaitReset() {
	s.Helper()
	s.await("the RST", func() bool { return !s.has(s.lab.Server(), tcp.CloseWait) })
}

// resetTimeWait brings the client into TIME_WAIT and sends it an RST with the
// sequence number that it expects next. The RST comes from a socket that is put
// in the place of the server's (TCP_REPAIR).
func (s *scene) resetTimeWait() {
	s.Helper()
	c := s.dial(0)
	seq, err := writeSeq(c.server)
	s.must("read the sequence number", err)
	s.closeFirst(c.client, c.server)
	s.settle()
	s.await("TIME_WAIT", func() bool { return s.minisocksIn(s.lab.Client(), tcp.TimeWait) == 1 })

	fd := s.socket(s.lab.Server())
	s.must("take the server's place", repaired(fd, func() error {
		return errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ, int(seq+1)), // + 1: the FIN
			unix.Bind(fd, s.sockaddr(s.server)),
			connect(fd, s.sockaddr(c.tuple.Local)),
		)
	}))
	s.abort(fd)
}

// strayReset sends the server an RST of a connection that it does not have, by a raw
// socket. One of a TCP socket would have the flag ACK, and is dropped before the
// listener counts it.
func (s *scene) strayReset() {
	s.Helper()
	client, server := s.lab.ClientAddrs()[0], s.server
	const tcpLen = 20
	segment := make([]byte, tcpLen)
	binary.BigEndian.PutUint16(segment, bound)
	binary.BigEndian.PutUint16(segment[2:], server.Port())
	segment[12], segment[13] = tcpLen/4<<4, 1<<2 // length, RST
	pseudo := slices.Concat(client.AsSlice(), server.Addr().AsSlice(), []byte{0, unix.IPPROTO_TCP, 0, tcpLen}, segment)
	var sum uint32 // RFC 9293, section 3.1
	for word := range slices.Chunk(pseudo, 2) {
		sum += uint32(binary.BigEndian.Uint16(word))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(segment[16:], ^uint16(sum>>16+sum))

	family := unix.AF_INET
	if client.Is6() {
		family = unix.AF_INET6
	}
	s.must("send an RST", s.lab.Client().Do(func() error {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, segment, 0, s.sockaddr(netip.AddrPortFrom(server.Addr(), 0)))
	}))
}

// mptcpConnection makes one connection between Go's sockets, which are MPTCP where
// the kernel has it, and closes it.
func (s *scene) mptcpConnection() {
	s.Helper()
	var (
		ln     net.Listener
		client net.Conn
	)
	s.must("listen", s.lab.Server().Do(func() (err error) {
		ln, err = net.Listen("tcp", netip.AddrPortFrom(s.lab.ServerAddr(), 8081).String())
		return err
	}))
	defer ln.Close()
	s.must("connect", s.lab.Client().Do(func() (err error) {
		var d net.Dialer
		d.SetMultipathTCP(true)
		client, err = d.Dial("tcp", ln.Addr().String())
		return err
	}))
	server, err := ln.Accept()
	s.must("accept", err)
	mptcp, err := server.(*net.TCPConn).MultipathTCP()
	s.Logf("MPTCP on both ends: %v, %v", mptcp, err)
	s.must("close", client.Close())
	if n, err := server.Read(make([]byte, 1)); n != 0 {
		s.Fatalf("read %d bytes, %v", n, err)
	}
	s.must("close", server.Close())
}
