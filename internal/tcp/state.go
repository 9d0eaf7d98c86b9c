package tcp

import (
	"fmt"
	"strings"
)

// State is a TCP state with the kernel's own number (include/net/tcp_states.h;
// the numbers are user-space ABI through sock_diag and the tracepoint
// sock:inet_sock_set_state).
type State uint8

// The states. NewSynRecv is the state of a request socket (a SYN that was
// answered but not yet acknowledged); the state tracepoint never shows it, nor
// TimeWait, whose socket is another, smaller object.
const (
	StateNone State = iota
	Established
	SynSent
	SynRecv
	FinWait1
	FinWait2
	TimeWait
	Close
	CloseWait
	LastAck
	Listen
	Closing
	NewSynRecv
	BoundInactive
	numStates
)

// NumStates is one more than the largest State.
const NumStates = int(numStates)

// stateNames has, per state, bcc's spelling (text output) and OpenTelemetry's
// (JSON, network.connection.state).
var stateNames = [numStates]struct{ text, json string }{
	StateNone:     {"NONE", "none"},
	Established:   {"ESTABLISHED", "established"},
	SynSent:       {"SYN_SENT", "syn_sent"},
	SynRecv:       {"SYN_RECV", "syn_received"},
	FinWait1:      {"FIN_WAIT1", "fin_wait_1"},
	FinWait2:      {"FIN_WAIT2", "fin_wait_2"},
	TimeWait:      {"TIME_WAIT", "time_wait"},
	Close:         {"CLOSE", "closed"},
	CloseWait:     {"CLOSE_WAIT", "close_wait"},
	LastAck:       {"LAST_ACK", "last_ack"},
	Listen:        {"LISTEN", "listen"},
	Closing:       {"CLOSING", "closing"},
	NewSynRecv:    {"NEW_SYN_RECV", "new_syn_received"},
	BoundInactive: {"BOUND_INACTIVE", "bound_inactive"},
}

// String returns the state as bcc's tools print it: FIN_WAIT1, TIME_WAIT.
func (s State) String() string {
	if s < numStates {
		return stateNames[s].text
	}
	return fmt.Sprintf("STATE_%d", uint8(s))
}

// JSON returns the state as OpenTelemetry spells it: fin_wait_1, time_wait.
func (s State) JSON() string {
	if s < numStates {
		return stateNames[s].json
	}
	return fmt.Sprintf("state_%d", uint8(s))
}

// ParseState reads a state in any spelling in use: bcc's FIN_WAIT1, the
// kernel's TCP_FIN_WAIT1, ss's fin-wait-1, OpenTelemetry's fin_wait_1.
func ParseState(text string) (State, error) {
	want := squeeze(strings.TrimPrefix(strings.ToUpper(text), "TCP_"))
	for s, n := range stateNames {
		if squeeze(n.text) == want || squeeze(n.json) == want {
			return State(s), nil
		}
	}
	switch want {
	case "ESTAB":
		return Established, nil
	case "UNCONN", "UNCONNECTED":
		return Close, nil
	case "LISTENING":
		return Listen, nil
	}
	return StateNone, fmt.Errorf("no TCP state is called %q", text)
}

// squeeze upper-cases and drops what the spellings differ in.
func squeeze(s string) string {
	return strings.NewReplacer("_", "", "-", "", " ", "").Replace(strings.ToUpper(s))
}
