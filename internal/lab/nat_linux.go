package lab

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// natClient is a host behind the address that all share. tcp_timestamps decides about its clock: with 1 it is offset by
// a random number for each pair of addresses, with 2 it is not.
type natClient struct {
	timestamps int
	clock      uint32 // at the first SYN
}

// natAttempt is a connection that was attempted while the server had a TIME_WAIT of another client's.
type natAttempt struct {
	err           error
	took          time.Duration
	syns, resets  int
	acks          int           // the server's answers that were no SYN+ACK
	left, renewed time.Duration // of TIME_WAIT: when the attempt had failed and a second was over, and after one more SYN
	lines         []string
}

// nat has two clients with different clocks behind one address, as behind a NAT.
func nat(s *Session) error {
	w, err := s.wire()
	if err != nil {
		return err
	}
	// Which of the two is ahead is decided by the random number: ask.
	clients := []natClient{{timestamps: 1}, {timestamps: 2}}
	for i := range clients {
		if err := w.become(clients[i]); err != nil {
			return err
		}
		g, _, err := w.serverWaits(uint16(40900 + i))
		if err != nil {
			return err
		}
		clients[i].clock = g.TSVal
	}
	behind, ahead := clients[0], clients[1]
	if int32(ahead.clock-behind.clock) < 0 {
		behind, ahead = ahead, behind
	}
	apart := float64(ahead.clock-behind.clock) / 1000
	s.Note("clocks apart, s", apart)

	later, err := s.natCase(behind, ahead, true)
	if err != nil {
		return fmt.Errorf("the second client's clock is ahead: %w", err)
	}
	earlier, err := s.natCase(ahead, behind, true)
	if err != nil {
		return fmt.Errorf("the second client's clock is behind: %w", err)
	}
	other, err := s.natCase(ahead, behind, false)
	if err != nil {
		return fmt.Errorf("the second client's clock is behind, another port: %w", err)
	}
	kept, err := s.natCase(ahead, behind, true, "tcp_rfc1337=1")
	if err != nil {
		return fmt.Errorf("the second client's clock is behind, tcp_rfc1337=1: %w", err)
	}
	s.Claim(Claim{
		Key: "other-port", Text: "Clients behind one address whose timestamps are not monotonic together lose SYNs (tcp_tw_recycle).",
		Holds: holdsOf(other.err != nil || other.syns != 1), Expected: No, Evidence: other.evidence(apart),
		History: "It held until 4.12 where tcp_tw_recycle was 1, which kept the last timestamp for each address; 4396e46187ca removed it. What is left is compared with the TIME_WAIT of the same port alone.",
	})
	s.Claim(Claim{
		Key: "ahead", Text: "On a port whose last connection is in TIME_WAIT at the server, a client whose clock is ahead connects at once.",
		Holds: holdsOf(later.err == nil && later.syns == 1), Expected: Yes, Evidence: later.evidence(apart),
	})
	s.Claim(Claim{
		Key: "behind", Text: "On such a port a client whose clock is behind can't connect until TIME_WAIT has ended.",
		Holds: holdsOf(earlier.err != nil), Expected: No, Evidence: earlier.evidence(apart),
		History: "It takes a detour: TIME_WAIT answers its SYN with an ACK (PAWS), the client that with RST, which ends TIME_WAIT (tcp_rfc1337=0), and the SYN comes again. A firewall or NAT that drops that ACK or RST makes it true.",
	})
	s.Claim(Claim{
		Key: "detour", Text: "That costs it a second SYN.",
		Holds: holdsOf(earlier.syns == 2 && earlier.resets == 1), Expected: Yes, Evidence: earlier.evidence(apart),
	})
	s.Claim(Claim{
		Key: "rfc1337", Text: "With tcp_rfc1337=1 on the server it can't connect, and each of its SYNs starts the 60 s of TIME_WAIT anew.",
		Holds:    holdsOf(errors.Is(kept.err, unix.ETIMEDOUT) && kept.renewed > kept.left+time.Second/2),
		Expected: Yes, Evidence: kept.evidence(apart),
	})
	s.Note("behind", earlier.lines)
	s.Note("rfc1337", kept.lines)
	s.Answerf("Clients with different clocks behind one address get in each other's way only on one and the same port: one that is behind gets in with its second SYN, and with tcp_rfc1337=1 on the server not before TIME_WAIT has ended.")
	return nil
}

