package story

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
	"github.com/twtrace/twtrace/internal/verdict"
)

// Outcome is how a connection came out.
type Outcome struct {
	Result string `json:"result"`
	// Failed: the attempt did, or without one, the kernel's facts are those of a failure: connect() or bind()
	// failed, an end was closed with an error, or an RST came that nobody asked for.
	Failed bool          `json:"failed"`
	Cause  verdict.Cause `json:"cause,omitempty"`
	// Detail of the cause, where more is known.
	Detail verdict.Detail `json:"detail,omitempty"`
	// Inferred: the cause is from the error number alone.
	Inferred bool   `json:"inferred,omitempty"`
	Text     string `json:"text"`
}

// The results.
const (
	Finished = "finished" // the attempt did all it was to do
	Failed   = "failed"   // the attempt, or connect() or bind()
	Closed   = "closed"   // by FIN
	Reset    = "reset"    // by RST, or by an error
	Open     = "open"     // when the recording ends
	Unknown  = "unknown"  // too little was seen
)

// because has the words for causes; %s is where to.
var because = map[verdict.Cause]string{
	verdict.PortExhausted:    "no source port was left for %s",
	verdict.TupleBusy:        "the bound address and port were in use towards %s",
	verdict.BindConflict:     "the address and port are another socket's",
	verdict.Refused:          "an RST from %s answered the SYN",
	verdict.Reset:            "an RST ended it",
	verdict.AbortedByLinger:  "%s closed with SO_LINGER {1,0}",
	verdict.AcceptQueueFull:  "the accept queue of %s was full, and its SYN was dropped",
	verdict.SynQueueFull:     "the SYN queue of %s was full, and its SYN was dropped",
	verdict.SynUnanswered:    "%s did not answer its SYN",
	verdict.NeverAccepted:    "%s never accepted it",
	verdict.TimedOutTimeWait: "a TIME_WAIT of %s answered its SYN and was not to be ended",
	verdict.Local:            "this end's kernel refused the call",
	verdict.TimedOut:         "%s did not answer",
	verdict.Unreachable:      "no way to %s",
	verdict.Destroyed:        "the socket was ended by SOCK_DESTROY on its host",
	verdict.FDLimit:          "no file descriptor was left",
	verdict.NoMemory:         "no memory was left",
	verdict.Forbidden:        "a local policy refused it",
	verdict.ClosedEarly:      "the peer closed before the whole reply had come",
	verdict.SelfConnect:      "the socket was connected to itself",
	verdict.Interrupted:      "the run was stopped while it was under way",
	verdict.Unexplained:      "nothing that was seen explains it",
}

// becauseOf has the words where a detail changes them.
var becauseOf = map[verdict.Verdict]string{
	{Cause: verdict.Refused, Detail: verdict.NoListener}:           "nobody listened at %s: an RST answered the SYN",
	{Cause: verdict.Refused, Detail: verdict.ICMPError}:            "an ICMP error answered the SYN to %s, and no RST",
	{Cause: verdict.Refused, Detail: verdict.AbortOnOverflow}:      "the accept queue of %s was full, and an RST answered the handshake's last ACK",
	{Cause: verdict.NeverAccepted, Detail: verdict.LastAckDropped}: "the accept queue of %s was full, and the handshake's last ACK was dropped",
	{Cause: verdict.NeverAccepted, Detail: verdict.InAcceptQueue}:  "it waited in the accept queue of %s, and accept() never returned it",
	{Cause: verdict.NeverAccepted, Detail: verdict.ListenerClosed}: "it waited in the accept queue of %s as the listener was closed",
	{Cause: verdict.Reset, Detail: verdict.UnreadData}:             "%s closed with data unread, and so sent an RST",
	{Cause: verdict.Reset, Detail: verdict.DataAfterClose}:         "%s had closed, and answered data by RST",
	{Cause: verdict.Reset, Detail: verdict.InTimeWait}:             "%s had it in TIME_WAIT, and answered by RST",
	{Cause: verdict.Reset, Detail: verdict.NoSocket}:               "%s did not have it any more, and answered by RST",
	{Cause: verdict.Reset, Detail: verdict.Aborted}:                "it was aborted at %s, which sent an RST",
	{Cause: verdict.SynUnanswered, Detail: verdict.NotSent}:        "a packet filter on this host dropped its SYN to %s",
	{Cause: verdict.SynUnanswered, Detail: verdict.DroppedOther}:   "the listener at %s dropped its SYN, though its queues had room",
	{Cause: verdict.Unreachable, Detail: verdict.NoRoute}:          "this host lost its route to %s",
	{Cause: verdict.Unreachable, Detail: verdict.ICMPError}:        "an ICMP error answered the SYN to %s",
}

