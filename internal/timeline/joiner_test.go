package timeline

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/twtrace/twtrace/internal/tcp"
)

const (
	client = tcp.NetNS(1)
	server = tcp.NetNS(2)
	// shortTicks is 4 s at 250 jiffies a second.
	shortTicks = 1000
	longTicks  = 60 * 250
)

var (
	source = netip.MustParseAddr("198.18.0.1")
	dest   = netip.MustParseAddrPort("198.19.0.1:7")
)

// stream makes events as the kernel does: numbered, and a microsecond apart.
type stream struct {
	events []tcp.Event
	now    int64
}

func (s *stream) add(ev tcp.Event) {
	s.now += 1000
	ev.MonoNS = s.now
	ev.Seq = uint64(len(s.events) + 1)
	if ev.NetNS == 0 {
		ev.NetNS = client
	}
	s.events = append(s.events, ev)
}

func tuple(port uint16) tcp.FourTuple {
	return tcp.FourTuple{Local: netip.AddrPortFrom(source, port), Peer: dest}
}

func (s *stream) state(c tcp.Cookie, port uint16, old, new tcp.State, flags tcp.Flags, errno tcp.Errno) {
	s.add(tcp.Event{Kind: tcp.KindState, Cookie: c, Tuple: tuple(port), Old: old, New: new, Flags: flags, Errno: errno})
}

// connect is the states up to ESTABLISHED. SYN_SENT comes before the search for
// a port (tcp_v4_connect), so that the first event has none.
func (s *stream) connect(c tcp.Cookie, port uint16) {
	s.state(c, 0, tcp.Close, tcp.SynSent, 0, 0)
	s.state(c, port, tcp.SynSent, tcp.Established, 0, 0)
}

func (s *stream) enter(c tcp.Cookie, port uint16, substate tcp.State, ticks uint32) {
	s.add(tcp.Event{Kind: tcp.KindTWEnter, Cookie: c, Tuple: tuple(port), New: tcp.TimeWait, Substate: substate, Ticks: ticks})
}

func (s *stream) end(c tcp.Cookie, port uint16, cause tcp.Cause) {
	s.add(tcp.Event{Kind: tcp.KindTWEnd, Cookie: c, Tuple: tuple(port), Old: tcp.TimeWait, New: tcp.Close, Cause: cause})
}

// closeFirst is the active close: the minisock is made before the socket is done
// (tcp_time_wait).
func (s *stream) closeFirst(c tcp.Cookie, port uint16) {
	s.state(c, port, tcp.Established, tcp.FinWait1, 0, 0)
	s.state(c, port, tcp.FinWait1, tcp.FinWait2, 0, 0)
	s.enter(c, port, tcp.TimeWait, longTicks)
	s.state(c, port, tcp.FinWait2, tcp.Close, tcp.FlagTWMade, 0)
}

func (s *stream) linger(c tcp.Cookie, port uint16) {
	s.state(c, port, tcp.Established, tcp.Close, tcp.FlagLinger0, 0)
	s.add(tcp.Event{Kind: tcp.KindRstSent, Cookie: c, Tuple: tuple(port), Old: tcp.Close, New: tcp.Close, Flags: tcp.FlagActive})
}

func (s *stream) exhausted(c tcp.Cookie) {
	s.state(c, 0, tcp.Close, tcp.SynSent, 0, 0)
	s.state(c, 0, tcp.SynSent, tcp.Close, tcp.FlagNoSegment, 0)
}

func (s *stream) refused(c tcp.Cookie, port uint16) {
	s.state(c, 0, tcp.Close, tcp.SynSent, 0, 0)
	s.add(tcp.Event{Kind: tcp.KindRstReceived, Cookie: c, Tuple: tuple(port), Old: tcp.SynSent, New: tcp.SynSent})
	s.state(c, port, tcp.SynSent, tcp.Close, 0, tcp.ECONNREFUSED)
}

func done(c tcp.Cookie) tcp.Attempt { return tcp.Attempt{Cookie: c, Phase: tcp.PhaseDone} }

func failed(c tcp.Cookie, errno tcp.Errno) tcp.Attempt {
	return tcp.Attempt{Cookie: c, Phase: tcp.PhaseConnect, Errno: errno}
}

// results is what a Joiner handed out.
type results struct {
	timelines []Timeline
	lifetimes []Lifetime
	marks     []Mark
}

func newJoiner() (*Joiner, *results) {
	r := new(results)
	return NewJoiner(Options{
		OnTimeline: func(t *Timeline) { r.timelines = append(r.timelines, *t) },
		OnLifetime: func(l Lifetime) { r.lifetimes = append(r.lifetimes, l) },
		OnMark:     func(m Mark) { r.marks = append(r.marks, m) },
		ShortTicks: shortTicks,
	}), r
}

// only returns the one timeline that was handed out.
func (r *results) only(t *testing.T) *Timeline {
	t.Helper()
	if len(r.timelines) != 1 {
		t.Fatalf("%d timelines, want 1", len(r.timelines))
	}
	return &r.timelines[0]
}

