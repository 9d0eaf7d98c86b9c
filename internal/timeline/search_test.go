package timeline

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/twtrace/twtrace/internal/tcp"
)

// searchers are threads that connect() from one range of ports, as the kernel does it: a search looks at one port after
// the other, and its event comes later. Whatever the others do meanwhile, one that finds none has seen each port taken.
type searchers struct {
	stream
	rng     *rand.Rand
	reuse   bool // TIME_WAITs may be taken
	ports   []tcp.Cookie
	waits   []bool // is the port's a TIME_WAIT?
	threads []searcher
	open    []int // ports of connections whose establishment was seen
	failed  []tcp.Attempt
	next    tcp.Cookie
}

type searcher struct {
	cookie tcp.Cookie // 0: idle
	from   int
	looked int
	found  bool
}

const firstPort = 40000

func (s *searchers) thread(t *searcher) {
	n := len(s.ports)
	at := (t.from + t.looked) % n
	switch {
	case t.cookie == 0:
		s.next++
		*t = searcher{cookie: s.next, from: s.rng.IntN(n)}
		s.state(t.cookie, 0, tcp.Close, tcp.SynSent, 0, 0)
	case t.found:
		s.state(t.cookie, uint16(firstPort+at), tcp.SynSent, tcp.Established, 0, 0)
		s.open = append(s.open, at)
		t.cookie = 0
	case t.looked == n:
		s.state(t.cookie, 0, tcp.SynSent, tcp.Close, tcp.FlagNoSegment, 0)
		s.failed = append(s.failed, failed(t.cookie, tcp.EADDRNOTAVAIL))
		t.cookie = 0
	case s.ports[at] == 0:
		s.ports[at], t.found = t.cookie, true
	case s.waits[at] && s.reuse && s.rng.IntN(4) == 0:
		s.endWait(at, tcp.CauseReusedByConnect)
		s.ports[at], t.found = t.cookie, true
	default:
		t.looked++
	}
}

func (s *searchers) endWait(at int, cause tcp.Cause) {
	s.end(s.ports[at], uint16(firstPort+at), cause)
	s.ports[at], s.waits[at] = 0, false
}

// close ends one of the connections, with a TIME_WAIT or without.
func (s *searchers) close() {
	if len(s.open) == 0 {
		return
	}
	i := s.rng.IntN(len(s.open))
	at := s.open[i]
	s.open = slices.Delete(s.open, i, i+1)
	if s.rng.IntN(4) != 0 {
		s.closeFirst(s.ports[at], uint16(firstPort+at))
		s.waits[at] = true
		return
	}
	s.linger(s.ports[at], uint16(firstPort+at))
	s.ports[at] = 0
}

func (s *searchers) step() {
	switch at := s.rng.IntN(len(s.ports)); s.rng.IntN(12) {
	case 0:
		s.close()
	case 1:
		if s.waits[at] && s.rng.IntN(4) == 0 {
			s.endWait(at, tcp.CauseExpired)
		}
	default:
		s.thread(&s.threads[s.rng.IntN(len(s.threads))])
	}
}

// TestCensusSums: each port of the range counts once for a connect() that found none, whatever others found, closed and
// let expire while it looked, and until it is known what they found.
func TestCensusSums(t *testing.T) {
	for _, reuse := range []bool{false, true} {
		t.Run(fmt.Sprintf("reuse %v", reuse), func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 0))
			wrong, sums := 0, 0
			for range 2000 {
				ports := 1 + rng.IntN(6)
				s := searchers{
					rng: rng, reuse: reuse, ports: make([]tcp.Cookie, ports), waits: make([]bool, ports),
					threads: make([]searcher, 1+rng.IntN(4)),
				}
				for range 300 {
					s.step()
				}
				for i := range s.threads { // to the end of what it does
					for th := &s.threads[i]; th.cookie != 0; {
						s.thread(th)
					}
				}
				j, r := newJoiner()
				j.Attempts(s.failed)
				j.Events(s.events)
				j.Finish()
				if len(r.timelines) != len(s.failed) {
					t.Fatalf("%d of %d failures were told", len(r.timelines), len(s.failed))
				}
				for i := range r.timelines {
					tl := &r.timelines[i]
					sums++
					if n := tl.AtConnect.Open + tl.AtConnect.TimeWait; n != ports || tl.AtConnect.Open < 0 || tl.AtConnect.TimeWait < 0 {
						if wrong++; wrong == 1 {
							t.Errorf("of %d ports, for connect() %d: %+v", ports, tl.Attempt.Cookie, tl.AtConnect)
						}
					}
				}
			}
			t.Logf("%d censuses, %d wrong", sums, wrong)
			if sums < 1000 {
				t.Errorf("only %d censuses", sums)
			}
		})
	}
}

// TestPortsChangeHands is the model's orders one by one: a port counts as what it was as the search began, or as what was found since,
// and once.
func TestPortsChangeHands(t *testing.T) {
	for name, tt := range map[string]struct {
		before, after func(s *stream) // the failure
		want          Ports
	}{
		"expired, taken": {before: func(s *stream) {
			s.end(1, 40001, tcp.CauseExpired)
			s.state(2, 40001, tcp.SynSent, tcp.Established, 0, 0)
		}, want: Ports{TimeWait: 1}},
		"expired, failed, taken": {before: func(s *stream) {
			s.end(1, 40001, tcp.CauseExpired)
		}, after: func(s *stream) {
			s.state(2, 40001, tcp.SynSent, tcp.Established, 0, 0)
		}, want: Ports{TimeWait: 1}},
		"failed, expired, taken": {after: func(s *stream) {
			s.end(1, 40001, tcp.CauseExpired)
			s.state(2, 40001, tcp.SynSent, tcp.Established, 0, 0)
		}, want: Ports{TimeWait: 1}},
		"failed, reused": {after: func(s *stream) {
			s.end(1, 40001, tcp.CauseReusedByConnect)
			s.state(2, 40001, tcp.SynSent, tcp.Established, 0, 0)
		}, want: Ports{TimeWait: 1}},
		"taken, closed, killed": {before: func(s *stream) {
			s.state(2, 40002, tcp.SynSent, tcp.Established, 0, 0)
			s.closeFirst(2, 40002)
			s.end(2, 40002, tcp.CauseKilledByRst)
		}, want: Ports{TimeWait: 1, Open: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			var s stream
			s.connect(1, 40001)
			s.closeFirst(1, 40001)
			s.state(2, 0, tcp.Close, tcp.SynSent, 0, 0)
			s.state(3, 0, tcp.Close, tcp.SynSent, 0, 0)
			if tt.before != nil {
				tt.before(&s)
			}
			s.state(3, 0, tcp.SynSent, tcp.Close, 0, tcp.EADDRNOTAVAIL)
			if tt.after != nil {
				tt.after(&s)
			}
			j, r := newJoiner()
			j.Attempts([]tcp.Attempt{failed(3, tcp.EADDRNOTAVAIL)})
			j.Events(s.events)
			if tl := r.only(t); tl.AtConnect != tt.want {
				t.Errorf("the ports stood at %+v, want %+v", tl.AtConnect, tt.want)
			}
		})
	}
}
