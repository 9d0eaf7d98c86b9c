package verdict

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
)

// joined is a timeline with its kernel events; port is the client's.
func joined(port uint16, steps ...timeline.Step) timeline.Timeline {
	t := timeline.Timeline{Joined: true, NumSteps: len(steps)}
	copy(t.Steps[:], steps)
	t.Tuple.Local = netip.AddrPortFrom(netip.MustParseAddr("198.18.0.1"), port)
	return t
}

func closing(old tcp.State, flags tcp.Flags, errno tcp.Errno) timeline.Step {
	return timeline.Step{Seq: 2, Kind: tcp.KindState, Old: old, New: tcp.Close, Flags: flags, Errno: errno}
}

var (
	opened    = timeline.Step{Seq: 1, Kind: tcp.KindState, Old: tcp.Close, New: tcp.SynSent}
	connected = timeline.Step{Seq: 2, Kind: tcp.KindState, Old: tcp.SynSent, New: tcp.Established}
	gotReset  = timeline.Step{Seq: 3, Kind: tcp.KindRstReceived, Old: tcp.Established, New: tcp.Established}
	noSegment = closing(tcp.SynSent, tcp.FlagNoSegment, 0)
)

// from adds what the other end did.
func from(t timeline.Timeline, steps ...timeline.PeerStep) timeline.Timeline {
	t.Peer = steps
	return t
}

// under adds who listens, or did until then.
func under(t timeline.Timeline, until int64) timeline.Timeline {
	t.Listener = &timeline.Listener{Until: until}
	return t
}

// theirs is an event of the other end.
func theirs(kind tcp.Kind, old, new tcp.State, flags tcp.Flags, reason uint32) timeline.PeerStep {
	return timeline.PeerStep{Step: timeline.Step{MonoNS: 100, Kind: kind, Old: old, New: new, Flags: flags}, Reason: reason}
}

// dropped is a segment that the listener dropped; client is where the other end was.
func dropped(cause tcp.Cause, client tcp.State) timeline.PeerStep {
	p := theirs(tcp.KindListenDrop, tcp.Listen, tcp.Listen, 0, 0)
	p.Cause, p.Substate = cause, client
	return p
}

const (
	abortOnData = 7 + iota
	abortOnClose
	tcpState
)

// env is what the cases with a trace are judged by; a name of the case in special has another.
var (
	env     = Env{Traced: true, Reasons: map[uint32]string{abortOnData: "TCP_ABORT_ON_DATA", abortOnClose: "TCP_ABORT_ON_CLOSE", tcpState: "TCP_STATE"}}
	special = map[string]Env{
		"kept TIME_WAIT":                      {Traced: true, RFC1337: true},
		"overflow answered":                   {Traced: true, AbortOnOverflow: true},
		"never accepted by mode":              {Traced: true, NeverAccepts: true},
		"unread data, kernel without reasons": {Traced: true},
		"refused, and each RST is seen":       {Traced: true, EveryRst: true},
		"refused by ICMP":                     {Traced: true, EveryRst: true},
	}
)

func envOf(name string) *Env {
	if e, ok := special[name]; ok {
		return &e
	}
	return &env
}

var (
	isOpen  = joined(1, opened, connected, gotReset, closing(tcp.Established, 0, tcp.ECONNRESET))
	refusal = joined(1, opened, closing(tcp.SynSent, 0, tcp.ECONNREFUSED))
	endedBy = func(errno tcp.Errno) timeline.Timeline { return joined(1, opened, closing(tcp.SynSent, 0, errno)) }
	again   = func(errno tcp.Errno) timeline.Step {
		return timeline.Step{Seq: 3, Kind: tcp.KindRetransmit, Old: tcp.SynSent, New: tcp.SynSent, Errno: errno}
	}
	gaveUp   = joined(1, opened, closing(tcp.SynSent, 0, tcp.ETIMEDOUT))
	ownRst   = timeline.Step{Seq: 3, Kind: tcp.KindRstSent, Old: tcp.SynSent, New: tcp.SynSent}
	lingered = theirs(tcp.KindState, tcp.Established, tcp.Close, tcp.FlagLinger0, 0)
	died     = theirs(tcp.KindState, tcp.Established, tcp.Close, 0, 0)
	theirEnd = theirs(tcp.KindState, tcp.SynRecv, tcp.Established, 0, 0)
	noSuch   = theirs(tcp.KindRstSent, tcp.StateNone, tcp.StateNone, 0, 0)
	noRoom   = dropped(tcp.CauseAcceptQueue, tcp.SynSent)
	lastNoGo = dropped(tcp.CauseAcceptQueue, tcp.Established)
	active   = func(reason uint32) timeline.PeerStep {
		return theirs(tcp.KindRstSent, tcp.Close, tcp.Close, tcp.FlagActive, reason)
	}
)

