package report

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
)

// TraceSchema names the JSON form of a Trace.
const TraceSchema = "twtrace.trace/1"

// Trace is what a recorded trace came to.
type Trace struct {
	Schema   string       `json:"schema"`
	Version  string       `json:"version"`
	Host     string       `json:"host"`
	Kernel   string       `json:"kernel"`
	Started  time.Time    `json:"started"` // of this file
	Seconds  float64      `json:"seconds"` // from then until the last event
	Part     int          `json:"part"`
	Next     string       `json:"next"` // the file with which it goes on; empty: none
	Coverage tcp.Coverage `json:"coverage"`
	// Opened are connect() calls, Accepted the handshakes of listeners.
	Opened   int `json:"opened"`
	Accepted int `json:"accepted"`
	// Segments are what was on the wire by the events, each once though both ends may have been traced: as many as
	// `twtrace export --format pcapng` makes packets of.
	Segments    timeline.Segments `json:"segments"`
	TimeWait    TimeWait          `json:"time_wait"`
	Resets      Resets            `json:"resets"`
	Retransmits Retransmits       `json:"retransmits"`
	ListenDrops map[string]uint64 `json:"listen_drops"` // by cause
	Failures    []TraceFailure    `json:"failures"`
	Events      TraceEvents       `json:"events"`
	Notes       []string          `json:"notes"`
}

// TraceFailure is a group of sockets on which a call failed, or whose connection did.
type TraceFailure struct {
	What  string `json:"what"`  // connect, bind, connection
	Errno string `json:"errno"` // "" if the kernel gave none
	Cause string `json:"cause"` // the kernel's, where it is known
	Comm  string `json:"comm"`
	// Peer is the other end, or the address that could not be bound.
	Peer         string  `json:"peer"`
	Count        int     `json:"count"`
	FirstSeconds float64 `json:"first_seconds"`
	LastSeconds  float64 `json:"last_seconds"`
	Event        uint64  `json:"event"` // the first
}

// TraceEvents is the account of a recorded trace.
type TraceEvents struct {
	Recorded uint64            `json:"recorded"`
	ByKind   map[string]uint64 `json:"by_kind"`
	Lost     uint64            `json:"lost"`    // no room in the ring
	Skipped  uint64            `json:"skipped"` // by the kernel, and recorded by no twin
	Missing  uint64            `json:"missing"` // were recorded, and are not in the file any more
}

// maxGroups bounds Trace.Failures: those that come later are counted together.
const maxGroups = 10_000

// traceGroup tells failures apart.
type traceGroup struct {
	what  string
	errno tcp.Errno
	cause tcp.Cause
	comm  tcp.Comm
	peer  string
}

type tracing struct {
	h       *recording.Header
	owners  *timeline.Owners
	wire    *timeline.Segmenter
	opts    timeline.Options
	totals  timeline.Totals
	reasons map[uint32]int
	kinds   map[tcp.Kind]uint64
	drops   map[tcp.Cause]uint64
	groups  map[traceGroup]*TraceFailure
	others  int
	left    int // TIME_WAITs
	expired []float64
}

// maxExpired bounds the lengths that a median is made of.
const maxExpired = 1 << 20

