package report

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
)

// ErrNoRun says that a recording is not of a run.
var ErrNoRun = errors.New("the recording is not of a run")

// FromRecording returns the summary of a run's recording: the one that the run printed, if it came to its end;
// else what the records add up to, with a note about what is missing. All of the recording is read, and
// checked. Errors are ErrNoRun and those of reading it.
func FromRecording(r *recording.Reader) (*Summary, *recording.Condition, error) {
	if r.Header().Command != recording.CommandRun {
		return nil, nil, ErrNoRun
	}
	c, err := r.Check()
	if err != nil {
		return nil, nil, err
	}
	if c.Footer != nil && len(c.Footer.Summary) > 0 {
		s, err := Decode(c.Footer.Summary)
		return s, c, err
	}
	p, err := newReplay(r.Header())
	if err != nil {
		return nil, nil, err
	}
	if err := p.run(r); err != nil {
		return nil, nil, err
	}
	return p.sumUp(c), c, nil
}

// replay adds a recording up again.
type replay struct {
	header  *recording.Header
	summary *Summary
	builder *Builder
	joiner  *timeline.Joiner // nil of a run without a trace
	marks   []timeline.Mark
	reasons map[uint32]int
	kinds   map[tcp.Kind]uint64
	ends    []recording.Sample // of loops, those that are to come
	loop    Loop               // under way
	begun   int64              // its first attempt, CLOCK_MONOTONIC ns; 0: there is none
	ended   int64              // its last attempt
}

func newReplay(h *recording.Header) (*replay, error) {
	if len(h.Summary) == 0 {
		return nil, fmt.Errorf("%w: its header has no summary", recording.ErrFormat)
	}
	s, err := Decode(h.Summary)
	if err != nil {
		return nil, err
	}
	p := &replay{
		header: h, summary: s, builder: NewBuilder(h.StartMonoNS, s.Options.Trace),
		reasons: make(map[uint32]int), kinds: make(map[tcp.Kind]uint64), loop: Loop{Loop: 1},
	}
	if s.Options.Trace {
		p.joiner = timeline.NewJoiner(timeline.Options{
			OnTimeline: p.builder.Timeline, OnLifetime: p.builder.Lifetime,
			OnBindFailed: p.builder.BindFailed,
			OnMark:       func(m timeline.Mark) { p.marks = append(p.marks, m) },
			ShortTicks:   uint32(4 * h.HZ),
			AbortOnData:  ReasonNumber(h.Enums["rst_reason"], AbortOnData),
			Forecast:     ForecastOptions(s),
		})
	}
	p.builder.SetEnv(EnvOf(s, h.Enums["rst_reason"]))
	return p, nil
}

// AbortOnData is the kernel's name for the reason of an RST that answers data after close().
const AbortOnData = "TCP_ABORT_ON_DATA"

// ReasonNumber is a kernel's number for the reason of an RST; 0: it has none.
func ReasonNumber(names map[uint32]string, name string) uint32 {
	for number, n := range names {
		if n == name {
			return number
		}
	}
	return 0
}

