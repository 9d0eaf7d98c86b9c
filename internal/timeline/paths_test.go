package timeline

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/twtrace/twtrace/internal/tcp"
)

func netipAddrPort(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 19, 0, byte(i)}), 7)
}

// begins is the event of a connect() of a process.
func (s *stream) begins(c tcp.Cookie, pid uint32) {
	s.add(tcp.Event{Kind: tcp.KindState, Cookie: c, Tuple: tuple(0), Old: tcp.Close, New: tcp.SynSent, Flags: tcp.FlagOwner, Owner: tcp.Owner{PID: pid}})
}

// TestHoldings: each process has the ports of its own connections and TIME_WAITs, against a count made here, whatever
// the order in which they come and go.
func TestHoldings(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	var s stream
	type state struct {
		pid  uint32
		port uint16
		wait bool
		born int64
	}
	live := make(map[tcp.Cookie]*state)
	count := func() map[uint32]Ports {
		n := make(map[uint32]Ports)
		for _, l := range live {
			p := n[l.pid]
			if l.wait {
				p.TimeWait++
			} else {
				p.Open++
			}
			n[l.pid] = p
		}
		return n
	}
	want := make(map[tcp.Cookie]map[uint32]Ports)
	oldest := make(map[tcp.Cookie]int64)
	var attempts []tcp.Attempt
	for c := tcp.Cookie(1); c < 3000; c++ {
		pid := uint32(100 + rng.IntN(3))
		if rng.IntN(4) == 0 {
			want[c] = count()
			for _, l := range live {
				if l.wait && (oldest[c] == 0 || l.born < oldest[c]) {
					oldest[c] = l.born
				}
			}
			s.begins(c, pid)
			s.state(c, 0, tcp.SynSent, tcp.Close, tcp.FlagNoSegment, 0)
			if oldest[c] != 0 {
				oldest[c] = s.now - oldest[c]
			}
			attempts = append(attempts, failed(c, tcp.EADDRNOTAVAIL))
			continue
		}
		port := uint16(20000 + c)
		s.begins(c, pid)
		s.state(c, port, tcp.SynSent, tcp.Established, 0, 0)
		live[c] = &state{pid: pid, port: port}
		for other, l := range live {
			switch {
			case rng.IntN(20) != 0:
			case l.wait:
				s.end(other, l.port, tcp.CauseExpired)
				delete(live, other)
			default:
				s.state(other, l.port, tcp.Established, tcp.FinWait1, 0, 0)
				s.enter(other, l.port, tcp.TimeWait, longTicks)
				l.wait, l.born = true, s.now
				s.state(other, l.port, tcp.FinWait1, tcp.Close, tcp.FlagTWMade, 0)
			}
		}
	}
	checked := 0
	j := NewJoiner(Options{ShortTicks: shortTicks, OnTimeline: func(tl *Timeline) {
		checked++
		if tl.Census == nil {
			t.Fatal("no census")
		}
		got := make(map[uint32]Ports)
		var sum Ports
		for _, h := range tl.Census.Holdings {
			if h.Ports != (Ports{}) {
				got[h.Owner.PID] = h.Ports
				sum.add(h.Ports)
			}
		}
		if sum != tl.AtConnect {
			t.Errorf("%+v do not come to %+v", got, tl.AtConnect)
		}
		for pid, p := range want[tl.Attempt.Cookie] {
			if got[pid] != p {
				t.Errorf("process %d has %+v, want %+v", pid, got[pid], p)
			}
		}
		if old := oldest[tl.Attempt.Cookie]; tl.Census.OldestNS != old {
			t.Errorf("the oldest TIME_WAIT was made %d ns before, want %d", tl.Census.OldestNS, old)
		} else if old != 0 && tl.Census.LeftNS != 60e9-old {
			t.Errorf("%d ns are left of it", tl.Census.LeftNS)
		}
	}})
	j.Events(s.events)
	j.Attempts(attempts)
	if checked != len(attempts) {
		t.Errorf("%d of %d were handed out", checked, len(attempts))
	}
	told := len(s.events)
	for c, l := range live {
		if l.wait {
			s.end(c, l.port, tcp.CauseExpired)
		} else {
			s.linger(c, l.port)
		}
	}
	j.Events(s.events[told:])
	j.Advance(s.now + attemptDelay + 1)
	if len(j.paths) != 0 || len(j.open) != 0 || j.taken != (Ports{}) {
		t.Errorf("when all is over %d paths are kept, %d connections, ports %+v", len(j.paths), len(j.open), j.taken)
	}
}

