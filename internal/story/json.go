package story

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/twtrace/twtrace/internal/eventline"
	"github.com/twtrace/twtrace/internal/tcp"
)

// Schema names the form of a JSON line.
const Schema = "twtrace.timeline/1"

// JSON writes stories, an object a line. The names of its fields are a promise.
type JSON struct {
	enc  *json.Encoder
	text *Text // for its words
	opts Options
}

// NewJSON returns a JSON that writes to w.
func NewJSON(w io.Writer, opts Options) *JSON {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return &JSON{enc: enc, text: &Text{opts: opts}, opts: opts}
}

// document is a line. Times are RFC 3339, and CLOCK_MONOTONIC ns, null where a moment was not seen;
// milliseconds count from the story's begin.
type document struct {
	Schema       string             `json:"schema"`
	Time         string             `json:"time"`
	MonoNS       int64              `json:"mono_ns"`
	Local        eventline.Endpoint `json:"local"` // the client's
	Peer         eventline.Endpoint `json:"peer"`
	Outcome      Outcome            `json:"outcome"`
	Attempt      *attemptDocument   `json:"attempt"`
	Ends         []endDocument      `json:"ends"`
	Events       []eventDocument    `json:"events"`
	Completeness completeness       `json:"completeness"`
}

type attemptDocument struct {
	JoinedBy  *string  `json:"joined_by"` // null: there are no events
	Loop      uint32   `json:"loop"`
	Index     uint32   `json:"index"`
	Client    int      `json:"client"`
	Phase     string   `json:"phase"`
	Errno     *string  `json:"errno"`
	Flags     []string `json:"flags,omitempty"`
	Due       *int64   `json:"due_ns"`
	Socket    *int64   `json:"socket_ns"`
	Connected *int64   `json:"connected_ns"`
	FirstByte *int64   `json:"first_byte_ns"`
	Closed    *int64   `json:"closed_ns"`
	ConnectMS *float64 `json:"connect_ms"` // from when it was due
	TotalMS   *float64 `json:"total_ms"`
}

type endDocument struct {
	End         string             `json:"end"` // client, server
	Role        string             `json:"role"`
	JoinedBy    string             `json:"joined_by"`
	Cookie      tcp.Cookie         `json:"cookie"`
	NetNS       tcp.NetNS          `json:"netns"`
	NetNSName   string             `json:"netns_name,omitempty"`
	PID         *uint32            `json:"pid"`
	Comm        *string            `json:"comm"`
	Local       eventline.Endpoint `json:"local"`
	Peer        eventline.Endpoint `json:"peer"`
	State       *string            `json:"state"`
	Opened      *int64             `json:"opened_ns"`
	Established *int64             `json:"established_ns"`
	FinSent     *int64             `json:"fin_sent_ns"`
	FinReceived *int64             `json:"fin_received_ns"`
	Closed      *int64             `json:"closed_ns"`
	RstSent     int                `json:"rst_sent"`
	RstReceived int                `json:"rst_received"`
	Retransmits int                `json:"retransmits"`
	Errno       *string            `json:"errno"`
	Cause       *string            `json:"cause"`
	TimeWait    *timeWaitDocument  `json:"time_wait"`
	Successor   *tcp.Cookie        `json:"successor"`
}

type timeWaitDocument struct {
	Entered    *int64   `json:"entered_ns"`
	Converted  *int64   `json:"converted_ns"`
	Ended      *int64   `json:"ended_ns"`
	Substate   *string  `json:"substate"`
	Cause      *string  `json:"cause"`
	MS         *float64 `json:"ms"`
	SetForMS   *float64 `json:"set_for_ms"`
	Overflowed bool     `json:"overflowed"`
}

type eventDocument struct {
	Seq      uint64   `json:"seq"`
	Time     string   `json:"time"`
	MonoNS   int64    `json:"mono_ns"`
	MS       float64  `json:"ms"`
	DeltaMS  float64  `json:"delta_ms"`
	End      string   `json:"end"`
	JoinedBy string   `json:"joined_by"`
	Kind     string   `json:"kind"`
	OldState *string  `json:"old_state"`
	NewState *string  `json:"new_state"`
	Cause    *string  `json:"cause"`
	Reason   *string  `json:"reason"`
	Errno    *string  `json:"errno"`
	Segment  *segment `json:"segment"`
}

// segment is what went over the wire with an event.
type segment struct {
	What string `json:"what"`
	From string `json:"from"`
}

type completeness struct {
	Complete bool  `json:"complete"`
	Missing  []Gap `json:"missing"`
	// LostEvents is how many were lost while it lasted, of any connection; OmittedEvents how many of its own are
	// not in Events.
	LostEvents    uint64   `json:"lost_events"`
	OmittedEvents int      `json:"omitted_events"`
	Recording     []string `json:"recording"` // what the recording itself lacks
}

