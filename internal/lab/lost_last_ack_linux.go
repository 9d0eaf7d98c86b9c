package lab

import (
	"fmt"
	"time"

	"github.com/twtrace/twtrace/internal/fault"
	"github.com/twtrace/twtrace/internal/tcp"
)

// lastAck is what happened to a connection whose last ACK was dropped, twice.
type lastAck struct {
	fins, acks, resets int    // the server's FINs, the client's ACKs after the first, RSTs of either
	state              string // of the server's socket in the end
	error              string // that the server's socket ended with
	before, after      time.Duration
	elapsed            time.Duration // between the two readings of what was left of TIME_WAIT
	lines              []string
}

// lostLastAck is one half of why TIME_WAIT exists: the last ACK may be lost, and the peer repeats its FIN.
func lostLastAck(s *Session) error {
	with, err := s.dropLastAck(2)
	if err != nil {
		return fmt.Errorf("with TIME_WAIT: %w", err)
	}
	without, err := s.dropLastAck(1, "tcp_max_tw_buckets=0")
	if err != nil {
		return fmt.Errorf("without TIME_WAIT: %w", err)
	}
	s.Note("with TIME_WAIT", with.lines)
	s.Note("without TIME_WAIT", without.lines)

	s.Claim(Claim{
		Key: "fin-repeated", Text: "If the last ACK is lost the peer repeats its FIN.",
		Holds: holdsOf(with.fins >= 3), Expected: Yes,
		Evidence: Evidence{"ACKs dropped": 2, "FINs": with.fins},
	})
	s.Claim(Claim{
		Key: "answered", Text: "TIME_WAIT answers a repeated FIN with the ACK again, and the peer's connection ends without an error.",
		Holds: holdsOf(with.resets == 0 && with.state == tcp.Close.String() && with.error == "ok"), Expected: Yes,
		Evidence: Evidence{"ACKs": with.acks, "RSTs": with.resets, "the peer's state": with.state, "the peer's error": with.error},
	})
	restarted := with.after - (with.before - with.elapsed)
	s.Claim(Claim{
		Key: "restarted", Text: "A repeated FIN starts the time of TIME_WAIT anew.",
		Holds: holdsOf(restarted > with.elapsed/2), Expected: Yes,
		Evidence: Evidence{
			"left at first, s": with.before.Seconds(), "left in the end, s": with.after.Seconds(), "seconds between": with.elapsed.Seconds(),
		},
		History: "tcp_timewait_state_process() reschedules for every segment with ACK that is not the one expected next (RFC 9293, 3.10.7.4: restart the 2 MSL timeout).",
	})
	s.Claim(Claim{
		Key: "without", Text: "Without TIME_WAIT (tcp_max_tw_buckets=0) the repeated FIN is answered by RST, and the peer, which closed in good order, gets ECONNRESET.",
		Holds: holdsOf(without.resets == 1 && without.error == "ECONNRESET"), Expected: Yes,
		Evidence: Evidence{"ACKs dropped": 1, "FINs": without.fins, "RSTs": without.resets, "the peer's error": without.error},
	})
	s.Answerf("The last ACK was dropped twice: the peer sent its FIN %d times, TIME_WAIT answered each and began its 60 s anew, and the peer closed without an error; without TIME_WAIT the second FIN got RST and the peer %s.", with.fins, without.error)
	return nil
}

func (s *Session) dropLastAck(drops uint32, sysctls ...string) (lastAck, error) {
	w, err := s.wire(sysctls...)
	if err != nil {
		return lastAck{}, err
	}
	return w.dropLastAck(drops)
}

// dropLastAck has the client close first, and drops its last ACK and the first repetitions of it.
func (w *wire) dropLastAck(drops uint32) (r lastAck, err error) {
	client, server, err := w.pair(0)
	if err != nil {
		return r, err
	}
	f, err := w.faults(w.server, fault.Rule{Flags: fault.ACK, Mask: controlFlags, Payload: fault.None, Last: drops, Action: fault.Drop})
	if err != nil {
		return r, err
	}
	// Not close(): an orphan in FIN_WAIT2 would need a TIME_WAIT of its own before the server's FIN is there.
	if err := client.Shutdown(); err != nil {
		return r, err
	}
	if _, err := server.Receive(make([]byte, 1), patience); err != nil {
		return r, fmt.Errorf("wait for the client's FIN: %w", err)
	}
	if err := server.Shutdown(); err != nil {
		return r, err
	}
	if err := w.acted(f, 0, 1); err != nil {
		return r, err
	}
	first := time.Now()
	if r.before, err = w.timeWaitLeft(); err != nil {
		return r, err
	}
	if err := w.Wait("the end of the server's connection", patience, func() (bool, error) {
		state, err := server.State()
		r.state = state.String()
		return state == tcp.Close, err
	}); err != nil {
		return r, err
	}
	r.elapsed = time.Since(first)
	if r.after, err = w.timeWaitLeft(); err != nil {
		return r, err
	}
	r.error = Errno(server.Error())
	return r, r.count(w.capture)
}

// timeWaitLeft is how long the client's TIME_WAIT still has; 0 if there is none.
func (w *wire) timeWaitLeft() (time.Duration, error) {
	list, err := w.Minisocks(w.client)
	if err != nil || len(list) == 0 {
		return 0, err
	}
	return list[0].Left, nil
}

// count sums up what was on the wire, from the server's first FIN on.
func (r *lastAck) count(c *Capture) (err error) {
	all, err := c.Segments()
	for i := range all {
		g := &all[i]
		switch {
		case g.Flags&rst != 0:
			r.resets++
		case g.Flags&fin != 0 && !g.Sent:
			r.fins++
		case r.fins > 0 && g.Sent:
			r.acks++
		}
	}
	if err != nil {
		return err
	}
	r.lines, err = c.Lines(nil)
	return err
}
