package lab

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/clock"
	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/tcp"
)

// twLength is one TIME_WAIT, measured in two ways.
type twLength struct {
	Port  uint16 `json:"port"`
	Ticks uint32 `json:"ticks"` // for which the kernel set its timer
	// Traced is from its birth to its end by the trace, Bound from the last close() until bind() got the port.
	Traced float64 `json:"seconds_traced"`
	Bound  float64 `json:"seconds_of_the_bind_loop"`
	Ended  float64 `json:"ended_at"` // seconds since the first of all ended
	Errno  string  `json:"bind"`     // at first
	// Full is how many sockets other than the TIME_WAIT had the port when bind() failed.
	Full int `json:"other_sockets"`

	cookie tcp.Cookie
	ended  int64
}

// twPort is the first of the servers' ports.
const twPort = 7100

// timeWaitLength is experiment 5: servers that closed first try to bind their ports again until they can.
func timeWaitLength(s *Session) error {
	usual, err := s.Network(netlab.Pair)
	if err != nil {
		return err
	}
	short, err := s.Network(netlab.Pair, "tcp_fin_timeout=5")
	if err != nil {
		return err
	}
	trace, err := s.Trace(usual, short)
	if err != nil {
		return err
	}
	// Begun at moments that span more than the timer wheel's step, two seconds at HZ = 250.
	const n, apart = 6, 450 * time.Millisecond
	found := make([]twLength, n+1)
	var parts []func() error
	for i := range found {
		l, wait := usual, time.Duration(i)*apart
		if i == n {
			l, wait = short, 0
		}
		parts = append(parts, func() error {
			if err := s.Sleep(wait); err != nil {
				return err
			}
			return found[i].measure(s, l, twPort+uint16(i))
		})
	}
	late := lateness()
	if err := s.Together(parts...); err != nil {
		return err
	}
	worst := late()
	hz, err := trace.t.HZ()
	if err != nil {
		return err
	}
	events, err := trace.Stop()
	if err != nil {
		return err
	}
	for i := range found {
		if err := found[i].join(events); err != nil {
			return err
		}
	}
	settleLength(s, found[:n], &found[n], hz, worst)
	return nil
}

// measure makes a TIME_WAIT at the server's end and waits for its end in a loop.
func (w *twLength) measure(s *Session, l *netlab.Lab, port uint16) error {
	at := netip.AddrPortFrom(l.ServerAddr(), port)
	listener, err := s.Listener(l.Server(), at, 1)
	if err != nil {
		return err
	}
	client, server, err := s.PairTo(l.Client(), listener, at, netip.AddrPort{})
	if err != nil {
		return err
	}
	w.Port, w.cookie = port, server.Cookie
	if err := errors.Join(listener.Close(), s.CloseFirst(server, client)); err != nil {
		return err
	}
	closed := clock.Mono()
	again, err := s.Socket(l.Server(), false)
	if err != nil {
		return err
	}
	w.Errno = Errno(again.Bind(at))
	there, err := sockets(l.Server())
	if err != nil {
		return err
	}
	for _, k := range there {
		if k.ID.SourcePort == port && (k.Timer != timerTimeWait || k.INode != 0) {
			w.Full++
		}
	}
	for bound := false; !bound; {
		switch err := again.Bind(at); {
		case err == nil:
			bound = true
		case !errors.Is(err, unix.EADDRINUSE):
			return fmt.Errorf("bind %s: %w", at, err)
		case clock.Mono()-closed > int64(2*time.Minute):
			return fmt.Errorf("bind %s: still in use after two minutes", at)
		default:
			if err := s.Sleep(10 * time.Millisecond); err != nil {
				return err
			}
		}
	}
	w.Bound = float64(clock.Mono()-closed) / 1e9
	return again.Close()
}

// join finds the TIME_WAIT in the trace.
func (w *twLength) join(events []tcp.Event) error {
	var begun int64
	for i := range events {
		switch ev := &events[i]; {
		case ev.Cookie != w.cookie:
		case ev.Kind == tcp.KindTWEnter:
			begun, w.Ticks = ev.MonoNS, ev.Ticks
		case ev.Kind == tcp.KindTWEnd && ev.Cause == tcp.CauseExpired:
			w.ended = ev.MonoNS
		}
	}
	if begun == 0 || w.ended == 0 {
		return fmt.Errorf("the trace has not seen the TIME_WAIT of port %d begin and expire", w.Port)
	}
	w.Traced = float64(w.ended-begun) / 1e9
	return nil
}