// cases are failed attempts, and what is said of them.
var cases = []struct {
	name     string
	phase    tcp.Phase
	errno    tcp.Errno
	flags    tcp.AttemptFlags
	kernel   timeline.Timeline
	detail   Detail // with a trace
	traced   Cause
	untraced Cause
	inferred bool // without a trace
}{
	{"stopped in connect", tcp.PhaseConnect, tcp.ECANCELED, tcp.Cancelled, joined(1, opened), "", Interrupted, Interrupted, false},
	{"stopped in receive", tcp.PhaseReceive, tcp.ECANCELED, tcp.Cancelled, timeline.Timeline{}, "", Interrupted, Interrupted, false},
	{"self-connect", tcp.PhaseConnect, tcp.EADDRINUSE, tcp.SelfConnected, joined(7, opened, connected), "", SelfConnect, SelfConnect, false},

	{"no port", tcp.PhaseConnect, tcp.EADDRNOTAVAIL, 0, joined(0, opened, noSegment), "", PortExhausted, PortExhausted, true},
	{"bound port busy", tcp.PhaseConnect, tcp.EADDRNOTAVAIL, 0, joined(5000, opened, noSegment), "", TupleBusy, PortExhausted, true},
	{"bind", tcp.PhaseBind, tcp.EADDRINUSE, 0, timeline.Timeline{}, "", BindConflict, BindConflict, false},

	{
		"refused", tcp.PhaseConnect, tcp.ECONNREFUSED, 0,
		joined(1, opened, closing(tcp.SynSent, 0, tcp.ECONNREFUSED)), "", Refused, Refused, true,
	},
	{
		"reset in the handshake", tcp.PhaseConnect, tcp.ECONNRESET, 0,
		joined(1, opened, connected, gotReset), "", Reset, Reset, true,
	},
	{
		"reset while sending", tcp.PhaseSend, tcp.ECONNRESET, 0,
		joined(1, opened, connected, gotReset, closing(tcp.Established, 0, tcp.ECONNRESET)), "", Reset, Reset, true,
	},
	{"reset, EPIPE", tcp.PhaseSend, tcp.EPIPE, 0, joined(1, opened, connected, gotReset), "", Reset, Reset, true},
	{
		"EPIPE whose RST was not seen", tcp.PhaseSend, tcp.EPIPE, 0,
		joined(1, opened, connected, closing(tcp.CloseWait, 0, tcp.EPIPE)), "", Reset, Reset, true,
	},
	{"short reply", tcp.PhaseReceive, tcp.EPROTO, tcp.ShortReply, joined(1, opened, connected), "", ClosedEarly, ClosedEarly, false},
	{"own timeout", tcp.PhaseReceive, tcp.ETIMEDOUT, tcp.OwnTimeout, joined(1, opened, connected), "", TimedOut, TimedOut, false},
	{
		"kernel's timeout", tcp.PhaseConnect, tcp.ETIMEDOUT, 0,
		joined(1, opened, closing(tcp.SynSent, 0, tcp.ETIMEDOUT)), "", SynUnanswered, SynUnanswered, true,
	},
	{"ENETUNREACH", tcp.PhaseConnect, tcp.ENETUNREACH, 0, timeline.Timeline{}, "", Unreachable, Unreachable, false},
	{"EHOSTUNREACH", tcp.PhaseConnect, tcp.EHOSTUNREACH, 0, joined(1, opened), "", Unreachable, Unreachable, false},
	{"ENETDOWN", tcp.PhaseConnect, 100, 0, timeline.Timeline{}, "", Unreachable, Unreachable, false},
	{"EHOSTDOWN", tcp.PhaseConnect, 112, 0, timeline.Timeline{}, "", Unreachable, Unreachable, false},
	{"ENETUNREACH by ICMP", tcp.PhaseConnect, tcp.ENETUNREACH, 0, endedBy(tcp.ENETUNREACH), ICMPError, Unreachable, Unreachable, false},
	{"EHOSTUNREACH by ICMP", tcp.PhaseConnect, tcp.EHOSTUNREACH, 0, endedBy(tcp.EHOSTUNREACH), ICMPError, Unreachable, Unreachable, false},
	{"EHOSTUNREACH later", tcp.PhaseReceive, tcp.EHOSTUNREACH, 0, joined(1, opened, connected, closing(tcp.Established, 0, tcp.EHOSTUNREACH)), "", Unreachable, Unreachable, false},
	{"timed out after port unreachable", tcp.PhaseReceive, tcp.ECONNREFUSED, 0, joined(1, opened, connected, closing(tcp.Established, 0, tcp.ECONNREFUSED)), "", Unreachable, Unreachable, true},
	{"ENOPROTOOPT by ICMP", tcp.PhaseConnect, tcp.ENOPROTOOPT, 0, endedBy(tcp.ENOPROTOOPT), ICMPError, Unreachable, Unreachable, false},
	{"ENOPROTOOPT that was not seen", tcp.PhaseConnect, tcp.ENOPROTOOPT, 0, joined(1, opened), "", Unreachable, Unreachable, false},
	{"EACCES by ICMP", tcp.PhaseConnect, tcp.EACCES, 0, endedBy(tcp.EACCES), ICMPError, Unreachable, Forbidden, false},
	{"refused by ICMP", tcp.PhaseConnect, tcp.ECONNREFUSED, 0, refusal, ICMPError, Refused, Refused, true},
	{"refused, and each RST is seen", tcp.PhaseConnect, tcp.ECONNREFUSED, 0, joined(1, opened, gotReset, closing(tcp.SynSent, 0, tcp.ECONNREFUSED)), "", Refused, Refused, true},
	{"SYN not sent", tcp.PhaseConnect, tcp.ETIMEDOUT, tcp.OwnTimeout, joined(1, opened, again(tcp.EPERM)), NotSent, SynUnanswered, SynUnanswered, false},
	{"route lost", tcp.PhaseConnect, tcp.ENETUNREACH, 0, joined(1, opened, again(tcp.EHOSTUNREACH), closing(tcp.SynSent, 0, tcp.ENETUNREACH)), NoRoute, Unreachable, Unreachable, false},
	{"SYN that the link dropped", tcp.PhaseConnect, tcp.ETIMEDOUT, tcp.OwnTimeout, joined(1, opened, again(1<<16-1)), "", SynUnanswered, SynUnanswered, false},
	{"destroyed", tcp.PhaseReceive, tcp.ECONNABORTED, 0, joined(1, opened, connected, closing(tcp.Established, 0, tcp.ECONNABORTED)), "", Destroyed, Destroyed, true},
	{"destroyed in the handshake", tcp.PhaseConnect, tcp.ECONNABORTED, 0, endedBy(tcp.ECONNABORTED), "", Destroyed, Destroyed, true},
	{"EMFILE", tcp.PhaseSocket, tcp.EMFILE, 0, timeline.Timeline{}, "", FDLimit, FDLimit, false},
	{"ENFILE", tcp.PhaseSocket, tcp.ENFILE, 0, timeline.Timeline{}, "", FDLimit, FDLimit, false},
	{"ENOMEM", tcp.PhaseSocket, tcp.ENOMEM, 0, timeline.Timeline{}, "", NoMemory, NoMemory, false},
	{"ENOBUFS", tcp.PhaseSend, tcp.ENOBUFS, 0, joined(1, opened), "", NoMemory, NoMemory, false},
	{"EPERM", tcp.PhaseConnect, tcp.EPERM, 0, joined(1, opened), "", Forbidden, Forbidden, false},
	{"EACCES", tcp.PhaseConnect, tcp.EACCES, 0, timeline.Timeline{}, "", Forbidden, Forbidden, false},

	// What the other end did.
	{"nobody listens", tcp.PhaseConnect, tcp.ECONNREFUSED, 0, from(refusal, noSuch), NoListener, Refused, Refused, true},
	{
		"refused after a TIME_WAIT", tcp.PhaseConnect, tcp.ECONNREFUSED, 0,
		from(joined(1, opened, ownRst, closing(tcp.SynSent, 0, tcp.ECONNREFUSED)), noSuch), InTimeWait, Refused, Refused, true,
	},
	{
		"overflow answered", tcp.PhaseSend, tcp.ECONNRESET, 0,
		from(isOpen, theirs(tcp.KindRstSent, tcp.Listen, tcp.Listen, 0, 0)), AbortOnOverflow, Refused, Reset, true,
	},
	{"last ACK dropped", tcp.PhaseReceive, tcp.ETIMEDOUT, tcp.OwnTimeout, from(joined(1, opened, connected), lastNoGo), LastAckDropped, NeverAccepted, TimedOut, false},
	{"last ACK dropped, the next was not", tcp.PhaseReceive, tcp.ETIMEDOUT, tcp.OwnTimeout, from(joined(1, opened, connected), lastNoGo, theirEnd), "", TimedOut, TimedOut, false},
	{"closed with its listener", tcp.PhaseReceive, tcp.ECONNRESET, 0, under(from(isOpen, died, active(tcpState)), 99), ListenerClosed, NeverAccepted, Reset, true},
	{"closed before its listener", tcp.PhaseReceive, tcp.ECONNRESET, 0, under(from(isOpen, died, active(tcpState)), 101), Aborted, Reset, Reset, true},
	{"never accepted by mode", tcp.PhaseReceive, tcp.ETIMEDOUT, tcp.OwnTimeout, joined(1, opened, connected), InAcceptQueue, NeverAccepted, TimedOut, false},
	{"peer's SO_LINGER", tcp.PhaseReceive, tcp.ECONNRESET, 0, from(isOpen, lingered, active(tcpState)), "", AbortedByLinger, Reset, true},
	{"unread data", tcp.PhaseReceive, tcp.ECONNRESET, 0, from(isOpen, died, active(abortOnClose)), UnreadData, Reset, Reset, true},
	{"unread data, kernel without reasons", tcp.PhaseReceive, tcp.ECONNRESET, 0, from(isOpen, died, active(0)), UnreadData, Reset, Reset, true},
	{"data after close", tcp.PhaseSend, tcp.EPIPE, 0, from(isOpen, theirs(tcp.KindRstSent, tcp.FinWait2, tcp.FinWait2, 0, abortOnData)), DataAfterClose, Reset, Reset, true},
	{"a TIME_WAIT's RST", tcp.PhaseSend, tcp.ECONNRESET, 0, from(isOpen, theirs(tcp.KindRstSent, tcp.TimeWait, tcp.TimeWait, 0, 0)), InTimeWait, Reset, Reset, true},
	{"no such connection", tcp.PhaseSend, tcp.ECONNRESET, 0, from(isOpen, noSuch), NoSocket, Reset, Reset, true},
	{"aborted", tcp.PhaseSend, tcp.ECONNRESET, 0, from(isOpen, active(tcpState)), Aborted, Reset, Reset, true},
	{
		"kept TIME_WAIT", tcp.PhaseConnect, tcp.ETIMEDOUT, 0,
		joined(1, opened, ownRst, closing(tcp.SynSent, 0, tcp.ETIMEDOUT)), "", TimedOutTimeWait, SynUnanswered, true,
	},
	{"accept queue", tcp.PhaseConnect, tcp.ETIMEDOUT, 0, from(gaveUp, noRoom), "", AcceptQueueFull, SynUnanswered, true},
	{"SYN queue", tcp.PhaseConnect, tcp.ETIMEDOUT, 0, from(gaveUp, dropped(tcp.CauseSynQueue, tcp.SynSent)), "", SynQueueFull, SynUnanswered, true},
	{"dropped otherwise", tcp.PhaseConnect, tcp.ETIMEDOUT, 0, from(gaveUp, dropped(tcp.CauseOtherDrop, tcp.SynSent)), DroppedOther, SynUnanswered, SynUnanswered, true},
	{"own timeout in connect", tcp.PhaseConnect, tcp.ETIMEDOUT, tcp.OwnTimeout, joined(1, opened), "", SynUnanswered, SynUnanswered, false},
	{"established, kernel's timeout", tcp.PhaseReceive, tcp.ETIMEDOUT, 0, joined(1, opened, connected, closing(tcp.Established, 0, tcp.ETIMEDOUT)), "", TimedOut, TimedOut, true},

	// Nothing fits.
	{"EADDRINUSE of connect", tcp.PhaseConnect, tcp.EADDRINUSE, 0, joined(1, opened), "", Unexplained, Unexplained, false},
	{"EADDRNOTAVAIL of bind", tcp.PhaseBind, tcp.EADDRNOTAVAIL, 0, timeline.Timeline{}, "", Local, Local, false},
	{"refused after connect", tcp.PhaseSend, tcp.ECONNREFUSED, 0, joined(1, opened, connected), "", Unexplained, Unreachable, true},
	{"EPROTO of its own", tcp.PhaseReceive, tcp.EPROTO, 0, joined(1, opened), "", Unexplained, Unreachable, true},
	{"ECANCELED of its own", tcp.PhaseConnect, tcp.ECANCELED, 0, joined(1, opened), "", Unexplained, Unexplained, false},
	{"black hole", tcp.PhaseConnect, tcp.EINVAL, 0, timeline.Timeline{}, "", Unreachable, Unreachable, false},
	{"EINVAL", tcp.PhaseSocket, tcp.EINVAL, 0, timeline.Timeline{}, "", Local, Local, false},
	{"no errno", tcp.PhaseReceive, 0, 0, joined(1, opened, connected), "", Unexplained, Unexplained, false},
	{"unknown errno", tcp.PhaseConnect, 4000, 0, timeline.Timeline{}, "", Unexplained, Unexplained, false},

	// The error number has a rule, and what the kernel showed contradicts it.
	{
		"EADDRNOTAVAIL after a segment", tcp.PhaseConnect, tcp.EADDRNOTAVAIL, 0,
		joined(40000, opened, closing(tcp.SynSent, 0, 0)), "", Unexplained, PortExhausted, true,
	},
	{
		"refused, closed with another error", tcp.PhaseConnect, tcp.ECONNREFUSED, 0,
		joined(1, opened, closing(tcp.SynSent, 0, tcp.ETIMEDOUT)), "", Unexplained, Refused, true,
	},
	{
		"ECONNRESET without an RST", tcp.PhaseReceive, tcp.ECONNRESET, 0,
		joined(1, opened, connected, closing(tcp.Established, 0, tcp.ECONNRESET)), "", Unexplained, Reset, true,
	},
	{
		"ETIMEDOUT, closed without an error", tcp.PhaseConnect, tcp.ETIMEDOUT, 0,
		joined(1, opened, closing(tcp.SynSent, 0, 0)), "", Unexplained, SynUnanswered, true,
	},
}