func TestJoin(t *testing.T) {
	for _, tt := range []struct {
		name    string
		events  func(*stream)
		attempt tcp.Attempt
		steps   int // that the kernel shows before the socket is closed
		port    uint16
		check   func(*testing.T, *Timeline)
	}{
		{
			"active close", func(s *stream) { s.connect(9, 40000); s.closeFirst(9, 40000) }, done(9), 5, 40000,
			func(t *testing.T, tl *Timeline) {
				if tl.FailedInKernel() != nil || tl.ClosedWith() != nil {
					t.Error("a connection that was closed looks failed")
				}
			},
		},
		{
			"no port", func(s *stream) { s.exhausted(9) }, failed(9, tcp.EADDRNOTAVAIL), 2, 0,
			func(t *testing.T, tl *Timeline) {
				if s := tl.FailedInKernel(); s == nil || s.Seq != 2 {
					t.Errorf("FailedInKernel() = %v, want event 2", s)
				}
			},
		},
		{
			"refused", func(s *stream) { s.refused(9, 40001) }, failed(9, tcp.ECONNREFUSED), 3, 40001,
			func(t *testing.T, tl *Timeline) {
				if s := tl.ClosedWith(); s == nil || s.Errno != tcp.ECONNREFUSED || s.Seq != 3 {
					t.Errorf("ClosedWith() = %v, want ECONNREFUSED in event 3", s)
				}
				if tl.FailedInKernel() != nil {
					t.Error("a segment was sent, and FailedInKernel() is not nil")
				}
			},
		},
	} {
		for _, order := range []string{"attempt last", "attempt first", "attempt in between"} {
			t.Run(tt.name+"/"+order, func(t *testing.T) {
				var s stream
				tt.events(&s)
				j, r := newJoiner()
				cut := map[string]int{"attempt last": len(s.events), "attempt first": 0, "attempt in between": 1}[order]
				j.Events(s.events[:cut])
				if len(r.timelines) != 0 {
					t.Fatal("handed out before the attempt came")
				}
				j.Attempts([]tcp.Attempt{tt.attempt})
				if cut < len(s.events) && len(r.timelines) != 0 {
					t.Fatal("handed out before the kernel closed the socket")
				}
				j.Events(s.events[cut:])
				j.Advance(s.now + 2*heldFor)
				tl := r.only(t)
				if !tl.Joined || tl.Attempt != tt.attempt {
					t.Errorf("joined %t, attempt %+v", tl.Joined, tl.Attempt)
				}
				if tl.NumSteps != tt.steps || tl.More != 0 || len(tl.Events()) != tt.steps {
					t.Errorf("%d steps and %d more, want %d", tl.NumSteps, tl.More, tt.steps)
				}
				if tl.Tuple != tuple(tt.port) {
					t.Errorf("tuple %s, want %s", tl.Tuple, tuple(tt.port))
				}
				tt.check(t, tl)
				j.Finish()
				r.only(t)
			})
		}
	}
}

// TestCensus checks how many ports are taken as a connect() fails, against a
// count made here.
func TestCensus(t *testing.T) {
	var s stream
	for c := tcp.Cookie(1); c <= 5; c++ {
		s.connect(c, uint16(40000+c))
	}
	s.closeFirst(1, 40001)
	s.closeFirst(2, 40002)
	s.closeFirst(3, 40003)
	s.end(1, 40001, tcp.CauseExpired)
	s.linger(5, 40005)
	// TIME_WAIT: 2, 3. Open: 4.
	other := tcp.Event{Kind: tcp.KindState, Cookie: 6, Old: tcp.Close, New: tcp.SynSent}
	other.Tuple = tcp.FourTuple{Local: netip.AddrPortFrom(source, 0), Peer: netip.MustParseAddrPort("198.19.0.1:8")}
	s.add(other) // to another destination: it takes nothing from this one
	s.exhausted(7)
	// Another process of the server's namespace makes a TIME_WAIT of a passive
	// open, which takes no source port.
	s.add(tcp.Event{Kind: tcp.KindTWEnter, NetNS: server, Cookie: 8, Substate: tcp.TimeWait, Ticks: longTicks})
	at := s.now

	j, r := newJoiner()
	j.MarkAt(1, at)
	j.Events(s.events)
	j.Attempts([]tcp.Attempt{failed(7, tcp.EADDRNOTAVAIL)})
	tl := r.only(t)
	if want := (Ports{TimeWait: 2, Open: 1}); tl.AtConnect != want {
		t.Errorf("as connect() began the ports stood at %+v, want %+v", tl.AtConnect, want)
	}
	j.Advance(at + 1)
	if want := []Mark{{Loop: 1, MonoNS: at, TimeWait: 3, Ports: 4}}; !slices.Equal(r.marks, want) {
		t.Errorf("marks %+v, want %+v", r.marks, want)
	}
	if got, other := j.TimeWaits(client), j.TimeWaits(server); got != 2 || other != 1 {
		t.Errorf("%d and %d TIME_WAITs, want 2 and 1", got, other)
	}
}

// TestBoundTupleBusy is the other EADDRNOTAVAIL: the port was bound.
func TestBoundTupleBusy(t *testing.T) {
	var s stream
	s.state(1, 5000, tcp.Close, tcp.SynSent, 0, 0)
	s.state(1, 5000, tcp.SynSent, tcp.Close, tcp.FlagNoSegment, 0)
	j, r := newJoiner()
	j.Events(s.events)
	j.Attempts([]tcp.Attempt{failed(1, tcp.EADDRNOTAVAIL)})
	if tl := r.only(t); tl.Tuple.Local.Port() != 5000 || tl.FailedInKernel() == nil {
		t.Errorf("tuple %s, failed in the kernel: %v", tl.Tuple, tl.FailedInKernel())
	}
}

