package verdict

import (
	"slices"

	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
)

// What a rule asks of what the program saw.

// searching: connect() was to choose the port.
func searching(a *tcp.Attempt) bool { return connecting(a) && a.LocalPort == 0 }

func connecting(a *tcp.Attempt) bool  { return a.Phase == tcp.PhaseConnect }
func early(a *tcp.Attempt) bool       { return a.Phase < tcp.PhaseConnect }
func established(a *tcp.Attempt) bool { return a.Phase > tcp.PhaseConnect }
func ownTimeout(a *tcp.Attempt) bool  { return a.Flags&tcp.OwnTimeout != 0 }

// noReply: it was connected, and nothing came of the peer's program.
func noReply(a *tcp.Attempt) bool { return established(a) && a.FirstByte == 0 }

func both(a, b func(*tcp.Attempt) bool) func(*tcp.Attempt) bool {
	return func(at *tcp.Attempt) bool { return a(at) && b(at) }
}

// What a rule asks of what the kernel showed.

type sign = func(*timeline.Timeline, *Env) bool

func all(signs ...sign) sign {
	return func(t *timeline.Timeline, env *Env) bool {
		for _, s := range signs {
			if !s(t, env) {
				return false
			}
		}
		return true
	}
}

// closedWith fits if the kernel closed the socket with that error itself.
func closedWith(errnos ...tcp.Errno) sign {
	return func(t *timeline.Timeline, _ *Env) bool {
		s := t.ClosedWith()
		return s != nil && slices.Contains(errnos, s.Errno)
	}
}

func gotRst(t *timeline.Timeline, _ *Env) bool {
	return t.Find(func(s *timeline.Step) bool { return s.Kind == tcp.KindRstReceived }) != nil
}

func gotNoRst(t *timeline.Timeline, env *Env) bool { return env.EveryRst && !gotRst(t, env) }

// failedInKernel fits if connect() failed before a segment was sent; withPort
// says whether a source port was chosen or bound by then.
func failedInKernel(withPort bool) sign {
	return func(t *timeline.Timeline, _ *Env) bool {
		return t.FailedInKernel() != nil && (t.Tuple.Local.Port() != 0) == withPort
	}
}

// peer returns the first event of the other end that matches, or nil.
func peer(t *timeline.Timeline, match func(*timeline.PeerStep) bool) *timeline.PeerStep {
	for i := range t.Peer {
		if match(&t.Peer[i]) {
			return &t.Peer[i]
		}
	}
	return nil
}

// Rst returns the first RST that the other end was seen to send, or nil.
func Rst(t *timeline.Timeline) *timeline.PeerStep {
	return peer(t, func(p *timeline.PeerStep) bool { return p.Kind == tcp.KindRstSent })
}

// Death returns how the other end's socket was closed without FIN, or nil.
func Death(t *timeline.Timeline) *timeline.PeerStep {
	return peer(t, func(p *timeline.PeerStep) bool { return p.Kind == tcp.KindState && p.New == tcp.Close })
}

func sentRst(t *timeline.Timeline, _ *Env) bool { return Rst(t) != nil }

// rstFrom fits if the other end's RST was that of a socket in one of these states.
func rstFrom(states ...tcp.State) sign {
	return func(t *timeline.Timeline, _ *Env) bool {
		r := Rst(t)
		return r != nil && slices.Contains(states, r.Old)
	}
}

// rstBecause fits if the other end's kernel named this reason.
func rstBecause(reason string) sign {
	return func(t *timeline.Timeline, env *Env) bool {
		r := Rst(t)
		return r != nil && env.Reasons[r.Reason] == reason
	}
}

// answeredByRst: the client itself answered the answer to its SYN by RST, for that was an ACK of an older connection: of the
// peer's TIME_WAIT (tcp_timewait_state_process, tcp_rcv_synsent_state_process).
func answeredByRst(t *timeline.Timeline, _ *Env) bool {
	return t.Find(func(s *timeline.Step) bool { return s.Kind == tcp.KindRstSent && s.Old == tcp.SynSent }) != nil
}

