package timeline

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/twtrace/twtrace/internal/tcp"
)

// at is the events of an end that is not the client of package tests' stream.
func (s *stream) at(ns tcp.NetNS, t tcp.FourTuple, c tcp.Cookie, old, new tcp.State, flags tcp.Flags, errno tcp.Errno) {
	s.add(tcp.Event{Kind: tcp.KindState, NetNS: ns, Cookie: c, Tuple: t, Old: old, New: new, Flags: flags, Errno: errno})
}

func (s *stream) accepted(c tcp.Cookie, port uint16) {
	s.at(server, tuple(port).Reverse(), 0, tcp.Listen, tcp.SynRecv, 0, 0)
	s.at(server, tuple(port).Reverse(), c, tcp.SynRecv, tcp.Established, 0, 0)
}

// fold returns the Connections of a stream in the order in which they were handed out.
func fold(t *testing.T, limit int, s *stream) []Connection {
	t.Helper()
	var out []Connection
	c := NewConnections(limit, func(conn *Connection) { out = append(out, *conn) })
	for i := range s.events {
		c.Event(&s.events[i])
	}
	c.Finish()
	if c.open != 0 || len(c.sockets)+len(c.waits)+len(c.tuples) != 0 {
		t.Errorf("left behind: %d open, %d sockets, %d TIME_WAITs, %d four-tuples", c.open, len(c.sockets), len(c.waits), len(c.tuples))
	}
	return out
}

func byCookie(t *testing.T, conns []Connection, c tcp.Cookie) *Connection {
	t.Helper()
	var found *Connection
	for i := range conns {
		if conns[i].Cookie == c {
			if found != nil {
				t.Fatalf("two connections of cookie %d", c)
			}
			found = &conns[i]
		}
	}
	if found == nil {
		t.Fatalf("no connection of cookie %d", c)
	}
	return found
}

// TestConnectionWhole: both ends of a connection that the client closes first, and all that is known of it.
func TestConnectionWhole(t *testing.T) {
	s := new(stream)
	there := tuple(40000).Reverse()
	s.add(tcp.Event{
		Kind: tcp.KindState, Cookie: 9, Tuple: tuple(0), Old: tcp.Close, New: tcp.SynSent,
		Flags: tcp.FlagOwner, Owner: tcp.Owner{PID: 7},
	}) // 1
	s.state(9, 40000, tcp.SynSent, tcp.Established, 0, 0)                                                                       // 2
	s.accepted(10, 40000)                                                                                                       // 3, 4
	s.add(tcp.Event{Kind: tcp.KindRetransmit, Cookie: 9, Tuple: tuple(40000), Old: tcp.Established, Errno: 1})                  // 5
	s.state(9, 40000, tcp.Established, tcp.FinWait1, 0, 0)                                                                      // 6
	s.at(server, there, 10, tcp.Established, tcp.CloseWait, 0, 0)                                                               // 7
	s.state(9, 40000, tcp.FinWait1, tcp.FinWait2, 0, 0)                                                                         // 8
	s.enter(9, 40000, tcp.FinWait2, 500)                                                                                        // 9
	s.state(9, 40000, tcp.FinWait2, tcp.Close, tcp.FlagTWMade, 0)                                                               // 10
	s.at(server, there, 10, tcp.CloseWait, tcp.LastAck, 0, 0)                                                                   // 11
	convert := tcp.Event{Kind: tcp.KindTWConvert, Cookie: 9, Tuple: tuple(40000), Old: 6, New: 6, Substate: 6}                  // 12
	s.add(convert)                                                                                                              //
	s.at(server, there, 10, tcp.LastAck, tcp.Close, 0, 0)                                                                       // 13
	s.add(convert)                                                                                                              // 14: the FIN again
	s.now += 60e9                                                                                                               //
	s.add(tcp.Event{Kind: tcp.KindTWEnd, Cookie: 9, Tuple: tuple(40000), Old: 6, New: 7, Substate: 6, Cause: tcp.CauseExpired}) // 15
	got := fold(t, 0, s)

	want := []Connection{{
		Cookie: 10, NetNS: server, Tuple: there, Role: RolePassive, FirstSeq: 4, LastSeq: 13, Events: 4,
		FirstNS: 4000, LastNS: 13000, State: tcp.Close, OpenedNS: 4000, EstablishedNS: 4000, ClosedNS: 13000,
		FinReceivedNS: 7000, FinSentNS: 11000, Peer: 9,
	}, {
		Cookie: 9, NetNS: client, Tuple: tuple(40000), Owner: tcp.Owner{PID: 7}, Role: RoleActive, FirstSeq: 1, LastSeq: 15, Events: 10,
		FirstNS: 1000, LastNS: 60e9 + 15000, State: tcp.Close, OpenedNS: 1000, EstablishedNS: 2000, ClosedNS: 10000, ClosedBy: tcp.FlagTWMade,
		FinSentNS: 6000, FinReceivedNS: 12000, Retransmits: 1, Peer: 10,
		TimeWait: TimeWait{EnteredNS: 9000, ConvertedNS: 12000, EndedNS: 60e9 + 15000, Substate: tcp.TimeWait, Cause: tcp.CauseExpired, Ticks: 500},
	}}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for i := range got {
		if !got[i].Complete() {
			t.Errorf("connection %d is not complete", got[i].Cookie)
		}
	}
}