func TestIn(t *testing.T) {
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			tl := tt.kernel
			tl.Attempt = tcp.Attempt{Phase: tt.phase, Errno: tt.errno, Flags: tt.flags}
			if got, want := In(&tl, envOf(tt.name)), (Verdict{Cause: tt.traced, Detail: tt.detail}); got != want {
				t.Errorf("traced: %+v, want %+v", got, want)
			}
			bare := timeline.Timeline{Attempt: tl.Attempt}
			if got, want := Of(&bare, false), (Verdict{Cause: tt.untraced, Inferred: tt.inferred}); got != want {
				t.Errorf("untraced: %+v, want %+v", got, want)
			}
		})
	}
}

// TestEveryRule: each row decides about some case that no row before it says anything about.
func TestEveryRule(t *testing.T) {
	table := rules
	defer func() { rules = table }()
	for i, r := range table {
		reached := false
		for _, tt := range cases {
			tl := tt.kernel
			tl.Attempt = tcp.Attempt{Phase: tt.phase, Errno: tt.errno, Flags: tt.flags}
			rules = table[i : i+1]
			alone := In(&tl, envOf(tt.name))
			rules = table[:i]
			if alone.Cause == r.cause && alone.Detail == r.detail && In(&tl, envOf(tt.name)).Cause == Unexplained {
				reached = true
			}
		}
		if !reached {
			t.Errorf("no case is decided by rule %d (%s %s)", i, r.cause, r.detail)
		}
	}
}