func (a *natAttempt) evidence(apart float64) Evidence {
	e := Evidence{
		"clocks apart, s": apart, "connect()": Errno(a.err), "seconds": a.took.Seconds(), "SYNs": a.syns,
		"ACKs of TIME_WAIT": a.acks, "RSTs of the client": a.resets,
	}
	if a.err != nil {
		e["left of TIME_WAIT, s"], e["after one more SYN, s"] = a.left.Seconds(), a.renewed.Seconds()
	}
	return e
}

// become has the namespace of clients be one of them.
func (w *wire) become(c natClient) error {
	return w.Set(w.net, w.client, fmt.Sprintf("tcp_timestamps=%d", c.timestamps))
}

// natCase has one client leave a TIME_WAIT at the server, and another connect from the same address, and from the same
// port or another.
func (s *Session) natCase(first, second natClient, samePort bool, sysctls ...string) (a natAttempt, err error) {
	port := uint16(41000)
	w, err := s.wire(sysctls...)
	if err != nil {
		return a, err
	}
	if err := w.become(first); err != nil {
		return a, err
	}
	if _, _, err := w.serverWaits(port); err != nil {
		return a, err
	}
	if err := w.become(second); err != nil {
		return a, err
	}
	if !samePort {
		port++
	}
	k, err := s.Socket(w.client, false, ReuseAddr, SynRetries(1))
	if err != nil {
		return a, err
	}
	if err := k.Bind(w.from(port)); err != nil {
		return a, fmt.Errorf("bind: %w", err)
	}
	had, err := w.capture.Segments()
	if err != nil {
		return a, err
	}
	begun := time.Now()
	a.err = k.Connect(w.at, patience)
	a.took = time.Since(begun)
	all, err := w.capture.Segments()
	for i := len(had); i < len(all); i++ {
		g := &all[i]
		switch {
		case g.Sent && g.Flags == syn:
			a.syns++
		case g.Sent && g.Flags&rst != 0:
			a.resets++
		case !g.Sent && g.Flags == ack:
			a.acks++
		}
	}
	if err != nil {
		return a, err
	}
	if a.lines, err = w.capture.Lines(nil); err != nil || a.err == nil {
		return a, err
	}
	return a, a.again(w, k, port)
}

// again sends one more SYN a second later.
func (a *natAttempt) again(w *wire, failed *Socket, port uint16) (err error) {
	if err := errors.Join(failed.Close(), w.Sleep(time.Second)); err != nil {
		return err
	}
	if a.left, err = w.serverTimeWaitLeft(port); err != nil {
		return err
	}
	k, err := w.Socket(w.client, false, ReuseAddr)
	if err != nil {
		return err
	}
	if err := k.Bind(w.from(port)); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	had, err := w.capture.Find(Match{Out: true, Flags: syn, Mask: synAck})
	if err != nil {
		return err
	}
	if err := k.Begin(w.at); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if err := w.Wait("TIME_WAIT's time begins anew", time.Second, func() (bool, error) {
		a.renewed, err = w.serverTimeWaitLeft(port)
		return a.renewed > a.left, err
	}); err != nil && !errors.Is(err, errTooLong) {
		return err
	}
	_, err = w.Await(w.capture, "one more SYN", Match{Out: true, Flags: syn, Mask: synAck}, len(had)+1)
	return errors.Join(err, k.Close())
}

// serverTimeWaitLeft is how long the server's TIME_WAIT of a client's port still has; 0 if there is none.
func (w *wire) serverTimeWaitLeft(port uint16) (time.Duration, error) {
	list, err := w.Minisocks(w.server)
	for _, m := range list {
		if m.Peer.Port() == port {
			return m.Left, err
		}
	}
	return 0, err
}
