package tcp

import (
	"net/netip"
	"strings"
	"testing"
)

// TestStateNames holds the three spellings to their sources: the numbers to
// include/net/tcp_states.h, text to bcc's tcpstates, JSON to OpenTelemetry's
// network.connection.state.
func TestStateNames(t *testing.T) {
	for _, tt := range []struct {
		state      State
		number     uint8
		text, json string
	}{
		{StateNone, 0, "NONE", "none"},
		{Established, 1, "ESTABLISHED", "established"},
		{SynSent, 2, "SYN_SENT", "syn_sent"},
		{SynRecv, 3, "SYN_RECV", "syn_received"},
		{FinWait1, 4, "FIN_WAIT1", "fin_wait_1"},
		{FinWait2, 5, "FIN_WAIT2", "fin_wait_2"},
		{TimeWait, 6, "TIME_WAIT", "time_wait"},
		{Close, 7, "CLOSE", "closed"},
		{CloseWait, 8, "CLOSE_WAIT", "close_wait"},
		{LastAck, 9, "LAST_ACK", "last_ack"},
		{Listen, 10, "LISTEN", "listen"},
		{Closing, 11, "CLOSING", "closing"},
		{NewSynRecv, 12, "NEW_SYN_RECV", "new_syn_received"},
		{BoundInactive, 13, "BOUND_INACTIVE", "bound_inactive"},
		{numStates, 14, "STATE_14", "state_14"},
		{255, 255, "STATE_255", "state_255"},
	} {
		if uint8(tt.state) != tt.number {
			t.Errorf("%s is %d, want %d", tt.text, tt.state, tt.number)
		}
		if got := tt.state.String(); got != tt.text {
			t.Errorf("State(%d).String() = %q, want %q", tt.number, got, tt.text)
		}
		if got := tt.state.JSON(); got != tt.json {
			t.Errorf("State(%d).JSON() = %q, want %q", tt.number, got, tt.json)
		}
	}
}

