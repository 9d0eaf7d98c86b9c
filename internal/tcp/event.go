package tcp

import "fmt"

// Kind says what an Event reports. The numbers are those of enum event_kind in
// bpf/event.h; a test holds the two together.
type Kind uint8

// The kinds, in the words of the command line (twtrace trace --kind).
const (
	KindState            Kind = iota + 1 // a full socket changed its state
	KindRstSent                          // this host sent an RST
	KindRstReceived                      // a full socket received an acceptable RST
	KindTWEnter                          // a TIME_WAIT minisock was made (see Event.Substate)
	KindTWEnd                            // a TIME_WAIT minisock ended (see Event.Cause)
	KindTWOverflow                       // TIME_WAIT was skipped: tcp_max_tw_buckets, or no memory
	KindRetransmit                       // a full socket sent a segment again; in SYN_SENT its SYN
	KindSynAckRetransmit                 // a listener sent a SYN+ACK again
	numKinds
)

// NumKinds is one more than the largest Kind: the length of an array indexed by Kind.
const NumKinds = int(numKinds)

var kindNames = [numKinds]string{
	KindState:            "state",
	KindRstSent:          "rst-sent",
	KindRstReceived:      "rst-received",
	KindTWEnter:          "tw-enter",
	KindTWEnd:            "tw-end",
	KindTWOverflow:       "tw-overflow",
	KindRetransmit:       "retransmit",
	KindSynAckRetransmit: "synack-retransmit",
}

func (k Kind) String() string {
	if k > 0 && k < numKinds {
		return kindNames[k]
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// Cause says how a TIME_WAIT ended. The numbers are those of enum tw_cause in
// bpf/event.h.
type Cause uint8

// The six ends of a TIME_WAIT, and the one that could not be told.
const (
	CauseNone            Cause = iota
	CauseExpired               // its timer ran out
	CauseReusedByConnect       // an outgoing connect() took its four-tuple
	CauseReplacedBySyn         // an acceptable SYN arrived for it and a listener took it
	CauseKilledByRst           // an RST, or data on a FIN_WAIT2 minisock, ended it
	CausePurged                // its network namespace was destroyed
	CauseDestroyed             // an administrator destroyed it (ss -K, bpf_sock_destroy)
	CauseUnknown               // cancelled from a place in the kernel that twtrace does not know
	numCauses
)

// NumCauses is one more than the largest Cause.
const NumCauses = int(numCauses)

var causeNames = [numCauses]string{
	CauseNone:            "",
	CauseExpired:         "expired",
	CauseReusedByConnect: "reused-by-connect",
	CauseReplacedBySyn:   "replaced-by-syn",
	CauseKilledByRst:     "killed-by-rst",
	CausePurged:          "purged",
	CauseDestroyed:       "destroyed",
	CauseUnknown:         "unknown",
}

func (c Cause) String() string {
	if c < numCauses {
		return causeNames[c]
	}
	return fmt.Sprintf("cause-%d", uint8(c))
}

// Flags qualify an Event; the bits are those of enum event_flag in bpf/event.h.
type Flags uint8

const (
	// FlagRescued means that the first copy of the program was skipped by the kernel's
	// recursion guard, and its twin recorded the event instead.
	FlagRescued Flags = 1 << iota
	// FlagNoSegment means that a socket left SYN_SENT and never sent a segment, so that
	// its connect() failed inside the kernel (tcp_sock.segs_out is 0).
	FlagNoSegment
	// FlagLinger0 means that SO_LINGER {1,0} was set on the socket when it was closed.
	FlagLinger0
	// FlagTWMade means that the socket became a TIME_WAIT minisock on this transition.
	FlagTWMade
	// FlagActive means that the RST was sent by the socket's own side closing it
	// (tcp_send_active_reset), not as the answer to a segment.
	FlagActive
)

// Event is one fact the kernel side reported. It holds no pointer to shared
// memory and may be kept.
type Event struct {
	Seq    uint64 // position in the stream, from 1, in the order of the kernel's ring
	MonoNS int64  // CLOCK_MONOTONIC, nanoseconds
	Cookie Cookie
	NetNS  NetNS
	Tuple  FourTuple
	// Reason is the kernel's number for why an RST was sent (enum
	// sk_rst_reason, Linux 6.10 and later; differs between kernels; 0 where
	// the kernel gives none).
	Reason uint32
	// Ticks is, for tw-enter, for how long the minisock's timer was set, in
	// jiffies of this kernel (Tracer.HZ a second).
	Ticks    uint32
	Kind     Kind
	Old, New State
	// Substate is, for TIME_WAIT events, what the minisock stands for:
	// FinWait2 (waiting for the peer's FIN) or TimeWait.
	Substate State
	Cause    Cause
	Flags    Flags
	// Errno is the socket's pending error (sk_err) at a state change: why it
	// was closed, where the kernel knew. 0: none.
	Errno Errno
}
