package timeline

import (
	"net/netip"
	"testing"

	"github.com/twtrace/twtrace/internal/tcp"
)

// TestHolder: whose the port is that a bind() wanted, out of what the holder's own events told.
func TestHolder(t *testing.T) {
	const port = 40000
	owner := tcp.Owner{PID: 77, Comm: tcp.Comm{'n', 'c'}}
	begin := func(s *stream) {
		s.add(tcp.Event{
			Kind: tcp.KindState, Cookie: 1, Tuple: tuple(port), Old: tcp.Close, New: tcp.SynSent, Flags: tcp.FlagOwner, Owner: owner,
		})
		s.state(1, port, tcp.SynSent, tcp.Established, 0, 0)
	}
	listener := tcp.FourTuple{Local: netip.AddrPortFrom(source, port)}
	for name, c := range map[string]struct {
		before func(*stream)
		holder tcp.Holder
		want   tcp.Owner
	}{
		"open":      {begin, tcp.Holder{State: tcp.Established, Cookie: 1}, owner},
		"TIME_WAIT": {func(s *stream) { begin(s); s.closeFirst(1, port) }, tcp.Holder{State: tcp.TimeWait, Cookie: 1}, owner},
		"TIME_WAIT that is over": {
			func(s *stream) { begin(s); s.closeFirst(1, port); s.end(1, port, tcp.CauseExpired) },
			tcp.Holder{State: tcp.TimeWait, Cookie: 1}, tcp.Owner{},
		},
		"listener": {
			func(s *stream) {
				s.add(tcp.Event{Kind: tcp.KindState, Cookie: 2, Tuple: listener, Old: tcp.Close, New: tcp.Listen, Flags: tcp.FlagOwner, Owner: owner})
			},
			tcp.Holder{State: tcp.Listen, Cookie: 2, Addr: source}, owner,
		},
		"older listener": {func(*stream) {}, tcp.Holder{State: tcp.Listen, Cookie: 2, Addr: source}, tcp.Owner{}},
		"no cookie":      {begin, tcp.Holder{State: tcp.Close}, tcp.Owner{}},
		"not known":      {begin, tcp.Holder{}, tcp.Owner{}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []tcp.Owner
			j := NewJoiner(Options{OnBindFailed: func(ev *tcp.Event, o tcp.Owner) {
				if ev.Holder != c.holder {
					t.Errorf("holder %+v", ev.Holder)
				}
				got = append(got, o)
			}})
			s := new(stream)
			c.before(s)
			s.add(tcp.Event{Kind: tcp.KindBindFailed, Cookie: 9, Tuple: listener, Errno: tcp.EADDRINUSE, Holder: c.holder})
			j.Events(s.events)
			if len(got) != 1 || got[0] != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}