func TestLifetimes(t *testing.T) {
	j, r := newJoiner()
	var s stream
	var want []Lifetime
	begun := make(map[tcp.Cookie]int64)
	for c := tcp.Cookie(1); c <= tcp.Cookie(tcp.CauseUnknown); c++ {
		s.enter(c, uint16(40000+c), tcp.TimeWait, longTicks)
		begun[c] = s.now
	}
	for c := tcp.Cookie(1); c <= tcp.Cookie(tcp.CauseUnknown); c++ {
		s.end(c, uint16(40000+c), tcp.Cause(c))
		want = append(want, Lifetime{NetNS: client, NS: s.now - begun[c], Cause: tcp.Cause(c)})
	}
	s.end(99, 40099, tcp.CauseExpired)             // it began before the trace
	s.enter(0, 40100, tcp.TimeWait, longTicks)     // nobody ever asked for its cookie
	s.end(0, 40100, tcp.CauseExpired)              //
	s.end(100, 40101, tcp.Cause(tcp.NumCauses))    // a cause of a newer program
	s.enter(101, 40102, tcp.FinWait2, longTicks/2) // still there at the end
	j.Events(s.events)
	j.Finish()
	if !slices.Equal(r.lifetimes, want) {
		t.Errorf("lifetimes\n%+v, want\n%+v", r.lifetimes, want)
	}
	if got := j.TimeWaits(client); got != 1 {
		t.Errorf("%d TIME_WAITs are left, want 1", got)
	}
	total := j.Totals(client)
	for cause := tcp.CauseExpired; cause < tcp.CauseUnknown; cause++ {
		want := uint64(1)
		if cause == tcp.CauseExpired {
			want = 3
		}
		if got := total.TWEnd[cause]; got != want {
			t.Errorf("%d ended as %s, want %d", got, cause, want)
		}
	}
	if got := total.TWEnd[tcp.CauseUnknown]; got != 2 {
		t.Errorf("%d ended for a reason not known, want 2", got)
	}
}

func TestMarks(t *testing.T) {
	var s stream
	s.connect(1, 40001)    // at 1000 and 2000
	s.closeFirst(1, 40001) // TIME_WAIT from 5000
	s.connect(2, 40002)    // at 7000 and 8000
	s.end(1, 40001, tcp.CauseReusedByConnect)
	want := []Mark{
		{Loop: 1, MonoNS: 500},
		{Loop: 2, MonoNS: 1000, Ports: 1}, // an event of the same time is before it
		{Loop: 3, MonoNS: 5000, Ports: 1, TimeWait: 1},
		{Loop: 4, MonoNS: 7500, Ports: 2, TimeWait: 1},
		{Loop: 5, MonoNS: 9000, Ports: 1},
		{Loop: 6, MonoNS: 1e6, Ports: 1},
	}
	set := func(j *Joiner) {
		for _, m := range want {
			j.MarkAt(m.Loop, m.MonoNS)
		}
	}
	t.Run("before the events", func(t *testing.T) {
		j, r := newJoiner()
		set(j)
		if len(r.marks) != 0 {
			t.Fatal("marked before the stream was there")
		}
		j.Events(s.events)
		if !slices.Equal(r.marks, want[:4]) {
			t.Fatalf("marks %+v, want %+v", r.marks, want[:4])
		}
		j.Advance(9001)
		if !slices.Equal(r.marks, want[:5]) {
			t.Fatalf("marks %+v, want %+v", r.marks, want[:5])
		}
		j.Advance(4000) // does not go back
		j.Finish()
		if !slices.Equal(r.marks, want) {
			t.Fatalf("marks %+v, want %+v", r.marks, want)
		}
	})
	t.Run("in batches", func(t *testing.T) {
		j, r := newJoiner()
		set(j)
		for i := range s.events {
			j.Events(s.events[i : i+1])
		}
		j.Finish()
		if !slices.Equal(r.marks, want) {
			t.Fatalf("marks %+v, want %+v", r.marks, want)
		}
	})
	t.Run("after the events", func(t *testing.T) {
		j, r := newJoiner()
		j.Events(s.events)
		j.MarkAt(1, 8999)
		if want := []Mark{{Loop: 1, MonoNS: 8999, Ports: 1}}; !slices.Equal(r.marks, want) {
			t.Fatalf("marks %+v, want %+v at once", r.marks, want)
		}
	})
	t.Run("nobody listens", func(t *testing.T) {
		j := NewJoiner(Options{})
		set(j)
		j.Events(s.events)
		j.Attempts([]tcp.Attempt{done(1), {Phase: tcp.PhaseSocket}})
		j.Finish()
	})
}

// TestForeign: connections of other programs, whose attempt never comes, must not
// pile up in a stream of any length.
func TestForeign(t *testing.T) {
	const (
		total = 50_000
		apart = attemptDelay / 100 // between connections: a hundred are within the delay
	)
	j, r := newJoiner()
	var most, waits int
	for i := range total {
		var s stream
		s.now = int64(i) * apart
		c := tcp.Cookie(i + 1)
		// Each to a destination of its own, as a resolver or a crawler does.
		peer := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, byte(i >> 16), byte(i >> 8), byte(i)}), 443)
		s.connect(c, 40000)
		s.closeFirst(c, 40000)
		s.end(c, 40000, tcp.CauseReusedByConnect)
		for k := range s.events {
			s.events[k].Tuple.Peer = peer
		}
		j.Events(s.events)
		most = max(most, len(j.open), len(j.free), len(j.tw), len(j.paths))
		waits = max(waits, cap(j.waiting))
	}
	if len(r.timelines) != 0 {
		t.Errorf("%d connections of others were handed out", len(r.timelines))
	}
	if most > 200 {
		t.Errorf("up to %d are kept (open %d, free %d, TIME_WAIT %d, ports %d), though 101 are within the delay",
			most, len(j.open), len(j.free), len(j.tw), len(j.paths))
	}
	if waits > 8192 {
		t.Errorf("the queue of closed connections grew to %d", waits)
	}
	if j.taken != (Ports{}) {
		t.Errorf("ports %+v are still counted as taken", j.taken)
	}
}

