package timeline

import (
	"testing"

	"github.com/twtrace/twtrace/internal/tcp"
)

// tick is one connection as a trace of both ends shows it: the client closes first, or by RST.
func (s *stream) tick(c tcp.Cookie, port uint16, linger bool) {
	peer := c | 1<<40
	back := tuple(port).Reverse()
	theirs := func(old, new tcp.State, errno tcp.Errno) {
		s.add(tcp.Event{Kind: tcp.KindState, NetNS: server, Cookie: peer, Tuple: back, Old: old, New: new, Errno: errno})
	}
	s.state(c, 0, tcp.Close, tcp.SynSent, tcp.FlagOwner, 0)
	s.add(tcp.Event{Kind: tcp.KindState, NetNS: server, Tuple: tcp.FourTuple{Local: dest}, Old: tcp.Listen, New: tcp.SynRecv})
	theirs(tcp.SynRecv, tcp.Established, 0)
	s.state(c, port, tcp.SynSent, tcp.Established, 0, 0)
	if linger {
		s.add(tcp.Event{Kind: tcp.KindRstReceived, NetNS: server, Cookie: peer, Tuple: back, Old: tcp.Established, New: tcp.Established})
		theirs(tcp.Established, tcp.Close, tcp.ECONNRESET)
		s.linger(c, port)
		return
	}
	s.closeFirst(c, port)
	theirs(tcp.Established, tcp.CloseWait, 0)
	theirs(tcp.CloseWait, tcp.LastAck, 0)
	theirs(tcp.LastAck, tcp.Close, 0)
}

// BenchmarkJoiner is what an event costs in a storm without failures, 2,000 connections at a time as the
// trace and the storm hand them over, and 20,000 TIME_WAITs there.
func BenchmarkJoiner(b *testing.B) {
	for name, linger := range map[string]bool{"timewait": false, "linger": true} {
		b.Run(name, func(b *testing.B) {
			j := NewJoiner(Options{ShortTicks: shortTicks, OnTimeline: func(*Timeline) {}})
			const batch, waits = 2000, 20_000
			attempts := make([]tcp.Attempt, batch)
			var s stream
			next, events := 1, 0
			port := func(i int) uint16 { return uint16(20_000 + i%40_000) }
			for b.Loop() {
				b.StopTimer()
				s.events = s.events[:0]
				for i := range attempts {
					if old := next - waits; old > 0 && !linger {
						s.end(tcp.Cookie(old), port(old), tcp.CauseExpired)
					}
					s.tick(tcp.Cookie(next), port(next), linger)
					attempts[i] = done(tcp.Cookie(next))
					next++
				}
				events += len(s.events)
				b.StartTimer()
				j.Events(s.events)
				j.Attempts(attempts)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(events), "ns/event")
			b.ReportMetric(0, "ns/op")
		})
	}
}
