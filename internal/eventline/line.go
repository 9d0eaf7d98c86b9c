package eventline

import (
	"time"

	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
)

// Line is an event with what is known around it.
type Line struct {
	Event *tcp.Event
	Past  timeline.Past
	Wall  time.Time // of Event.MonoNS
}

// Writer writes lines. Lines are on their way once Flush has returned.
type Writer interface {
	// Header writes what comes before the first line.
	Header()
	// Line adds a line. What goes wrong is reported by Flush.
	Line(*Line)
	Flush() error
}

// Options say how lines are written. The zero value knows no names.
type Options struct {
	// Start is the time that TimeRelative counts from, ns of CLOCK_MONOTONIC.
	Start int64
	Time  TimeMode // of text
	Color bool     // of text
	// HZ is the kernel's number of jiffies a second; 0: Event.Ticks can't be told.
	HZ int
	// Reasons are the kernel's names for Event.Reason.
	Reasons map[uint32]string
	// Cgroup returns the path of a cgroup in its hierarchy and the id of the
	// container that it belongs to, "" where it is not known; nil: nothing is.
	Cgroup func(id uint64) (path, container string)
}

// TimeMode says what the column TIME shows.
type TimeMode uint8

const (
	// TimeRelative is seconds since the start of the trace.
	TimeRelative TimeMode = iota
	// TimeWall is the local time of day.
	TimeWall
	// TimeMono is seconds of CLOCK_MONOTONIC.
	TimeMono
	// TimeDelta is seconds since the line before.
	TimeDelta
)

// TimeModes has the names of the modes, in the words of the command line.
var TimeModes = [...]string{
	TimeRelative: "relative",
	TimeWall:     "wall",
	TimeMono:     "mono",
	TimeDelta:    "delta",
}

// timeLeft is how long a TIME_WAIT's timer still runs after the event; false: the
// event does not tell.
func (o *Options) timeLeft(ev *tcp.Event) (time.Duration, bool) {
	armed := ev.Kind == tcp.KindTWEnter || ev.Kind == tcp.KindSnapshot && ev.New == tcp.TimeWait
	if o.HZ == 0 || !armed {
		return 0, false
	}
	return time.Duration(ev.Ticks) * time.Second / time.Duration(o.HZ), true
}

// reason is why an RST was sent, in the kernel's word, "" if it gave none.
func (o *Options) reason(ev *tcp.Event) string {
	if ev.Kind != tcp.KindRstSent {
		return ""
	}
	return o.Reasons[ev.Reason]
}
