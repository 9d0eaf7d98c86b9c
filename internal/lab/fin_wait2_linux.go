package lab

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/tcp"
)

// Linger2 is TCP_LINGER2: how many seconds the socket may be in FIN_WAIT2 as an orphan.
func Linger2(seconds int) Option { return number(unix.IPPROTO_TCP, unix.TCP_LINGER2, seconds) }

// finWait2 is what tcp_fin_timeout is the timeout of.
func finWait2(s *Session) error {
	var short, linger, long finWait2Case
	err := s.Together(
		func() error { return s.finTimeout(&short) },
		func() (err error) { linger, _, err = s.orphan(60, Linger2(5)); return err },
		func() (err error) { long, _, err = s.orphan(90); return err },
	)
	if err != nil {
		return err
	}
	s.Claim(Claim{
		Key: "linger2", Text: "A socket can choose its own by TCP_LINGER2.",
		Holds: holdsOf(within(linger.left, 5*time.Second)), Expected: Yes,
		Evidence: Evidence{"tcp_fin_timeout, s": 60, "TCP_LINGER2, s": 5, "left, s": linger.left.Seconds()},
	})
	s.Claim(Claim{
		Key: "over-60", Text: "Of more than 60 s the part above 60 is spent as a full socket, which costs ten times as much memory as a minisock.",
		Holds: holdsOf(!long.mini && within(long.left, 30*time.Second)), Expected: Yes,
		Evidence: Evidence{"tcp_fin_timeout, s": 90, "minisock": long.mini, "left, s": long.left.Seconds()},
		History:  "__tcp_close(), tcp_rcv_state_process(): the keepalive timer runs for tcp_fin_timeout - TCP_TIMEWAIT_LEN, then the minisock is made.",
	})
	s.Answerf("tcp_fin_timeout is how long the kernel waits for the peer's FIN after close(); it changes nothing about TIME_WAIT, nor about a socket that is still open.")
	return nil
}

// finWait2Case is an orphan in FIN_WAIT2: a minisock or not, and how long its timer still runs.
type finWait2Case struct {
	mini bool
	left time.Duration
}

// within: a timer that was just set for d.
func within(left, d time.Duration) bool { return left > d-time.Second && left <= d+50*time.Millisecond }

// orphan closes a connection whose peer stays.
func (s *Session) orphan(finTimeout int, options ...Option) (c finWait2Case, w *wire, err error) {
	w, err = s.wire(fmt.Sprintf("tcp_fin_timeout=%d", finTimeout))
	if err != nil {
		return c, nil, err
	}
	client, _, err := w.pair(0, options...)
	if err != nil {
		return c, nil, err
	}
	if err := client.Close(); err != nil {
		return c, nil, err
	}
	err = s.Wait("FIN_WAIT2 with a timer", patience, func() (bool, error) {
		list, err := s.Sockets(w.client)
		for _, k := range list {
			if tcp.State(k.State) == tcp.FinWait2 && (k.Timer == timerTimeWait || k.Timer == timerKeepalive) {
				c = finWait2Case{k.Timer == timerTimeWait, left(k)}
				return true, nil
			}
		}
		return false, err
	})
	return c, w, err
}