// TestLateAttempt: an attempt may come attemptDelay after its socket was closed;
// one that comes later is not joined, and is not lost either.
func TestLateAttempt(t *testing.T) {
	for _, tt := range []struct {
		delay  int64
		joined bool
	}{{attemptDelay, true}, {attemptDelay + 1, false}} {
		t.Run(fmt.Sprint(tt.delay), func(t *testing.T) {
			var s stream
			s.connect(1, 40001)
			s.linger(1, 40001)
			closed := s.events[2].MonoNS
			j, r := newJoiner()
			j.Events(s.events)
			j.Advance(closed + tt.delay)
			j.Attempts([]tcp.Attempt{done(1)})
			j.Finish()
			if tl := r.only(t); tl.Joined != tt.joined {
				t.Errorf("joined %t, want %t", tl.Joined, tt.joined)
			}
		})
	}
}

func TestNeverConnected(t *testing.T) {
	for _, a := range []tcp.Attempt{
		{Phase: tcp.PhaseSocket, Errno: tcp.EMFILE},
		{Phase: tcp.PhaseBind, Errno: tcp.EADDRINUSE, Cookie: 7}, // it has a cookie, and no events will come
		{Phase: tcp.PhaseConnect, Errno: tcp.ENETUNREACH},        // nobody could ask for its cookie
		{Phase: tcp.PhaseDone},
	} {
		t.Run(a.Phase.String(), func(t *testing.T) {
			j, r := newJoiner()
			j.Attempts([]tcp.Attempt{a})
			if tl := r.only(t); tl.Joined || tl.Attempt != a {
				t.Errorf("joined %t, attempt %+v", tl.Joined, tl.Attempt)
			}
			j.Finish()
			r.only(t)
			if len(j.open) != 0 {
				t.Error("it is still kept")
			}
		})
	}
}

func TestNoCookie(t *testing.T) {
	var s stream
	s.state(0, 0, tcp.Listen, tcp.SynRecv, 0, 0) // the child of a listener, before it has one
	s.state(0, 40000, tcp.SynSent, tcp.Close, 0, 0)
	s.add(tcp.Event{Kind: tcp.KindRstSent, Old: tcp.NewSynRecv, New: tcp.NewSynRecv})
	j, r := newJoiner()
	j.Events(s.events)
	j.Attempts([]tcp.Attempt{done(1)})
	j.Finish()
	if tl := r.only(t); tl.Joined || tl.NumSteps != 0 {
		t.Errorf("events without a cookie were joined: %+v", tl.Events())
	}
	if got := j.Totals(client); got.PassiveOpens != 1 || got.RstSent != 1 {
		t.Errorf("events without a cookie are not counted: %+v", got)
	}
}

func TestFinish(t *testing.T) {
	var s stream
	s.connect(1, 40001) // its close was lost
	s.connect(3, 40003) // another program's, still open
	j, r := newJoiner()
	j.Events(s.events)
	j.Attempts([]tcp.Attempt{done(1), done(2)}) // of the second nothing was recorded
	j.MarkAt(1, s.now+1e9)
	if len(r.timelines) != 0 {
		t.Fatal("handed out before anything was known")
	}
	j.Finish()
	joined := make(map[tcp.Cookie]bool)
	for _, tl := range r.timelines {
		joined[tl.Attempt.Cookie] = tl.Joined
	}
	if want := map[tcp.Cookie]bool{1: true, 2: false}; !maps.Equal(joined, want) || len(r.timelines) != 2 {
		t.Errorf("joined %v in %d timelines, want %v", joined, len(r.timelines), want)
	}
	if len(r.marks) != 1 {
		t.Errorf("%d marks, want 1", len(r.marks))
	}
}

// TestAfterFinish: the trace can end before the storm does (Tracer.Read failed).
// What comes then is reported, not joined.
func TestAfterFinish(t *testing.T) {
	j, r := newJoiner()
	j.Finish()
	j.Attempts([]tcp.Attempt{done(1), {Phase: tcp.PhaseSocket}})
	j.MarkAt(1, 5000)
	if len(r.timelines) != 2 || len(r.marks) != 1 {
		t.Errorf("%d timelines and %d marks, want 2 and 1", len(r.timelines), len(r.marks))
	}
	var s stream
	s.connect(2, 40002)
	j.Events(s.events)
	j.Attempts([]tcp.Attempt{done(2)})
	j.Finish()
	if len(r.timelines) != 3 {
		t.Errorf("%d timelines, want 3", len(r.timelines))
	}
}

// TestSameCookieTwice: a socket whose connect() failed may be connected again.
func TestSameCookieTwice(t *testing.T) {
	var s stream
	s.exhausted(1)
	s.connect(1, 40001)
	j, r := newJoiner()
	j.Events(s.events)
	j.Attempts([]tcp.Attempt{done(1)})
	if len(r.timelines) != 0 {
		t.Fatal("handed out while it is open")
	}
	var rest stream
	rest.now = s.now
	rest.linger(1, 40001)
	j.Events(rest.events)
	tl := r.only(t)
	if tl.NumSteps != 5 || tl.Tuple.Local.Port() != 40001 {
		t.Errorf("%d steps, tuple %s", tl.NumSteps, tl.Tuple)
	}
	if j.taken != (Ports{}) {
		t.Errorf("ports %+v are still counted as taken", j.taken)
	}
	if total := j.Totals(client); total.ActiveOpens != 2 || total.ConnectFailed != 1 || total.Linger0 != 1 {
		t.Errorf("totals %+v", total)
	}
	j.Finish()
	r.only(t)
}

