package lab

import (
	"fmt"

	"github.com/twtrace/twtrace/internal/fault"
	"github.com/twtrace/twtrace/internal/tcp"
)

// assassination ends TIME_WAIT early by segments (RFC 1337), with tcp_rfc1337 off and on.
func assassination(s *Session) error {
	type outcome struct {
		duplicate assassin
		survives  map[int]bool // an RST so far from the number expected next
		finWait2  bool
	}
	var found [2]outcome
	for rfc1337 := range found {
		o := &found[rfc1337]
		set := fmt.Sprintf("tcp_rfc1337=%d", rfc1337)
		var err error
		if o.duplicate, err = s.oldDuplicate(set); err != nil {
			return fmt.Errorf("an old duplicate, %s: %w", set, err)
		}
		o.survives = make(map[int]bool)
		for _, distance := range []int{-1, 0, 1} {
			if o.survives[distance], err = s.rstIntoTimeWait(set, distance); err != nil {
				return fmt.Errorf("an RST at %d, %s: %w", distance, set, err)
			}
		}
		if o.finWait2, err = s.rstIntoFinWait2(set); err != nil {
			return fmt.Errorf("an RST into FIN_WAIT2, %s: %w", set, err)
		}
		s.Note(set, o.duplicate.lines)
	}
	off, on := &found[0], &found[1]
	s.Claim(Claim{
		Key: "assassinated", Text: "An old duplicate can end TIME_WAIT early: TIME_WAIT answers it with an ACK, and the peer, which knows nothing any more, answers that with RST.",
		Holds: holdsOf(!off.duplicate.survived), Expected: Yes, Evidence: off.duplicate.evidence(0),
		History: "RFC 1337, hazard H1; tcp_timewait_state_process().",
	})
	s.Claim(Claim{
		Key: "protected", Text: "With tcp_rfc1337=1 TIME_WAIT ignores that RST.",
		Holds: holdsOf(on.duplicate.survived), Expected: Yes, Evidence: on.duplicate.evidence(1),
	})
	s.Claim(Claim{
		Key: "documentation", Text: "With tcp_rfc1337 unset, the default, TIME_WAIT assassination is prevented (Documentation/networking/ip-sysctl.rst).",
		Holds: holdsOf(off.duplicate.survived), Expected: No, Evidence: Evidence{"survived with 0": off.duplicate.survived, "survived with 1": on.duplicate.survived},
		History: "The text is the wrong way round: set, RSTs in TIME_WAIT are ignored, which is the fix that RFC 1337 proposes.",
	})
	s.Claim(Claim{
		Key: "any-rst", Text: "Any RST within the window ends a TIME_WAIT.",
		Holds: holdsOf(!off.survives[-1] && !off.survives[0] && !off.survives[1]), Expected: No,
		Evidence: Evidence{"survives one before": off.survives[-1], "survives the number expected next": off.survives[0], "survives one after": off.survives[1]},
		History:  "Only one with exactly the number that is expected next.",
	})
	s.Claim(Claim{
		Key: "fin-wait2", Text: "tcp_rfc1337=1 protects a FIN_WAIT2 minisock too.",
		Holds: holdsOf(on.finWait2), Expected: No,
		Evidence: Evidence{"survives with 0": off.finWait2, "survives with 1": on.finWait2},
	})
	s.Answerf("An old duplicate that reaches a TIME_WAIT ends it with tcp_rfc1337=0, the default, by way of an ACK and the peer's RST; with 1 the RST is ignored.")
	return nil
}

// assassin is what became of a TIME_WAIT after an old duplicate.
type assassin struct {
	acks, resets int
	survived     bool
	second       string // what answered the duplicate when it came once more
	lines        []string
}

func (a *assassin) evidence(rfc1337 int) Evidence {
	return Evidence{
		"tcp_rfc1337": rfc1337, "ACKs of TIME_WAIT": a.acks, "RSTs of the peer": a.resets,
		"survived": a.survived, "answer to a second duplicate": a.second,
	}
}

// timeWaitAt has the client close first, after the server has sent data, and returns that data's segment and
// the server's FIN.
func (w *wire) timeWaitAt(port uint16) (data, last Segment, err error) {
	client, server, err := w.pair(port)
	if err != nil {
		return data, last, err
	}
	if err := sendAcross(server, client, "an old segment"); err != nil {
		return data, last, err
	}
	if err := w.CloseFirst(client, server); err != nil {
		return data, last, err
	}
	if err := w.TimeWaits(w.client, 1); err != nil {
		return data, last, err
	}
	if err := w.gone(); err != nil {
		return data, last, err
	}
	if data, err = w.Await(w.capture, "the data", Match{Data: true, Port: port}, 1); err != nil {
		return data, last, err
	}
	last, err = w.Await(w.capture, "the server's FIN", Match{Flags: fin, Mask: fin, Port: port}, 1)
	return data, last, err
}

