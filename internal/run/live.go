package run

import (
	"sync"
	"time"

	"github.com/twtrace/twtrace/internal/clock"
	"github.com/twtrace/twtrace/internal/progress"
	"github.com/twtrace/twtrace/loadgen"
)

// live tells Options.OnProgress how far the run is. Its methods do nothing on nil.
type live struct {
	show  func(progress.Run)
	loops int
	begun time.Time
	storm loadgen.Progress
	last  chan progress.Run // of the storm; has room for one
	quit  chan struct{}
	done  chan struct{}

	mu        sync.Mutex
	meter     progress.Meter
	stage     progress.Stage
	until     time.Time // of progress.Watching
	timeWaits func() int
	noPortIn  func() time.Duration
}

// startLive returns nil if nobody asks.
func startLive(opts *Options) *live {
	if opts.OnProgress == nil {
		return nil
	}
	l := &live{
		show: opts.OnProgress, loops: opts.Plan.Loops, begun: time.Now(),
		last: make(chan progress.Run, 1), quit: make(chan struct{}), done: make(chan struct{}),
		timeWaits: func() int { return progress.Unknown },
		noPortIn:  func() time.Duration { return 0 },
	}
	go l.run(opts.ProgressEvery)
	return l
}

func (l *live) run(every time.Duration) {
	defer close(l.done)
	tick := time.NewTicker(every)
	defer tick.Stop()
	l.show(l.now())
	for {
		select {
		case <-tick.C:
			l.show(l.now())
		case s := <-l.last:
			l.show(s)
		case <-l.quit:
			select {
			case s := <-l.last: // of a storm that is just over
				l.show(s)
			default:
			}
			return
		}
	}
}

// stop waits for the last call of OnProgress. It is called once.
func (l *live) stop() {
	if l == nil {
		return
	}
	close(l.quit)
	<-l.done
}

// enter begins a stage; until is when it will be over, if that is known.
func (l *live) enter(stage progress.Stage, until time.Time) {
	if l == nil {
		return
	}
	if stage > progress.Storm {
		l.endStorm()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stage, l.until = stage, until
}

// endStorm has how the storm ended shown, whenever that was; if OnProgress is
// still busy with an earlier such, it is left out.
func (l *live) endStorm() {
	now := l.now()
	if now.Stage != progress.Storm {
		return
	}
	select {
	case l.last <- now:
	default:
	}
}

// count sets what tells how many TIME_WAITs there are, and how long it takes until ports run out.
func (l *live) count(timeWaits func() int, noPortIn func() time.Duration) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.timeWaits, l.noPortIn = timeWaits, noPortIn
}

// plan is what the storm tells of itself.
func (l *live) plan() *loadgen.Progress {
	if l == nil {
		return nil
	}
	return &l.storm
}

func (l *live) now() progress.Run {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := time.Since(l.begun)
	st := l.storm.Now()
	p := progress.Run{
		Stage: l.stage, Elapsed: at, Loop: st.Loop, Loops: l.loops,
		Started: st.InLoop.Started, Finished: st.InLoop.Finished, Failed: st.InLoop.Failed, Open: st.InLoop.Open,
		PerSecond: l.meter.PerSecond(at, st.All.Finished),
		TimeWait:  l.timeWaits(),
	}
	if l.stage == progress.Storm {
		p.NoPortIn = l.noPortIn()
	}
	if l.stage == progress.Watching {
		p.Left = time.Until(l.until)
	}
	return p
}

// noPortIn is how long it takes until a connect() finds no port, by the latest forecast; 0: that is not foretold.
func (r *session) noPortIn() time.Duration {
	if r.joiner == nil {
		return 0
	}
	at, ok := r.joiner.Outlook()
	if !ok {
		return 0
	}
	return max(1, time.Duration(at-clock.Mono()))
}

// timeWaits is how many TIME_WAITs there are in the run's namespaces: by the trace, or else by
// the kernel's own count.
func (r *session) timeWaits() int {
	if r.joiner != nil {
		return r.joiner.AllTimeWaits()
	}
	all, err := r.counters()
	if err != nil {
		return progress.Unknown
	}
	n := 0
	for _, c := range all {
		n += int(c[timeWaitsNow])
	}
	return n
}
