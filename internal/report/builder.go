package report

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
	"github.com/twtrace/twtrace/internal/verdict"
)

// maxEvents is how many event numbers a failure shows.
const maxEvents = 64

// Builder adds up a Summary while the run goes on. Its methods may be called
// from several goroutines.
type Builder struct {
	mu      sync.Mutex
	started int64 // CLOCK_MONOTONIC ns of the run's start
	traced  bool

	loops    []Loop
	loop     histograms // of the loop under way
	open     openCount  // likewise
	all      histograms
	errors   map[string]int
	failed   map[failureKey]*failure
	joined   Joined
	connects int   // attempts whose connect() succeeded
	warm     int64 // CLOCK_MONOTONIC ns: what was due before is not in the latencies
	late     int   // attempts that began later than tooLate

	expired  []float64 // seconds; of TIME_WAITs that expired
	env      verdict.Env
	slow     map[slowKey]*Slow
	refused  map[refusedKey]*refusedPort
	forecast timeline.Forecast
	lastAcks int // attempts that connected, and whose last ACK the listener dropped
	noReply  int // attempts that connected and failed without a reply
}

type failureKey struct {
	errno   tcp.Errno
	phase   tcp.Phase
	verdict verdict.Verdict
}

// failure is a group under way.
type failure struct {
	count       int
	withEvents  int
	first, last timeline.Timeline
	example     timeline.Timeline // the first that was joined; Joined is false if none was
	events      []uint64
}

// NewBuilder returns an empty Builder for a run that started at monoNS.
func NewBuilder(monoNS int64, traced bool) *Builder {
	return &Builder{
		started: monoNS,
		traced:  traced,
		loop:    newHistograms(),
		open:    openCount{begun: monoNS},
		all:     newHistograms(),
		errors:  make(map[string]int),
		failed:  make(map[failureKey]*failure),
		env:     verdict.Env{Traced: traced},
		slow:    make(map[slowKey]*Slow),
		refused: make(map[refusedKey]*refusedPort),
	}
}

// SetEnv says what verdicts need to know of the run; without, only that it was traced or not. It is called before attempts come.
func (b *Builder) SetEnv(env verdict.Env) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.env = env
}

// EnvOf is what verdicts need to know of a run; reasons are its kernel's names for why an RST is sent.
func EnvOf(s *Summary, reasons map[uint32]string) verdict.Env {
	env := verdict.NewEnv(s.Options.Trace, s.Coverage, s.Sysctls, reasons)
	env.NeverAccepts = s.Options.ServerMode == ServerNeverAccepts
	return env
}

// Attempts takes attempts of the loop under way.
func (b *Builder) Attempts(attempts []tcp.Attempt) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range attempts {
		a := &attempts[i]
		if a.Connected > 0 {
			b.connects++
			b.open.add(a)
		}
		if a.Failed() {
			b.errors[a.Errno.String()]++
		}
		if cmp.Or(a.Intended, a.Started) < b.warm {
			continue
		}
		b.loop.add(a)
		if a.Intended > 0 && a.Started-a.Intended > tooLate {
			b.late++
		}
	}
}

// WarmUntil leaves attempts that were due before monoNS out of the latencies.
func (b *Builder) WarmUntil(monoNS int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.warm = monoNS
}

// LoopDone closes a loop: all its attempts have been given.
func (b *Builder) LoopDone(loop, attempts, finished, failed int, took time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.loops = append(b.loops, Loop{
		Loop: loop, Attempts: attempts, Finished: finished, Failed: failed,
		Seconds: took.Seconds(), Errors: b.errors, MostOpen: b.open.most(), Latencies: b.loop.quantiles(),
	})
	b.all.merge(&b.loop)
	b.errors = make(map[string]int)
}

// SetLoop notes how things stood as a loop ended, nil where that is not known, and
// returns the loop, or false if there is none of that number.
func (b *Builder) SetLoop(loop int, timeWaits, ports *int) (Loop, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.loops {
		if l := &b.loops[i]; l.Loop == loop {
			l.TimeWaitNow, l.PortsInUse = timeWaits, ports
			return *l, true
		}
	}
	return Loop{}, false
}

