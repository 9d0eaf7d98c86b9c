package tcp

import (
	"fmt"
)

// Phase says in which step of its life an Attempt ended.
type Phase uint8

// The phases, in the order of a connection's life. PhaseDone is that of an
// attempt which finished.
const (
	PhaseSocket  Phase = iota // socket(), setsockopt()
	PhaseBind                 // bind()
	PhaseConnect              // connect(), until the handshake is done
	PhaseSend                 // sending the request
	PhaseReceive              // waiting for the reply, or for the peer's close
	PhaseClose                // held open (Plan.Hold), or close()
	PhaseDone                 // everything was sent, received and closed
	numPhases
)

// NumPhases is one more than the largest Phase.
const NumPhases = int(numPhases)

var phaseNames = [numPhases]string{"socket", "bind", "connect", "send", "receive", "close", "done"}

func (p Phase) String() string {
	if p < numPhases {
		return phaseNames[p]
	}
	return fmt.Sprintf("phase-%d", uint8(p))
}

// Attempt is one connection as the program saw it: a fixed value without
// pointers, so that a run of 10^8 costs the garbage collector nothing. Times
// are CLOCK_MONOTONIC nanoseconds, the clock of the kernel's events; 0: the
// attempt did not get that far.
type Attempt struct {
	Cookie  Cookie
	Started int64 // before socket()
	// Intended is when it was due, in an open loop; else it is Started. What is waited for
	// counts from here.
	Intended int64
	// Connected is when the handshake was done, as seen by this program: connect()
	// had returned, and the send that followed at once proved the socket
	// established. It can precede the kernel's own event by the fraction of a
	// microsecond between the two calls.
	Connected int64
	FirstByte int64 // the first byte of the reply was read
	Closed    int64 // close() returned, or the attempt failed
	Loop      uint32
	Index     uint32 // within its loop
	LocalPort uint16 // 0: none was bound, and connect() got no further than the search for one
	Shard     uint16 // the thread, in the lower ShardBits, of the client process, above them
	Errno     Errno  // 0: it finished
	Phase     Phase  // where it ended; PhaseDone if it finished
	Flags     AttemptFlags
}

// ShardBits is how many bits of Attempt.Shard number the threads of a client process. The
// process has no field of its own because the value is 64 bytes, a cache line, without.
const ShardBits = 10

// MaxClients is how many client processes Attempt.Shard can tell apart.
const MaxClients = 1 << (16 - ShardBits)

// Client is the number, from 0, of the client process that made the attempt.
func (a *Attempt) Client() int { return int(a.Shard >> ShardBits) }

// SetClient notes the number of the client process, less than MaxClients.
func (a *Attempt) SetClient(n int) { a.Shard = uint16(n)<<ShardBits | a.Shard&(1<<ShardBits-1) }

// AttemptFlags qualify an Attempt.
type AttemptFlags uint8

const (
	// SelfConnected means that the kernel chose the destination's own port as source port, and
	// the socket was connected to itself; Phase is PhaseConnect and Errno EADDRINUSE,
	// though connect() succeeded. Looked for only where it can happen: the target
	// is an address of this host and its port is in ip_local_port_range.
	SelfConnected AttemptFlags = 1 << iota
	// OwnTimeout means that Errno is ETIMEDOUT because Plan.Timeout ran out, not
	// because the kernel said so.
	OwnTimeout
	// Cancelled means that the run was stopped while the attempt was under way; Errno is ECANCELED.
	Cancelled
	// ShortReply means that the peer closed before the whole reply came; Errno is EPROTO.
	ShortReply
)

// Failed reports whether the attempt did not finish.
func (a *Attempt) Failed() bool { return a.Phase != PhaseDone }

// ReachedConnect reports whether connect() was called on it.
func (a *Attempt) ReachedConnect() bool { return a.Phase >= PhaseConnect }