func TestConnectionEnds(t *testing.T) {
	for _, tt := range []struct {
		name   string
		events func(*stream)
		check  func(*Connection) bool
	}{
		{"linger", func(s *stream) { s.connect(9, 40000); s.linger(9, 40000) }, func(c *Connection) bool {
			return c.RstSent == 1 && c.Errno == 0 && c.ClosedBy == tcp.FlagLinger0 && c.Complete()
		}},
		{"linger, and the error that it gives its own socket", func(s *stream) {
			s.connect(9, 40000)
			s.linger(9, 40000)
			s.add(tcp.Event{Kind: tcp.KindError, Cookie: 9, Tuple: tuple(40000), Errno: tcp.ECONNRESET})
		}, func(c *Connection) bool { return c.Errno == 0 && c.Events == 5 }},
		{"refused", func(s *stream) { s.refused(9, 40000) }, func(c *Connection) bool {
			return c.Errno == tcp.ECONNREFUSED && c.RstReceived == 1 && c.EstablishedNS == 0 && c.Tuple == tuple(40000)
		}},
		{"no port", func(s *stream) {
			s.exhausted(9)
			s.add(tcp.Event{Kind: tcp.KindConnectFailed, Cookie: 9, Tuple: tuple(0), Errno: tcp.EADDRNOTAVAIL, Cause: tcp.CausePortSearch})
		}, func(c *Connection) bool {
			return c.Errno == tcp.EADDRNOTAVAIL && c.Cause == tcp.CausePortSearch && c.Tuple.Local.Port() == 0 && c.Role == RoleActive
		}},
		{"bind", func(s *stream) {
			s.add(tcp.Event{Kind: tcp.KindBindFailed, Cookie: 9, Errno: tcp.EADDRINUSE, Tuple: tcp.FourTuple{Local: dest}})
		}, func(c *Connection) bool {
			return c.Errno == tcp.EADDRINUSE && c.Role == RoleUnknown && c.Tuple.Local == dest
		}},
		{"after tcp_disconnect the peer's port is 0", func(s *stream) {
			s.connect(9, 40000)
			s.at(client, tcp.FourTuple{Local: tuple(40000).Local, Peer: netip.AddrPortFrom(dest.Addr(), 0)}, 9, tcp.Established, tcp.Close, tcp.FlagLinger0, 0)
		}, func(c *Connection) bool { return c.Tuple == tuple(40000) }},
		{"a TIME_WAIT that was not made", func(s *stream) {
			s.connect(9, 40000)
			s.state(9, 40000, tcp.Closing, tcp.Close, 0, 0)
			s.add(tcp.Event{Kind: tcp.KindTWOverflow, Cookie: 9, Tuple: tuple(40000), Old: tcp.Closing, New: tcp.Close})
		}, func(c *Connection) bool { return c.TimeWait.Overflowed && !c.TimeWait.Made() }},
		{"a TIME_WAIT that was there", func(s *stream) {
			s.add(tcp.Event{Kind: tcp.KindSnapshot, Cookie: 9, Tuple: tuple(40000), Old: 6, New: 6, Substate: 6, Ticks: 99})
			s.end(9, 40000, tcp.CauseExpired)
		}, func(c *Connection) bool {
			w := c.TimeWait
			return c.Snapshot && w.EnteredNS == 0 && w.EndedNS == 2000 && w.Ticks == 99 && w.Substate == tcp.TimeWait && !c.Complete()
		}},
		{"a listener and what it dropped", func(s *stream) {
			s.at(server, tcp.FourTuple{Local: dest}, 9, tcp.Close, tcp.Listen, 0, 0)
			s.add(tcp.Event{Kind: tcp.KindListenDrop, NetNS: server, Cookie: 9, Tuple: tuple(40000).Reverse(), Cause: tcp.CauseAcceptQueue})
		}, func(c *Connection) bool {
			return c.Role == RoleListener && c.Tuple.Peer == netip.AddrPort{} && c.Events == 2
		}},
		{"numbers of a later version", func(s *stream) {
			s.add(tcp.Event{Kind: 255, Cookie: 9, Old: 255, New: 255, Substate: 255, Cause: 255})
		}, func(c *Connection) bool { return c.Events == 1 && c.Role == RoleUnknown }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := new(stream)
			tt.events(s)
			if c := byCookie(t, fold(t, 0, s), 9); !tt.check(c) {
				t.Errorf("%+v", *c)
			}
		})
	}
}

