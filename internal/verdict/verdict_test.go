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

// cases are failed attempts, and the row of the table that decides in a traced
// run; rule is -1 for none.
var cases = []struct {
	name     string
	phase    tcp.Phase
	errno    tcp.Errno
	flags    tcp.AttemptFlags
	kernel   timeline.Timeline
	rule     int
	traced   Cause
	untraced Cause
	inferred bool // without a trace
}{
	{"stopped in connect", tcp.PhaseConnect, tcp.ECANCELED, tcp.Cancelled, joined(1, opened), 0, Interrupted, Interrupted, false},
	{"stopped in receive", tcp.PhaseReceive, tcp.ECANCELED, tcp.Cancelled, timeline.Timeline{}, 0, Interrupted, Interrupted, false},
	{"self-connect", tcp.PhaseConnect, tcp.EADDRINUSE, tcp.SelfConnected, joined(7, opened, connected), 1, SelfConnect, SelfConnect, false},

	{"no port", tcp.PhaseConnect, tcp.EADDRNOTAVAIL, 0, joined(0, opened, noSegment), 2, PortExhausted, PortExhausted, true},
	{"bound port busy", tcp.PhaseConnect, tcp.EADDRNOTAVAIL, 0, joined(5000, opened, noSegment), 3, TupleBusy, PortExhausted, true},
	{"bind", tcp.PhaseBind, tcp.EADDRINUSE, 0, timeline.Timeline{}, 4, BindConflict, BindConflict, false},

	{
		"refused", tcp.PhaseConnect, tcp.ECONNREFUSED, 0,
		joined(1, opened, closing(tcp.SynSent, 0, tcp.ECONNREFUSED)), 5, Refused, Refused, true,
	},
	{
		"reset in the handshake", tcp.PhaseConnect, tcp.ECONNRESET, 0,
		joined(1, opened, connected, gotReset), 6, Reset, Reset, true,
	},
	{
		"reset while sending", tcp.PhaseSend, tcp.ECONNRESET, 0,
		joined(1, opened, connected, gotReset, closing(tcp.Established, 0, tcp.ECONNRESET)), 7, Reset, Reset, true,
	},
	{"reset, EPIPE", tcp.PhaseSend, tcp.EPIPE, 0, joined(1, opened, connected, gotReset), 7, Reset, Reset, true},
	{
		"EPIPE whose RST was not seen", tcp.PhaseSend, tcp.EPIPE, 0,
		joined(1, opened, connected, closing(tcp.CloseWait, 0, tcp.EPIPE)), 8, Reset, Reset, true,
	},
	{"short reply", tcp.PhaseReceive, tcp.EPROTO, tcp.ShortReply, joined(1, opened, connected), 9, ClosedEarly, ClosedEarly, false},
	{"own timeout", tcp.PhaseReceive, tcp.ETIMEDOUT, tcp.OwnTimeout, joined(1, opened, connected), 10, TimedOut, TimedOut, false},
	{
		"kernel's timeout", tcp.PhaseConnect, tcp.ETIMEDOUT, 0,
		joined(1, opened, closing(tcp.SynSent, 0, tcp.ETIMEDOUT)), 11, TimedOut, TimedOut, true,
	},
	{"ENETUNREACH", tcp.PhaseConnect, tcp.ENETUNREACH, 0, timeline.Timeline{}, 12, Unreachable, Unreachable, false},
	{"EHOSTUNREACH", tcp.PhaseConnect, tcp.EHOSTUNREACH, 0, joined(1, opened), 12, Unreachable, Unreachable, false},
	{"ENETDOWN", tcp.PhaseConnect, 100, 0, timeline.Timeline{}, 12, Unreachable, Unreachable, false},
	{"EHOSTDOWN", tcp.PhaseConnect, 112, 0, timeline.Timeline{}, 12, Unreachable, Unreachable, false},
	{"EMFILE", tcp.PhaseSocket, tcp.EMFILE, 0, timeline.Timeline{}, 13, FDLimit, FDLimit, false},
	{"ENFILE", tcp.PhaseSocket, tcp.ENFILE, 0, timeline.Timeline{}, 13, FDLimit, FDLimit, false},
	{"ENOMEM", tcp.PhaseSocket, tcp.ENOMEM, 0, timeline.Timeline{}, 14, NoMemory, NoMemory, false},
	{"ENOBUFS", tcp.PhaseSend, tcp.ENOBUFS, 0, joined(1, opened), 14, NoMemory, NoMemory, false},
	{"EPERM", tcp.PhaseConnect, tcp.EPERM, 0, joined(1, opened), 15, Forbidden, Forbidden, false},
	{"EACCES", tcp.PhaseConnect, tcp.EACCES, 0, timeline.Timeline{}, 15, Forbidden, Forbidden, false},

	// Nothing fits.
	{"EADDRINUSE of connect", tcp.PhaseConnect, tcp.EADDRINUSE, 0, joined(1, opened), -1, Unexplained, Unexplained, false},
	{"EADDRNOTAVAIL of bind", tcp.PhaseBind, tcp.EADDRNOTAVAIL, 0, timeline.Timeline{}, -1, Unexplained, Unexplained, false},
	{"refused after connect", tcp.PhaseSend, tcp.ECONNREFUSED, 0, joined(1, opened, connected), -1, Unexplained, Unexplained, false},
	{"EPROTO of its own", tcp.PhaseReceive, tcp.EPROTO, 0, joined(1, opened), -1, Unexplained, Unexplained, false},
	{"ECANCELED of its own", tcp.PhaseConnect, tcp.ECANCELED, 0, joined(1, opened), -1, Unexplained, Unexplained, false},
	{"EINVAL", tcp.PhaseSocket, tcp.EINVAL, 0, timeline.Timeline{}, -1, Unexplained, Unexplained, false},
	{"no errno", tcp.PhaseReceive, 0, 0, joined(1, opened, connected), -1, Unexplained, Unexplained, false},
	{"unknown errno", tcp.PhaseConnect, 4000, 0, timeline.Timeline{}, -1, Unexplained, Unexplained, false},

	// The error number has a rule, and what the kernel showed contradicts it.
	{
		"EADDRNOTAVAIL after a segment", tcp.PhaseConnect, tcp.EADDRNOTAVAIL, 0,
		joined(40000, opened, closing(tcp.SynSent, 0, 0)), -1, Unexplained, PortExhausted, true,
	},
	{
		"refused, closed with another error", tcp.PhaseConnect, tcp.ECONNREFUSED, 0,
		joined(1, opened, closing(tcp.SynSent, 0, tcp.ETIMEDOUT)), -1, Unexplained, Refused, true,
	},
	{
		"ECONNRESET without an RST", tcp.PhaseReceive, tcp.ECONNRESET, 0,
		joined(1, opened, connected, closing(tcp.Established, 0, tcp.ECONNRESET)), -1, Unexplained, Reset, true,
	},
	{
		"ETIMEDOUT, closed without an error", tcp.PhaseConnect, tcp.ETIMEDOUT, 0,
		joined(1, opened, closing(tcp.SynSent, 0, 0)), -1, Unexplained, TimedOut, true,
	},
}