// step is the granularity of the kernel's timer wheel for a timer so many jiffies ahead (kernel/time/timer.c, calc_wheel_index:
// 64 buckets a level, each level eight times as coarse, rounded up).
func step(ticks uint32) uint32 {
	level := 0
	for ticks >= 63<<(3*level) {
		level++
	}
	return 1 << (3 * level)
}

func settleLength(s *Session, all []twLength, short *twLength, hz int, worst float64) {
	first := slices.MinFunc(all, func(a, b twLength) int { return int(a.ended - b.ended) }).ended
	nominal, within, agree, together, inUse := true, true, true, true, true
	wheel := float64(step(all[0].Ticks)) / float64(hz)
	shortest, longest, apart := math.Inf(1), 0.0, 0.0
	for i := range all {
		w := &all[i]
		w.Ended = float64(w.ended-first) / 1e9
		shortest, longest = min(shortest, w.Traced), max(longest, w.Traced)
		apart = max(apart, math.Abs(w.Traced-w.Bound))
		nominal = nominal && math.Abs(float64(w.Ticks)-60*float64(hz)) <= 1
		within = within && w.Traced > 59.9 && w.Traced < 60+wheel+usual
		agree = agree && math.Abs(w.Traced-w.Bound) < usual
		rest := math.Mod(w.Ended+usual/2, wheel)
		together = together && rest < usual
		inUse = inUse && w.Errno == "EADDRINUSE" && w.Full == 0
	}
	s.Note("lengths", all)
	s.Note("seconds that a timer of 20 ms was late at worst", worst)
	seen := func(found bool) Holds {
		if !found && worst > usual/2 {
			return NotObservable // the machine stood still for longer than the difference is about
		}
		return holdsOf(found)
	}
	s.Claim(Claim{
		Key: "sixty-seconds", Text: "TIME_WAIT is set to 60 seconds (TCP_TIMEWAIT_LEN, compiled in).",
		Holds: holdsOf(nominal), Expected: Yes, Evidence: Evidence{"jiffies": int(all[0].Ticks), "HZ": hz},
	})
	s.Claim(Claim{
		Key: "wheel", Text: "It lasts longer, by up to a step of the kernel's timer wheel, and those of about the same age end together.",
		Holds: seen(within && together), Expected: Yes,
		Evidence: Evidence{"shortest": shortest, "longest": longest, "step in seconds": wheel, "HZ": hz, "lengths": all},
		History:  "Since 4.8, whose timers are rounded up to a bucket of the wheel (500844292020, as far as read): two seconds at HZ=250 (61.45 s in an earlier measurement), four at HZ=1000.",
	})
	s.Claim(Claim{
		Key: "bind-loop", Text: "A loop on bind() until it succeeds measures the same as the trace does.",
		Holds: seen(agree), Expected: Yes, Evidence: Evidence{"largest difference in seconds": apart, "connections": len(all)},
	})
	s.Claim(Claim{
		Key: "in-use", Text: "Without SO_REUSEADDR a restarted server gets EADDRINUSE while no process holds the port, and the TIME_WAIT is all there is.",
		Holds: holdsOf(inUse), Expected: Yes, Evidence: Evidence{"bind": all[0].Errno, "other sockets of the port": all[0].Full},
	})
	s.Claim(Claim{
		Key: "fin-timeout", Text: "tcp_fin_timeout changes its length.",
		Holds: holdsOf(short.Traced < 59.9), Expected: No, Evidence: Evidence{"seconds with tcp_fin_timeout=5": short.Traced},
		History: "It is how long an orphan stays in FIN_WAIT2.",
	})
	s.Claim(Claim{
		Key: "twice-msl", Text: "On macOS it is twice net.inet.tcp.msl, 30 seconds: the length depends on the system.",
		Holds: NotObservable, Expected: Yes, History: "Not a Linux kernel's. That it is 60 seconds here and 30 there is what the claim says.",
	})
	s.Answerf("TIME_WAIT lasts 60 seconds and what the timer wheel adds, here %.1f to %.1f; a loop on bind() measures the same, and no sysctl changes it.", shortest, longest)
}

// usual is how late a timer, or a program, may be on a busy machine, in seconds.
const usual = 0.3

// lateness watches how late timers are, until the returned function is called: by how many seconds at worst.
func lateness() (worst func() float64) {
	end, result := make(chan struct{}), make(chan float64)
	go func() {
		most := 0.0
		for {
			begun := clock.Mono()
			select {
			case <-end:
				result <- most
				return
			case <-time.After(20 * time.Millisecond):
			}
			most = max(most, float64(clock.Mono()-begun)/1e9-0.02)
		}
	}()
	return func() float64 {
		close(end)
		return <-result
	}
}
