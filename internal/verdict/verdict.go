package verdict

import (
	"slices"

	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
)

// Cause names why an attempt failed.
type Cause string

// The causes.
const (
	PortExhausted    Cause = "port-exhausted"         // no source port of the range was left for the destination
	TupleBusy        Cause = "four-tuple-busy"        // the bound address and port are in use towards the destination
	BindConflict     Cause = "bind-conflict"          // the address or port is another socket's
	Refused          Cause = "refused"                // an RST answered the handshake, or an ICMP error like one
	AcceptQueueFull  Cause = "accept-queue-full"      // the listener dropped the SYNs: its accept queue was full
	SynQueueFull     Cause = "syn-queue-full"         // the listener dropped the SYNs: its SYN queue was full, without cookies
	SynUnanswered    Cause = "syn-unanswered"         // nothing answered the SYNs
	NeverAccepted    Cause = "never-accepted"         // connect() succeeded, and accept() never returned it
	Reset            Cause = "reset-by-peer"          // an RST ended the established connection
	AbortedByLinger  Cause = "aborted-by-linger"      // likewise: the peer closed with SO_LINGER {1,0}
	TimedOutTimeWait Cause = "timed-out-in-time-wait" // the peer's TIME_WAIT answered the SYNs, and tcp_rfc1337 kept it
	TimedOut         Cause = "timed-out"              // the peer of an established connection did not answer
	Unreachable      Cause = "unreachable"            // no route, or a router said so
	Destroyed        Cause = "destroyed"              // this end's socket was ended by SOCK_DESTROY (`ss -K`)
	FDLimit          Cause = "fd-limit"               // no file descriptor was left
	NoMemory         Cause = "no-memory"              // no memory for a socket or a segment
	Forbidden        Cause = "forbidden"              // a local policy refused it
	Local            Cause = "local"                  // this end's kernel refused the call; nothing was sent
	ClosedEarly      Cause = "closed-early"           // the peer closed before the whole reply came
	SelfConnect      Cause = "self-connect"           // the socket was connected to itself
	Interrupted      Cause = "interrupted"            // the run was stopped while it was under way
	Unexplained      Cause = "unexplained"            // no rule fits
)

// Causes are all causes, in the order in which help should list them.
var Causes = []Cause{
	PortExhausted, TupleBusy, BindConflict, Refused, AcceptQueueFull, SynQueueFull, SynUnanswered, NeverAccepted, Reset,
	AbortedByLinger, TimedOutTimeWait, TimedOut, Unreachable, Destroyed, FDLimit, NoMemory, Forbidden, Local, ClosedEarly,
	SelfConnect, Interrupted, Unexplained,
}

// Detail says more about a cause, where the other end was traced too; empty: nothing more is known.
type Detail string

// The details.
const (
	NoListener      Detail = "no-listener"       // of Refused: nobody listened
	AbortOnOverflow Detail = "abort-on-overflow" // of Refused: the accept queue was full, and tcp_abort_on_overflow is 1
	InTimeWait      Detail = "time-wait"         // of Refused, Reset: the peer's TIME_WAIT was in the way
	ICMPError       Detail = "icmp-error"        // of Refused, Unreachable: an ICMP error ended the handshake, and no RST
	NoRoute         Detail = "no-route"          // of Unreachable: this host had a route, and lost it
	NotSent         Detail = "not-sent"          // of SynUnanswered: this host's own packet filter dropped them
	DroppedOther    Detail = "dropped"           // of SynUnanswered: the listener dropped the SYNs, for another reason than a queue
	LastAckDropped  Detail = "last-ack-dropped"  // of NeverAccepted: the accept queue had no room for it
	InAcceptQueue   Detail = "in-accept-queue"   // of NeverAccepted: it waited there
	ListenerClosed  Detail = "listener-closed"   // of NeverAccepted: it waited there as the listener was closed
	UnreadData      Detail = "unread-data"       // of Reset: the peer closed before it had read all
	DataAfterClose  Detail = "data-after-close"  // of Reset: data came for a socket that the peer had closed
	NoSocket        Detail = "no-socket"         // of Reset: the peer had no such connection (any more)
	Aborted         Detail = "aborted"           // of Reset: the peer's end was aborted, for another reason
)