// TestConnectionLives: a socket that was shut down is connected again while its TIME_WAIT lasts, and one
// whose connect() failed tries again.
func TestConnectionLives(t *testing.T) {
	s := new(stream)
	s.connect(9, 40000)
	s.closeFirst(9, 40000)
	s.connect(9, 40001)
	s.end(9, 40000, tcp.CauseExpired)
	s.state(9, 40001, tcp.Established, tcp.Close, 0, tcp.ECONNRESET)
	s.exhausted(8)
	s.connect(8, 40002)
	got := fold(t, 0, s)
	if len(got) != 4 {
		t.Fatalf("%d connections, want 4: %+v", len(got), got)
	}
	for i := range got {
		c := &got[i]
		switch {
		case c.Cookie == 9 && c.Tuple == tuple(40000):
			if c.TimeWait.EndedNS == 0 || c.TimeWait.Cause != tcp.CauseExpired || c.Errno != 0 || c.Events != 7 {
				t.Errorf("the first life: %+v", *c)
			}
		case c.Cookie == 9:
			if c.TimeWait.Made() || c.Errno != tcp.ECONNRESET || c.Events != 3 {
				t.Errorf("the second life: %+v", *c)
			}
		case c.ClosedBy&tcp.FlagNoSegment != 0:
			if c.EstablishedNS != 0 {
				t.Errorf("the connect() that failed: %+v", *c)
			}
		default:
			if c.EstablishedNS == 0 || c.ClosedNS != 0 {
				t.Errorf("the one that did not: %+v", *c)
			}
		}
	}
}

