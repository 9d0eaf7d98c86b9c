package lab

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// natClient is a host behind the address that all share. tcp_timestamps decides about its clock: with 1 it is offset by
// a random number, with 2 it is not. The offset is one for each pair of addresses, or for each four-tuple.
type natClient struct{ timestamps int }

// natPort is where the first client has its connection.
const natPort = 41000

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
	order, err := s.natOrder()
	if err != nil {
		return fmt.Errorf("compare the clients' clocks: %w", err)
	}
	apart := order.apart.Seconds()
	s.Note("clocks apart, s", apart)
	ahead, behind := order.ahead, order.behind
	later, err := s.natCase(behind, ahead, natPort)
	if err != nil {
		return fmt.Errorf("the second client's clock is ahead: %w", err)
	}
	earlier, err := s.natCase(ahead, behind, natPort)
	if err != nil {
		return fmt.Errorf("the second client's clock is behind: %w", err)
	}
	other, err := s.natCase(order.otherFirst, order.otherSecond, order.otherPort)
	if err != nil {
		return fmt.Errorf("the second client's clock is behind, another port: %w", err)
	}
	kept, err := s.natCase(ahead, behind, natPort, "tcp_rfc1337=1")
	if err != nil {
		return fmt.Errorf("the second client's clock is behind, tcp_rfc1337=1: %w", err)
	}
	s.Claim(Claim{
		Key: "other-port", Text: "Clients behind one address whose timestamps are not monotonic together lose SYNs (tcp_tw_recycle).",
		Holds: holdsOf(other.err != nil || other.syns != 1), Expected: No, Evidence: other.evidence(apart),
		History: "It held until 4.12 where tcp_tw_recycle was 1, which kept the last timestamp for each address; 4396e46187ca removed it. What is left is compared with the TIME_WAIT of the same port alone.",
	})
	seqAndOffset, err := function("secure_tcp_seq_and_ts_off")
	if err != nil {
		return err
	}
	s.Claim(Claim{
		Key: "clock-by-port", Text: "One client alone has a clock of its own for each of its ports.",
		Holds: holdsOf(order.byPort), Expected: holdsOf(seqAndOffset != nil), Evidence: Evidence{"differs on the next port": order.byPort},
		History: "Since 165573e41f2f (7.0, and stable kernels of 2026), which offsets timestamps by four-tuple instead of by address. A NAT that chooses ports at random (MASQUERADE --random-fully) then makes what follows happen to a single client.",
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

// natOrder is which client's clock is ahead. The kernel's random numbers decide, so it is asked.
type natOrder struct {
	ahead, behind natClient
	apart         time.Duration
	// A second client on another port, whose clock there is behind the first's on natPort.
	otherFirst, otherSecond natClient
	otherPort               uint16
	byPort                  bool // the clock of one client with offsets differs on the next port
}

func (s *Session) natOrder() (o natOrder, err error) {
	w, err := s.wire()
	if err != nil {
		return o, err
	}
	clients := [2]natClient{{timestamps: 1}, {timestamps: 2}}
	clocks := func(port uint16) (at [2]uint32, err error) {
		for i, c := range clients {
			if at[i], err = w.clockOf(c, port); err != nil {
				return at, err
			}
		}
		return at, nil
	}
	here, err := clocks(natPort)
	if err != nil {
		return o, err
	}
	o.ahead, o.behind = clients[0], clients[1]
	apart := int32(here[0] - here[1])
	if apart < 0 {
		o.ahead, o.behind, apart = o.behind, o.ahead, -apart
	}
	o.apart = time.Duration(apart) * time.Millisecond
	const ports = 64 // of two, one does for certain where offsets are of addresses, and every second where not
	for o.otherPort = natPort + 1; o.otherPort < natPort+ports; o.otherPort++ {
		there, err := clocks(o.otherPort)
		if err != nil {
			return o, err
		}
		if o.otherPort == natPort+1 {
			o.byPort = there[0]-here[0] > uint32(time.Minute.Milliseconds())
		}
		for i := range clients {
			if int32(there[1-i]-here[i]) < -int32(time.Minute.Milliseconds()) {
				o.otherFirst, o.otherSecond = clients[i], clients[1-i]
				return o, nil
			}
		}
	}
	return o, errors.New("no clock is behind another")
}

// clockOf is what a client's timestamps are on a port.
func (w *wire) clockOf(c natClient, port uint16) (uint32, error) {
	if err := w.become(c); err != nil {
		return 0, err
	}
	client, _, err := w.pair(port, Linger(0))
	if err != nil {
		return 0, err
	}
	if err := errors.Join(client.Close(), w.gone()); err != nil {
		return 0, err
	}
	syns, err := w.capture.Find(Match{Out: true, Flags: syn, Mask: synAck, Port: port})
	if err != nil {
		return 0, err
	}
	if len(syns) == 0 {
		return 0, errors.New("the capture has no SYN")
	}
	return syns[len(syns)-1].TSVal, nil
}

// become has the namespace of clients be one of them.
func (w *wire) become(c natClient) error {
	return w.Set(w.net, w.client, fmt.Sprintf("tcp_timestamps=%d", c.timestamps))
}

// natCase has one client leave a TIME_WAIT at the server, and another connect from the same address, and from the same
// port or another.
func (s *Session) natCase(first, second natClient, port uint16, sysctls ...string) (a natAttempt, err error) {
	w, err := s.wire(sysctls...)
	if err != nil {
		return a, err
	}
	if err := w.become(first); err != nil {
		return a, err
	}
	if _, _, err := w.serverWaits(natPort); err != nil {
		return a, err
	}
	if err := w.become(second); err != nil {
		return a, err
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