// Timeline takes an attempt that is complete.
func (b *Builder) Timeline(t *timeline.Timeline) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if t.Attempt.ReachedConnect() {
		b.joined.Attempts++
		if t.Joined {
			b.joined.ByCookie++
		}
	}
	b.slowed(t)
	if !t.Attempt.Failed() {
		return
	}
	if t.Attempt.Connected != 0 {
		if verdict.HeldUpByLastAck(t) {
			b.lastAcks++
		}
		if t.Attempt.FirstByte == 0 {
			b.noReply++
		}
	}
	key := failureKey{t.Attempt.Errno, t.Attempt.Phase, verdict.In(t, &b.env)}
	f := b.failed[key]
	if f == nil {
		f = new(failure)
		b.failed[key] = f
	}
	f.add(t)
}

// add takes an attempt. Attempts are complete in no particular order.
func (f *failure) add(t *timeline.Timeline) {
	if f.count == 0 || t.Attempt.Closed < f.first.Attempt.Closed {
		keep(&f.first, t)
	}
	if f.count == 0 || t.Attempt.Closed >= f.last.Attempt.Closed {
		keep(&f.last, t)
	}
	f.count++
	if t.Joined {
		f.withEvents++
		if !f.example.Joined || t.Attempt.Closed < f.example.Attempt.Closed {
			keep(&f.example, t)
		}
	}
	for _, s := range t.Events() {
		if len(f.events) < maxEvents {
			f.events = append(f.events, s.Seq)
		}
	}
	for i := range t.Peer {
		if len(f.events) < maxEvents {
			f.events = append(f.events, t.Peer[i].Seq)
		}
	}
}

// keep copies a timeline, whose census is valid no longer than the call that brought it.
func keep(to, t *timeline.Timeline) {
	*to = *t
	if t.Census != nil {
		c := *t.Census
		c.Holdings = slices.Clone(c.Holdings)
		to.Census = &c
	}
}

// Lifetime takes the end of a TIME_WAIT.
func (b *Builder) Lifetime(l timeline.Lifetime) {
	if l.Cause != tcp.CauseExpired {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expired = append(b.expired, float64(l.NS)/1e9)
}

// Fill writes what was added up into a summary whose Options, Net, Target,
// Sysctls and Coverage are set; they decide about the advice.
func (b *Builder) Fill(s *Summary) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s.Schema = Schema
	if s.Clients == nil {
		s.Clients = []Client{}
	}
	s.Loops = b.loops
	if s.Loops == nil {
		s.Loops = []Loop{}
	}
	s.Totals = Totals{Errors: make(map[string]int), Latencies: b.all.quantiles()}
	if s.Options.Rate != 0 {
		s.Totals.OpenLoop = &OpenLoop{StartLagUS: quantiles(b.all.lag), Late: b.late}
	}
	for _, l := range b.loops {
		s.Totals.Attempts += l.Attempts
		s.Totals.Finished += l.Finished
		s.Totals.Failed += l.Failed
		s.Totals.Seconds += l.Seconds
		s.Totals.MostOpen = max(s.Totals.MostOpen, l.MostOpen)
		for e, n := range l.Errors {
			s.Totals.Errors[e] += n
		}
	}
	if s.Totals.Seconds > 0 {
		s.Totals.PerSecond = float64(s.Totals.Finished) / s.Totals.Seconds
	}
	if s.BoundPorts == nil {
		s.BoundPorts = []BoundPort{}
	}
	if s.Server != nil {
		s.Server.NeverAccepted = neverAccepted(b.connects, s)
		s.Server.LastAckDropped = b.lastAcks
		b.neverReturned(s.Server)
	}
	s.Slow, s.Forecast = b.slows(), b.forecasted(s)
	s.Joined = b.joined
	s.TimeWait.ExpiredSeconds = lengths(b.expired)

	s.Failures = []Failure{}
	s.Unexplained = 0
	for key, f := range b.failed {
		if key.verdict.Cause == verdict.Unexplained {
			s.Unexplained += f.count
		}
		s.Failures = append(s.Failures, Failure{
			Errno: key.errno.String(), Phase: key.phase.String(), Cause: key.verdict.Cause, Detail: key.verdict.Detail, Count: f.count,
			Evidence: f.evidence(s, key.verdict, b.started),
			Events:   append([]uint64{}, f.events...),
		})
		out := &s.Failures[len(s.Failures)-1]
		out.Peer = peerEvidence(&f.example, b.env.Reasons, b.started)
		switch key.verdict.Cause {
		case verdict.PortExhausted:
			b.addCensuses(s, out, f)
		case verdict.BindConflict:
			var ports int
			if out.Holders, ports = b.holders(s); ports > 0 {
				out.Evidence["ports_refused"] = ports
			}
		}
	}
	for i := range s.Failures { // some of it is about all of them
		s.Failures[i].Advice = advice(s, s.Failures[i].Cause, s.Failures[i].Detail)
	}
	slices.SortFunc(s.Failures, func(a, b Failure) int {
		if a.Count != b.Count {
			return b.Count - a.Count
		}
		return slices.Compare([]string{a.Errno, a.Phase, string(a.Cause), string(a.Detail)}, []string{b.Errno, b.Phase, string(b.Cause), string(b.Detail)})
	})
}