// calls are what a program was doing in each phase.
var calls = [tcp.NumPhases]string{"socket()", "bind()", "connect()", "send()", "read()", "close()", "close()"}

func callOf(p tcp.Phase) string {
	if int(p) < len(calls) {
		return calls[p]
	}
	return p.String()
}

func outcome(s *Story, env *verdict.Env) Outcome {
	here := *env
	here.EveryRst = env.EveryRst && s.Lost == 0
	if s.Attempt != nil {
		return ofAttempt(s, &here)
	}
	return ofEvents(s, &here)
}

func (s *Story) sentence(c verdict.Cause, d verdict.Detail) string {
	words := cmp.Or(becauseOf[verdict.Verdict{Cause: c, Detail: d}], because[c])
	if c == verdict.Refused && d == "" && s.Ends[Client].RstReceived == 0 {
		words = "an RST from %s, or an ICMP error, answered the SYN"
	}
	for i := range words {
		if words[i] == '%' {
			to := "the destination"
			if t := s.Tuple(); t.Peer.Addr().IsValid() {
				to = t.Peer.String()
			}
			return fmt.Sprintf(words, to)
		}
	}
	return words
}

// ofAttempt is what the program saw, with the verdict that its report has.
func ofAttempt(s *Story, env *verdict.Env) Outcome {
	a := s.Attempt
	if !a.Failed() {
		text := fmt.Sprintf("finished in %s, connected after %s", span(a.Closed-a.Intended), span(a.Connected-a.Intended))
		if first := closedFirst(s); first != "" {
			text += ", closed by the " + first + " first"
		} else if s.Ends[Client].ClosedBy&tcp.FlagLinger0 != 0 {
			text += ", closed by RST (SO_LINGER {1,0})"
		}
		return Outcome{Result: Finished, Text: text}
	}
	v := judge(s, a, env)
	text := fmt.Sprintf("failed: %s %s after %s: %s, %s", callOf(a.Phase), a.Errno, span(a.Closed-a.Intended), v.Cause, s.sentence(v.Cause, v.Detail))
	if v.Inferred {
		text += " (by the error number alone)"
	}
	return Outcome{Result: Failed, Failed: true, Cause: v.Cause, Detail: v.Detail, Inferred: v.Inferred, Text: text}
}

// judge says why an attempt failed whose socket is the client's.
func judge(s *Story, a *tcp.Attempt, env *verdict.Env) verdict.Verdict {
	var own, peer []tcp.Event
	for i := range s.Events {
		if e := &s.Events[i]; e.End == Client && !e.Stray {
			own = append(own, e.Event)
		} else {
			peer = append(peer, e.Event)
		}
	}
	t := timeline.Of(a, own)
	t.Peer = timeline.PeerOf(peer)
	return verdict.In(t, env)
}

// byErrno is what the error tells that the kernel closed a socket with.
var byErrno = map[tcp.Errno]verdict.Cause{
	tcp.ECONNREFUSED: verdict.Refused, tcp.ECONNRESET: verdict.Reset, tcp.EPIPE: verdict.Reset, tcp.ETIMEDOUT: verdict.TimedOut,
	tcp.ECONNABORTED: verdict.Destroyed,
	tcp.ENETUNREACH:  verdict.Unreachable, tcp.EHOSTUNREACH: verdict.Unreachable, tcp.EADDRINUSE: verdict.BindConflict,
	tcp.EPERM: verdict.Forbidden, tcp.EACCES: verdict.Forbidden, tcp.ENOBUFS: verdict.NoMemory, tcp.ENOMEM: verdict.NoMemory,
}

var byCause = map[tcp.Cause]verdict.Cause{tcp.CausePortSearch: verdict.PortExhausted, tcp.CauseFourTupleBusy: verdict.TupleBusy}