// TestSameCookieTwiceForeign: the delay counts from the last close, not from the first.
func TestSameCookieTwiceForeign(t *testing.T) {
	j, r := newJoiner()
	var s stream
	s.exhausted(1)
	s.now += attemptDelay - 10_000
	s.connect(1, 40001)
	s.linger(1, 40001)
	j.Events(s.events)
	j.Advance(s.now + attemptDelay/2)
	j.Attempts([]tcp.Attempt{done(1)})
	if tl := r.only(t); !tl.Joined || tl.NumSteps < 5 {
		t.Errorf("joined %t with %d steps", tl.Joined, tl.NumSteps)
	}
}

// TestReconnectAfterTimeWait: a socket that only shut its end down becomes CLOSE
// when its TIME_WAIT is made, and may be connected again with the same cookie.
func TestReconnectAfterTimeWait(t *testing.T) {
	var s stream
	s.connect(1, 40001)
	s.closeFirst(1, 40001)
	s.connect(1, 40002)
	s.closeFirst(1, 40002)
	j, r := newJoiner()
	j.Events(s.events)
	j.MarkAt(1, s.now)
	j.Advance(s.now + 1)
	if want := []Mark{{Loop: 1, MonoNS: s.now, TimeWait: 2, Ports: 2}}; !slices.Equal(r.marks, want) {
		t.Errorf("marks %+v, want %+v", r.marks, want)
	}
	var ends stream
	ends.now = s.now
	ends.end(1, 40001, tcp.CauseExpired)
	ends.end(1, 40002, tcp.CauseExpired)
	j.Events(ends.events)
	if j.taken != (Ports{}) || j.TimeWaits(client) != 0 {
		t.Errorf("ports %+v and %d TIME_WAITs are left, want none", j.taken, j.TimeWaits(client))
	}
	if len(r.lifetimes) != 2 {
		t.Errorf("%d lifetimes, want 2", len(r.lifetimes))
	}
}

func TestMaxSteps(t *testing.T) {
	var s stream
	s.connect(1, 40001)
	for range MaxSteps {
		s.add(tcp.Event{Kind: tcp.KindRstReceived, Cookie: 1, Tuple: tuple(40001), Old: tcp.Established, New: tcp.Established})
	}
	s.state(1, 40001, tcp.Established, tcp.Close, 0, tcp.ECONNRESET)
	j, r := newJoiner()
	j.Events(s.events)
	j.Attempts([]tcp.Attempt{failed(1, tcp.ECONNRESET)})
	j.Advance(s.now + 2*heldFor)
	tl := r.only(t)
	if tl.NumSteps != MaxSteps || tl.NumSteps+tl.More != len(s.events) {
		t.Errorf("%d steps and %d more of %d events", tl.NumSteps, tl.More, len(s.events))
	}
	for i, step := range tl.Events() {
		if step.Seq != uint64(i+1) {
			t.Errorf("step %d is event %d", i, step.Seq)
		}
	}
}

// TestRetransmitsLeaveRoom: however often a segment was sent again, what ended the
// connection is kept.
func TestRetransmitsLeaveRoom(t *testing.T) {
	var s stream
	s.state(1, 0, tcp.Close, tcp.SynSent, 0, 0)
	for range 3 * MaxSteps {
		s.add(tcp.Event{Kind: tcp.KindRetransmit, Cookie: 1, Tuple: tuple(40001), Old: tcp.SynSent, New: tcp.SynSent})
	}
	s.state(1, 40001, tcp.SynSent, tcp.Close, 0, tcp.ETIMEDOUT)
	j, r := newJoiner()
	j.Events(s.events)
	j.Attempts([]tcp.Attempt{failed(1, tcp.ETIMEDOUT)})
	j.Advance(s.now + 2*heldFor)
	tl := r.only(t)
	if end := tl.ClosedWith(); end == nil || end.Errno != tcp.ETIMEDOUT || tl.NumSteps+tl.More != len(s.events) {
		t.Errorf("closed with %+v, %d steps and %d more of %d events", end, tl.NumSteps, tl.More, len(s.events))
	}
}