// Verdict is the cause of one failed attempt.
type Verdict struct {
	Cause  Cause
	Detail Detail
	// Inferred: from the error number alone, since no kernel events were seen.
	Inferred bool
}

// Env is what a verdict needs to know of where the attempt was made.
type Env struct {
	// Traced: the kernel's events were recorded.
	Traced bool
	// Reasons are this kernel's names for why an RST is sent (6.10 and later).
	Reasons map[uint32]string
	// EveryRst: each RST that a socket of this end got was recorded.
	EveryRst bool
	// RFC1337 and AbortOnOverflow: the sysctls tcp_rfc1337 and tcp_abort_on_overflow are 1.
	RFC1337, AbortOnOverflow bool
	// NeverAccepts: the server is one that never calls accept().
	NeverAccepts bool
}

// NewEnv is what the coverage and the sysctls of a trace tell; reasons are its kernel's names for why an RST is sent.
func NewEnv(traced bool, c tcp.Coverage, sysctls map[string]string, reasons map[uint32]string) Env {
	return Env{
		Traced: traced, Reasons: reasons, EveryRst: c[tcp.FactRstReceived] == tcp.Exact,
		RFC1337: sysctls["net.ipv4.tcp_rfc1337"] == "1", AbortOnOverflow: sysctls["net.ipv4.tcp_abort_on_overflow"] == "1",
	}
}

// rule is a row: the first that fits gives the cause.
type rule struct {
	cause  Cause
	detail Detail
	// errnos that the rule is about; empty: any.
	errnos []tcp.Errno
	// program says whether what the program saw fits; nil: always.
	program func(*tcp.Attempt) bool
	// kernel says whether what the kernel showed fits; nil: the kernel has
	// nothing to show, since it never got to a state change.
	kernel func(*timeline.Timeline, *Env) bool
	// refines: without a trace a later row says what is left of it.
	refines bool
}

var (
	refused = []tcp.Errno{tcp.ECONNREFUSED}
	reset   = []tcp.Errno{tcp.ECONNRESET, tcp.EPIPE}
	late    = []tcp.Errno{tcp.ETIMEDOUT}
	broken  = []tcp.Errno{tcp.ECONNRESET, tcp.EPIPE, tcp.ETIMEDOUT}
	// What the kernel finds itself, or a router tells it.
	unreachable = []tcp.Errno{tcp.ENETUNREACH, tcp.EHOSTUNREACH, tcp.ENETDOWN, tcp.EHOSTDOWN, tcp.ENONET}
	// What an ICMP error makes of a handshake (icmp_err_convert, tab_unreach), but for ECONNREFUSED. EACCES is also what a local
	// policy says, before there is a handshake.
	byICMP = []tcp.Errno{
		tcp.ENETUNREACH, tcp.EHOSTUNREACH, tcp.EHOSTDOWN, tcp.ENONET, tcp.ENOPROTOOPT, tcp.EOPNOTSUPP, tcp.EPROTO, tcp.EACCES,
	}
	afterICMP = []tcp.Errno{tcp.ECONNREFUSED, tcp.ENOPROTOOPT, tcp.EOPNOTSUPP, tcp.EPROTO, tcp.EACCES}
)

