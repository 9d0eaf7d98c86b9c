package tcp

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

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
	KindError                            // a socket got an error that its owner has yet to read (sk_err)
	KindTWConvert                        // a FIN_WAIT2 minisock received the FIN and became TIME_WAIT
	KindConnectFailed                    // connect() failed before it sent a segment (see Event.Cause)
	KindBindFailed                       // bind() failed
	KindListenDrop                       // a listener dropped a segment without an answer (see Event.Cause)
	KindSnapshot                         // a socket that was there when the trace began
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
	KindError:            "error",
	KindTWConvert:        "tw-convert",
	KindConnectFailed:    "connect-failed",
	KindBindFailed:       "bind-failed",
	KindListenDrop:       "listen-drop",
	KindSnapshot:         "snapshot",
}

func (k Kind) String() string {
	if k > 0 && k < numKinds {
		return kindNames[k]
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// ParseKind reads a kind as the command line spells it.
func ParseKind(text string) (Kind, error) {
	for k, name := range kindNames {
		if k > 0 && strings.EqualFold(name, text) {
			return Kind(k), nil
		}
	}
	return 0, fmt.Errorf("unknown kind %q, want one of %s", text, strings.Join(kindNames[1:], ", "))
}

// Cause says why: how a TIME_WAIT ended, why a connect() failed, what a listener had
// no room in. The numbers are those of enum cause in bpf/event.h.
type Cause uint8

// The causes, by the kind of event that they qualify.
const (
	CauseNone Cause = iota

	// The six ends of a TIME_WAIT, and the one that could not be told.
	CauseExpired         // its timer ran out
	CauseReusedByConnect // an outgoing connect() took its four-tuple
	CauseReplacedBySyn   // an acceptable SYN arrived for it and a listener took it
	CauseKilledByRst     // an RST, or data on a FIN_WAIT2 minisock, ended it
	CausePurged          // its network namespace was destroyed
	CauseDestroyed       // an administrator destroyed it (ss -K, bpf_sock_destroy)
	CauseUnknown         // cancelled from a place in the kernel that twtrace does not know

	// Of a connect() that failed inside the kernel.
	CausePortSearch    // no port of the range was free for this destination
	CauseFourTupleBusy // the socket was bound, and its four-tuple is taken
	CauseNotSent       // a port was found, but the SYN could not be sent

	// Of a segment that a listener dropped.
	CauseAcceptQueue // the accept queue was full
	CauseSynQueue    // the SYN queue was full, and there were no cookies
	CauseOtherDrop   // another: no route to the peer, no memory, a security module

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
	CausePortSearch:      "port-search",
	CauseFourTupleBusy:   "four-tuple-busy",
	CauseNotSent:         "not-sent",
	CauseAcceptQueue:     "accept-queue",
	CauseSynQueue:        "syn-queue",
	CauseOtherDrop:       "other",
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
	// FlagOwner means that Event.Owner was taken from the process itself, at work on
	// the socket: it opened it, or it listens, or it listened for it.
	FlagOwner
	// FlagLate means that the event happened some time before MonoNS: it was found
	// out by what came of it.
	FlagLate
	// FlagRefusals means that Event.Refusals was counted, port by port.
	FlagRefusals
)

// Owner is the process that a connection belongs to.
type Owner struct {
	PID    uint32 // process (thread group) in the tracer's own pid namespace; 0: not known, or not visible in it
	Cgroup uint64 // id of the socket's cgroup (v2): the inode number of its directory
	Comm   Comm
}

// Comm is a process's name as the kernel keeps it: up to 15 bytes that the process
// may set to anything, filled up with zeros.
type Comm [16]byte

// String returns the name as Printable does.
func (c Comm) String() string {
	raw, _, _ := bytes.Cut(c[:], []byte{0})
	return Printable(string(raw))
}

// Printable is a text that somebody chose without what could upset a terminal: bytes that are not
// printable come out as \xNN.
func Printable(text string) string {
	quoted := strconv.Quote(text)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

// Refusals counts the ports that a failed connect() tried, by why it could not have them.
type Refusals struct {
	TooYoung     uint16 // TIME_WAIT, and younger than tcp_tw_reuse allows
	NotAllowed   uint16 // TIME_WAIT, and tcp_tw_reuse forbids it (0, or 2 and not loopback); a FIN_WAIT2 minisock
	NoTimestamps uint16 // TIME_WAIT of a connection without timestamps, whatever tcp_tw_reuse is
	Taken        uint16 // the four-tuple is that of a live connection
}

// Holder is a socket that has the port which a bind() wanted: of several the one that
// listens, or else is connected, or else is bound, or else is in TIME_WAIT.
type Holder struct {
	State  State      // StateNone: not known
	Cookie Cookie     // 0: nobody had asked for it
	Addr   netip.Addr // the address that it is bound to
}

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
	// jiffies of this kernel (Tracer.HZ a second). Of a snapshot: for how long it
	// still runs.
	Ticks    uint32
	Kind     Kind
	Old, New State
	// Substate is, for TIME_WAIT events, what the minisock stands for:
	// FinWait2 (waiting for the peer's FIN) or TimeWait.
	Substate State
	Cause    Cause
	Flags    Flags
	// Errno is the socket's pending error (sk_err): why it was closed, where the
	// kernel knew. Of a failed bind() or connect() it is what the call returned.
	// 0: none.
	Errno Errno
	// Owner is set where Flags has FlagOwner, which is where the process can be known:
	// connect() and listen(), and what a listener accepts.
	Owner    Owner
	Refusals Refusals // where Flags has FlagRefusals
	Holder   Holder   // of bind-failed
}