// TestTotals has a case for each rule by which the kernel counts (tcp_set_state,
// tcp_time_wait, __inet_twsk_schedule).
func TestTotals(t *testing.T) {
	state := func(old, new tcp.State, flags tcp.Flags, errno tcp.Errno) tcp.Event {
		return tcp.Event{Kind: tcp.KindState, Cookie: 1, Old: old, New: new, Flags: flags, Errno: errno}
	}
	tw := func(substate tcp.State, ticks uint32) tcp.Event {
		return tcp.Event{Kind: tcp.KindTWEnter, Cookie: 1, Substate: substate, Ticks: ticks}
	}
	for _, tt := range []struct {
		name  string
		event tcp.Event
		want  Totals
	}{
		{"active open", state(tcp.Close, tcp.SynSent, 0, 0), Totals{ActiveOpens: 1}},
		{"no port", state(tcp.SynSent, tcp.Close, tcp.FlagNoSegment, 0), Totals{ConnectFailed: 1}},
		{"no port, linger 0", state(tcp.SynSent, tcp.Close, tcp.FlagNoSegment|tcp.FlagLinger0, 0), Totals{ConnectFailed: 1}},
		{"refused", state(tcp.SynSent, tcp.Close, 0, tcp.ECONNREFUSED), Totals{}},
		{"refused, linger 0", state(tcp.SynSent, tcp.Close, tcp.FlagLinger0, tcp.ECONNREFUSED), Totals{}},
		{"given up, linger 0", state(tcp.SynSent, tcp.Close, tcp.FlagLinger0, 0), Totals{Linger0: 1}},
		{"passive open", state(tcp.Listen, tcp.SynRecv, 0, 0), Totals{PassiveOpens: 1}},
		{"simultaneous open", state(tcp.SynSent, tcp.SynRecv, 0, 0), Totals{}},
		{"listener closed", state(tcp.Listen, tcp.Close, 0, 0), Totals{}},
		{"listener closed, linger 0", state(tcp.Listen, tcp.Close, tcp.FlagLinger0, 0), Totals{}},
		{"listener", state(tcp.Close, tcp.Listen, 0, 0), Totals{}},
		{"linger 0", state(tcp.Established, tcp.Close, tcp.FlagLinger0, 0), Totals{EstabResets: 1, Linger0: 1}},
		{"linger 0 of the passive end", state(tcp.CloseWait, tcp.Close, tcp.FlagLinger0, 0), Totals{EstabResets: 1, Linger0: 1}},
		{"reset by the peer", state(tcp.Established, tcp.Close, 0, tcp.ECONNRESET), Totals{EstabResets: 1}},
		{"reset by the peer, linger 0", state(tcp.Established, tcp.Close, tcp.FlagLinger0, tcp.ECONNRESET), Totals{EstabResets: 1}},
		{"reset after the peer's FIN", state(tcp.CloseWait, tcp.Close, 0, tcp.EPIPE), Totals{EstabResets: 1}},
		{"passive close", state(tcp.LastAck, tcp.Close, 0, 0), Totals{}},
		{"active close", state(tcp.FinWait2, tcp.Close, tcp.FlagTWMade, 0), Totals{}},
		{"active close, linger 0 set later", state(tcp.FinWait2, tcp.Close, tcp.FlagTWMade|tcp.FlagLinger0, 0), Totals{}},
		{"data after close", state(tcp.FinWait2, tcp.Close, 0, 0), Totals{DataAfterClose: 1}},
		{"RST in FIN_WAIT2", state(tcp.FinWait2, tcp.Close, 0, tcp.ECONNRESET), Totals{}},
		{"established", state(tcp.SynRecv, tcp.Established, 0, 0), Totals{}},
		{"RST sent", tcp.Event{Kind: tcp.KindRstSent}, Totals{RstSent: 1}},
		{"SYN again", tcp.Event{Kind: tcp.KindRetransmit, Old: tcp.SynSent, New: tcp.SynSent}, Totals{SynRetransmits: 1}},
		{"SYN again, but without a route", tcp.Event{Kind: tcp.KindRetransmit, Old: tcp.SynSent, Errno: tcp.EHOSTUNREACH}, Totals{}},
		{"SYN again, dropped by a packet filter", tcp.Event{Kind: tcp.KindRetransmit, Old: tcp.SynSent, Errno: tcp.EPERM}, Totals{SynRetransmits: 1}},
		{"SYN again, dropped by the link", tcp.Event{Kind: tcp.KindRetransmit, Old: tcp.SynSent, Errno: 65535}, Totals{SynRetransmits: 1}},
		{"data again", tcp.Event{Kind: tcp.KindRetransmit, Old: tcp.Established, New: tcp.Established}, Totals{Retransmits: 1}},
		{"SYN+ACK again", tcp.Event{Kind: tcp.KindSynAckRetransmit, Old: tcp.NewSynRecv}, Totals{SynAckRetransmits: 1}},
		{"RST received", tcp.Event{Kind: tcp.KindRstReceived}, Totals{RstReceived: 1}},
		{"TIME_WAIT", tw(tcp.TimeWait, longTicks), Totals{TWEnter: 1}},
		{"FIN_WAIT2", tw(tcp.FinWait2, longTicks), Totals{TWEnter: 1, TWFinWait2: 1}},
		{"four seconds", tw(tcp.FinWait2, shortTicks), Totals{TWEnter: 1, TWFinWait2: 1, TWShort: 1}},
		{"a jiffy more", tw(tcp.FinWait2, shortTicks+1), Totals{TWEnter: 1, TWFinWait2: 1}},
		{"overflow", tcp.Event{Kind: tcp.KindTWOverflow}, Totals{TWOverflow: 1}},
		{"expired", tcp.Event{Kind: tcp.KindTWEnd, Cause: tcp.CauseExpired}, Totals{TWEnd: [tcp.NumCauses]uint64{tcp.CauseExpired: 1}}},
		{"a kind of a newer program", tcp.Event{Kind: 200, Cookie: 1}, Totals{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			j, _ := newJoiner()
			tt.event.NetNS, tt.event.MonoNS, tt.event.Tuple = server, 1, tuple(40000)
			j.Events([]tcp.Event{tt.event})
			if got := j.Totals(server); got != tt.want {
				t.Errorf("totals %+v, want %+v", got, tt.want)
			}
			if got := j.Totals(client); got != (Totals{}) {
				t.Errorf("the other namespace's totals are %+v", got)
			}
		})
	}
}

// TestReasonTotals: where the kernel says why it sent an RST, that is what tells
// data after close from the rest, in whatever state it came.
func TestReasonTotals(t *testing.T) {
	const reason = 8
	j := NewJoiner(Options{ShortTicks: shortTicks, AbortOnData: reason})
	var s stream
	s.state(1, 40000, tcp.FinWait1, tcp.Close, 0, tcp.ECONNRESET)
	s.add(tcp.Event{Kind: tcp.KindRstSent, Cookie: 1, Reason: reason, Tuple: tuple(40000)})
	s.state(2, 40001, tcp.FinWait2, tcp.Close, 0, 0)
	s.add(tcp.Event{Kind: tcp.KindRstSent, Cookie: 2, Reason: reason, Tuple: tuple(40001)})
	s.state(3, 40002, tcp.FinWait2, tcp.Close, 0, 0) // TIME_WAIT was skipped
	s.add(tcp.Event{Kind: tcp.KindTWOverflow, Cookie: 3, Tuple: tuple(40002), Old: tcp.FinWait2, New: tcp.Close})
	s.add(tcp.Event{Kind: tcp.KindRstSent, Reason: reason + 1})
	j.Events(s.events)
	if got, want := j.Totals(client), (Totals{RstSent: 3, DataAfterClose: 2, TWOverflow: 1}); got != want {
		t.Errorf("totals %+v, want %+v", got, want)
	}
}

