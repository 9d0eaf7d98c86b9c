package verdict

import (
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
)

// Cause names why an attempt failed.
type Cause string

// The causes.
const (
	PortExhausted Cause = "port-exhausted"  // no source port of the range was left for the destination
	TupleBusy     Cause = "four-tuple-busy" // the bound address and port are in use towards the destination
	BindConflict  Cause = "bind-conflict"   // the address or port is another socket's
	Refused       Cause = "refused"         // an RST answered the SYN
	Reset         Cause = "reset"           // an RST ended the established connection
	TimedOut      Cause = "timed-out"       // the peer did not answer
	Unreachable   Cause = "unreachable"     // no route, or a router said so
	FDLimit       Cause = "fd-limit"        // no file descriptor was left
	NoMemory      Cause = "no-memory"       // no memory for a socket or a segment
	Forbidden     Cause = "forbidden"       // a local policy refused it
	ClosedEarly   Cause = "closed-early"    // the peer closed before the whole reply came
	SelfConnect   Cause = "self-connect"    // the socket was connected to itself
	Interrupted   Cause = "interrupted"     // the run was stopped while it was under way
	Unexplained   Cause = "unexplained"     // no rule fits
)

// Verdict is the cause of one failed attempt.
type Verdict struct {
	Cause Cause
	// Inferred: from the error number alone, since no kernel events were seen.
	Inferred bool
}

// rule is a row: the first that fits gives the cause.
type rule struct {
	cause Cause
	// errnos that the rule is about; empty: any.
	errnos []tcp.Errno
	// program says whether what the program saw fits; nil: always.
	program func(*tcp.Attempt) bool
	// kernel says whether what the kernel showed fits; nil: the kernel has
	// nothing to show, since it never got to a state change.
	kernel func(*timeline.Timeline) bool
}

// searching: connect() was to choose the port.
func searching(a *tcp.Attempt) bool { return connecting(a) && a.LocalPort == 0 }

func connecting(a *tcp.Attempt) bool { return a.Phase == tcp.PhaseConnect }
func early(a *tcp.Attempt) bool      { return a.Phase < tcp.PhaseConnect }
func established(a *tcp.Attempt) bool {
	return a.Phase > tcp.PhaseConnect
}

// closedWith fits if the kernel closed the socket with that error itself.
func closedWith(errnos ...tcp.Errno) func(*timeline.Timeline) bool {
	return func(t *timeline.Timeline) bool {
		s := t.ClosedWith()
		if s == nil {
			return false
		}
		for _, e := range errnos {
			if s.Errno == e {
				return true
			}
		}
		return false
	}
}

func gotRst(t *timeline.Timeline) bool {
	return t.Find(func(s *timeline.Step) bool { return s.Kind == tcp.KindRstReceived }) != nil
}

// failedInKernel fits if connect() failed before a segment was sent; withPort
// says whether a source port was chosen or bound by then.
func failedInKernel(withPort bool) func(*timeline.Timeline) bool {
	return func(t *timeline.Timeline) bool {
		return t.FailedInKernel() != nil && (t.Tuple.Local.Port() != 0) == withPort
	}
}

// rules are sorted from what is certain to what is left.
var rules = []rule{
	{cause: Interrupted, program: func(a *tcp.Attempt) bool { return a.Flags&tcp.Cancelled != 0 }},
	{cause: SelfConnect, program: func(a *tcp.Attempt) bool { return a.Flags&tcp.SelfConnected != 0 }},

	{cause: PortExhausted, errnos: []tcp.Errno{tcp.EADDRNOTAVAIL}, program: searching, kernel: failedInKernel(false)},
	{cause: TupleBusy, errnos: []tcp.Errno{tcp.EADDRNOTAVAIL}, program: connecting, kernel: failedInKernel(true)},
	{cause: BindConflict, errnos: []tcp.Errno{tcp.EADDRINUSE}, program: early},

	{cause: Refused, errnos: []tcp.Errno{tcp.ECONNREFUSED}, program: connecting, kernel: closedWith(tcp.ECONNREFUSED)},
	{cause: Reset, errnos: []tcp.Errno{tcp.ECONNRESET, tcp.EPIPE}, program: connecting, kernel: gotRst},
	{cause: Reset, errnos: []tcp.Errno{tcp.ECONNRESET, tcp.EPIPE}, program: established, kernel: gotRst},
	// A send after the peer's FIN was answered by RST, which came first.
	{cause: Reset, errnos: []tcp.Errno{tcp.EPIPE}, program: established, kernel: closedWith(tcp.EPIPE, tcp.ECONNRESET)},
	{cause: ClosedEarly, errnos: []tcp.Errno{tcp.EPROTO}, program: func(a *tcp.Attempt) bool { return a.Flags&tcp.ShortReply != 0 }},

	{cause: TimedOut, errnos: []tcp.Errno{tcp.ETIMEDOUT}, program: func(a *tcp.Attempt) bool { return a.Flags&tcp.OwnTimeout != 0 }},
	{cause: TimedOut, errnos: []tcp.Errno{tcp.ETIMEDOUT}, kernel: closedWith(tcp.ETIMEDOUT)},

	{cause: Unreachable, errnos: []tcp.Errno{tcp.ENETUNREACH, tcp.EHOSTUNREACH, 100, 112}},
	{cause: FDLimit, errnos: []tcp.Errno{tcp.EMFILE, tcp.ENFILE}},
	{cause: NoMemory, errnos: []tcp.Errno{tcp.ENOMEM, tcp.ENOBUFS}},
	{cause: Forbidden, errnos: []tcp.Errno{tcp.EPERM, tcp.EACCES}},
}

// Of returns why a failed attempt failed. traced says whether the kernel's events
// were recorded: a rule that asks for them then needs them.
func Of(t *timeline.Timeline, traced bool) Verdict {
	for i := range rules {
		r := &rules[i]
		if !r.fitsProgram(&t.Attempt) {
			continue
		}
		if r.kernel == nil {
			return Verdict{Cause: r.cause}
		}
		if !traced {
			return Verdict{Cause: r.cause, Inferred: true}
		}
		if t.Joined && r.kernel(t) {
			return Verdict{Cause: r.cause}
		}
	}
	return Verdict{Cause: Unexplained}
}

func (r *rule) fitsProgram(a *tcp.Attempt) bool {
	if r.program != nil && !r.program(a) {
		return false
	}
	if len(r.errnos) == 0 {
		return true
	}
	for _, e := range r.errnos {
		if a.Errno == e {
			return true
		}
	}
	return false
}
