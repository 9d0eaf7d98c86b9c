package eventline

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/twtrace/twtrace/internal/tcp"
)

// Schema names the form of a JSON line.
const Schema = "twtrace.event/1"

// JSON writes one object a line.
type JSON struct {
	w    *bufio.Writer
	enc  *json.Encoder
	opts Options
	err  error
}

// NewJSON returns a JSON that writes to w.
func NewJSON(w io.Writer, opts Options) *JSON {
	j := &JSON{w: bufio.NewWriterSize(w, bufferSize), opts: opts}
	j.enc = json.NewEncoder(j.w)
	j.enc.SetEscapeHTML(false)
	return j
}

// document is a line. A pointer is null where there is nothing to say; what has
// omitempty is left out. The names are a promise.
type document struct {
	Schema   string     `json:"schema"`
	Seq      uint64     `json:"seq"`
	Time     string     `json:"time"`
	MonoNS   int64      `json:"mono_ns"`
	Kind     string     `json:"kind"`
	Cookie   tcp.Cookie `json:"cookie"`
	NetNS    tcp.NetNS  `json:"netns"`
	PID      *uint32    `json:"pid"`
	Comm     *string    `json:"comm"`
	Local    Endpoint   `json:"local"`
	Peer     Endpoint   `json:"peer"`
	OldState *string    `json:"old_state"`
	NewState *string    `json:"new_state"`
	Cause    *string    `json:"cause"`
	Reason   *string    `json:"reason"`
	Errno    *string    `json:"errno"`
	// InState has a resolution of a nanosecond.
	InState *float64 `json:"ms_in_state"`

	Substate  string            `json:"substate,omitempty"`
	TimeLeft  *float64          `json:"time_left_ms,omitempty"`
	Refusals  map[string]uint16 `json:"refusals,omitempty"`
	Holder    *holding          `json:"holder,omitempty"`
	Flags     []string          `json:"flags,omitempty"`
	CgroupID  uint64            `json:"cgroup_id,omitempty"`
	Cgroup    string            `json:"cgroup,omitempty"`
	Container string            `json:"container,omitempty"`
}

// Endpoint is an end of a connection in lines of JSON; an address is null where there is none.
type Endpoint struct {
	Addr *string `json:"addr"`
	Port uint16  `json:"port"`
}

// holding is what has the port that a bind() wanted; a pointer is null where
// there is nothing to say.
type holding struct {
	State  string     `json:"state"`
	Cookie tcp.Cookie `json:"cookie"`
	Addr   *string    `json:"addr"`
	PID    *uint32    `json:"pid"`
	Comm   *string    `json:"comm"`
}

// Nanoseconds is time.RFC3339Nano with all nine digits, so that lines sort.
const Nanoseconds = "2006-01-02T15:04:05.000000000Z07:00"

// flagNames are the flags that say something about the connection or the event.
var flagNames = [...]struct {
	flag tcp.Flags
	name string
}{
	{tcp.FlagRescued, "rescued"},
	{tcp.FlagLate, "late"},
	{tcp.FlagLinger0, "linger0"},
	{tcp.FlagNoSegment, "no_segment"},
	{tcp.FlagTWMade, "tw_made"},
	{tcp.FlagActive, "active"},
}

// Header writes nothing: every line says its schema.
func (j *JSON) Header() {}

// Line adds a line.
func (j *JSON) Line(l *Line) {
	if j.err != nil {
		return
	}
	ev, owner := l.Event, &l.Past.Owner
	d := document{
		Schema: Schema, Seq: ev.Seq, Time: l.Wall.UTC().Format(Nanoseconds), MonoNS: ev.MonoNS,
		Kind: ev.Kind.String(), Cookie: ev.Cookie, NetNS: ev.NetNS,
		Local: EndpointOf(ev.Tuple.Local), Peer: EndpointOf(ev.Tuple.Peer),
		Comm: Word(owner.Comm.String()), OldState: StateWord(ev.Old), NewState: StateWord(ev.New),
		Cause: Word(ev.Cause.String()), Reason: Word(j.opts.reason(ev)), Errno: Word(ev.Errno.String()),
		CgroupID: owner.Cgroup,
	}
	if owner.PID != 0 {
		d.PID = &owner.PID
	}
	if ns := l.Past.InState; ns >= 0 {
		d.InState = millis(time.Duration(ns))
	}
	if s := StateWord(ev.Substate); s != nil {
		d.Substate = *s
	}
	if left, ok := j.opts.timeLeft(ev); ok {
		d.TimeLeft = millis(left)
	}
	if ev.Flags&tcp.FlagRefusals != 0 {
		d.Refusals = make(map[string]uint16)
		for _, r := range refusalsOf(ev) {
			d.Refusals[strings.ReplaceAll(r.name, "-", "_")] = r.n
		}
	}
	if ev.Holder.State != tcp.StateNone {
		d.Holder = holdingOf(l)
	}
	for _, f := range flagNames {
		if ev.Flags&f.flag != 0 {
			d.Flags = append(d.Flags, f.name)
		}
	}
	if j.opts.Cgroup != nil && owner.Cgroup != 0 {
		path, container := j.opts.Cgroup(owner.Cgroup)
		d.Cgroup, d.Container = tcp.Printable(path), tcp.Printable(container)
	}
	j.err = j.enc.Encode(&d)
}

// Err is the first error of any write so far.
func (j *JSON) Err() error { return j.err }

// Flush writes what is buffered and returns the first error of any write.
func (j *JSON) Flush() error {
	if j.err == nil {
		j.err = j.w.Flush()
	}
	if j.err != nil {
		return fmt.Errorf("write events: %w", j.err)
	}
	return nil
}

func holdingOf(l *Line) *holding {
	h, owner := &l.Event.Holder, &l.Past.Holder
	out := &holding{State: h.State.JSON(), Cookie: h.Cookie, Comm: Word(owner.Comm.String())}
	if h.Addr.IsValid() {
		out.Addr = Word(h.Addr.String())
	}
	if owner.PID != 0 {
		out.PID = &owner.PID
	}
	return out
}

// Word is null where there is none.
func Word(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// StateWord is null where there is no state.
func StateWord(s tcp.State) *string {
	if s == tcp.StateNone {
		return nil
	}
	return Word(s.JSON())
}

// EndpointOf is an address and port as lines of JSON have them.
func EndpointOf(a netip.AddrPort) Endpoint {
	e := Endpoint{Port: a.Port()}
	if a.Addr().IsValid() {
		e.Addr = Word(a.Addr().String())
	}
	return e
}

func millis(d time.Duration) *float64 {
	ms := float64(d) / float64(time.Millisecond)
	return &ms
}
