package story

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
	"github.com/twtrace/twtrace/internal/verdict"
)

// row is one moment of a story.
type row struct {
	at    int64
	end   int
	text  string
	event *Event // nil: of the program
	// segment that went over the wire at this moment, from one end or to it; empty: none is known.
	segment string
	from    int
}

// segments finds which segment an event is about, and which end sent it. A segment that an event of its
// sender shows is left out at the receiver.
type segments struct {
	s *Story
	// What the ends' own events show as sent.
	fin, rst [2]bool
	// late are RSTs that the other end's event was before: over loopback and veth an RST is taken before the
	// kernel tells that it was sent. It is drawn where it was taken.
	late map[uint64]bool // the numbers of both events
}

func newSegments(s *Story) *segments {
	g := &segments{s: s, late: make(map[uint64]bool)}
	var taken [2][]uint64 // RSTs of each end that were taken and not yet told to be sent
	for i := range s.Events {
		e := &s.Events[i]
		switch {
		case e.Kind == tcp.KindRstReceived && !g.rst[1-e.End]:
			taken[1-e.End] = append(taken[1-e.End], e.Seq)
		case e.Kind == tcp.KindRstSent:
			g.rst[e.End] = true
			if list := taken[e.End]; len(list) > 0 {
				g.late[list[0]], g.late[e.Seq] = true, true
				taken[e.End] = list[1:]
			}
		case sendsFin(&e.Event):
			g.fin[e.End] = true
		}
	}
	return g
}

func sendsFin(ev *tcp.Event) bool {
	return ev.Kind == tcp.KindState && (ev.New == tcp.FinWait1 || ev.Old == tcp.CloseWait && ev.New == tcp.LastAck)
}

// of names the segment and its sender.
func (g *segments) of(e *Event) (segment string, from int) {
	me, other := e.End, 1-e.End
	switch e.Kind {
	case tcp.KindState:
		return g.ofState(e)
	case tcp.KindRstSent:
		if !g.late[e.Seq] {
			return "RST", me
		}
	case tcp.KindRstReceived:
		if !g.rst[other] || g.late[e.Seq] {
			return "RST", other
		}
	case tcp.KindRetransmit:
		switch {
		case e.Errno != 0: // it was not sent, or no further than to the link
		case e.Old == tcp.SynSent:
			return "SYN", me
		case e.Old == tcp.FinWait1, e.Old == tcp.LastAck, e.Old == tcp.Closing:
			return "FIN or data", me
		default:
			return "data", me
		}
	case tcp.KindSynAckRetransmit:
		return "SYN+ACK", me
	case tcp.KindTWEnter:
		if e.Substate == tcp.TimeWait && !g.fin[other] {
			return "FIN", other
		}
	case tcp.KindTWConvert:
		if !g.fin[other] {
			return "FIN", other
		}
	}
	return "", 0
}

func (g *segments) ofState(e *Event) (string, int) {
	me, other := e.End, 1-e.End
	switch {
	case e.New == tcp.SynSent:
		if g.s.Ends[me].ClosedBy&tcp.FlagNoSegment == 0 {
			return "SYN", me
		}
	case e.Old == tcp.SynSent && e.New == tcp.Established:
		return "SYN+ACK", other
	case e.Old == tcp.SynSent && e.New == tcp.Close && e.Errno != 0 && g.s.Outcome.Detail == verdict.ICMPError:
		return "ICMP error", other
	case e.Old == tcp.SynSent && e.New == tcp.SynRecv:
		return "SYN", other
	case e.Old == tcp.SynRecv && e.New == tcp.Established:
		return "ACK", other
	case sendsFin(&e.Event):
		return "FIN", me
	case e.New == tcp.CloseWait, e.Old == tcp.FinWait1 && e.New == tcp.Closing:
		if !g.fin[other] {
			return "FIN", other
		}
	case e.Old == tcp.FinWait1 && e.New == tcp.FinWait2, e.Old == tcp.LastAck && e.New == tcp.Close && e.Errno == 0:
		return "ACK", other
	}
	return "", 0
}

// rows lists the moments of a story in their order.
func (t *Text) rows(s *Story) []row {
	var rows []row
	g := newSegments(s)
	var state [2]tcp.State
	for i := range s.Events {
		e := &s.Events[i]
		r := row{at: e.MonoNS, end: e.End, event: e, text: t.words(s, e, state[e.End])}
		r.segment, r.from = g.of(e)
		rows = append(rows, r)
		if e.Kind == tcp.KindState {
			state[e.End] = e.New
		}
	}
	for _, m := range moments(s.Attempt) {
		rows = append(rows, row{at: m.at, end: Client, text: "program: " + m.name})
	}
	slices.SortStableFunc(rows, func(a, b row) int {
		switch {
		case a.at < b.at:
			return -1
		case a.at > b.at:
			return 1
		}
		return 0
	})
	return rows
}