// TestOverflowTotals: a TIME_WAIT that was skipped looks like data after close until
// its own event says what it was.
func TestOverflowTotals(t *testing.T) {
	var s stream
	for c, old := range map[tcp.Cookie]tcp.State{1: tcp.FinWait2, 2: tcp.Closing} {
		s.state(c, 40000, old, tcp.Close, 0, 0)
		s.add(tcp.Event{Kind: tcp.KindTWOverflow, Cookie: c, Tuple: tuple(40000), Old: old, New: tcp.Close})
	}
	j, _ := newJoiner()
	j.Events(s.events)
	if got, want := j.Totals(client), (Totals{TWOverflow: 2}); got != want {
		t.Errorf("totals %+v, want %+v", got, want)
	}
}

// storm is a synthetic one, and what it must come to by a count of its own.
type storm struct {
	stream
	attempts  []tcp.Attempt
	total     Totals
	timeWaits int                  // left at the end
	atConnect map[tcp.Cookie]Ports // the ports that were taken as each began
}

// TestSearchesOverlap: of two threads that look for a port at once, the one that finds none
// counts the other's if that found one, whichever ends first, and a TIME_WAIT that was
// reused as what it was as it began.
func TestSearchesOverlap(t *testing.T) {
	for name, tt := range map[string]struct {
		found, first bool // the other: found a port, ended first
		reused       bool // of a TIME_WAIT
		want         Ports
	}{
		"found, first":  {found: true, first: true, want: Ports{TimeWait: 1, Open: 1}},
		"found, later":  {found: true, want: Ports{TimeWait: 1, Open: 1}},
		"reused, first": {found: true, first: true, reused: true, want: Ports{TimeWait: 1}},
		"reused, later": {found: true, reused: true, want: Ports{TimeWait: 1}},
		"none, first":   {first: true, want: Ports{TimeWait: 1}},
		"none, later":   {want: Ports{TimeWait: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			var s stream
			s.connect(1, 40001)
			s.closeFirst(1, 40001)
			other := func() {
				if !tt.found {
					s.state(2, 0, tcp.SynSent, tcp.Close, 0, tcp.EADDRNOTAVAIL)
					return
				}
				port := uint16(40002)
				if tt.reused {
					port = 40001
				}
				s.state(2, port, tcp.SynSent, tcp.Established, 0, 0)
			}
			s.state(2, 0, tcp.Close, tcp.SynSent, 0, 0)
			s.state(3, 0, tcp.Close, tcp.SynSent, 0, 0)
			if tt.reused {
				s.end(1, 40001, tcp.CauseReusedByConnect)
			}
			if tt.first {
				other()
			}
			s.state(3, 0, tcp.SynSent, tcp.Close, 0, tcp.EADDRNOTAVAIL)
			if !tt.first {
				other()
			}
			j, r := newJoiner()
			j.Attempts([]tcp.Attempt{failed(3, tcp.EADDRNOTAVAIL)})
			j.Events(s.events)
			if tl := r.only(t); tl.AtConnect != tt.want {
				t.Errorf("the ports stood at %+v, want %+v", tl.AtConnect, tt.want)
			}
			if len(j.searching) != 0 {
				t.Errorf("%d still look for a port", len(j.searching))
			}
		})
	}
}

// TestSearchLost: a search whose end is not among the events holds up nobody for ever, whether its
// attempt tells that it is over or only its age does.
func TestSearchLost(t *testing.T) {
	for name, tt := range map[string]struct {
		attempt bool
		after   int64
	}{"its attempt tells": {true, attemptDelay + 1}, "it is old": {false, searchLimit + 1}} {
		t.Run(name, func(t *testing.T) {
			var s stream
			s.state(2, 0, tcp.Close, tcp.SynSent, 0, 0)
			s.exhausted(3)
			j, r := newJoiner()
			j.Attempts([]tcp.Attempt{failed(3, tcp.EADDRNOTAVAIL)})
			j.Events(s.events)
			if len(r.timelines) != 0 {
				t.Fatal("reported before it is known what the other found")
			}
			if tt.attempt {
				a := done(2)
				a.Connected, a.Closed = s.now, s.now
				j.Attempts([]tcp.Attempt{a})
			}
			j.Advance(s.now + tt.after)
			want := Ports{}
			if tt.attempt {
				want.Open = 1
			}
			if tl := r.only(t); tl.AtConnect != want {
				t.Errorf("the ports stood at %+v, want %+v", tl.AtConnect, want)
			}
			if len(j.searching) != 0 {
				t.Errorf("%d still look for a port", len(j.searching))
			}
		})
	}
}