// ofEvents is what the kernel's events alone tell.
func ofEvents(s *Story, env *verdict.Env) Outcome {
	end, name := &s.Ends[Client], "the client"
	if !end.Seen() {
		end, name = &s.Ends[Server], "the server"
	}
	switch {
	case !end.Seen():
		return Outcome{Result: Unknown, Text: "nothing of it was recorded"}
	case end.Role == timeline.RoleListener:
		return Outcome{Result: Unknown, Text: "a socket that listens"}
	case end.Role == timeline.RoleUnknown && end.State == tcp.StateNone && end.Errno != 0:
		return failed(s, "bind()", byErrno[end.Errno], "", end)
	case end.ClosedBy&tcp.FlagNoSegment != 0, end.Cause != 0:
		return failed(s, "connect()", byCause[end.Cause], "", end)
	case end.Role == timeline.RoleActive && end.EstablishedNS == 0 && end.Errno != 0:
		v := judge(s, &tcp.Attempt{Phase: tcp.PhaseConnect, Errno: end.Errno}, env)
		if v.Cause == verdict.Unexplained {
			v.Cause = byErrno[end.Errno]
		}
		return failed(s, "connect()", v.Cause, v.Detail, end)
	}
	if o, ok := resets(s, env); ok {
		return o
	}
	switch {
	case end.ClosedNS == 0 && end.TimeWait.Made():
		return Outcome{Result: Closed, Text: "in TIME_WAIT before the trace"}
	case end.ClosedNS == 0:
		return Outcome{Result: Open, Text: "still open when the recording ends"}
	case end.EstablishedNS == 0 && end.Role == timeline.RoleActive:
		return Outcome{Result: Closed, Text: fmt.Sprintf("given up by %s after %s, before the handshake was done", name, span(end.ClosedNS-end.OpenedNS))}
	}
	text := "closed"
	if first := closedFirst(s); first != "" {
		text += " by the " + first + " first"
	}
	if end.EstablishedNS != 0 {
		text += ", after " + span(end.ClosedNS-end.EstablishedNS)
	}
	return Outcome{Result: Closed, Text: text}
}

func failed(s *Story, call string, c verdict.Cause, d verdict.Detail, end *End) Outcome {
	o := Outcome{Result: Failed, Failed: true, Cause: c, Detail: d, Text: "failed: " + call}
	if end.Errno != 0 {
		o.Text += " " + end.Errno.String()
	}
	if end.OpenedNS != 0 && end.ClosedNS != 0 {
		o.Text += " after " + span(end.ClosedNS-end.OpenedNS)
	}
	if c != "" {
		o.Text += fmt.Sprintf(": %s, %s", c, s.sentence(c, d))
	}
	return o
}

// names of the ends in text.
var endNames = [2]string{"client", "server"}

// resets tells of a connection that did not end by FIN at both ends.
func resets(s *Story, env *verdict.Env) (Outcome, bool) {
	for i := range s.Ends {
		end := &s.Ends[i]
		if !end.Seen() || end.ClosedBy&tcp.FlagLinger0 == 0 || end.Errno != 0 || end.RstSent == 0 {
			continue
		}
		text := fmt.Sprintf("aborted by the %s (SO_LINGER {1,0})", endNames[i])
		if end.EstablishedNS != 0 {
			text += ", after " + span(end.ClosedNS-end.EstablishedNS)
		}
		other := &s.Ends[1-i]
		o := Outcome{Result: Reset, Text: text, Failed: other.Seen() && other.Errno != 0}
		if o.Failed {
			o.Cause = verdict.Reset
			o.Text += fmt.Sprintf("; the %s got %s", endNames[1-i], other.Errno)
		}
		return o, true
	}
	for i := range s.Ends {
		end := &s.Ends[i]
		switch {
		case !end.Seen():
		case end.Errno != 0:
			o := Outcome{Result: Reset, Failed: true, Cause: byErrno[end.Errno]}
			why := ""
			switch {
			case o.Cause == verdict.Refused: // but after its handshake (sk_err_soft)
				o.Cause, why = verdict.Unreachable, "ICMP errors answered its segments until it timed out"
			case o.Cause == verdict.Unreachable && i == Client:
				o.Detail = judge(s, &tcp.Attempt{Phase: tcp.PhaseReceive, Errno: end.Errno}, env).Detail
			}
			o.Text = fmt.Sprintf("ended by %s at the %s", end.Errno, endNames[i])
			if o.Cause == verdict.Reset && end.RstReceived > 0 {
				o.Text = fmt.Sprintf("reset by the %s", endNames[1-i])
			}
			if end.EstablishedNS != 0 && end.ClosedNS != 0 {
				o.Text += " after " + span(end.ClosedNS-end.EstablishedNS)
			}
			if o.Cause != "" && o.Cause != verdict.Reset {
				o.Text += fmt.Sprintf(": %s, %s", o.Cause, cmp.Or(why, s.sentence(o.Cause, o.Detail)))
			}
			return o, true
		case end.RstReceived > 0:
			return Outcome{Result: Reset, Failed: true, Cause: verdict.Reset, Text: fmt.Sprintf("the %s received an RST", endNames[i])}, true
		case end.RstSent > 0:
			return Outcome{Result: Reset, Failed: true, Text: fmt.Sprintf("the %s sent an RST", endNames[i])}, true
		}
	}
	return Outcome{}, false
}