// moment is a time of an attempt.
type moment struct {
	name string
	at   int64
}

// moments lists what is known of an attempt's times.
func moments(a *tcp.Attempt) (list []moment) {
	if a == nil {
		return nil
	}
	end := "closed"
	if a.Failed() {
		end = callOf(a.Phase) + " " + a.Errno.String()
	}
	for _, m := range []moment{{"due", a.Intended}, {"socket()", a.Started}, {"connected", a.Connected}, {"first byte", a.FirstByte}, {end, a.Closed}} {
		if m.at != 0 && (m.name != "due" || a.Intended != a.Started) {
			list = append(list, m)
		}
	}
	return list
}

// words say what an event did to its end; before is the state that was told last.
func (t *Text) words(s *Story, e *Event, before tcp.State) string {
	switch e.Kind {
	case tcp.KindState:
		return stateWords(e, before)
	case tcp.KindRstSent:
		return join("RST sent", cmp.Or(t.reason(e.Reason), when(e.Stray, "(no socket)")))
	case tcp.KindRstReceived:
		return "RST received"
	case tcp.KindRetransmit:
		return join("sent again, in "+e.Old.String(), errnoWords(e.Errno))
	case tcp.KindSynAckRetransmit:
		return "sent again, in SYN_RECV"
	case tcp.KindError:
		return "error " + e.Errno.String()
	case tcp.KindTWEnter:
		if e.Substate == tcp.FinWait2 {
			return join("FIN_WAIT2 minisock", t.setFor(e.Ticks))
		}
		return join("TIME_WAIT", t.setFor(e.Ticks))
	case tcp.KindTWConvert:
		return "TIME_WAIT"
	case tcp.KindTWEnd:
		return "TIME_WAIT ended: " + words(e.Cause)
	case tcp.KindTWOverflow:
		return "no TIME_WAIT was made: too many"
	case tcp.KindConnectFailed:
		return join("connect() failed:", e.Errno.String(), words(e.Cause))
	case tcp.KindBindFailed:
		return join("bind() failed:", e.Errno.String())
	case tcp.KindListenDrop:
		return "dropped: " + words(e.Cause)
	case tcp.KindSnapshot:
		if e.New == tcp.TimeWait {
			return join("was there, in TIME_WAIT,", t.left(e.Ticks))
		}
		return "was there, in " + e.New.String()
	}
	return e.Kind.String()
}

func stateWords(e *Event, before tcp.State) string {
	text := e.New.String()
	begins := e.Old == tcp.Close || e.Old == tcp.Listen || e.Old == tcp.SynRecv && before == tcp.StateNone
	if e.Old != before && !begins {
		text = e.Old.String() + " > " + text
	}
	if e.New != tcp.Close {
		return text
	}
	if e.Flags&tcp.FlagTWMade != 0 {
		text += " (the full socket)"
	}
	if e.Flags&tcp.FlagNoSegment != 0 {
		text += ", no segment sent"
	}
	if e.Flags&tcp.FlagLinger0 != 0 && e.Errno == 0 {
		text += " (linger 0)"
	}
	return join(text, errnoWords(e.Errno))
}

var inText = strings.NewReplacer("-", " ", "syn", "SYN", "rst", "RST")

func words(c tcp.Cause) string { return inText.Replace(c.String()) }

func join(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), " ")
}

func when(is bool, text string) string {
	if is {
		return text
	}
	return ""
}

func errnoWords(e tcp.Errno) string {
	if e == tcp.LinkDropped {
		return "(no room in the link)"
	}
	return e.String()
}

func (t *Text) reason(n uint32) string {
	name := strings.ToLower(printable(t.opts.Reasons[n]))
	if name == "" || name == "not_specified" {
		return ""
	}
	return "(" + strings.ReplaceAll(name, "_", " ") + ")"
}

func (t *Text) ticks(n uint32) string {
	d := time.Duration(n) * time.Second / time.Duration(t.opts.HZ)
	return fmt.Sprintf("%.4g s", d.Seconds())
}

func (t *Text) setFor(n uint32) string {
	if t.opts.HZ <= 0 {
		return ""
	}
	return "for " + t.ticks(n)
}

func (t *Text) left(n uint32) string {
	if t.opts.HZ <= 0 {
		return ""
	}
	return t.ticks(n) + " left"
}

// endName is what an end is called.
func (s *Story) endName(i int) string {
	if s.Attempt == nil && s.Ends[Client].Role != timeline.RoleActive && s.Ends[Server].Role != timeline.RolePassive {
		switch {
		case s.Ends[i].Role == timeline.RoleListener:
			return "listener"
		case s.Ends[i].Seen() && !s.Ends[1-i].Seen():
			return "this end"
		case !s.Ends[i].Seen():
			return "other end"
		case i == Client:
			return "one end"
		}
		return "other end"
	}
	return endNames[i]
}