// newStorm makes connections that overlap, of every kind, within less than
// attemptDelay, so that their attempts may come at any time.
func newStorm(rng *rand.Rand, n int) *storm {
	s := &storm{atConnect: make(map[tcp.Cookie]Ports)}
	var waits []tcp.Cookie
	open := 0
	var late []func()
	for i := range n {
		c := tcp.Cookie(i + 1)
		port := uint16(40000 + i%20000)
		s.total.ActiveOpens++
		s.atConnect[c] = Ports{TimeWait: len(waits), Open: open}
		switch kind := rng.IntN(6); kind {
		case 0:
			s.exhausted(c)
			s.total.ConnectFailed++
			s.attempts = append(s.attempts, failed(c, tcp.EADDRNOTAVAIL))
		case 1:
			s.refused(c, port)
			s.total.RstReceived++
			s.attempts = append(s.attempts, failed(c, tcp.ECONNREFUSED))
		default:
			s.connect(c, port)
			open++
			late = append(late, func() {
				open--
				if kind == 2 {
					s.linger(c, port)
					s.total.Linger0++
					s.total.EstabResets++
					s.total.RstSent++
					return
				}
				s.closeFirst(c, port)
				s.total.TWEnter++
				s.total.FinSent++ // who gets the TIME_WAIT has closed first
				waits = append(waits, c)
			})
			if kind != 3 { // of another program
				s.attempts = append(s.attempts, done(c))
			}
		}
		for len(late) > 0 && rng.IntN(2) == 0 {
			k := rng.IntN(len(late))
			late[k]()
			late = slices.Delete(late, k, k+1)
		}
		for len(waits) > 0 && rng.IntN(3) == 0 {
			k := rng.IntN(len(waits))
			cause := tcp.Cause(1 + rng.IntN(int(tcp.CauseUnknown)))
			s.end(waits[k], uint16(40000+(int(waits[k])-1)%20000), cause)
			s.total.TWEnd[cause]++
			waits = slices.Delete(waits, k, k+1)
		}
	}
	for _, f := range late {
		f()
	}
	s.timeWaits = len(waits)
	for range 10 {
		s.attempts = append(s.attempts, tcp.Attempt{Phase: tcp.PhaseSocket, Errno: tcp.EMFILE})
	}
	return s
}

// TestInterleavings: in whatever batches the two streams come, the totals are the
// same and each attempt is handed out once.
func TestInterleavings(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 20 {
		s := newStorm(rng, 500)
		if s.now >= attemptDelay {
			t.Fatalf("the storm lasts %d ns, too long for attempts to come at any time", s.now)
		}
		for range 5 {
			attempts := slices.Clone(s.attempts)
			rng.Shuffle(len(attempts), func(i, k int) { attempts[i], attempts[k] = attempts[k], attempts[i] })
			events := s.events
			j, r := newJoiner()
			j.MarkAt(1, s.events[len(s.events)/2].MonoNS)
			for len(events) > 0 || len(attempts) > 0 {
				if rng.IntN(2) == 0 {
					n := min(rng.IntN(100), len(events))
					j.Events(events[:n])
					events = events[n:]
				} else {
					n := min(rng.IntN(40), len(attempts))
					j.Attempts(attempts[:n])
					attempts = attempts[n:]
				}
			}
			s.check(t, j, r)
			if t.Failed() {
				return
			}
		}
	}
}

// TestConcurrent feeds both streams at once, for the race detector.
func TestConcurrent(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	s := newStorm(rand.New(rand.NewPCG(seed, 0)), 2000)
	j, r := newJoiner()
	j.MarkAt(1, s.events[len(s.events)/2].MonoNS)
	var wg sync.WaitGroup
	wg.Go(func() {
		for batch := range slices.Chunk(s.events, 64) {
			j.Events(batch)
			j.TimeWaits(client)
		}
	})
	wg.Go(func() {
		for batch := range slices.Chunk(s.attempts, 16) {
			j.Attempts(batch)
			j.Totals(client)
		}
	})
	wg.Wait()
	s.check(t, j, r)
}

func (s *storm) check(t *testing.T, j *Joiner, r *results) {
	t.Helper()
	j.Advance(s.now + 2*heldFor)
	if len(j.open) != len(s.foreign()) {
		t.Errorf("%d connections are kept, want the %d without an attempt", len(j.open), len(s.foreign()))
	}
	j.Finish()
	if got := j.Totals(client); got != s.total {
		t.Errorf("totals\n%+v, want\n%+v", got, s.total)
	}
	if got := j.TimeWaits(client); got != s.timeWaits {
		t.Errorf("%d TIME_WAITs are left, want %d", got, s.timeWaits)
	}
	if want := (Ports{TimeWait: s.timeWaits}); j.taken != want {
		t.Errorf("ports %+v are taken, want %+v", j.taken, want)
	}
	if len(r.marks) != 1 {
		t.Errorf("%d marks, want 1", len(r.marks))
	}
	want := make(map[tcp.Attempt]int)
	for _, a := range s.attempts {
		want[a]++
	}
	for _, tl := range r.timelines {
		want[tl.Attempt]--
		if tl.Joined != (tl.Attempt.Cookie != 0) {
			t.Errorf("attempt %+v: joined %t", tl.Attempt, tl.Joined)
		}
		if at := s.atConnect[tl.Attempt.Cookie]; tl.AtConnect != at {
			t.Errorf("attempt %d began with %+v, want %+v", tl.Attempt.Cookie, tl.AtConnect, at)
		}
	}
	for a, n := range want {
		if n != 0 {
			t.Errorf("attempt %+v is missing %d times", a, n)
		}
	}
}

// foreign returns the cookies that have events and no attempt.
func (s *storm) foreign() map[tcp.Cookie]bool {
	cookies := make(map[tcp.Cookie]bool)
	for _, ev := range s.events {
		cookies[ev.Cookie] = true
	}
	for _, a := range s.attempts {
		delete(cookies, a.Cookie)
	}
	return cookies
}