// rules are sorted from what is certain to what is left.
var rules = []rule{
	{cause: Interrupted, program: func(a *tcp.Attempt) bool { return a.Flags&tcp.Cancelled != 0 }},
	{cause: SelfConnect, program: func(a *tcp.Attempt) bool { return a.Flags&tcp.SelfConnected != 0 }},

	{cause: PortExhausted, errnos: []tcp.Errno{tcp.EADDRNOTAVAIL}, program: searching, kernel: failedInKernel(false)},
	{cause: TupleBusy, errnos: []tcp.Errno{tcp.EADDRNOTAVAIL}, program: connecting, kernel: failedInKernel(true)},
	{cause: BindConflict, errnos: []tcp.Errno{tcp.EADDRINUSE}, program: early},

	{cause: Refused, detail: InTimeWait, errnos: refused, program: connecting, kernel: all(closedWith(tcp.ECONNREFUSED), answeredByRst), refines: true},
	{cause: Refused, detail: NoListener, errnos: refused, program: connecting, kernel: all(closedWith(tcp.ECONNREFUSED), rstFrom(tcp.StateNone, tcp.Listen)), refines: true},
	{cause: Refused, detail: ICMPError, errnos: refused, program: connecting, kernel: all(closedWith(tcp.ECONNREFUSED), gotNoRst), refines: true},
	{cause: Refused, errnos: refused, program: connecting, kernel: closedWith(tcp.ECONNREFUSED)},
	{cause: Refused, detail: AbortOnOverflow, errnos: reset, kernel: all(gotRst, abortOnOverflow), refines: true},

	{cause: NeverAccepted, detail: LastAckDropped, errnos: broken, program: noReply, kernel: lastAckDropped, refines: true},
	{cause: NeverAccepted, detail: ListenerClosed, errnos: reset, program: noReply, kernel: all(gotRst, listenerClosed), refines: true},

	{cause: AbortedByLinger, errnos: reset, kernel: all(gotRst, peerLingered), refines: true},
	{cause: Reset, detail: UnreadData, errnos: reset, kernel: all(gotRst, peerHadUnread), refines: true},
	{cause: Reset, detail: DataAfterClose, errnos: reset, kernel: all(gotRst, rstBecause("TCP_ABORT_ON_DATA")), refines: true},
	{cause: Reset, detail: InTimeWait, errnos: reset, kernel: all(gotRst, rstFrom(tcp.TimeWait)), refines: true},
	{cause: Reset, detail: NoSocket, errnos: reset, kernel: all(gotRst, rstFrom(tcp.StateNone, tcp.Listen)), refines: true},
	{cause: Reset, detail: Aborted, errnos: reset, kernel: all(gotRst, sentRst), refines: true},
	{cause: Reset, errnos: reset, program: connecting, kernel: gotRst},
	{cause: Reset, errnos: reset, program: established, kernel: gotRst},
	// A send after the peer's FIN was answered by RST, which came first.
	{cause: Reset, errnos: []tcp.Errno{tcp.EPIPE}, program: established, kernel: closedWith(tcp.EPIPE, tcp.ECONNRESET)},
	{cause: ClosedEarly, errnos: []tcp.Errno{tcp.EPROTO}, program: func(a *tcp.Attempt) bool { return a.Flags&tcp.ShortReply != 0 }},

	{cause: TimedOutTimeWait, errnos: late, program: connecting, kernel: keptTimeWait, refines: true},
	{cause: AcceptQueueFull, errnos: late, program: connecting, kernel: synDropped(tcp.CauseAcceptQueue), refines: true},
	{cause: SynQueueFull, errnos: late, program: connecting, kernel: synDropped(tcp.CauseSynQueue), refines: true},
	{cause: SynUnanswered, detail: DroppedOther, errnos: late, program: connecting, kernel: synDropped(tcp.CauseOtherDrop), refines: true},
	{cause: SynUnanswered, detail: NotSent, errnos: late, program: connecting, kernel: keptBack, refines: true},
	{cause: SynUnanswered, errnos: late, program: both(connecting, ownTimeout)},
	{cause: SynUnanswered, errnos: late, program: connecting, kernel: closedWith(tcp.ETIMEDOUT)},
	{cause: NeverAccepted, detail: InAcceptQueue, errnos: late, program: noReply, kernel: neverAccepts, refines: true},
	{cause: TimedOut, errnos: late, program: both(established, ownTimeout)},
	{cause: TimedOut, errnos: late, program: established, kernel: closedWith(tcp.ETIMEDOUT)},

	// tcp_abort, of sock_diag or of a BPF program.
	{cause: Destroyed, errnos: []tcp.Errno{tcp.ECONNABORTED}, kernel: closedWith(tcp.ECONNABORTED)},

	{cause: Unreachable, detail: NoRoute, errnos: unreachable, kernel: all(closedWith(unreachable...), lostRoute), refines: true},
	{cause: Unreachable, detail: ICMPError, errnos: byICMP, program: connecting, kernel: closedWith(byICMP...), refines: true},
	{cause: Unreachable, errnos: unreachable},
	// A route of type blackhole (fib_props), or an address of a link without saying which link.
	// The others come with an ICMP error only.
	{cause: Unreachable, errnos: []tcp.Errno{tcp.EINVAL, tcp.ENOPROTOOPT, tcp.EOPNOTSUPP, tcp.EPROTO}, program: connecting},
	// It timed out, and ICMP errors had come about its segments (sk_err_soft).
	{cause: Unreachable, errnos: afterICMP, program: established, kernel: closedWith(afterICMP...)},
	{cause: FDLimit, errnos: []tcp.Errno{tcp.EMFILE, tcp.ENFILE}},
	{cause: NoMemory, errnos: []tcp.Errno{tcp.ENOMEM, tcp.ENOBUFS}},
	{cause: Forbidden, errnos: []tcp.Errno{tcp.EPERM, tcp.EACCES}},
	// The kernel refused socket(), setsockopt() or bind() for what was asked of it.
	{cause: Local, errnos: []tcp.Errno{tcp.EINVAL, tcp.EADDRNOTAVAIL, tcp.EAGAIN, tcp.ENOPROTOOPT, 93, 94, tcp.EOPNOTSUPP, 97}, program: early},
}

