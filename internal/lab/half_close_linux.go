package lab

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/tcp"
)

// halfClose compares shutdown() with close() while the peer still has something to say.
func halfClose(s *Session) error {
	if err := errors.Join(s.shutdownThenData(), s.closeThenData()); err != nil {
		return err
	}
	s.Answerf("After shutdown() the peer may send for as long as it likes, and no sysctl ends that; after close() its data is answered by RST.")
	return nil
}

// sendAcross sends from one end and reads at the other.
func sendAcross(from, to *Socket, text string) error {
	if err := from.Send([]byte(text)); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	got := make([]byte, len(text)+1)
	n, err := to.Receive(got, patience)
	if err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	if string(got[:n]) != text {
		return fmt.Errorf("received %q, sent %q", got[:n], text)
	}
	return nil
}

// halfClosed waits for the states of an end that is done and of one that is not.
func (s *Session) halfClosed(done, other *Socket) error {
	return s.Wait("FIN_WAIT2 and CLOSE_WAIT", patience, func() (bool, error) {
		a, err1 := done.State()
		b, err2 := other.State()
		return a == tcp.FinWait2 && b == tcp.CloseWait, errors.Join(err1, err2)
	})
}

func (s *Session) shutdownThenData() error {
	const finTimeout = 1
	w, err := s.wire(fmt.Sprintf("tcp_fin_timeout=%d", finTimeout))
	if err != nil {
		return err
	}
	client, server, err := w.pair(0)
	if err != nil {
		return err
	}
	if err := client.Shutdown(); err != nil {
		return err
	}
	if err := s.halfClosed(client, server); err != nil {
		return err
	}
	sent := client.Send([]byte("x"))
	flows := sendAcross(server, client, "still here")
	const waited = 3 * finTimeout * time.Second
	if err := s.Sleep(waited); err != nil {
		return err
	}
	later := errors.Join(s.halfClosed(client, server), sendAcross(server, client, "and still"))
	if err := server.Close(); err != nil {
		return err
	}
	n, err := client.Receive(make([]byte, 1), patience)
	if err != nil {
		return fmt.Errorf("wait for the server's FIN: %w", err)
	}
	if err := s.TimeWaits(w.client, 1); err != nil {
		return err
	}
	servers, err := s.Minisocks(w.server)
	if err != nil {
		return err
	}
	s.Claim(Claim{
		Key: "data-flows", Text: "After shutdown(SHUT_WR) the peer can go on sending, and its data arrives.",
		Holds: holdsOf(flows == nil), Expected: Yes,
		Evidence: Evidence{"the peer's data": Errno(flows), "own data": Errno(sent)},
	})
	s.Claim(Claim{
		Key: "fin-timeout", Text: "tcp_fin_timeout ends a half-closed connection: FIN_WAIT2 at one end, CLOSE_WAIT at the other.",
		Holds: holdsOf(later != nil), Expected: No,
		Evidence: Evidence{"tcp_fin_timeout, s": finTimeout, "seconds waited": waited.Seconds(), "the peer's data then": Errno(later)},
		History:  "Only of a socket that its program has closed (an orphan; tcp_rcv_state_process() asks for SOCK_DEAD). CLOSE_WAIT has no timer at all: its program has to close.",
	})
	s.Claim(Claim{
		Key: "active-end-waits", Text: "The end that shut down first gets the TIME_WAIT, however much later the other closes.",
		Holds: holdsOf(n == 0 && len(servers) == 0), Expected: Yes,
		Evidence: Evidence{"client": 1, "server": len(servers)},
	})
	return nil
}

func (s *Session) closeThenData() error {
	w, err := s.wire()
	if err != nil {
		return err
	}
	client, server, err := w.pair(0)
	if err != nil {
		return err
	}
	if err := client.Close(); err != nil {
		return err
	}
	if _, err := server.Receive(make([]byte, 1), patience); err != nil {
		return fmt.Errorf("wait for the client's FIN: %w", err)
	}
	if err := s.Wait("the FIN_WAIT2 minisock", patience, func() (bool, error) {
		list, err := s.Minisocks(w.client)
		return len(list) == 1 && list[0].State == tcp.FinWait2, err
	}); err != nil {
		return err
	}
	first := server.Send([]byte("still here"))
	reset, err := s.Await(w.capture, "an RST", Match{Out: true, Flags: rst, Mask: rst}, 1)
	if err != nil {
		return err
	}
	if err := s.Wait("the end of the server's connection", patience, func() (bool, error) {
		state, err := server.State()
		return state == tcp.Close, err
	}); err != nil {
		return err
	}
	second := server.Send([]byte("and still"))
	list, err := s.Minisocks(w.client)
	if err != nil {
		return err
	}
	lines, err := w.capture.Lines(nil)
	if err != nil {
		return err
	}
	s.Claim(Claim{
		Key: "close-is-none", Text: "After close() the peer can go on sending as after shutdown().",
		Holds: holdsOf(!errors.Is(second, unix.EPIPE)), Expected: No,
		Evidence: Evidence{
			"the first send": Errno(first), "answer": reset.Flags.String(), "the second send": Errno(second),
			"minisocks left": len(list), "wire": lines,
		},
		History: "Data for a FIN_WAIT2 that nobody can read is answered by RST, and ends it (tcp_timewait_state_process(); RFC 1122, 4.2.2.13).",
	})
	return nil
}