func (p *replay) run(r *recording.Reader) error {
	// When loops ended first: how things stood then is asked of the stream as it passes.
	_, err := r.Scan(recording.Query{Tables: []recording.Table{recording.TableSamples}}, func(b *recording.Batch) error {
		for i := range b.Samples {
			switch s := &b.Samples[i]; s.Kind {
			case recording.SampleWarm:
				p.builder.WarmUntil(s.MonoNS)
			case recording.SampleLoop:
				p.ends = append(p.ends, *s)
				if p.joiner != nil {
					p.joiner.MarkAt(int(s.Loop), s.MonoNS)
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	tables := []recording.Table{recording.TableEvents, recording.TableAttempts}
	_, err = r.Scan(recording.Query{Tables: tables}, func(b *recording.Batch) error {
		p.events(b.Events)
		p.attempts(b.Attempts)
		return nil
	})
	return err
}

func (p *replay) events(events []tcp.Event) {
	for i := range events {
		p.kinds[events[i].Kind]++
		if events[i].Kind == tcp.KindRstSent {
			p.reasons[events[i].Reason]++
		}
	}
	if p.joiner != nil {
		p.joiner.Events(events)
	}
}

// attempts takes attempts, which come loop by loop.
func (p *replay) attempts(attempts []tcp.Attempt) {
	for len(attempts) > 0 {
		loop := int(attempts[0].Loop)
		n := 1
		for n < len(attempts) && int(attempts[n].Loop) == loop {
			n++
		}
		p.endLoops(loop - 1)
		p.loop.Loop = max(p.loop.Loop, loop)
		p.some(attempts[:n])
		attempts = attempts[n:]
	}
}

// some takes attempts of the loop under way.
func (p *replay) some(attempts []tcp.Attempt) {
	p.builder.Attempts(attempts)
	for i := range attempts {
		a := &attempts[i]
		p.loop.Attempts++
		if a.Failed() {
			p.loop.Failed++
		} else {
			p.loop.Finished++
		}
		if p.begun == 0 || a.Started < p.begun {
			p.begun = a.Started
		}
		p.ended = max(p.ended, a.Closed)
		if p.joiner == nil {
			p.builder.Timeline(&timeline.Timeline{Attempt: *a})
		}
	}
	if p.joiner != nil {
		p.joiner.Attempts(attempts)
	}
}

// endLoops ends those up to a number whose end was recorded.
func (p *replay) endLoops(last int) {
	for len(p.ends) > 0 && int(p.ends[0].Loop) <= last {
		s := &p.ends[0]
		p.ends = p.ends[1:]
		p.builder.LoopDone(int(s.Loop), int(s.Started), int(s.Finished), int(s.Failed), time.Duration(s.DurationNS))
		if p.joiner == nil && s.TimeWait >= 0 {
			n := int(s.TimeWait)
			p.builder.SetLoop(int(s.Loop), &n, nil)
		}
		p.loop, p.begun, p.ended = Loop{Loop: int(s.Loop) + 1}, 0, 0
	}
}

// sumUp completes the summary of a recording that lacks its own.
func (p *replay) sumUp(c *recording.Condition) *Summary {
	s := p.summary
	p.endLoops(math.MaxInt)
	if p.loop.Attempts > 0 { // it had not ended
		p.builder.LoopDone(p.loop.Loop, p.loop.Attempts, p.loop.Finished, p.loop.Failed, time.Duration(p.ended-p.begun))
	}
	s.Interrupted, s.StoppedBy = true, StoppedByEnd
	s.CrossCheck, s.TimeWait.Sides = []CrossCheck{}, make(map[string]SideTimeWait)
	s.AddResets(p.reasons, p.header.Enums["rst_reason"])
	e := &s.Events
	e.ByKind, e.LostByKind, e.Programs = make(map[string]uint64), make(map[string]uint64), []Program{}
	for kind, n := range p.kinds {
		e.ByKind[kind.String()] = n
		e.Recorded += n
	}
	e.LostRing, e.SkippedRecursion = c.Lost+c.Missing[recording.TableEvents], c.Skipped
	e.Seen = e.Recorded + e.LostRing + e.SkippedRecursion
	if p.joiner != nil {
		p.joiner.Finish()
		p.builder.SetForecast(p.joiner.Forecast())
		for _, m := range p.marks {
			p.builder.SetLoop(m.Loop, &m.TimeWait, &m.Ports)
		}
		for _, ns := range p.header.NetNS {
			t := p.joiner.Totals(ns.Cookie)
			s.AddSide(ns.Name, &t)
			s.TimeWait.Now += p.joiner.TimeWaits(ns.Cookie)
		}
	}
	s.Notes = append(s.Notes, p.missing(c)...)
	p.builder.Fill(s)
	if len(s.Clients) == 1 {
		s.Clients[0].Attempts, s.Clients[0].Finished, s.Clients[0].Failed = s.Totals.Attempts, s.Totals.Finished, s.Totals.Failed
	}
	for i := range s.Clients {
		s.Clients[i].Ended = "not known"
	}
	Explain(s)
	return s
}

// missing says what a recording without a summary lacks.
func (p *replay) missing(c *recording.Condition) []string {
	last := max(c.LastNS, p.header.StartMonoNS)
	notes := []string{fmt.Sprintf(
		"The recording is truncated: it ends %.3f s after the run began, without the run's own summary, because twtrace was killed, still writes it, or the file was cut. What is above and below is made of the %d attempts and %d events that it holds. Attempts that were under way are missing, and the server's account, the clients' ends and the comparison with the kernel's counters.",
		float64(last-p.header.StartMonoNS)/1e9, c.Records[recording.TableAttempts], c.Records[recording.TableEvents])}
	return append(notes, Gaps(c)...)
}

// Gaps says what of a file is damaged or missing, a sentence each; none if nothing is.
func Gaps(c *recording.Condition) []string {
	var notes []string
	if c.Footer != nil && c.Footer.Stopped != nil {
		var dropped []string
		for _, t := range recording.Tables {
			if n := c.Footer.Stopped.Dropped[t.String()]; n > 0 {
				dropped = append(dropped, fmt.Sprintf("%d %s", n, t))
			}
		}
		notes = append(notes, fmt.Sprintf("The recording stopped before the end (%s): %s that came later are not in it.",
			printable(c.Footer.Stopped.Cause), cmp.Or(strings.Join(dropped, ", "), "no records")))
	}
	if c.Cut > 0 {
		notes = append(notes, fmt.Sprintf("The last %d bytes of the file are no whole part of it.", c.Cut))
	}
	if n := len(c.Damage); n > 0 {
		d := c.Damage[0]
		notes = append(notes, fmt.Sprintf("The file is damaged in %d places, first %d bytes at %d (%s).", n, d.Length, d.Offset, d.What))
	}
	var lost []string
	for _, t := range recording.Tables {
		if n := c.Missing[t]; n > 0 {
			lost = append(lost, fmt.Sprintf("%d %s", n, t))
		}
	}
	if len(lost) > 0 {
		notes = append(notes, "Missing are at least "+strings.Join(lost, ", ")+".")
	}
	return notes
}

// printable is text without what could upset a terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, text)
}