// TestStalled: what is said of a SYN that was sent again.
func TestStalled(t *testing.T) {
	for _, tt := range []struct {
		tl     timeline.Timeline
		cause  Cause
		detail Detail
	}{
		{joined(1, opened, connected), SynUnanswered, ""},
		{joined(1, opened, ownRst, connected), TimedOutTimeWait, InTimeWait},
		{from(joined(1, opened, connected), noRoom), AcceptQueueFull, ""},
		{from(joined(1, opened, connected), dropped(tcp.CauseSynQueue, tcp.SynSent)), SynQueueFull, ""},
		{from(joined(1, opened, connected), dropped(tcp.CauseOtherDrop, tcp.SynSent)), SynUnanswered, DroppedOther},
		{from(joined(1, opened, connected), lastNoGo), SynUnanswered, ""}, // that was no SYN
	} {
		if cause, detail := Stalled(&tt.tl); cause != tt.cause || detail != tt.detail {
			t.Errorf("%+v: %s %s, want %s %s", tt.tl.Peer, cause, detail, tt.cause, tt.detail)
		}
	}
}

// TestEvidence: with a trace, a cause that the kernel can show is not believed
// unless it did.
func TestEvidence(t *testing.T) {
	for i, r := range rules {
		if r.kernel == nil {
			continue
		}
		for _, errno := range r.errnos {
			for phase := tcp.PhaseSocket; phase < tcp.PhaseDone; phase++ {
				a := tcp.Attempt{Phase: phase, Errno: errno}
				if r.program != nil && !r.program(&a) {
					continue
				}
				t.Run(fmt.Sprintf("%d/%s/%s", i, phase, errno), func(t *testing.T) {
					for what, tl := range map[string]timeline.Timeline{
						"no events":             {Attempt: a},
						"joined without events": {Attempt: a, Joined: true},
						"only its beginning":    {Attempt: a, Joined: true, NumSteps: 1, Steps: [timeline.MaxSteps]timeline.Step{opened}},
					} {
						if got := Of(&tl, true); got.Cause != Unexplained && !asksNothing(&a, got) {
							t.Errorf("%s: %+v", what, got)
						}
					}
					// Events that are there but are not this attempt's.
					tl := joined(0, opened, noSegment, gotReset)
					tl.Attempt, tl.Joined = a, false
					if got := Of(&tl, true); got.Cause != Unexplained && !asksNothing(&a, got) {
						t.Errorf("not joined: %+v", got)
					}
				})
			}
		}
	}
}

// asksNothing: the verdict is that of a rule to which what the program saw is enough.
func asksNothing(a *tcp.Attempt, v Verdict) bool {
	for i := range rules {
		if r := &rules[i]; r.fitsProgram(a) && r.kernel == nil {
			return v == Verdict{Cause: r.cause, Detail: r.detail}
		}
	}
	return false
}

// TestCauses: a name that reports and their readers use is unique, and every
// cause but the last has a rule.
func TestCauses(t *testing.T) {
	seen := make(map[Cause]bool)
	for _, r := range rules {
		seen[r.cause] = true
	}
	listed := make(map[Cause]bool)
	for _, c := range Causes {
		if listed[c] {
			t.Errorf("%s is listed twice", c)
		}
		listed[c] = true
		if !seen[c] && c != Unexplained {
			t.Errorf("no rule gives %s", c)
		}
		delete(seen, c)
	}
	for c := range seen {
		t.Errorf("a rule gives %q, which the list of causes does not have", c)
	}
}