// closedFirst is the end whose FIN was first; "" if it is not known.
func closedFirst(s *Story) string {
	c, p := &s.Ends[Client], &s.Ends[Server]
	at, other := c, Server
	if !c.Seen() {
		at, other = p, Client
	}
	sent, got := at.FinSentNS, at.FinReceivedNS
	if c.Seen() && p.Seen() && p.FinSentNS != 0 {
		got = p.FinSentNS
	}
	switch {
	case sent == 0 && got == 0:
		return ""
	case got == 0, sent != 0 && sent <= got:
		return endNames[1-other]
	}
	return endNames[other]
}

// span is a time for people: three digits or four, and a unit.
func span(ns int64) string {
	d := time.Duration(ns)
	sign := ""
	if d < 0 {
		d, sign = -d, "-"
	}
	switch {
	case d < time.Microsecond:
		return fmt.Sprintf("%s%d ns", sign, d)
	case d < time.Millisecond:
		return fmt.Sprintf("%s%.1f us", sign, float64(d)/1e3)
	case d < time.Second:
		return fmt.Sprintf("%s%.3f ms", sign, float64(d)/1e6)
	}
	return fmt.Sprintf("%s%.3f s", sign, float64(d)/1e9)
}

func sideOf(name string) string {
	if strings.HasSuffix(name, " end") {
		return "the " + name
	}
	return "the " + name + "'s side"
}

const endOfTimeWait = "the end of the TIME_WAIT"

// gaps says what of a story was not seen, and why.
func (s *source) gaps(st *Story) []Gap {
	var gaps []Gap
	add := func(what, why string) { gaps = append(gaps, Gap{what, why}) }
	if st.Lost > 0 {
		add("events", fmt.Sprintf("%d events, of any connection, were lost while it lasted", st.Lost))
	}
	if st.Omitted > 0 {
		add("events", fmt.Sprintf("%d more events of it are in the recording than are shown here", st.Omitted))
	}
	if !st.Ends[Client].Seen() && !st.Ends[Server].Seen() {
		switch {
		case !s.traced:
			add("kernel events", "the run was not traced")
		case st.Attempt != nil && st.Attempt.Cookie == 0:
			add("kernel events", "the attempt came to no socket")
		default:
			add("kernel events", s.otherwise(st, "there are none of its socket"))
		}
		return gaps
	}
	for i := range st.Ends {
		if !st.Ends[i].Seen() {
			if why := s.unseen(st, &st.Ends[1-i]); why != "" {
				add(sideOf(st.endName(i)), why)
			}
			continue
		}
		gaps = append(gaps, s.ofEnd(&st.Ends[i], st.endName(i))...)
	}
	return gaps
}

// ofEnd is what of an end was not seen.
func (s *source) ofEnd(e *End, name string) (gaps []Gap) {
	if e.Role == timeline.RoleListener {
		return nil
	}
	begin := e.Role == timeline.RoleUnknown && (e.State != tcp.StateNone || e.TimeWait.Made())
	if e.Snapshot || begin {
		gaps = append(gaps, Gap{"how it began (" + name + ")", "it is from before the trace"})
	}
	last := "the recording ends before"
	if s.cond.Footer == nil {
		last = "the recording is truncated"
	}
	switch {
	case e.ClosedNS == 0 && e.State != tcp.StateNone && e.State != tcp.Close && !e.TimeWait.Made():
		gaps = append(gaps, Gap{"how it ended (" + name + ")", last})
	case e.TimeWait.Made() && e.TimeWait.EndedNS == 0:
		gaps = append(gaps, Gap{endOfTimeWait, last})
	}
	return gaps
}

// unseen says why the other end of one was not seen; "": there was none to see.
func (s *source) unseen(st *Story, e *End) string {
	switch {
	case e.Role == timeline.RoleListener, e.State == tcp.StateNone && !e.TimeWait.Made():
		return ""
	case e.Role == timeline.RoleActive && e.EstablishedNS == 0 && e.ClosedNS != 0:
		return "" // without a handshake there is no socket there
	}
	return s.otherwise(st, "it is outside the traced namespaces, or was filtered out")
}

// otherwise is a reason why there are no events, unless a likelier one is known.
func (s *source) otherwise(st *Story, why string) string {
	switch {
	case st.Lost > 0:
		return "events were lost at that time"
	case s.cond.Missing[recording.TableEvents] > 0 || len(s.cond.Damage) > 0:
		return "the recording is damaged"
	case s.cond.Footer != nil && s.cond.Footer.Stopped != nil:
		return "the recording stopped before its end"
	}
	return why
}
