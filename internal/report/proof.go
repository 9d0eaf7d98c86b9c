package report

import (
	"cmp"
	"fmt"

	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
	"github.com/twtrace/twtrace/internal/verdict"
)

// PeerEvidence is what the other end did to an attempt that failed, as far as it was traced.
type PeerEvidence struct {
	// Of the first RST that it sent: in which state the socket was ("none": there was no socket), why, in the kernel's word (empty:
	// it has none), and whether it was the socket's own act and not the answer to a segment.
	RstState  string `json:"rst_state,omitempty"`
	RstReason string `json:"rst_reason,omitempty"`
	RstActive bool   `json:"rst_active,omitempty"`
	RstEvent  uint64 `json:"rst_event,omitempty"`
	// LastAct is how its socket was closed without a FIN: "closed with SO_LINGER {1,0}", "closed without a FIN".
	LastAct string `json:"last_act,omitempty"`
	// SYNs and last ACKs of the handshake that the listener dropped, by the queue that had no room, and SYN+ACKs sent again.
	SynDrops          map[string]int `json:"syn_drops,omitempty"`
	LastAckDrops      int            `json:"last_ack_drops,omitempty"`
	SynAckRetransmits int            `json:"syn_ack_retransmits,omitempty"`
	// Who listened; 0 and empty: not known.
	ListenerPID          int      `json:"listener_pid,omitempty"`
	ListenerComm         string   `json:"listener_comm,omitempty"`
	ListenerUntilSeconds *float64 `json:"listener_until_seconds,omitempty"`
}

// peerEvidence returns nil if nothing was seen of the other end.
func peerEvidence(t *timeline.Timeline, reasons map[uint32]string, started int64) *PeerEvidence {
	if len(t.Peer) == 0 && t.Listener == nil {
		return nil
	}
	p := &PeerEvidence{}
	for i := range t.Peer {
		switch step := &t.Peer[i]; {
		case step.Kind == tcp.KindSynAckRetransmit:
			p.SynAckRetransmits++
		case step.Kind == tcp.KindListenDrop && step.Substate == tcp.Established:
			p.LastAckDrops++
		case step.Kind == tcp.KindListenDrop:
			if p.SynDrops == nil {
				p.SynDrops = make(map[string]int)
			}
			p.SynDrops[step.Cause.String()]++
		}
	}
	if r := verdict.Rst(t); r != nil {
		p.RstState, p.RstEvent, p.RstActive = r.Old.String(), r.Seq, r.Flags&tcp.FlagActive != 0
		p.RstReason = reasons[r.Reason]
	}
	if d := verdict.Death(t); d != nil {
		p.LastAct = "closed without a FIN"
		if d.Flags&tcp.FlagLinger0 != 0 {
			p.LastAct = "closed with SO_LINGER {1,0}"
		}
	}
	if l := t.Listener; l != nil {
		p.ListenerPID, p.ListenerComm = int(l.Owner.PID), l.Owner.Comm.String()
		if l.Until != 0 {
			until := float64(l.Until-started) / 1e9
			p.ListenerUntilSeconds = &until
		}
	}
	return p
}

// named is a failure's cause with its detail.
func named(f *Failure) string {
	if f.Detail == "" {
		return string(f.Cause)
	}
	return fmt.Sprintf("%s (%s)", f.Cause, f.Detail)
}

// proof is a failure's evidence: what happened in a sentence, then when.
func proof(s *Summary, f *Failure) string {
	e := f.Evidence
	when := fmt.Sprintf("First after %.2f s in loop %v, last after %.2f s in loop %v",
		e["first_seconds"], e["first_loop"], e["last_seconds"], e["last_loop"])
	if basis, ok := e["basis"]; ok {
		return fmt.Sprintf("%s; %s.", when, basis)
	}
	text := what(s, f)
	if errno, ok := e["kernel_errno"]; ok && text == "" {
		text = fmt.Sprintf("The kernel closed the socket with %v.", errno)
	}
	if text != "" {
		text += " "
	}
	return fmt.Sprintf("%s%s; %v of %d found among the kernel's events.", text, when, e["with_events"], f.Count)
}