// TestSuccessor: who took the four-tuple, whether it shows its port before (bound) or after (by itself) it
// has taken it, and whether or not others tried in vain before.
func TestSuccessor(t *testing.T) {
	for _, tt := range []struct {
		name  string
		bound uint16
		vain  bool
	}{{"auto", 0, false}, {"bound", 40000, false}, {"auto, after one in vain", 0, true}, {"bound, after one in vain", 40000, true}} {
		t.Run(tt.name, func(t *testing.T) {
			s := new(stream)
			s.connect(9, 40000)
			s.accepted(10, 40000)
			s.closeFirst(9, 40000)
			s.at(server, tuple(40000).Reverse(), 10, tcp.LastAck, tcp.Close, 0, 0)
			if tt.vain {
				s.state(11, 40000, tcp.Close, tcp.SynSent, 0, 0)
				s.state(11, 40000, tcp.SynSent, tcp.Close, tcp.FlagNoSegment, 0)
			}
			s.state(12, tt.bound, tcp.Close, tcp.SynSent, 0, 0)
			s.end(9, 40000, tcp.CauseReusedByConnect)
			s.now += 3e9 // the SYN is sent again, twice
			s.state(12, 40000, tcp.SynSent, tcp.Established, 0, 0)
			s.accepted(13, 40000)
			got := fold(t, 0, s)
			for cookie, want := range map[tcp.Cookie][2]tcp.Cookie{9: {10, 12}, 10: {9, 0}, 12: {13, 0}, 13: {12, 0}} {
				c := byCookie(t, got, cookie)
				if c.Peer != want[0] || c.Successor != want[1] {
					t.Errorf("%d: peer %d, successor %d; want %v", cookie, c.Peer, c.Successor, want)
				}
			}
		})
	}
}

func TestReplacedBySyn(t *testing.T) {
	s := new(stream)
	there := tuple(40000).Reverse()
	s.accepted(10, 40000)
	s.add(tcp.Event{Kind: tcp.KindTWEnter, NetNS: server, Cookie: 10, Tuple: there, New: tcp.TimeWait, Substate: tcp.TimeWait})
	s.at(server, there, 10, tcp.FinWait2, tcp.Close, tcp.FlagTWMade, 0)
	s.add(tcp.Event{Kind: tcp.KindTWEnd, NetNS: server, Cookie: 10, Tuple: there, Old: 6, New: 7, Cause: tcp.CauseReplacedBySyn})
	s.accepted(11, 40000)
	if c := byCookie(t, fold(t, 0, s), 10); c.Successor != 11 {
		t.Errorf("successor %d, want 11", c.Successor)
	}
}

// TestPeer: whose end is whose, where it is told by four-tuple and time.
func TestPeer(t *testing.T) {
	loop := tcp.FourTuple{Local: netip.MustParseAddrPort("127.0.0.1:40000"), Peer: netip.MustParseAddrPort("127.0.0.1:80")}
	self := tcp.FourTuple{Local: loop.Local, Peer: loop.Local}
	pair := func(s *stream, ns tcp.NetNS, c tcp.Cookie, t tcp.FourTuple) {
		s.at(ns, tcp.FourTuple{Local: netip.AddrPortFrom(t.Local.Addr(), 0), Peer: t.Peer}, c, tcp.Close, tcp.SynSent, 0, 0)
		s.at(ns, t, c, tcp.SynSent, tcp.Established, 0, 0)
		s.at(ns, t.Reverse(), c+1, tcp.SynRecv, tcp.Established, 0, 0)
	}
	for _, tt := range []struct {
		name   string
		events func(*stream)
		want   map[tcp.Cookie]tcp.Cookie
	}{
		{"loopback, the same addresses in two namespaces", func(s *stream) {
			pair(s, 1, 1, loop)
			pair(s, 2, 3, loop)
		}, map[tcp.Cookie]tcp.Cookie{1: 2, 2: 1, 3: 4, 4: 3}},
		{"no peer over loopback in another namespace", func(s *stream) {
			s.at(1, loop, 1, tcp.SynSent, tcp.Established, 0, 0)
			s.at(2, loop.Reverse(), 2, tcp.SynRecv, tcp.Established, 0, 0)
		}, map[tcp.Cookie]tcp.Cookie{1: 0, 2: 0}},
		{"three namespaces: the third is nobody's", func(s *stream) {
			s.at(1, tuple(40000), 1, tcp.SynSent, tcp.Established, 0, 0)
			s.at(2, tuple(40000).Reverse(), 2, tcp.SynRecv, tcp.Established, 0, 0)
			s.at(3, tuple(40000), 3, tcp.SynSent, tcp.Established, 0, 0)
		}, map[tcp.Cookie]tcp.Cookie{1: 2, 2: 1, 3: 0}},
		{"connected to itself", func(s *stream) {
			s.at(1, self, 1, tcp.SynSent, tcp.SynRecv, 0, 0)
			s.at(1, self, 1, tcp.SynRecv, tcp.Established, 0, 0)
		}, map[tcp.Cookie]tcp.Cookie{1: 0}},
		{"one after the other is no peer", func(s *stream) {
			s.connect(1, 40000)
			s.linger(1, 40000)
			s.connect(3, 40000)
			s.accepted(4, 40000)
		}, map[tcp.Cookie]tcp.Cookie{1: 0, 3: 4, 4: 3}},
		{"the handshake's last segment comes when the client has aborted", func(s *stream) {
			s.connect(1, 40000)
			s.linger(1, 40000)
			s.accepted(2, 40000)
		}, map[tcp.Cookie]tcp.Cookie{1: 2, 2: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := new(stream)
			tt.events(s)
			got := fold(t, 0, s)
			for c, want := range tt.want {
				if peer := byCookie(t, got, c).Peer; peer != want {
					t.Errorf("%d has the peer %d, want %d", c, peer, want)
				}
			}
		})
	}
}