// Story writes one.
func (j *JSON) Story(s *Story) error {
	t := s.Tuple()
	begin := s.Begin()
	d := document{
		Schema: Schema, Time: stamp(s.wall(begin)), MonoNS: begin, Local: eventline.EndpointOf(t.Local), Peer: eventline.EndpointOf(t.Peer), Outcome: s.Outcome,
		Attempt: ofOneAttempt(s), Ends: []endDocument{}, Events: []eventDocument{},
		Completeness: completeness{
			Complete: len(s.Missing) == 0, Missing: s.Missing, LostEvents: s.Lost, OmittedEvents: s.Omitted, Recording: j.opts.Notes,
		},
	}
	if d.Completeness.Missing == nil {
		d.Completeness.Missing = []Gap{}
	}
	if d.Completeness.Recording == nil {
		d.Completeness.Recording = []string{}
	}
	for i := range s.Ends {
		if s.Ends[i].Seen() {
			d.Ends = append(d.Ends, j.end(&s.Ends[i], endNames[i]))
		}
	}
	g := newSegments(s)
	last := begin
	for i := range s.Events {
		e := &s.Events[i]
		d.Events = append(d.Events, j.event(s, e, g, begin, last))
		last = e.MonoNS
	}
	if err := j.enc.Encode(&d); err != nil {
		return fmt.Errorf("write timelines: %w", err)
	}
	return nil
}

func (j *JSON) event(s *Story, e *Event, g *segments, begin, last int64) eventDocument {
	d := eventDocument{
		Seq: e.Seq, Time: stamp(s.wall(e.MonoNS)), MonoNS: e.MonoNS, MS: float64(e.MonoNS-begin) / 1e6, DeltaMS: float64(e.MonoNS-last) / 1e6,
		End: endNames[e.End], JoinedBy: ByCookie, Kind: e.Kind.String(), OldState: eventline.StateWord(e.Old), NewState: eventline.StateWord(e.New),
		Cause: eventline.Word(e.Cause.String()), Errno: eventline.Word(e.Errno.String()),
	}
	switch {
	case e.Stray:
		d.JoinedBy = ByFourTuple
	case e.Cookie == 0:
		d.JoinedBy = Alone
	}
	if e.Kind == tcp.KindRstSent {
		d.Reason = eventline.Word(printable(j.opts.Reasons[e.Reason]))
	}
	if what, from := g.of(e); what != "" {
		d.Segment = &segment{what, endNames[from]}
	}
	return d
}

func (j *JSON) end(e *End, name string) endDocument {
	d := endDocument{
		End: name, Role: e.Role.String(), JoinedBy: e.JoinedBy, Cookie: e.Cookie, NetNS: e.NetNS, NetNSName: j.opts.netns[e.NetNS],
		Comm: eventline.Word(e.Owner.Comm.String()), Local: eventline.EndpointOf(e.Tuple.Local), Peer: eventline.EndpointOf(e.Tuple.Peer), State: eventline.StateWord(e.State),
		Opened: at(e.OpenedNS), Established: at(e.EstablishedNS), FinSent: at(e.FinSentNS), FinReceived: at(e.FinReceivedNS),
		Closed: at(e.ClosedNS), RstSent: e.RstSent, RstReceived: e.RstReceived, Retransmits: e.Retransmits,
		Errno: eventline.Word(e.Errno.String()), Cause: eventline.Word(e.Cause.String()), TimeWait: j.timeWait(e),
	}
	if e.Owner.PID != 0 {
		d.PID = &e.Owner.PID
	}
	if e.Successor != 0 {
		d.Successor = &e.Successor
	}
	return d
}

func (j *JSON) timeWait(e *End) *timeWaitDocument {
	w := &e.TimeWait
	if !w.Made() && !w.Overflowed {
		return nil
	}
	d := &timeWaitDocument{
		Entered: at(w.EnteredNS), Converted: at(w.ConvertedNS), Ended: at(w.EndedNS), Substate: eventline.StateWord(w.Substate),
		Cause: eventline.Word(w.Cause.String()), Overflowed: w.Overflowed,
	}
	if w.EnteredNS != 0 && w.EndedNS != 0 {
		d.MS = millis(w.EndedNS - w.EnteredNS)
	}
	if w.EnteredNS != 0 && j.opts.HZ > 0 {
		d.SetForMS = millis(int64(time.Duration(w.Ticks) * time.Second / time.Duration(j.opts.HZ)))
	}
	return d
}

// attemptFlags are the words for tcp.AttemptFlags.
var attemptFlags = [...]struct {
	flag tcp.AttemptFlags
	name string
}{
	{tcp.SelfConnected, "self_connected"}, {tcp.OwnTimeout, "own_timeout"}, {tcp.Cancelled, "cancelled"}, {tcp.ShortReply, "short_reply"},
}

func ofOneAttempt(s *Story) *attemptDocument {
	a := s.Attempt
	if a == nil {
		return nil
	}
	d := &attemptDocument{
		Loop: a.Loop, Index: a.Index, Client: a.Client(), Phase: a.Phase.String(), Errno: eventline.Word(a.Errno.String()),
		Due: at(a.Intended), Socket: at(a.Started), Connected: at(a.Connected), FirstByte: at(a.FirstByte), Closed: at(a.Closed),
	}
	if s.Ends[Client].Seen() {
		d.JoinedBy = eventline.Word(ByCookie)
	}
	for _, f := range attemptFlags {
		if a.Flags&f.flag != 0 {
			d.Flags = append(d.Flags, f.name)
		}
	}
	if a.Connected != 0 {
		d.ConnectMS = millis(a.Connected - a.Intended)
	}
	if a.Closed != 0 {
		d.TotalMS = millis(a.Closed - a.Intended)
	}
	return d
}

func stamp(t time.Time) string { return t.UTC().Format(eventline.Nanoseconds) }

// at is null where a moment was not seen.
func at(ns int64) *int64 {
	if ns == 0 {
		return nil
	}
	return &ns
}

func millis(ns int64) *float64 {
	ms := float64(ns) / 1e6
	return &ms
}