// sentences are what happened, for causes and details whose evidence needs no numbers.
var sentences = map[verdict.Verdict]string{
	{Cause: verdict.TupleBusy}:                                     "The kernel refused connect(): the bound address and port are in use towards this destination.",
	{Cause: verdict.Refused}:                                       "An RST answered the SYN; who sent it was not traced.",
	{Cause: verdict.Refused, Detail: verdict.AbortOnOverflow}:      "The listener answered the last ACK of the handshake by RST: its accept queue was full, and tcp_abort_on_overflow is 1.",
	{Cause: verdict.Refused, Detail: verdict.ICMPError}:            "No RST came: an ICMP error that says \"port unreachable\" ended connect(), as a packet filter sends it that rejects.",
	{Cause: verdict.Refused, Detail: verdict.InTimeWait}:           "A TIME_WAIT of the peer answered the first SYN; when that was ended by RST nobody listened for the next.",
	{Cause: verdict.NeverAccepted, Detail: verdict.InAcceptQueue}:  "The handshake was done, and the connection waited in the accept queue: accept() never returned it.",
	{Cause: verdict.NeverAccepted, Detail: verdict.ListenerClosed}: "The connection waited in the accept queue as the listener was closed: the kernel reset it.",
	{Cause: verdict.AbortedByLinger}:                               "The peer's program closed with SO_LINGER {1,0}: its kernel sent an RST in place of a FIN.",
	{Cause: verdict.Reset}:                                         "An RST came from the peer's address; nobody who was traced sent it.",
	{Cause: verdict.Reset, Detail: verdict.UnreadData}:             "The peer's program closed before it had read all that was sent: its kernel then sends an RST in place of a FIN.",
	{Cause: verdict.Reset, Detail: verdict.DataAfterClose}:         "Data came for a socket that the peer's program had closed: its kernel answered by RST.",
	{Cause: verdict.Reset, Detail: verdict.InTimeWait}:             "The peer's end was in TIME_WAIT, and answered by RST.",
	{Cause: verdict.Reset, Detail: verdict.NoSocket}:               "The peer had no such connection any more, and answered by RST.",
	{Cause: verdict.TimedOutTimeWait}:                              "A TIME_WAIT of the peer answered the SYNs, and outlived the RSTs that these ACKs got, for tcp_rfc1337 is 1.",
	{Cause: verdict.SynUnanswered}:                                 "Nothing answered the SYNs, and no listener was seen to drop them.",
	{Cause: verdict.SynUnanswered, Detail: verdict.NotSent}:        "The SYNs did not leave this host: sending them again failed with EPERM, which is what a packet filter's output hook does that drops.",
	{Cause: verdict.SynUnanswered, Detail: verdict.DroppedOther}:   "The listener dropped the SYNs, though its queues had room (no route back, no memory, a security module).",
	{Cause: verdict.Unreachable, Detail: verdict.NoRoute}:          "This host had a route, and had none any more as it was to send the SYN again.",
	{Cause: verdict.Destroyed}:                                     "SOCK_DESTROY ended this end's socket: neither its program nor the peer did, but something else on this host.",
	{Cause: verdict.SelfConnect}:                                   "connect() chose the destination's own port as source port, and the socket was connected to itself.",
}