// TestConnectionsBounded: what there is no room for is counted, and there is room again when others are over.
func TestConnectionsBounded(t *testing.T) {
	s := new(stream)
	for c := tcp.Cookie(1); c <= 5; c++ {
		s.connect(c, 40000+uint16(c))
	}
	s.linger(1, 40001)
	s.now += 2 * afterClose
	s.connect(6, 40006)
	n := 0
	conns := NewConnections(3, func(*Connection) { n++ })
	for i := range s.events {
		conns.Event(&s.events[i])
	}
	conns.Finish()
	if n != 4 || conns.Overflow() != 4 {
		t.Errorf("%d connections and %d events left out, want 4 and 4", n, conns.Overflow())
	}
}

// TestConnectionsAnything: events in any order, as a damaged recording or a hostile one has them. Each event
// of a cookie is of one connection, and nothing stays behind.
func TestConnectionsAnything(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 5))
		s, cookies := new(stream), 0
		for range 3000 {
			ev := tcp.Event{
				Kind: tcp.Kind(r.IntN(tcp.NumKinds + 1)), Cookie: tcp.Cookie(r.IntN(12)), NetNS: tcp.NetNS(1 + r.IntN(3)),
				Tuple: tuple(uint16(r.IntN(4))), Old: tcp.State(r.IntN(tcp.NumStates + 1)), New: tcp.State(r.IntN(tcp.NumStates + 1)),
				Substate: tcp.State(r.IntN(7)), Cause: tcp.Cause(r.IntN(tcp.NumCauses)), Errno: tcp.Errno(r.IntN(3)),
			}
			if r.IntN(2) == 0 {
				ev.Tuple = ev.Tuple.Reverse()
			}
			if ev.Cookie != 0 {
				cookies++
			}
			s.now += int64(r.IntN(400e6))
			s.add(ev)
		}
		sum := 0
		for _, c := range fold(t, 0, s) {
			sum += c.Events
		}
		if sum != cookies {
			t.Fatalf("seed %d: the connections have %d events, want %d", seed, sum, cookies)
		}
	}
}

func BenchmarkConnections(b *testing.B) {
	s := new(stream)
	for i := range 1000 {
		c, port := tcp.Cookie(2*i+1), uint16(10000+i)
		s.connect(c, port)
		s.accepted(c+1, port)
		s.closeFirst(c, port)
		s.at(server, tuple(port).Reverse(), c+1, tcp.LastAck, tcp.Close, 0, 0)
		s.end(c, port, tcp.CauseExpired)
	}
	conns := NewConnections(0, func(*Connection) {})
	for i := 0; b.Loop(); i++ {
		ev := s.events[i%len(s.events)]
		ev.MonoNS += int64(i/len(s.events)) * s.now
		conns.Event(&ev)
	}
}
