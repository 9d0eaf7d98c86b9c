package timeline

import "github.com/twtrace/twtrace/internal/tcp"

// MaxSteps is how many events a Timeline keeps. An attempt has eight at most
// between connect() and its TIME_WAIT; later ones are counted.
const MaxSteps = 8

// Step is one event of a Timeline.
type Step struct {
	Seq      uint64
	MonoNS   int64
	Kind     tcp.Kind
	Old, New tcp.State
	Flags    tcp.Flags
	Errno    tcp.Errno
}

// Timeline is one attempt with what the kernel did to its socket.
type Timeline struct {
	Attempt  tcp.Attempt
	Tuple    tcp.FourTuple // as the kernel last showed it; port 0: never chosen
	Steps    [MaxSteps]Step
	NumSteps int
	More     int // events beyond MaxSteps
	// Joined: the kernel's events of this attempt's cookie were found.
	Joined bool
	// AtConnect is how the ports of the same source and destination stood for
	// connect() as it looked for one: as it began, and those that others took
	// before it had failed. The search takes milliseconds when
	// few are left, in which TIME_WAITs that it has passed expire.
	AtConnect Ports
	// Census is more about that moment, of a connect() that found no port; nil: it did, or was not seen to
	// look. It is valid as long as the Timeline.
	Census *Census
	// SynRetransmits is how often its SYN was sent again.
	SynRetransmits uint8
	// Peer is what the other end did, as far as that explains a failure or a stall; of attempts that failed
	// or whose SYN was sent again only.
	Peer []PeerStep
	// Listener is who listens where it connected to; nil: nobody was seen to, or it was not asked.
	Listener *Listener
}

// Events returns the steps that are kept.
func (t *Timeline) Events() []Step { return t.Steps[:t.NumSteps] }

// Find returns the first step that matches, or nil.
func (t *Timeline) Find(match func(*Step) bool) *Step {
	for i := range t.Steps[:t.NumSteps] {
		if match(&t.Steps[i]) {
			return &t.Steps[i]
		}
	}
	return nil
}

// FailedInKernel returns the step in which connect() failed before a segment
// was sent, or nil.
func (t *Timeline) FailedInKernel() *Step {
	return t.Find(func(s *Step) bool {
		return s.Kind == tcp.KindState && s.Old == tcp.SynSent && s.New == tcp.Close && s.Flags&tcp.FlagNoSegment != 0
	})
}

// ClosedWith returns the step in which the kernel closed the socket with an
// error, or nil.
func (t *Timeline) ClosedWith() *Step {
	return t.Find(func(s *Step) bool {
		return s.Kind == tcp.KindState && s.New == tcp.Close && s.Errno != 0
	})
}