// gone waits until the server's namespace has no connection any more.
func (w *wire) gone() error {
	return w.Wait("the end of the server's connection", patience, func() (bool, error) {
		all, err := w.Sockets(w.server)
		for _, k := range all {
			if tcp.State(k.State) != tcp.Listen {
				return false, err
			}
		}
		return true, err
	})
}

// oldDuplicate sends a segment of the server's once more when the client is in TIME_WAIT.
func (s *Session) oldDuplicate(sysctl string) (a assassin, err error) {
	const port = 41000
	w, err := s.wire(sysctl)
	if err != nil {
		return a, err
	}
	data, _, err := w.timeWaitAt(port)
	if err != nil {
		return a, err
	}
	before, err := w.capture.Find(Match{Out: true, Flags: ack, Mask: controlFlags, Port: port})
	if err != nil {
		return a, err
	}
	if err := fault.Send(w.server, &data.Segment); err != nil {
		return a, err
	}
	answers := func(n int) (Segment, error) {
		return w.Await(w.capture, "TIME_WAIT's ACK", Match{Out: true, Flags: ack, Mask: controlFlags, Port: port}, len(before)+n)
	}
	if _, err := answers(1); err != nil {
		return a, err
	}
	if _, err := w.Await(w.capture, "the server's RST", Match{Flags: rst, Mask: rst, Port: port}, 1); err != nil {
		return a, err
	}
	a.acks, a.resets = 1, 1
	// The answer to a second one says whether there is a TIME_WAIT, and that the RST has been dealt with.
	if err := fault.Send(w.server, &data.Segment); err != nil {
		return a, err
	}
	if err := s.Wait("an answer to the second duplicate", patience, func() (bool, error) {
		acks, err := w.capture.Find(Match{Out: true, Flags: ack, Mask: controlFlags, Port: port})
		if err != nil {
			return false, err
		}
		resets, err := w.capture.Find(Match{Out: true, Flags: rst, Mask: rst, Port: port})
		switch {
		case len(resets) > 0:
			a.second = "RST, by no socket"
		case len(acks) > len(before)+1:
			a.second, a.survived = "ACK, by TIME_WAIT", true
		}
		return a.second != "", err
	}); err != nil {
		return a, err
	}
	a.lines, err = w.capture.Lines(nil)
	return a, err
}

// processed waits until a namespace has been handed a segment more than it had before.
func (s *Session) processed(w *wire, send func() error) error {
	before, err := s.counted(w.client, "Tcp.InSegs")
	if err != nil {
		return err
	}
	if err := send(); err != nil {
		return err
	}
	return s.Wait("a segment", patience, func() (bool, error) {
		now, err := s.counted(w.client, "Tcp.InSegs")
		return err == nil && now["Tcp.InSegs"].(uint64) > before["Tcp.InSegs"].(uint64), err
	})
}

// rstIntoTimeWait sends an RST that is distance from the number that TIME_WAIT expects next, and reports whether
// TIME_WAIT survives.
func (s *Session) rstIntoTimeWait(sysctl string, distance int) (survives bool, err error) {
	const port = 41000
	w, err := s.wire(sysctl)
	if err != nil {
		return false, err
	}
	_, last, err := w.timeWaitAt(port)
	if err != nil {
		return false, err
	}
	reset := fault.Segment{From: last.From, To: last.To, Flags: rst, Seq: last.End() + uint32(distance)}
	// The second is handled after the first.
	for range 2 {
		if err := s.processed(w, func() error { return fault.Send(w.server, &reset) }); err != nil {
			return false, err
		}
	}
	list, err := s.Minisocks(w.client)
	return len(list) == 1, err
}

// rstIntoFinWait2 sends an RST to a FIN_WAIT2 minisock.
func (s *Session) rstIntoFinWait2(sysctl string) (survives bool, err error) {
	const port = 41000
	w, err := s.wire(sysctl)
	if err != nil {
		return false, err
	}
	client, server, err := w.pair(port)
	if err != nil {
		return false, err
	}
	if err := client.Close(); err != nil {
		return false, err
	}
	if _, err := server.Receive(make([]byte, 1), patience); err != nil {
		return false, err
	}
	if err := s.Wait("the FIN_WAIT2 minisock", patience, func() (bool, error) {
		list, err := s.Minisocks(w.client)
		return len(list) == 1 && list[0].State == tcp.FinWait2, err
	}); err != nil {
		return false, err
	}
	last, err := w.Await(w.capture, "the ACK of the FIN", Match{Flags: ack, Mask: controlFlags, Port: port}, 1)
	if err != nil {
		return false, err
	}
	reset := fault.Segment{From: last.From, To: last.To, Flags: rst, Seq: last.End()}
	for range 2 {
		if err := s.processed(w, func() error { return fault.Send(w.server, &reset) }); err != nil {
			return false, err
		}
	}
	list, err := s.Minisocks(w.client)
	return len(list) == 1, err
}
