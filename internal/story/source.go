package story

import (
	"context"
	"errors"

	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/verdict"
)

// source is a recording that is read for stories.
type source struct {
	ctx    context.Context
	r      *recording.Reader
	wall   *recording.Clocks
	cond   *recording.Condition
	losses []loss
	traced bool // events were recorded, whether or not there are any
	env    verdict.Env
}

// loss is a stretch of time in which events were lost, or were not run for.
type loss struct {
	from, to int64
	n        uint64
}

// maxLosses bounds a list that grows with each segment of a trace that loses all the time: after that
// the last one covers the rest.
const maxLosses = 1 << 16

// errEnough ends a scan.
var errEnough = errors.New("enough")

// newSource looks at all segments, without reading more than samples: how much there is, and when events
// were lost.
func newSource(ctx context.Context, r *recording.Reader) (*source, error) {
	h := r.Header()
	s := &source{ctx: ctx, r: r, traced: h.HZ != 0}
	s.env = verdict.NewEnv(s.traced, h.Coverage, h.Sysctls, h.Enums["rst_reason"])
	s.wall = recording.NewClocks(h.Clock)
	before, at := uint64(0), h.StartMonoNS
	want := func(seg *recording.Segment) bool {
		if n := seg.Lost + seg.Skipped; n > before {
			s.lost(loss{at, seg.MaxNS, n - before})
			before = n
		}
		if seg.Table == recording.TableEvents {
			at = max(at, seg.MinNS)
		}
		return seg.Table == recording.TableSamples
	}
	cond, err := r.Scan(recording.Query{Want: want}, func(b *recording.Batch) error {
		for i := range b.Samples {
			if sample := &b.Samples[i]; sample.RealNS != 0 {
				s.wall.Add(sample.MonoNS, sample.RealNS)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if n := cond.Lost + cond.Skipped; n > before {
		s.lost(loss{at, max(at, cond.LastNS), n - before})
	}
	s.cond = cond
	return s, nil
}

func (s *source) lost(l loss) {
	if n := len(s.losses); n == maxLosses {
		s.losses[n-1].to, s.losses[n-1].n = max(s.losses[n-1].to, l.to), s.losses[n-1].n+l.n
		return
	}
	s.losses = append(s.losses, l)
}

// lostDuring is how many events were lost at about a time.
func (s *source) lostDuring(from, to int64) (n uint64) {
	for _, l := range s.losses {
		if l.from <= to && l.to >= from {
			n += l.n
		}
	}
	return n
}

// scan reads segments of events and attempts that are wanted.
func (s *source) scan(want func(*recording.Segment) bool, events func(*tcp.Event) error, attempts func(*tcp.Attempt) error) error {
	q := recording.Query{Want: func(seg *recording.Segment) bool {
		switch seg.Table {
		case recording.TableEvents:
			return events != nil && want(seg)
		case recording.TableAttempts:
			return attempts != nil && want(seg)
		}
		return false
	}}
	_, err := s.r.Scan(q, func(b *recording.Batch) error {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		for i := range b.Events {
			if err := events(&b.Events[i]); err != nil {
				return err
			}
		}
		for i := range b.Attempts {
			if err := attempts(&b.Attempts[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// fewKeys is up to how many cookies or ports a segment is asked for each: of more one is in nearly every segment.
const fewKeys = 256

// place says where in a recording a socket's events can be, as far as that is known; 0: it is not.
type place struct {
	from, until int64 // CLOCK_MONOTONIC ns
	// port is the socket's own: all its events after since have it.
	port  uint16
	since int64
	// What is left of it is a TIME_WAIT, all of whose events have both ports.
	closed, waiting bool
	peer            uint16
}

// How much earlier or later than it is known of, ns, an event of a socket can be: what a thread saw and what the
// kernel did can be in the wrong order, and an RST and an error come after the last change of state.
const (
	slack = int64(2e9)
	// Most handshakes are done within usual; longest is longer than any may take (127 s with tcp_syn_retries = 6).
	usual   = int64(5e9)
	longest = int64(200e9)
)

// placeOf says where the other events of a socket are which an event is of.
func placeOf(ev *tcp.Event) place {
	p := place{from: ev.MonoNS - usual}
	if ev.Kind == tcp.KindState && (ev.New == tcp.SynSent || ev.Old == tcp.SynRecv) {
		p.from = ev.MonoNS - slack // it has just begun
	}
	p.learn(ev)
	return p
}

// placeOfAttempt says where the events of an attempt's socket are.
func placeOfAttempt(a *tcp.Attempt) place {
	p := place{from: a.Started - slack, until: a.Closed + slack}
	if a.LocalPort != 0 { // its TIME_WAIT is to come
		p.until, p.port, p.since = 0, a.LocalPort, max(a.Connected, a.Closed)+slack
	}
	return p
}

// learn takes what an event says about where those after it are.
func (p *place) learn(ev *tcp.Event) {
	if ev.Kind == tcp.KindListenDrop {
		return
	}
	if port := ev.Tuple.Local.Port(); p.port == 0 && port != 0 {
		p.port, p.since = port, ev.MonoNS
	}
	switch ev.Kind {
	case tcp.KindState:
		p.closed = ev.New == tcp.Close
	case tcp.KindTWEnter:
		p.waiting, p.peer = true, ev.Tuple.Peer.Port()
	case tcp.KindTWEnd:
		p.waiting = false
	}
	switch {
	case !p.closed:
		p.until = 0
	case !p.waiting:
		p.until = ev.MonoNS + slack
	default:
		p.until, p.since = 0, ev.MonoNS+slack
	}
}

// in reports whether a segment can have an event of the socket.
func (p *place) in(seg *recording.Segment, c tcp.Cookie) bool {
	switch {
	case p.from != 0 && seg.MaxNS < p.from, p.until != 0 && seg.MinNS > p.until,
		p.port != 0 && p.since < seg.MinNS && !seg.MayHavePort(p.port),
		p.closed && p.waiting && p.since < seg.MinNS && !seg.MayHavePort(p.peer):
		return false
	}
	return seg.MayHaveCookie(c)
}

// mayHave reports whether a segment can have an event of any of the sockets.
func mayHave(seg *recording.Segment, sockets map[tcp.Cookie]*socket) bool {
	for c, k := range sockets {
		if k.place.in(seg, c) {
			return true
		}
	}
	return false
}