// addCensuses tells how the ports stood, and compares it with the range.
func (b *Builder) addCensuses(s *Summary, to *Failure, f *failure) {
	if to.Census = census(s, &f.first, b.started); f.count > 1 {
		to.LastCensus = census(s, &f.last, b.started)
	}
	if s.Net == "host" {
		return // where what others have is not known as well
	}
	if to.Census != nil {
		s.CrossCheck = append(s.CrossCheck, sumsCheck("first", to.Census))
	}
	if to.LastCensus != nil {
		s.CrossCheck = append(s.CrossCheck, sumsCheck("last", to.LastCensus))
	}
}

// neverReturned calls those never accepted that got no reply, if there are as many as the server's account says were not
// accepted: one that was not can't have got a reply.
func (b *Builder) neverReturned(s *Server) {
	if s.NeverAccepted == nil || *s.NeverAccepted == 0 || *s.NeverAccepted != b.noReply {
		return
	}
	for key, f := range b.failed {
		if key.verdict.Cause != verdict.TimedOut {
			continue
		}
		delete(b.failed, key)
		key.verdict = verdict.Verdict{Cause: verdict.NeverAccepted, Detail: verdict.InAcceptQueue}
		if same := b.failed[key]; same != nil {
			f.join(same)
		}
		b.failed[key] = f
	}
}

// join adds another group to one.
func (f *failure) join(other *failure) {
	if other.first.Attempt.Closed < f.first.Attempt.Closed {
		f.first = other.first
	}
	if other.last.Attempt.Closed >= f.last.Attempt.Closed {
		f.last = other.last
	}
	if other.example.Joined && (!f.example.Joined || other.example.Attempt.Closed < f.example.Attempt.Closed) {
		f.example = other.example
	}
	f.count, f.withEvents = f.count+other.count, f.withEvents+other.withEvents
	f.events = append(f.events, other.events...)
	f.events = f.events[:min(len(f.events), maxEvents)]
}

// neverAccepted is what accept() did not return of connects. The own server has no
// other clients: it can only have accepted more where an attempt was given up while
// its handshake ended. What a client that was killed had connected is not known.
func neverAccepted(connects int, s *Summary) *int {
	n := connects - s.Server.Accepted
	if n < 0 && s.Server.Elsewhere || notReported(s) > 0 {
		return nil
	}
	n = max(0, n)
	return &n
}

// notReported is how many attempts no client told of.
func notReported(s *Summary) (n int) {
	for _, c := range s.Clients {
		n += c.NotReported
	}
	return n
}

func lengths(seconds []float64) *Lengths {
	if len(seconds) == 0 {
		return nil
	}
	slices.Sort(seconds)
	return &Lengths{
		Count: len(seconds), Min: seconds[0], P50: seconds[len(seconds)/2], Max: seconds[len(seconds)-1],
	}
}