// finTimeout has four connections side by side: one whose client closes and whose server never does until FIN_WAIT2 is
// over, one whose server closes before, one that is shut down only, and one that is in TIME_WAIT.
func (s *Session) finTimeout(c *finWait2Case) error {
	const seconds = 2
	w, err := s.wire(fmt.Sprintf("tcp_fin_timeout=%d", seconds))
	if err != nil {
		return err
	}
	const alone, converted, shut, waits = 41000, 41001, 41002, 41003
	ends := make(map[uint16][2]*Socket)
	for _, port := range []uint16{alone, converted, shut, waits} {
		client, server, err := w.pair(port)
		if err != nil {
			return err
		}
		ends[port] = [2]*Socket{client, server}
	}
	err = errors.Join(
		ends[shut][0].Shutdown(), s.halfClosed(ends[shut][0], ends[shut][1]),
		s.CloseFirst(ends[waits][0], ends[waits][1]),
		ends[converted][0].Close(), ends[alone][0].Close(),
	)
	if err != nil {
		return err
	}
	begun := time.Now()
	fresh, err := s.waitFor(w, map[uint16]tcp.State{alone: tcp.FinWait2, converted: tcp.FinWait2, waits: tcp.TimeWait})
	if err != nil {
		return err
	}
	*c = finWait2Case{true, left(fresh[alone])}
	// The server's FIN comes while the client waits for it.
	if err := ends[converted][1].Close(); err != nil {
		return err
	}
	after, err := s.waitFor(w, map[uint16]tcp.State{converted: tcp.TimeWait})
	if err != nil {
		return err
	}
	if err := s.Wait("the end of FIN_WAIT2", patience, func() (bool, error) {
		list, err := s.Minisocks(w.client)
		for _, m := range list {
			if m.Local.Port() == alone {
				return false, err
			}
		}
		return true, err
	}); err != nil {
		return err
	}
	lasted := time.Since(begun)
	open := s.halfClosed(ends[shut][0], ends[shut][1])
	// Nobody waits for the server's FIN any more.
	if err := ends[alone][1].Shutdown(); err != nil {
		return err
	}
	reset, err := s.Await(w.capture, "an RST", Match{Out: true, Flags: rst, Mask: rst, Port: alone}, 1)
	if err != nil {
		return err
	}
	if err := s.Wait("the end of the server's connection", patience, func() (bool, error) {
		state, err := ends[alone][1].State()
		return state == tcp.Close, err
	}); err != nil {
		return err
	}
	peer := Errno(ends[alone][1].Error())

	s.Claim(Claim{
		Key: "orphan", Text: "tcp_fin_timeout is how long FIN_WAIT2 of a closed socket lasts.",
		Holds:    holdsOf(within(left(fresh[alone]), seconds*time.Second) && lasted > (seconds-1)*time.Second && lasted < 2*seconds*time.Second+2*time.Second),
		Expected: Yes,
		Evidence: Evidence{"tcp_fin_timeout, s": seconds, "left at first, s": left(fresh[alone]).Seconds(), "lasted, s": lasted.Seconds()},
		History:  "The timer wheel adds up to an eighth (kernel/time/timer.c).",
	})
	s.Claim(Claim{
		Key: "not-time-wait", Text: "tcp_fin_timeout is the length of TIME_WAIT.",
		Holds: holdsOf(left(fresh[waits]) < 10*seconds*time.Second), Expected: No,
		Evidence: Evidence{"tcp_fin_timeout, s": seconds, "left of TIME_WAIT, s": left(fresh[waits]).Seconds()},
		History:  "It never was: TIME_WAIT's 60 s (TCP_TIMEWAIT_LEN) are compiled in.",
	})
	s.Claim(Claim{
		Key: "fin-arrives", Text: "If the peer's FIN comes in time, the whole 60 s of TIME_WAIT begin with it.",
		Holds: holdsOf(within(left(after[converted]), time.Minute)), Expected: Yes,
		Evidence: Evidence{"left of FIN_WAIT2, s": left(fresh[converted]).Seconds(), "left of TIME_WAIT, s": left(after[converted]).Seconds()},
	})
	s.Claim(Claim{
		Key: "rst-after", Text: "If it comes later, it is answered by RST, and the peer's close ends with ECONNRESET.",
		Holds: holdsOf(reset.Flags&rst != 0 && peer == "ECONNRESET"), Expected: Yes,
		Evidence: Evidence{"answer": reset.Flags.String(), "the peer's error": peer},
	})
	s.Claim(Claim{
		Key: "shutdown", Text: "It also ends FIN_WAIT2 of a socket that its program has shut down and still holds.",
		Holds: holdsOf(open != nil), Expected: No,
		Evidence: Evidence{"still in FIN_WAIT2 and CLOSE_WAIT": open == nil, "seconds waited": lasted.Seconds()},
	})
	return nil
}

// waitFor waits for minisocks of ports in states.
func (s *Session) waitFor(w *wire, want map[uint16]tcp.State) (found map[uint16]*netlink.Socket, err error) {
	err = s.Wait(fmt.Sprintf("minisocks %v", want), patience, func() (bool, error) {
		list, err := s.Sockets(w.client)
		found = make(map[uint16]*netlink.Socket)
		for _, k := range list {
			if state, ok := want[k.ID.SourcePort]; ok && tcp.State(k.State) == state && k.Timer == timerTimeWait {
				found[k.ID.SourcePort] = k
			}
		}
		return len(found) == len(want), err
	})
	return found, err
}
