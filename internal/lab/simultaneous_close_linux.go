package lab

import (
	"fmt"

	"github.com/twtrace/twtrace/internal/fault"
	"github.com/twtrace/twtrace/internal/tcp"
)

// simultaneousClose has two FINs cross: each is held back until both ends have sent theirs.
func simultaneousClose(s *Session) error {
	w, err := s.wire()
	if err != nil {
		return err
	}
	client, server, err := w.pair(0)
	if err != nil {
		return err
	}
	ends := []struct {
		name string
		*Socket
		fault *fault.Fault // of what is sent to it
	}{{name: "client", Socket: client}, {name: "server", Socket: server}}
	const finRule, ackRule = 0, 1
	for i := range ends {
		ns := w.client
		if i == 1 {
			ns = w.server
		}
		ends[i].fault, err = w.faults(ns,
			fault.Rule{Flags: fault.FIN, Mask: fault.FIN, Action: fault.Hold},
			fault.Rule{Flags: fault.ACK, Mask: controlFlags, Action: fault.Hold},
		)
		if err != nil {
			return err
		}
	}
	for _, end := range ends {
		if err := end.Shutdown(); err != nil {
			return err
		}
	}
	states := func(want tcp.State) (Evidence, error) {
		e := Evidence{}
		for _, end := range ends {
			err := s.Wait(fmt.Sprintf("%s in %v", end.name, want), patience, func() (bool, error) {
				state, err := end.State()
				e[end.name] = state.String()
				return state == want, err
			})
			if err != nil {
				return nil, err
			}
		}
		return e, nil
	}
	for _, end := range ends {
		if err := w.acted(end.fault, finRule, 1); err != nil {
			return err
		}
	}
	before, err := states(tcp.FinWait1)
	if err != nil {
		return err
	}
	for _, end := range ends {
		if err := end.fault.ReleaseRule(finRule); err != nil {
			return err
		}
	}
	crossed, err := states(tcp.Closing)
	if err != nil {
		return err
	}
	s.Claim(Claim{
		Key: "closing", Text: "If both ends close at once, each gets the other's FIN before the ACK of its own: FIN_WAIT1, then CLOSING, at both.",
		Holds: Yes, Expected: Yes,
		Evidence: Evidence{"before the FINs": before, "after the FINs": crossed, "client": crossed["client"], "server": crossed["server"]},
	})
	for _, end := range ends {
		if err := end.fault.ReleaseRule(ackRule); err != nil {
			return err
		}
	}
	waits := Evidence{}
	for _, end := range ends {
		ns := w.client
		if end.Socket == server {
			ns = w.server
		}
		if err := s.Wait("the end of CLOSING", patience, func() (bool, error) {
			state, err := end.State()
			return state == tcp.Close, err
		}); err != nil {
			return err
		}
		list, err := s.Minisocks(ns)
		if err != nil {
			return err
		}
		n := 0
		for _, m := range list {
			if m.State == tcp.TimeWait {
				n++
			}
		}
		waits[end.name] = n
	}
	both := waits["client"] == 1 && waits["server"] == 1
	s.Claim(Claim{
		Key: "one-waits", Text: "Only one end of a connection, the one that closes first, gets a TIME_WAIT.",
		Holds: holdsOf(!both), Expected: No, Evidence: waits,
		History: "If nobody was first both get one (RFC 9293, 3.6; tcp_rcv_state_process(), CLOSING).",
	})
	lines, err := w.capture.Lines(nil)
	if err != nil {
		return err
	}
	s.Note("wire", lines)
	s.Answerf("When the FINs cross, both ends go through CLOSING and both get a TIME_WAIT.")
	return nil
}
