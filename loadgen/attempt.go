package loadgen

import "github.com/twtrace/twtrace/internal/tcp"

// The words of an attempt, shared with the packages that join it with the
// kernel's events and read recordings.
type (
	// Cookie is the kernel's name for a socket (SO_COOKIE), the key on which an
	// Attempt and the kernel's own events are joined.
	Cookie = tcp.Cookie
	// Errno is a Linux error number.
	Errno = tcp.Errno
	// Phase says in which step of its life an Attempt ended.
	Phase = tcp.Phase
	// Attempt is one connection as the program saw it.
	Attempt = tcp.Attempt
	// AttemptFlags qualify an Attempt.
	AttemptFlags = tcp.AttemptFlags
)

// The phases, in the order of a connection's life.
const (
	PhaseSocket  = tcp.PhaseSocket
	PhaseBind    = tcp.PhaseBind
	PhaseConnect = tcp.PhaseConnect
	PhaseSend    = tcp.PhaseSend
	PhaseReceive = tcp.PhaseReceive
	PhaseClose   = tcp.PhaseClose
	PhaseDone    = tcp.PhaseDone
)

// The flags of an attempt.
const (
	SelfConnected = tcp.SelfConnected
	OwnTimeout    = tcp.OwnTimeout
	Cancelled     = tcp.Cancelled
	ShortReply    = tcp.ShortReply
)