// keptTimeWait: these RSTs did not end the TIME_WAIT.
func keptTimeWait(t *timeline.Timeline, env *Env) bool { return env.RFC1337 && answeredByRst(t, env) }

// keptBack: a packet filter of the sending host dropped a SYN that was sent again (nf_hook_slow).
func keptBack(t *timeline.Timeline, _ *Env) bool {
	return notSentAgain(t, func(s *timeline.Step) bool { return s.Old == tcp.SynSent && s.Errno == tcp.EPERM })
}

// lostRoute: there was no route when a segment was to be sent again (inet_sk_rebuild_header).
func lostRoute(t *timeline.Timeline, _ *Env) bool {
	return notSentAgain(t, func(s *timeline.Step) bool { return s.Errno == tcp.EHOSTUNREACH })
}

// notSentAgain: a segment could not be sent again. Kernels whose tracepoint has no error don't tell.
func notSentAgain(t *timeline.Timeline, why func(*timeline.Step) bool) bool {
	return t.Find(func(s *timeline.Step) bool { return s.Kind == tcp.KindRetransmit && why(s) }) != nil
}

// synDropped fits if the listener dropped a SYN of the attempt for this cause.
func synDropped(cause tcp.Cause) sign {
	return func(t *timeline.Timeline, _ *Env) bool {
		return peer(t, func(p *timeline.PeerStep) bool {
			return p.Kind == tcp.KindListenDrop && p.Substate == tcp.SynSent && p.Cause == cause
		}) != nil
	}
}

// lastAckDropped: the listener dropped the last ACK of the handshake, and no later one had more luck.
func lastAckDropped(t *timeline.Timeline, _ *Env) bool {
	dropped := false
	for i := range t.Peer {
		switch p := &t.Peer[i]; {
		case p.Kind == tcp.KindListenDrop && p.Substate == tcp.Established:
			dropped = true
		case p.Kind == tcp.KindState && p.New == tcp.Established:
			dropped = false
		}
	}
	return dropped
}

// abortOnOverflow: the RST was the listener's own answer to the last ACK (tcp_check_req): no connection had come of the handshake.
func abortOnOverflow(t *timeline.Timeline, env *Env) bool {
	r := Rst(t)
	return env.AbortOnOverflow && r != nil && r.Flags&tcp.FlagActive == 0 && t.Attempt.FirstByte == 0 && Death(t) == nil &&
		(r.Old == tcp.Listen || r.Old == tcp.NewSynRecv || r.Old == tcp.SynRecv)
}

// listenerClosed: the other end's socket was closed with the listener whose queue it was in (inet_csk_listen_stop).
func listenerClosed(t *timeline.Timeline, env *Env) bool {
	d := Death(t)
	return d != nil && !peerHadUnreadFor(t, env) && t.Listener != nil && t.Listener.Until != 0 && t.Listener.Until <= d.MonoNS
}

func peerHadUnreadFor(t *timeline.Timeline, env *Env) bool {
	return rstBecause("TCP_ABORT_ON_CLOSE")(t, env)
}

// peerLingered: the other end was closed with SO_LINGER {1,0}.
func peerLingered(t *timeline.Timeline, _ *Env) bool {
	d := Death(t)
	return d != nil && d.Flags&tcp.FlagLinger0 != 0
}

// peerHadUnread: the other end was closed with data that its program had not read (__tcp_close). Kernels that name no reason
// show that a socket went from ESTABLISHED or CLOSE_WAIT to CLOSE without an error, which else only SO_LINGER does.
func peerHadUnread(t *timeline.Timeline, env *Env) bool {
	if len(env.Reasons) > 0 {
		return peerHadUnreadFor(t, env)
	}
	d := Death(t)
	return d != nil && d.Flags&tcp.FlagLinger0 == 0
}

func neverAccepts(_ *timeline.Timeline, env *Env) bool { return env.NeverAccepts }