func TestOf(t *testing.T) {
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			tl := tt.kernel
			tl.Attempt = tcp.Attempt{Phase: tt.phase, Errno: tt.errno, Flags: tt.flags}
			if got, want := Of(&tl, true), (Verdict{Cause: tt.traced}); got != want {
				t.Errorf("traced: %+v, want %+v", got, want)
			}
			bare := timeline.Timeline{Attempt: tl.Attempt}
			if got, want := Of(&bare, false), (Verdict{tt.untraced, tt.inferred}); got != want {
				t.Errorf("untraced: %+v, want %+v", got, want)
			}
		})
	}
}

// TestEveryRule takes the rows out one by one: each must decide about a case that
// names it, and no row before it may.
func TestEveryRule(t *testing.T) {
	all := rules
	defer func() { rules = all }()
	for i, r := range all {
		reached := false
		for _, tt := range cases {
			if tt.rule != i {
				continue
			}
			tl := tt.kernel
			tl.Attempt = tcp.Attempt{Phase: tt.phase, Errno: tt.errno, Flags: tt.flags}
			rules = all[i : i+1]
			if got := Of(&tl, true).Cause; got != r.cause {
				t.Errorf("rule %d (%s) alone says %s about %q", i, r.cause, got, tt.name)
			}
			rules = all[:i]
			if got := Of(&tl, true).Cause; got != Unexplained {
				t.Errorf("%q is decided by a row before rule %d: %s", tt.name, i, got)
			}
			reached = true
		}
		if !reached {
			t.Errorf("no case reaches rule %d (%s)", i, r.cause)
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
						if got := Of(&tl, true); got.Cause != Unexplained {
							t.Errorf("%s: %+v", what, got)
						}
					}
					// Events that are there but are not this attempt's.
					tl := joined(0, opened, noSegment, gotReset)
					tl.Attempt, tl.Joined = a, false
					if got := Of(&tl, true); got.Cause != Unexplained {
						t.Errorf("not joined: %+v", got)
					}
				})
			}
		}
	}
}

// TestCauses: a name that reports and their readers use is unique, and every
// cause but the last has a rule.
func TestCauses(t *testing.T) {
	seen := make(map[Cause]bool)
	for _, r := range rules {
		seen[r.cause] = true
	}
	for _, c := range []Cause{
		PortExhausted, TupleBusy, BindConflict, Refused, Reset, TimedOut, Unreachable, FDLimit, NoMemory,
		Forbidden, ClosedEarly, SelfConnect, Interrupted,
	} {
		if !seen[c] {
			t.Errorf("no rule gives %s", c)
		}
		delete(seen, c)
	}
	for c := range seen {
		t.Errorf("a rule gives %q, which the list of causes does not have", c)
	}
}