// Of is In with nothing known of where the attempt was made but whether it was traced.
func Of(t *timeline.Timeline, traced bool) Verdict { return In(t, &Env{Traced: traced}) }

// In returns why a failed attempt failed. A rule that asks for the kernel's events needs them if they were recorded.
func In(t *timeline.Timeline, env *Env) Verdict {
	for i := range rules {
		r := &rules[i]
		switch {
		case !r.fitsProgram(&t.Attempt), r.refines && !env.Traced:
		case r.kernel == nil:
			return Verdict{Cause: r.cause, Detail: r.detail}
		case !env.Traced:
			return Verdict{Cause: r.cause, Inferred: true}
		case t.Joined && r.kernel(t, env):
			return Verdict{Cause: r.cause, Detail: r.detail}
		}
	}
	return Verdict{Cause: Unexplained}
}

func (r *rule) fitsProgram(a *tcp.Attempt) bool {
	if a.Errno == 0 {
		return false // it says nothing
	}
	if r.program != nil && !r.program(a) {
		return false
	}
	return len(r.errnos) == 0 || slices.Contains(r.errnos, a.Errno)
}

// Stalled returns why the SYN of an attempt had to be sent again, though it failed otherwise or not at all; SynUnanswered where
// the listener was not seen to drop it.
func Stalled(t *timeline.Timeline) (Cause, Detail) {
	switch {
	case answeredByRst(t, nil):
		return TimedOutTimeWait, InTimeWait
	case synDropped(tcp.CauseAcceptQueue)(t, nil):
		return AcceptQueueFull, ""
	case synDropped(tcp.CauseSynQueue)(t, nil):
		return SynQueueFull, ""
	case synDropped(tcp.CauseOtherDrop)(t, nil):
		return SynUnanswered, DroppedOther
	}
	return SynUnanswered, ""
}

// HeldUpByLastAck reports whether the listener dropped the last ACK of the handshake and never came to an
// established connection.
func HeldUpByLastAck(t *timeline.Timeline) bool { return lastAckDropped(t, nil) }
