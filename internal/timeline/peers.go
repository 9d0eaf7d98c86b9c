package timeline

import (
	"slices"

	"github.com/twtrace/twtrace/internal/tcp"
)

// PeerStep is an event of the other end of a connection, of the kinds that explain why one fails or
// stalls: an RST that it sent, a SYN or last ACK that its listener dropped, a SYN+ACK sent again,
// the end of its handshake after such a drop, its closing without FIN.
type PeerStep struct {
	Step
	Cause    tcp.Cause
	Substate tcp.State // of a drop: where the client's end was
	Reason   uint32    // of an RST
	Cookie   tcp.Cookie
}

// Listener is who listened where an attempt connected to.
type Listener struct {
	Owner tcp.Owner
	// Since when, and until when, CLOCK_MONOTONIC ns; Until 0: it still does.
	Since, Until int64
}

const (
	// maxPeerSteps is how many of the latest events of peers are kept, some 9 MB when full: an attempt that fails
	// asks for its own soon after.
	maxPeerSteps = 1 << 16
	// maxOfPeer is how many of them one attempt is given.
	maxOfPeer = 8
	// maxListeners is how many listeners are known at a time.
	maxListeners = 4096
)

// peers has the latest of these events by four-tuple, as the client's end has it: the peer's socket has
// another cookie. The client's times tell which of them are of this connection, since four-tuples come back.
type peers struct {
	steps   []peerStep // a ring, once it is full
	next    int
	last    map[tcp.FourTuple]int32 // where the latest is in steps
	written uint64
}

type peerStep struct {
	PeerStep
	tuple tcp.FourTuple
	prev  int32 // the one before of the same tuple, -1: none
}

// add keeps an event of a peer.
func (p *peers) add(ev *tcp.Event) {
	if p.last == nil {
		p.last = make(map[tcp.FourTuple]int32)
	}
	tuple := ev.Tuple.Reverse()
	if len(p.steps) < maxPeerSteps {
		p.steps = append(p.steps, peerStep{})
	} else if old := &p.steps[p.next]; p.last[old.tuple] == int32(p.next) {
		delete(p.last, old.tuple)
	}
	at := int32(p.next)
	prev := int32(-1)
	if l, ok := p.last[tuple]; ok {
		prev = l
	}
	p.steps[at] = peerStep{PeerStep: peerStepOf(ev), tuple: tuple, prev: prev}
	p.last[tuple] = at
	p.next = (p.next + 1) % maxPeerSteps
	p.written++
}

func peerStepOf(ev *tcp.Event) PeerStep {
	return PeerStep{
		Step:  Step{Seq: ev.Seq, MonoNS: ev.MonoNS, Kind: ev.Kind, Old: ev.Old, New: ev.New, Flags: ev.Flags, Errno: ev.Errno},
		Cause: ev.Cause, Substate: ev.Substate, Reason: ev.Reason, Cookie: ev.Cookie,
	}
}

// PeerOf returns what explains a failure of the events of the other end, as a Joiner does.
func PeerOf(events []tcp.Event) (steps []PeerStep) {
	for i := range events {
		ev := &events[i]
		end := ev.Kind == tcp.KindState && ev.Old == tcp.SynRecv && ev.New == tcp.Established
		if explains(ev) || end && len(steps) > 0 {
			steps = append(steps, peerStepOf(ev))
		}
	}
	return steps[max(0, len(steps)-maxOfPeer):]
}

// explains reports whether an event of a socket that is no active open is of the kinds of a PeerStep, whatever came before.
func explains(ev *tcp.Event) bool {
	switch ev.Kind {
	case tcp.KindListenDrop, tcp.KindRstSent, tcp.KindSynAckRetransmit:
		return true
	case tcp.KindState:
		return ev.New == tcp.Close && ev.Errno == 0 && (ev.Old == tcp.Established || ev.Old == tcp.CloseWait || ev.Old == tcp.SynRecv)
	}
	return false
}

// knows reports whether events of a connection's peer are kept; tuple is the peer's.
func (p *peers) knows(tuple tcp.FourTuple) bool {
	if len(p.last) == 0 {
		return false
	}
	_, ok := p.last[tuple.Reverse()]
	return ok
}

// of returns the peer's events of a client's connection from a time on, the earliest first; of many the latest.
func (p *peers) of(tuple tcp.FourTuple, from int64) []PeerStep {
	at, ok := p.last[tuple]
	if !ok {
		return nil
	}
	var steps []PeerStep
	for at >= 0 && len(steps) < maxOfPeer {
		s := &p.steps[at]
		if s.tuple != tuple || s.MonoNS < from {
			break // another's: the ring came round
		}
		steps = append(steps, s.PeerStep)
		if s.prev >= 0 && p.steps[s.prev].MonoNS > s.MonoNS {
			break
		}
		at = s.prev
	}
	slices.Reverse(steps)
	return steps
}

// addPeer keeps an event of an end that connections were made to.
func (j *Joiner) addPeer(ev *tcp.Event) {
	if j.dests[ev.Tuple.Local] != 0 {
		j.peers.add(ev)
	}
}

// peerState takes a state change of a socket that is no active open.
func (j *Joiner) peerState(ev *tcp.Event) {
	switch {
	case ev.New == tcp.Listen:
		if len(j.listeners) < maxListeners {
			j.listeners[ev.Tuple.Local] = Listener{Owner: ev.Owner, Since: ev.MonoNS}
		}
	case ev.Old == tcp.Listen && ev.New == tcp.Close:
		if l, ok := j.listeners[ev.Tuple.Local]; ok {
			l.Until = ev.MonoNS
			j.listeners[ev.Tuple.Local] = l
		}
	case ev.Old == tcp.SynRecv && ev.New == tcp.Established:
		if j.peers.knows(ev.Tuple) {
			j.peers.add(ev)
		}
	case explains(ev):
		j.addPeer(ev)
	}
}

// listener is who listens, or did, where a connection goes to; nil: not known.
func (j *Joiner) listener(t *Timeline) *Listener {
	for at, l := range j.listeners {
		if at.Port() == t.Tuple.Peer.Port() && (at.Addr() == t.Tuple.Peer.Addr() || at.Addr().IsUnspecified()) {
			return &l
		}
	}
	return nil
}

// lookAround gives an attempt that failed or stalled what is known of its peer.
func (j *Joiner) lookAround(c *conn) {
	if !c.Attempt.Failed() && c.SynRetransmits == 0 {
		return
	}
	t := &c.Timeline
	if t.NumSteps > 0 && t.Tuple.Local.Port() != 0 {
		t.Peer = j.peers.of(t.Tuple, t.Steps[0].MonoNS)
	}
	t.Listener = j.listener(t)
}
