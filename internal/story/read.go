package story

import (
	"context"
	"slices"

	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
)

// batchSize is how many stories are put together at once: some 50 MB.
const batchSize = 1 << 12

// Read tells of the connections that are asked for: of attempts in the order in which they were begun, of
// others in that of their events, or the slowest first. Damaged parts of the recording are passed over, and are in
// the result's Condition, which begin is given before the first story. Errors are those of reading the file, and
// of tell, and ctx's if it ends.
func Read(ctx context.Context, r *recording.Reader, q Query, begin func(*recording.Condition), tell func(*Story) error) (*Result, error) {
	src, err := newSource(ctx, r)
	if err != nil {
		return nil, err
	}
	begin(src.cond)
	result := &Result{Condition: src.cond, Attempts: src.cond.Records[recording.TableAttempts], Failed: -1}
	t := &teller{src: src, q: &q, tell: tell, result: result, told: make(map[uint64]struct{}), ends: make(map[tcp.Cookie]struct{})}
	// What is chosen can turn out to be the other end of one that was told of, or not to fit. So more are
	// asked for until there are enough.
	for budget, done := 4*q.Limit+16, 0; ; budget *= 16 {
		if q.Limit == 0 {
			budget = 0
		}
		list, more, err := src.choose(&q, budget, result)
		if err != nil {
			return nil, err
		}
		if err := t.all(list[min(done, len(list)):]); err != nil {
			return nil, err
		}
		if done = len(list); !more || t.full() {
			result.More = result.More || more
			return result, nil
		}
	}
}

// teller tells of connections, each once.
type teller struct {
	src    *source
	q      *Query
	tell   func(*Story) error
	result *Result
	told   map[uint64]struct{} // of connections with both ends, by their first events
	ends   map[tcp.Cookie]struct{}
}

func (t *teller) full() bool { return t.q.Limit > 0 && t.result.Told >= t.q.Limit }

// all tells of those of a list that fit the query.
func (t *teller) all(list []pick) error {
	for len(list) > 0 {
		n := min(batchSize, len(list))
		if left := t.q.Limit - t.result.Told; t.q.Limit > 0 {
			n = min(n, max(8, 2*left))
		}
		stories, err := t.src.assemble(t.new(list[:n]))
		if err != nil {
			return err
		}
		list = list[n:]
		for i, s := range stories {
			stories[i] = nil
			if !t.fits(s) {
				continue
			}
			if t.full() {
				t.result.More = true
				return nil
			}
			t.result.Told++
			if err := t.tell(s); err != nil {
				return err
			}
		}
		if t.full() && len(list) > 0 {
			t.result.More = true
			return nil
		}
	}
	return nil
}

// new leaves out those of a list that were told as the other end of one, as far as that is plain.
func (t *teller) new(list []pick) []pick {
	return slices.DeleteFunc(slices.Clone(list), func(p pick) bool {
		_, ok := t.ends[p.cookie]
		return ok && !p.known && p.place != nil
	})
}

// fits reports whether a story is asked for, and was not told yet as that of the other end.
func (t *teller) fits(s *Story) bool {
	if !s.matches(t.q) {
		return false
	}
	// An attempt is told of once anyway, and there may be many.
	if !s.byAttempt && s.Ends[Client].Seen() && s.Ends[Server].Seen() {
		first := s.Ends[Client].FirstSeq
		if _, ok := t.told[first]; ok {
			return false
		}
		t.told[first] = struct{}{}
		for i := range s.Ends {
			if s.onlyLife[i] {
				t.ends[s.Ends[i].Cookie] = struct{}{}
			}
		}
	}
	return true
}

// matches reports whether a story is one that the query asks for.
func (s *Story) matches(q *Query) bool {
	switch {
	case len(q.Cookies) > 0 && !s.any(func(e *End) bool { return slices.Contains(q.Cookies, e.Cookie) }) &&
		(s.Attempt == nil || !slices.Contains(q.Cookies, s.Attempt.Cookie)),
		len(q.PIDs) > 0 && !s.any(func(e *End) bool { return slices.Contains(q.PIDs, e.Owner.PID) }),
		len(q.Ports) > 0 && !s.hasPort(q.Ports),
		len(q.Errnos) > 0 && !s.hasErrno(q.Errnos),
		len(q.Causes) > 0 && !slices.ContainsFunc(q.Causes, s.hasCause),
		q.Failed && !s.Outcome.Failed:
		return false
	}
	return true
}

func (s *Story) any(is func(*End) bool) bool {
	return s.Ends[Client].Seen() && is(&s.Ends[Client]) || s.Ends[Server].Seen() && is(&s.Ends[Server])
}

func (s *Story) hasPort(ports []uint16) bool {
	t := s.Tuple()
	return slices.Contains(ports, t.Local.Port()) || slices.Contains(ports, t.Peer.Port()) ||
		s.Attempt != nil && slices.Contains(ports, s.Attempt.LocalPort)
}

func (s *Story) hasErrno(errnos []tcp.Errno) bool {
	if s.Attempt != nil {
		return slices.Contains(errnos, s.Attempt.Errno)
	}
	return slices.ContainsFunc(s.Events, func(e Event) bool {
		return e.Kind != tcp.KindRetransmit && e.Errno != 0 && slices.Contains(errnos, e.Errno)
	})
}

func (s *Story) hasCause(c Cause) bool {
	if c.Verdict != "" && s.Outcome.Cause == c.Verdict {
		return true
	}
	return c.Kernel != 0 && slices.ContainsFunc(s.Events, func(e Event) bool { return e.Cause == c.Kernel })
}