// TraceFromRecording adds a recorded trace up. All of the recording is read, and checked.
func TraceFromRecording(r *recording.Reader) (*Trace, *recording.Condition, error) {
	h := r.Header()
	t := &tracing{
		h: h, owners: timeline.NewOwners(0), wire: timeline.NewSegmenter(0, nil),
		opts:    timeline.Options{ShortTicks: uint32(4 * h.HZ), AbortOnData: ReasonNumber(h.Enums["rst_reason"], AbortOnData)},
		reasons: make(map[uint32]int), kinds: make(map[tcp.Kind]uint64), drops: make(map[tcp.Cause]uint64),
		groups: make(map[traceGroup]*TraceFailure),
	}
	c, err := r.Scan(recording.Query{}, func(b *recording.Batch) error {
		for i := range b.Events {
			t.event(&b.Events[i])
			if err := t.wire.Event(&b.Events[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	s := t.sumUp(c)
	if s.Segments, err = t.wire.Finish(); err != nil {
		return nil, nil, err
	}
	return s, c, nil
}

func (t *tracing) event(ev *tcp.Event) {
	past := t.owners.Event(ev)
	t.totals.Add(ev, &t.opts)
	t.kinds[ev.Kind]++
	switch ev.Kind {
	case tcp.KindRstSent:
		t.reasons[ev.Reason]++
	case tcp.KindListenDrop:
		t.drops[ev.Cause]++
	case tcp.KindTWEnter:
		t.left++
	case tcp.KindSnapshot:
		if ev.New == tcp.TimeWait {
			t.left++
		}
	case tcp.KindTWEnd:
		t.left--
		if ev.Cause == tcp.CauseExpired && past.InState >= 0 && len(t.expired) < maxExpired {
			t.expired = append(t.expired, float64(past.InState)/1e9)
		}
	}
	if what := failed(ev); what != "" {
		t.failure(what, ev, &past)
	}
}

// failed says what an event shows to have failed; empty: nothing.
func failed(ev *tcp.Event) string {
	switch {
	case ev.Kind == tcp.KindConnectFailed:
		return "connect"
	case ev.Kind == tcp.KindBindFailed:
		return "bind"
	case ev.Kind != tcp.KindState || ev.New != tcp.Close || ev.Errno == 0:
		return ""
	case ev.Flags&tcp.FlagNoSegment != 0:
		return "" // connect-failed says it
	case ev.Old == tcp.SynSent:
		return "connect"
	}
	return "connection"
}

func (t *tracing) failure(what string, ev *tcp.Event, past *timeline.Past) {
	key := traceGroup{what: what, errno: ev.Errno, cause: ev.Cause, comm: past.Owner.Comm, peer: ev.Tuple.Peer.String()}
	if what == "bind" {
		key.peer = ev.Tuple.Local.String()
	}
	at := float64(ev.MonoNS-t.h.StartMonoNS) / 1e9
	g := t.groups[key]
	if g == nil {
		if len(t.groups) >= maxGroups {
			t.others++
			return
		}
		g = &TraceFailure{
			What: what, Errno: ev.Errno.String(), Cause: ev.Cause.String(), Comm: past.Owner.Comm.String(), Peer: key.peer,
			FirstSeconds: at, Event: ev.Seq,
		}
		t.groups[key] = g
	}
	g.Count++
	g.LastSeconds = at
}

func (t *tracing) sumUp(c *recording.Condition) *Trace {
	s := &Trace{
		Schema: TraceSchema, Version: t.h.Twtrace, Host: t.h.Host, Kernel: t.h.Kernel, Started: time.Unix(0, t.h.Clock.RealNS).UTC(), Part: t.h.Part,
		Coverage: t.h.Coverage, Opened: int(t.totals.ActiveOpens), Accepted: int(t.totals.PassiveOpens),
		ListenDrops: make(map[string]uint64), Failures: []TraceFailure{}, Notes: []string{},
		Events: TraceEvents{
			ByKind: make(map[string]uint64), Lost: c.Lost, Skipped: c.Skipped, Missing: c.Missing[recording.TableEvents],
		},
	}
	if c.LastNS > t.h.Clock.MonoNS {
		s.Seconds = float64(c.LastNS-t.h.Clock.MonoNS) / 1e9
	}
	if c.Footer != nil {
		s.Next = c.Footer.Next
	}
	var sum Summary
	sum.AddSide("", &t.totals)
	sum.AddResets(t.reasons, t.h.Enums["rst_reason"])
	s.TimeWait, s.Resets, s.Retransmits = sum.TimeWait, sum.Resets, sum.Retransmits
	s.TimeWait.Sides, s.TimeWait.Now, s.TimeWait.ExpiredSeconds = nil, max(0, t.left), lengths(t.expired)
	for cause, n := range t.drops {
		s.ListenDrops[cause.String()] += n
	}
	for kind, n := range t.kinds {
		s.Events.ByKind[kind.String()] += n
		s.Events.Recorded += n
	}
	for _, g := range t.groups {
		s.Failures = append(s.Failures, *g)
	}
	slices.SortFunc(s.Failures, func(a, b TraceFailure) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Event, b.Event))
	})
	if t.others > 0 {
		s.Notes = append(s.Notes, fmt.Sprintf("%d more failures are of groups beyond the first %d.", t.others, maxGroups))
	}
	if n := t.owners.Overflow(); n > 0 {
		s.Notes = append(s.Notes, fmt.Sprintf("%d sockets are without owner and time: more were open at once than are followed.", n))
	}
	if c.Footer == nil {
		s.Notes = append(s.Notes, fmt.Sprintf(
			"The recording is truncated: it ends after %.3f s without its own account, because twtrace was killed, still writes it, or the file was cut. How many events were lost is known up to its last part.", s.Seconds))
	}
	s.Notes = append(s.Notes, Gaps(c)...)
	return s
}

// Incomplete reports whether events are missing.
func (s *Trace) Incomplete() bool { return s.Events.Lost+s.Events.Skipped+s.Events.Missing > 0 }

// WriteJSON writes it as one document.
func (s *Trace) WriteJSON(w io.Writer) error { return writeJSON(w, s) }

// maxRows is how many groups of failures a text shows.
const maxRows = 20

// Trace writes a recorded trace for people.
func (t *Text) Trace(s *Trace) error {
	part := ""
	if s.Part > 1 || s.Next != "" {
		part = fmt.Sprintf(", part %d", s.Part)
	}
	t.wrapHead("", "  ", fmt.Sprintf("trace of %s, Linux %s, from %s for %.3f s%s", printable(s.Host), printable(s.Kernel),
		s.Started.UTC().Format("2006-01-02 15:04:05 MST"), s.Seconds, part))
	for _, n := range s.Notes {
		t.line("")
		t.wrap("", n)
	}
	t.traceFailures(s)
	t.line("")
	t.item("OPENED", "%d by connect(), %d accepted handshakes", s.Opened, s.Accepted)
	t.item("SEGMENTS", "%d conversations, %d FIN, %d RST", s.Segments.Conversations, s.Segments.Fins, s.Segments.Rsts)
	tw := s.TimeWait
	t.item("TIME_WAIT", "%d entered (%d as FIN_WAIT2), %d skipped (bucket limit)", tw.Entered, tw.FinWait2, tw.Overflowed)
	t.line("           ended: %d expired, %d reused by connect, %d replaced by SYN, %d killed by RST,",
		tw.Expired, tw.ReusedByConnect, tw.ReplacedBySyn, tw.KilledByRst)
	t.line("           %d purged, %d destroyed%s; %d left now", tw.Purged, tw.Destroyed, unknown(tw.UnknownEnd), tw.Now)
	if l := tw.ExpiredSeconds; l != nil {
		t.line("           %d expired after %.2f to %.2f s (median %.2f)", l.Count, l.Min, l.Max, l.P50)
	}
	t.item("RST", "%d sent, %d received%s", s.Resets.Sent, s.Resets.Received, reasons(s.Resets.Reasons))
	if r := s.Retransmits; r != (Retransmits{}) {
		t.item("RETRANSMIT", "%d SYN, %d SYN+ACK, %d other segments", r.Syn, r.SynAck, r.Other)
	}
	if len(s.ListenDrops) > 0 {
		var parts []string
		for _, cause := range slices.Sorted(maps.Keys(s.ListenDrops)) {
			parts = append(parts, fmt.Sprintf("%d %s", s.ListenDrops[cause], cause))
		}
		t.item("DROPS", "by listeners: %s", strings.Join(parts, ", "))
	}
	e := &s.Events
	var kinds []string
	for _, kind := range slices.Sorted(maps.Keys(e.ByKind)) {
		kinds = append(kinds, fmt.Sprintf("%d %s", e.ByKind[kind], kind))
	}
	t.item("EVENTS", "%d recorded, %d lost in the ring, %d skipped by the kernel; %s", e.Recorded, e.Lost, e.Skipped,
		cmp.Or(strings.Join(kinds, ", "), "none"))
	if s.Incomplete() {
		t.line("           %s", t.red("events are missing: what is said above is incomplete"))
	}
	t.coverage(&Summary{Coverage: s.Coverage})
	return t.flush()
}

func (t *Text) traceFailures(s *Trace) {
	if len(s.Failures) == 0 {
		return
	}
	n := 0
	for _, f := range s.Failures {
		n += f.Count
	}
	t.line("")
	t.line("%s  %d", t.bold("FAILURES"), n)
	for i, f := range s.Failures {
		if i == maxRows {
			t.line("  and %d more groups (-o json has them)", len(s.Failures)-i)
			break
		}
		why := cmp.Or(f.Errno, "-")
		if f.Cause != "" {
			why += " (" + f.Cause + ")"
		}
		t.wrapHead("  ", "    ", fmt.Sprintf("%d × %s %s: %s by %s, %.3f to %.3f s, first event %d", f.Count, f.What, f.Peer,
			t.red(why), cmp.Or(f.Comm, "-"), f.FirstSeconds, f.LastSeconds, f.Event))
	}
}