// what happened, in a sentence.
func what(s *Summary, f *Failure) string {
	peer := f.Peer
	switch {
	case f.Cause == verdict.PortExhausted:
		if c := f.Census; c != nil {
			return fmt.Sprintf("No source port was left for %s: all %d ports of %d to %d were taken, and no segment was sent.", s.Target, c.Ports, c.Range[0], c.Range[1])
		}
		return fmt.Sprintf("No source port was left for %s: of %v ports %v were in TIME_WAIT and %v open as the first that failed began to look (%v and %v for the last); no port was chosen and no segment sent.",
			s.Target, f.Evidence["ports"], f.Evidence["time_wait"], f.Evidence["open"], f.Evidence["last_time_wait"], f.Evidence["last_open"])
	case f.Cause == verdict.BindConflict:
		return conflict(s, f)
	case f.Cause == verdict.Refused && f.Detail == verdict.NoListener:
		return fmt.Sprintf("Nobody listened at %s%s: its kernel answered the SYN by RST.", s.Target, formerly(peer))
	case f.Cause == verdict.Unreachable && f.Detail == verdict.ICMPError:
		return byICMP(f.Errno)
	case f.Cause == verdict.AcceptQueueFull:
		return fmt.Sprintf("The listener dropped the SYNs: its accept queue was full%s.", roomFor(s))
	case f.Cause == verdict.SynQueueFull:
		return "The listener dropped the SYNs: its SYN queue was full, and tcp_syncookies is 0."
	case f.Cause == verdict.NeverAccepted && f.Detail == verdict.LastAckDropped:
		return fmt.Sprintf("connect() succeeded, but the listener dropped the last ACK of the handshake: its accept queue was full%s, so the server never had the connection.", roomFor(s))
	case f.Cause == verdict.Reset && f.Detail == verdict.Aborted && peer != nil:
		return fmt.Sprintf("The peer's end was aborted in %s (%s).", peer.RstState, cmp.Or(peer.RstReason, "this kernel names no reason"))
	}
	return sentences[verdict.Verdict{Cause: f.Cause, Detail: f.Detail}]
}

// icmpErrors are what the kernel makes these errors of (icmp_err_convert, tab_unreach).
var icmpErrors = map[string]string{
	"ENETUNREACH": "network unreachable", "EHOSTUNREACH": "host unreachable, or communication prohibited",
	"EHOSTDOWN": "host unknown", "ENONET": "source host isolated", "ENOPROTOOPT": "protocol unreachable",
	"EOPNOTSUPP": "source route failed", "EPROTO": "parameter problem", "EACCES": "communication prohibited",
}

func byICMP(errno string) string {
	whose := "a router's or a packet filter's"
	if errno == "EHOSTUNREACH" {
		whose = "a router's, a packet filter's, or this host's own, when nobody answers for the next hop's address"
	}
	return fmt.Sprintf("An ICMP error (%s) ended connect(): %s.", icmpErrors[errno], whose)
}

// conflict is what bind() said. A thread that binds ports of its own list tries each that none of its connections has.
func conflict(s *Summary, f *Failure) string {
	switch {
	case len(f.Holders) > 0:
		return "The kernel refused bind() each port that the thread had left: they are other sockets'."
	case s.Options.Bind == "port" && s.Coverage[tcp.FactBindFail] == tcp.Exact:
		return "No bind() was refused: the run's own connections had all ports of the thread's list."
	}
	return "The kernel refused bind(): the address and port, or all ports, are others'."
}

func formerly(p *PeerEvidence) string {
	if p == nil || p.ListenerUntilSeconds == nil {
		return ""
	}
	return fmt.Sprintf(" any more (%s did until %.2f s)", process(p.ListenerPID, p.ListenerComm), *p.ListenerUntilSeconds)
}

// queueRoom is how many connections the own server's accept queue holds (sk_acceptq_is_full: one more than its limit); 0: not known.
func queueRoom(s *Summary) int {
	var most int
	if s.Options.ServerMode == ServerElsewhere || s.Options.Backlog == 0 {
		return 0
	}
	if n, err := fmt.Sscan(s.Sysctls[SysctlSomaxconn], &most); n != 1 || err != nil {
		return 0
	}
	return min(most, s.Options.Backlog) + 1
}

func roomFor(s *Summary) string {
	if n := queueRoom(s); n > 0 {
		return fmt.Sprintf(" (room for %d: the lesser of --backlog %d and somaxconn %s, and one)", n, s.Options.Backlog, s.Sysctls[SysctlSomaxconn])
	}
	return ""
}

// censuses are the ports of the first that found none, and of the last.
func (t *Text) censuses(f *Failure) {
	for _, which := range []struct {
		name   string
		census *Census
	}{{"the first", f.Census}, {"the last", f.LastCensus}} {
		if which.census == nil {
			continue
		}
		for i, line := range which.census.lines(which.name) {
			if i == 0 {
				t.wrapHead("    ", "      ", line)
			} else {
				t.wrap("      ", line)
			}
		}
	}
}
