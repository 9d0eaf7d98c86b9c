package progress

import (
	"fmt"
	"strings"
	"time"
)

// Stage is what a run is doing.
type Stage uint8

// The stages of a run, in their order; not every run watches.
const (
	SettingUp Stage = iota
	Storm
	Watching // for TIME_WAITs to end
	Settling
)

// Unknown is the value of a number that can't be told.
const Unknown = -1

// Run is how far a storm and what follows it are.
type Run struct {
	Stage       Stage
	Elapsed     time.Duration
	Loop, Loops int
	// Attempts of the loop: those that began have finished, failed, or are open.
	Started, Finished, Failed, Open int64
	PerSecond                       float64       // finished, in the last second
	TimeWait                        int           // that there are, or Unknown
	NoPortIn                        time.Duration // until a connect() finds no port, if it goes on like this; 0: it does not come to that
	Left                            time.Duration // of Watching
}

// Line is r in a line of at most width columns, or of any length if width is 0. What matters
// least is left out first.
func (r Run) Line(width int) string {
	at := seconds(r.Elapsed) + ": "
	switch r.Stage {
	case SettingUp:
		return cut(at+"setting up", width)
	case Watching:
		left := "how many is not known"
		if r.TimeWait != Unknown {
			left = fmt.Sprintf("%d left", r.TimeWait)
		}
		return fit(width, at+"watching TIME_WAITs: "+left, seconds(r.Left)+" to go")
	case Settling:
		return cut(at+"waiting for the last segments", width)
	}
	parts := []string{
		fmt.Sprintf("%sloop %d/%d: %d finished", at, r.Loop, r.Loops, r.Finished),
		fmt.Sprintf("%d failed", r.Failed),
		fmt.Sprintf("%.0f/s", r.PerSecond),
	}
	if r.TimeWait != Unknown {
		parts = append(parts, fmt.Sprintf("TIME_WAIT %d", r.TimeWait))
	}
	if r.NoPortIn > 0 {
		parts = append(parts, fmt.Sprintf("first failure in %.0f s", max(1, r.NoPortIn.Seconds())))
	}
	return fit(width, append(parts, fmt.Sprintf("%d open", r.Open), fmt.Sprintf("%d started", r.Started))...)
}

// Server is what a server has done.
type Server struct {
	Elapsed          time.Duration
	Accepted, Closed uint64
	PerSecond        float64 // accepted, in the last second
}

// Line is as that of Run.
func (s Server) Line(width int) string {
	return fit(width,
		fmt.Sprintf("%s: %d accepted", seconds(s.Elapsed), s.Accepted),
		fmt.Sprintf("%d open", s.Accepted-min(s.Closed, s.Accepted)),
		fmt.Sprintf("%.0f/s", s.PerSecond),
		fmt.Sprintf("%d closed", s.Closed))
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", max(0, d.Seconds())) }

// fit joins as many of the parts as there is room for, all of them if width is 0.
func fit(width int, parts ...string) string {
	line := parts[0]
	for _, p := range parts[1:] {
		if width > 0 && len(line)+len(", ")+len(p) > width {
			break
		}
		line += ", " + p
	}
	return cut(line, width)
}

// cut is for terminals that are narrower than anything has to say. All is ASCII.
func cut(line string, width int) string {
	if width <= 0 || len(line) <= width {
		return line
	}
	return strings.TrimRight(line[:width], " ,:")
}

// Meter turns a count that grows into a rate.
type Meter struct {
	samples []sample // the first is a second old, or the oldest there is
}

type sample struct {
	at time.Duration
	n  int64
}

// PerSecond takes the count n at a time, which never goes back, and returns how much it grew a
// second during the last second.
func (m *Meter) PerSecond(at time.Duration, n int64) float64 {
	m.samples = append(m.samples, sample{at, n})
	for len(m.samples) > 2 && at-m.samples[1].at >= time.Second {
		m.samples = append(m.samples[:0], m.samples[1:]...)
	}
	first := m.samples[0]
	if at == first.at {
		return 0
	}
	return max(0, float64(n-first.n)/(at-first.at).Seconds())
}
