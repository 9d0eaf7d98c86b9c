package story

import (
	"errors"

	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
)

// source is a recording that is read for stories.
type source struct {
	r      *recording.Reader
	wall   wallClock
	cond   *recording.Condition
	losses []loss
	traced bool // events were recorded, whether or not there are any
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
func newSource(r *recording.Reader) (*source, error) {
	h := r.Header()
	s := &source{r: r, traced: h.HZ != 0}
	s.wall.add(h.Clock.MonoNS, h.Clock.RealNS)
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
				s.wall.add(sample.MonoNS, sample.RealNS)
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

// fewKeys is up to how many cookies or ports a segment is asked for each; it knows the range of its cookies, too.
const fewKeys = 256

// mayHaveAny reports whether a segment can have a record of any of the cookies.
func mayHaveAny[V any](seg *recording.Segment, cookies map[tcp.Cookie]V) bool {
	if len(cookies) > fewKeys {
		return true
	}
	for c := range cookies {
		if seg.MayHaveCookie(c) {
			return true
		}
	}
	return false
}
