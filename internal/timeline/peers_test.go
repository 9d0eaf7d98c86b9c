package timeline

import (
	"testing"

	"github.com/twtrace/twtrace/internal/tcp"
)

// drop is a segment of the client that the listener dropped.
func (s *stream) drop(port uint16, cause tcp.Cause, client tcp.State) {
	s.add(tcp.Event{
		Kind: tcp.KindListenDrop, NetNS: server, Cookie: 900, Tuple: tuple(port).Reverse(),
		Old: tcp.Listen, New: tcp.Listen, Cause: cause, Substate: client,
	})
}

// TestPeerOfAttempt: an attempt that failed has its own peer's events, of its own time, and who listened; what came after the client's
// last event too.
func TestPeerOfAttempt(t *testing.T) {
	var s stream
	listener := tcp.FourTuple{Local: dest}
	s.add(tcp.Event{Kind: tcp.KindState, NetNS: server, Cookie: 900, Tuple: listener, Old: tcp.Close, New: tcp.Listen, Flags: tcp.FlagOwner, Owner: tcp.Owner{PID: 77}})
	s.drop(40001, tcp.CauseAcceptQueue, tcp.SynSent) // of an earlier connection of the same ports
	s.drop(40002, tcp.CauseAcceptQueue, tcp.SynSent) // of another
	s.state(1, 0, tcp.Close, tcp.SynSent, 0, 0)
	s.drop(40001, tcp.CauseSynQueue, tcp.SynSent)
	s.add(tcp.Event{Kind: tcp.KindRetransmit, Cookie: 1, Tuple: tuple(40001), Old: tcp.SynSent, New: tcp.SynSent})
	s.state(1, 40001, tcp.SynSent, tcp.Established, 0, 0)
	s.add(tcp.Event{Kind: tcp.KindState, NetNS: server, Cookie: 2, Tuple: tuple(40001).Reverse(), Old: tcp.SynRecv, New: tcp.Established})
	s.add(tcp.Event{Kind: tcp.KindRstReceived, Cookie: 1, Tuple: tuple(40001), Old: tcp.Established, New: tcp.Established})
	s.state(1, 40001, tcp.Established, tcp.Close, 0, tcp.ECONNRESET)
	first := len(s.events)
	s.add(tcp.Event{Kind: tcp.KindState, NetNS: server, Cookie: 2, Tuple: tuple(40001).Reverse(), Old: tcp.Established, New: tcp.Close, Flags: tcp.FlagLinger0})
	s.add(tcp.Event{Kind: tcp.KindRstSent, NetNS: server, Cookie: 2, Tuple: tuple(40001).Reverse(), Old: tcp.Close, New: tcp.Close, Flags: tcp.FlagActive, Reason: 5})
	s.add(tcp.Event{Kind: tcp.KindState, NetNS: server, Cookie: 900, Tuple: listener, Old: tcp.Listen, New: tcp.Close})

	j, r := newJoiner()
	j.Attempts([]tcp.Attempt{failed(1, tcp.ECONNRESET)})
	j.Events(s.events[:first])
	if len(r.timelines) != 0 {
		t.Fatal("handed out before it can be known who sent the RST")
	}
	j.Events(s.events[first:])
	j.Advance(s.now + 2*heldFor)
	tl := r.only(t)
	var kinds []tcp.Kind
	for _, p := range tl.Peer {
		kinds = append(kinds, p.Kind)
	}
	if want := []tcp.Kind{tcp.KindListenDrop, tcp.KindState, tcp.KindState, tcp.KindRstSent}; len(kinds) != len(want) || kinds[0] != want[0] || kinds[3] != want[3] {
		t.Fatalf("of the peer there are %v, want %v", kinds, want)
	}
	if p := tl.Peer[0]; p.Cause != tcp.CauseSynQueue || p.Substate != tcp.SynSent {
		t.Errorf("the drop %+v is another connection's", p)
	}
	if p := tl.Peer[3]; p.Reason != 5 || p.Flags != tcp.FlagActive || p.Cookie != 2 {
		t.Errorf("the RST %+v", p)
	}
	if l := tl.Listener; l == nil || l.Owner.PID != 77 || l.Until != s.now {
		t.Errorf("listener %+v", l)
	}
	if tl.SynRetransmits != 1 {
		t.Errorf("%d SYNs were sent again", tl.SynRetransmits)
	}
}

// TestPeersBounded: of any number of RSTs the latest are kept, and found; others' events are never taken for them.
func TestPeersBounded(t *testing.T) {
	var p peers
	tupleOf := func(i int) tcp.FourTuple {
		tp := tuple(uint16(i % 50_000))
		tp.Peer = netipAddrPort(i / 50_000)
		return tp
	}
	const n = 3 * maxPeerSteps / 2
	for i := range n {
		for range 2 {
			p.add(&tcp.Event{Kind: tcp.KindRstSent, MonoNS: int64(i + 1), Cookie: tcp.Cookie(i), Tuple: tupleOf(i).Reverse()})
		}
	}
	if len(p.steps) != maxPeerSteps || len(p.last) > maxPeerSteps {
		t.Errorf("%d events and %d connections are kept", len(p.steps), len(p.last))
	}
	for i := range n {
		got := p.of(tupleOf(i), 0)
		kept := i >= n-maxPeerSteps/2
		if kept != (len(got) == 2) || !kept && len(got) != 0 {
			t.Fatalf("of connection %d there are %d events", i, len(got))
		}
		for _, step := range got {
			if step.Cookie != tcp.Cookie(i) {
				t.Fatalf("connection %d got an event of %d", i, step.Cookie)
			}
		}
		if late := p.of(tupleOf(i), int64(i+2)); len(late) != 0 {
			t.Fatalf("connection %d got %d events from before it", i, len(late))
		}
	}
}