func TestParseState(t *testing.T) {
	for s := State(0); s < numStates; s++ {
		for _, text := range []string{
			s.String(), s.JSON(), "TCP_" + s.String(),
			strings.ToLower(s.String()), strings.ToUpper(s.JSON()), strings.ReplaceAll(s.JSON(), "_", "-"),
		} {
			if got, err := ParseState(text); err != nil || got != s {
				t.Errorf("ParseState(%q) = %v, %v; want %v", text, got, err, s)
			}
		}
	}
	for text, want := range map[string]State{
		// ss(8), misc/ss.c sstate_name and sstate_namel.
		"ESTAB": Established, "estab": Established, "established": Established, "SYN-SENT": SynSent, "syn-sent": SynSent,
		"SYN-RECV": SynRecv, "syn-recv": SynRecv, "FIN-WAIT-1": FinWait1, "fin-wait-1": FinWait1, "fin-wait-2": FinWait2,
		"TIME-WAIT": TimeWait, "time-wait": TimeWait, "UNCONN": Close, "unconn": Close, "unconnected": Close, "closed": Close,
		"CLOSE-WAIT": CloseWait, "close-wait": CloseWait, "LAST-ACK": LastAck, "last-ack": LastAck,
		"listening": Listen, "listen": Listen, "CLOSING": Closing, "bound-inactive": BoundInactive,
		// include/net/tcp_states.h.
		"TCP_ESTABLISHED": Established, "TCP_SYN_SENT": SynSent, "TCP_SYN_RECV": SynRecv, "TCP_FIN_WAIT1": FinWait1,
		"TCP_FIN_WAIT2": FinWait2, "TCP_TIME_WAIT": TimeWait, "TCP_CLOSE": Close, "TCP_CLOSE_WAIT": CloseWait,
		"TCP_LAST_ACK": LastAck, "TCP_LISTEN": Listen, "TCP_CLOSING": Closing, "TCP_NEW_SYN_RECV": NewSynRecv,
		"TCP_BOUND_INACTIVE": BoundInactive,
		// RFC 9293, netstat(8).
		"FIN-WAIT-2": FinWait2, "SYN-RECEIVED": SynRecv, "syn received": SynRecv, "FIN_WAIT_1": FinWait1,
	} {
		if got, err := ParseState(text); err != nil || got != want {
			t.Errorf("ParseState(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "TCP_", "FIN_WAIT", "FIN_WAIT3", "6", "ESTABLISHED!", "STATE_14"} {
		if got, err := ParseState(text); err == nil {
			t.Errorf("ParseState(%q) = %v, want an error", text, got)
		} else if !strings.Contains(err.Error(), text) {
			t.Errorf("ParseState(%q): %q does not name it", text, err)
		}
	}
}

// TestNames checks that each table has a name of its own for every number, and
// one that can be told for the numbers after it.
func TestNames(t *testing.T) {
	for _, tt := range []struct {
		what        string
		first, last int
		name        func(int) string
		beyond      string
	}{
		{"Kind", 1, int(numKinds) - 1, func(i int) string { return Kind(i).String() }, "kind-"},
		{"Cause", 1, int(numCauses) - 1, func(i int) string { return Cause(i).String() }, "cause-"},
		{"Phase", 0, int(numPhases) - 1, func(i int) string { return Phase(i).String() }, "phase-"},
		{"State", 0, int(numStates) - 1, func(i int) string { return State(i).String() }, "STATE_"},
		{"State.JSON", 0, int(numStates) - 1, func(i int) string { return State(i).JSON() }, "state_"},
	} {
		seen := make(map[string]int)
		for i := tt.first; i <= tt.last; i++ {
			name := tt.name(i)
			if other, ok := seen[name]; ok || name == "" || strings.HasPrefix(name, tt.beyond) {
				t.Errorf("%s %d is called %q (as is %d)", tt.what, i, name, other)
			}
			seen[name] = i
		}
		for _, i := range []int{tt.last + 1, 255} {
			if name := tt.name(i); !strings.HasPrefix(name, tt.beyond) {
				t.Errorf("%s %d, which does not exist, is called %q", tt.what, i, name)
			}
		}
	}
	if got := CauseNone.String(); got != "" {
		t.Errorf("CauseNone is called %q", got)
	}
	if got := Kind(0).String(); got != "kind-0" {
		t.Errorf("Kind(0) is called %q", got)
	}
	if NumKinds != int(KindSnapshot)+1 || NumCauses != int(CauseOtherDrop)+1 {
		t.Errorf("NumKinds %d and NumCauses %d are not one more than the largest", NumKinds, NumCauses)
	}
}

// TestWords holds names that the command line promises (CLI.md).
func TestWords(t *testing.T) {
	for want, got := range map[string]string{
		"state": KindState.String(), "rst-sent": KindRstSent.String(), "rst-received": KindRstReceived.String(),
		"tw-enter": KindTWEnter.String(), "tw-end": KindTWEnd.String(), "tw-overflow": KindTWOverflow.String(),

		"expired": CauseExpired.String(), "reused-by-connect": CauseReusedByConnect.String(),
		"replaced-by-syn": CauseReplacedBySyn.String(), "killed-by-rst": CauseKilledByRst.String(),
		"purged": CausePurged.String(), "destroyed": CauseDestroyed.String(),

		"socket": PhaseSocket.String(), "bind": PhaseBind.String(), "connect": PhaseConnect.String(),
		"send": PhaseSend.String(), "receive": PhaseReceive.String(), "close": PhaseClose.String(),

		"exact": string(Exact), "inferred": string(Inferred), "not observable": string(NotObservable),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestErrno(t *testing.T) {
	for e, name := range errnoNames {
		if got := e.String(); got != name {
			t.Errorf("Errno(%d) is called %q, want %q", e, got, name)
		}
		for _, text := range []string{name, strings.ToLower(name)} {
			if got, err := ParseErrno(text); err != nil || got != e {
				t.Errorf("ParseErrno(%q) = %d, %v; want %d", text, got, err, e)
			}
		}
	}
	if got := Errno(0).String(); got != "" {
		t.Errorf("no error is called %q", got)
	}
	if got := Errno(4095).String(); got != "errno 4095" {
		t.Errorf("Errno(4095) is called %q", got)
	}
	for _, text := range []string{"", "ENOSUCH", "98"} {
		if got, err := ParseErrno(text); err == nil {
			t.Errorf("ParseErrno(%q) = %v, want an error", text, got)
		}
	}
}

func TestAttempt(t *testing.T) {
	for p := Phase(0); p < numPhases; p++ {
		a := Attempt{Phase: p}
		if got, want := a.Failed(), p != PhaseDone; got != want {
			t.Errorf("phase %s: Failed() = %t", p, got)
		}
		if got, want := a.ReachedConnect(), p != PhaseSocket && p != PhaseBind; got != want {
			t.Errorf("phase %s: ReachedConnect() = %t", p, got)
		}
	}
}

func TestFourTuple(t *testing.T) {
	tuple := FourTuple{netip.MustParseAddrPort("198.18.0.1:40000"), netip.MustParseAddrPort("[2001:2::1]:7")}
	if got, want := tuple.String(), "198.18.0.1:40000 > [2001:2::1]:7"; got != want {
		t.Errorf("String() = %q, want %q", got, want)
	}
	if got := tuple.Reverse(); got.Local != tuple.Peer || got.Peer != tuple.Local || got.Reverse() != tuple {
		t.Errorf("Reverse() = %v", got)
	}
}