// TestFreedAndTaken: a port that expires while a connect() looks, and is taken by another at once, is one port.
func TestFreedAndTaken(t *testing.T) {
	var s stream
	s.connect(1, 40001)
	s.closeFirst(1, 40001)
	s.state(2, 0, tcp.Close, tcp.SynSent, 0, 0) // passes 40001
	s.end(1, 40001, tcp.CauseExpired)
	s.connect(3, 40001)
	s.state(2, 0, tcp.SynSent, tcp.Close, tcp.FlagNoSegment, 0)
	j, r := newJoiner()
	j.Events(s.events)
	j.Attempts([]tcp.Attempt{failed(2, tcp.EADDRNOTAVAIL)})
	tl := r.only(t)
	if want := (Ports{TimeWait: 1}); tl.AtConnect != want {
		t.Errorf("the ports stood at %+v, want %+v", tl.AtConnect, want)
	}
}

// TestRefusals: what the kernel counted comes with the census.
func TestRefusals(t *testing.T) {
	var s stream
	s.exhausted(1)
	want := tcp.Refusals{TooYoung: 3, Taken: 4}
	s.add(tcp.Event{Kind: tcp.KindConnectFailed, Cookie: 1, Tuple: tuple(0), Flags: tcp.FlagRefusals, Refusals: want})
	j, r := newJoiner()
	j.Events(s.events)
	j.Attempts([]tcp.Attempt{failed(1, tcp.EADDRNOTAVAIL)})
	if c := r.only(t).Census; c == nil || !c.Counted || c.Refusals != want {
		t.Errorf("census %+v", c)
	}
}

// TestForecast: at a steady pace ports run out when arithmetic says, also where some come back, or all in time; a pace that falls when half
// are taken is seen by the forecast that is made then.
func TestForecast(t *testing.T) {
	for name, tt := range map[string]struct {
		ports    int
		holdNS   int64
		every    int64 // ns between opens, and once half are taken
		then     int64
		first    float64 // seconds; 0: never
		revised  float64
		observed bool
	}{
		"minute":    {ports: 1000, holdNS: 60e9, every: 5e6, then: 5e6, first: 5, revised: 5, observed: true},
		"enough":    {ports: 1000, holdNS: 4e9, every: 5e6, then: 5e6, first: 0, revised: 0},
		"slows":     {ports: 1000, holdNS: 60e9, every: 5e6, then: 10e6, first: 5, revised: 7.5, observed: true},
		"too tight": {ports: 1000, holdNS: 2e9, every: 1e6, then: 1e6, first: 1, revised: 1, observed: true},
	} {
		t.Run(name, func(t *testing.T) {
			j := NewJoiner(Options{ShortTicks: shortTicks, OnTimeline: func(*Timeline) {}, Forecast: ForecastOptions{Ports: tt.ports, HoldNS: tt.holdNS}})
			var s stream
			s.now = 1e9
			begun := s.now + 1000
			var held []int64 // when TIME_WAITs began
			var failedAt int64
			for c := tcp.Cookie(1); s.now < 12e9; c++ {
				at := s.now
				for len(held) > 0 && held[0]+tt.holdNS <= s.now {
					held = held[1:]
				}
				if len(held) >= tt.ports {
					s.exhausted(c)
					failedAt = s.now
					break
				}
				s.connect(c, uint16(10000+c))
				s.closeFirst(c, uint16(10000+c))
				held = append(held, s.now)
				if s.now = at + tt.every; len(held) >= tt.ports/2 {
					s.now = at + tt.then
				}
			}
			if (failedAt != 0) != tt.observed {
				t.Fatalf("the test's own storm failed at %d", failedAt)
			}
			for batch := range slices.Chunk(s.events, 500) {
				j.Events(batch)
			}
			f := j.Forecast()
			if f.Failed != failedAt || f.Begun != begun || f.First.Made == 0 {
				t.Errorf("%+v, and it failed at %d, begun at %d", f, failedAt, begun)
			}
			near := func(what string, g Guess, want float64) {
				got := float64(g.At-begun) / 1e9
				if want == 0 && g.At != 0 || want != 0 && (g.At == 0 || got < 0.97*want || got > 1.03*want) {
					t.Errorf("%s: for %.3f s after the first, want %.1f: %+v", what, got, want, g)
				}
			}
			near("first", f.First, tt.first)
			near("revised", f.Revised, tt.revised)
			if _, ok := j.Outlook(); ok && tt.observed {
				t.Error("it failed already, and that is foretold")
			}
		})
	}
}
