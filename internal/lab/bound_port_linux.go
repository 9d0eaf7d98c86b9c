package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/run"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/loadgen"
)

// boundPort is a client that chooses its ports itself, and takes over those that are in TIME_WAIT.
func boundPort(s *Session) error {
	for _, part := range []func() error{
		s.boundStorm, s.boundAgain, s.boundSequence, s.boundFinWait2, s.boundBars, s.boundTwice, s.boundCost,
	} {
		if err := part(); err != nil {
			return err
		}
	}
	s.Answerf("Yes, with every sysctl at its default and no wait: bind(address, port) with SO_REUSEADDR, then connect(), takes over a TIME_WAIT whose connection had timestamps. " +
		"The price: the program keeps account of its ports, and connect() of everyone else in the namespace leaves them out.")
	return nil
}

// boundStorm is the classic storm with ports of the client's own choice, and with the kernel's.
func (s *Session) boundStorm() error {
	connections, ports := classicSize(s)
	set, err := Sysctls(fmt.Sprintf("ip_local_port_range=%d %d", classicLow, classicLow+ports-1))
	if err != nil {
		return err
	}
	if s.Full() {
		set = nil
	}
	evidence := Evidence{"ports": ports, "connections a loop": connections}
	holds := true
	for name, bind := range map[string]loadgen.Binding{"own ports": loadgen.BindPort, "the kernel's": loadgen.BindNone} {
		plan := loadgen.NewPlan(netip.AddrPort{})
		plan.Loops, plan.Connections, plan.Bind = 4, connections, bind
		if bind == loadgen.BindNone {
			plan.Loops = 3 // the third runs out
		}
		summary, err := s.Storm(run.Options{Plan: plan, Net: netlab.Options{Kind: netlab.Pair, Sysctls: set}})
		if err != nil {
			return err
		}
		if summary.Interrupted {
			return s.ctx.Err()
		}
		evidence["finished with "+name] = summary.Totals.Finished
		evidence["failed with "+name] = summary.Totals.Failed
		evidence["TIME_WAITs taken over with "+name] = summary.TimeWait.ReusedByConnect
		for key, v := range summary.Sysctls {
			if key == "net.ipv4.tcp_tw_reuse" {
				evidence[key] = v
			}
		}
		evidence["TIME_WAITs expired with "+name] = summary.TimeWait.Expired
		for _, c := range summary.CrossCheck {
			if !c.Agrees {
				evidence[c.Side+" "+c.Counter+" with "+name] = fmt.Sprintf("%d by the kernel, %d by twtrace", c.Kernel, c.Twtrace)
				holds = false
			}
		}
		if lost := summary.Events.Lost(); lost > 0 {
			evidence["events lost with "+name] = lost
		}
		// What lasted past the end of the storm was killed by an RST, if it is not there any more.
		free := ports + summary.TimeWait.KilledByRst + summary.TimeWait.Expired
		if bind == loadgen.BindPort {
			holds = holds && summary.Totals.Failed == 0 && summary.TimeWait.ReusedByConnect >= plan.Loops*connections-free
		} else {
			// On a slow machine TIME_WAITs expire meanwhile, and nothing need fail.
			holds = holds && summary.TimeWait.ReusedByConnect == 0 && summary.Totals.Finished <= free && (summary.Totals.Failed > 0 || summary.TimeWait.Expired > 0)
		}
		holds = holds && summary.Unexplained == 0 && summary.Events.Lost() == 0
	}
	s.Claim(Claim{
		Key: "at-once", Text: "A client that binds its own ports with SO_REUSEADDR reuses TIME_WAIT at once with every sysctl at its default.",
		Holds: holdsOf(holds), Expected: Yes, Evidence: evidence,
		History: "tcp_twsk_unique asks for tcp_tw_reuse and for the age only if connect() chooses the port (twp).",
	})
	return nil
}

// again opens a connection from a port, has the client close it first, and returns what opening it again comes to.
func (s *Session) again(l *netlab.Lab, options ...Option) (bind, connect error, age time.Duration, err error) {
	to := netip.AddrPortFrom(l.ServerAddr(), serverPort)
	from := netip.AddrPortFrom(l.ClientAddrs()[0], ownPort)
	listener, err := s.Listener(l.Server(), to, 16, ReuseAddr)
	if err != nil {
		return nil, nil, 0, err
	}
	client, server, err := s.PairTo(l.Client(), listener, to, from, options...)
	if err != nil {
		return nil, nil, 0, err
	}
	if err := s.CloseFirst(client, server); err != nil {
		return nil, nil, 0, err
	}
	if err := s.TimeWaits(l.Client(), 1); err != nil {
		return nil, nil, 0, err
	}
	begun := time.Now()
	second, err := s.Socket(l.Client(), false, options...)
	if err != nil {
		return nil, nil, 0, err
	}
	if bind = second.Bind(from); bind == nil {
		connect = second.Connect(to, patience)
	}
	return bind, connect, time.Since(begun), nil
}

// ownPort is the one a client binds, outside every range that an entry sets.
const ownPort = 20_000

// boundAgain settles what taking a TIME_WAIT over needs.
func (s *Session) boundAgain() error {
	type row struct {
		Reuse      int    `json:"tcp_tw_reuse"`
		Timestamps string `json:"tcp_timestamps"` // client, server
		ReuseAddr  bool   `json:"so_reuseaddr"`
		Bind       string `json:"bind"`
		Connect    string `json:"connect"`
		MS         int64  `json:"ms"` // after the TIME_WAIT was seen
	}
	var table []row
	for _, reuse := range []int{0, 1, 2} {
		for _, stamps := range [][2]int{{1, 1}, {1, 0}, {0, 1}, {0, 0}} {
			for _, addr := range []bool{true, false} {
				l, err := s.Network(netlab.Pair, "tcp_tw_reuse="+strconv.Itoa(reuse))
				if err != nil {
					return err
				}
				err = errors.Join(s.Set(l, l.Client(), fmt.Sprintf("tcp_timestamps=%d", stamps[0])), s.Set(l, l.Server(), fmt.Sprintf("tcp_timestamps=%d", stamps[1])))
				if err != nil {
					return err
				}
				var options []Option
				if addr {
					options = []Option{ReuseAddr}
				}
				bind, connect, age, err := s.again(l, options...)
				if err != nil {
					return err
				}
				r := row{reuse, fmt.Sprintf("%d, %d", stamps[0], stamps[1]), addr, Errno(bind), Errno(connect), age.Milliseconds()}
				if bind != nil {
					r.Connect = ""
				}
				table = append(table, r)
			}
		}
	}
	s.Note("again", table)
	count := func(f func(*row) (in, ok bool)) (n, ok int) {
		for i := range table {
			if a, b := f(&table[i]); a {
				n++
				if b {
					ok++
				}
			}
		}
		return n, ok
	}
	n, ok := count(func(r *row) (bool, bool) { return r.ReuseAddr && r.Timestamps == "1, 1", r.Connect == "ok" })
	s.Claim(Claim{
		Key: "whatever-tw-reuse", Text: "It does so whatever tcp_tw_reuse is, without waiting a second.",
		Holds: holdsOf(n > 0 && ok == n), Expected: Yes, Evidence: Evidence{"tries": n, "ok": ok},
	})
	n, ok = count(func(r *row) (bool, bool) { return !r.ReuseAddr, r.Bind == "EADDRINUSE" })
	s.Claim(Claim{
		Key: "needs-reuseaddr", Text: "It needs SO_REUSEADDR: without, bind() says EADDRINUSE.",
		Holds: holdsOf(n > 0 && ok == n), Expected: Yes, Evidence: Evidence{"tries without": n, "EADDRINUSE": ok},
		History: "inet_csk_bind_conflict counts TIME_WAITs as owners.",
	})
	n, ok = count(func(r *row) (bool, bool) {
		return r.ReuseAddr && r.Timestamps != "1, 1", r.Bind == "ok" && r.Connect == "EADDRNOTAVAIL"
	})
	s.Claim(Claim{
		Key: "needs-timestamps", Text: "It needs tcp_timestamps on both ends of the old connection: without, connect() says EADDRNOTAVAIL.",
		Holds: holdsOf(n > 0 && ok == n), Expected: Yes, Evidence: Evidence{"tries without": n, "EADDRNOTAVAIL": ok},
		History: "tcp_twsk_unique: tw_ts_recent_stamp.",
	})
	return nil
}

// ownPortNet is a network with a listener, where a client may bind from.
func (s *Session) ownPortNet() (l *netlab.Lab, listener *Socket, from, to netip.AddrPort, err error) {
	if l, err = s.Network(netlab.Pair); err != nil {
		return nil, nil, from, to, err
	}
	to = netip.AddrPortFrom(l.ServerAddr(), serverPort)
	from = netip.AddrPortFrom(l.ClientAddrs()[0], ownPort)
	listener, err = s.Listener(l.Server(), to, 16)
	return l, listener, from, to, err
}

// boundSequence settles that old segments are out of the new connection's window.
func (s *Session) boundSequence() error {
	l, listener, from, to, err := s.ownPortNet()
	if err != nil {
		return err
	}
	var seq [2]uint32
	for i := range seq {
		client, server, err := s.PairTo(l.Client(), listener, to, from, ReuseAddr)
		if err != nil {
			return err
		}
		if seq[i], err = writeSeq(client); err != nil {
			return err
		}
		if err := s.CloseFirst(client, server); err != nil {
			return err
		}
		if err := s.TimeWaits(l.Client(), 1); err != nil {
			return err
		}
	}
	step := seq[1] - seq[0]
	s.Claim(Claim{
		Key: "sequence", Text: "The new connection's sequence numbers begin more than a window without scaling past the old one's, so the server takes the SYN and no old segment.",
		Holds: holdsOf(step > 1<<16 && step < 1<<31), Expected: Yes,
		Evidence: Evidence{"bytes from the old connection's last to the new one's first": step},
		History:  "tcp_twsk_unique: tw_snd_nxt + 65535 + 2. Data of the old connection also has older timestamps, and PAWS drops it.",
	})
	return nil
}

// boundFinWait2 takes over a connection whose other end is still open.
func (s *Session) boundFinWait2() error {
	l, err := s.Network(netlab.Pair, "tcp_tw_reuse=1")
	if err != nil {
		return err
	}
	to := netip.AddrPortFrom(l.ServerAddr(), serverPort)
	from := netip.AddrPortFrom(l.ClientAddrs()[0], ownPort)
	listener, err := s.Listener(l.Server(), to, 16)
	if err != nil {
		return err
	}
	client, server, err := s.PairTo(l.Client(), listener, to, from, ReuseAddr)
	if err != nil {
		return err
	}
	if err := client.Close(); err != nil {
		return err
	}
	err = s.Wait("a FIN_WAIT2 without a socket", patience, func() (bool, error) {
		list, err := s.Minisocks(l.Client())
		return len(list) == 1 && list[0].State == tcp.FinWait2, err
	})
	if err != nil {
		return err
	}
	begun := time.Now()
	_, _, err = s.PairTo(l.Client(), listener, to, from, ReuseAddr)
	took := time.Since(begun)
	if err != nil {
		return err
	}
	reset := server.Error()
	s.Claim(Claim{
		Key: "fin-wait2", Text: "Its price: it takes over a FIN_WAIT2 too, and the server, which had not closed yet, loses its connection to an RST.",
		Holds: holdsOf(errors.Is(reset, unix.ECONNRESET) || errors.Is(reset, unix.EPIPE)), Expected: Yes,
		Evidence: Evidence{"the server's end": Errno(reset), "ms until connected": took.Milliseconds()},
		History:  "tcp_twsk_unique refuses FIN_WAIT2 only where connect() chooses the port.",
	})
	return nil
}

// boundBars counts the ports that others are left with.
func (s *Session) boundBars() error {
	const n, bound = 10, 4
	set, err := Sysctls(fmt.Sprintf("ip_local_port_range=%d %d", classicLow, classicLow+n-1))
	if err != nil {
		return err
	}
	left := func(closed bool) (int, error) {
		l, err := s.NetworkOf(netlab.Options{Kind: netlab.Pair, Sources: 2, Sysctls: set})
		if err != nil {
			return 0, err
		}
		to := []netip.AddrPort{netip.AddrPortFrom(l.ServerAddr(), serverPort), netip.AddrPortFrom(l.ServerAddr(), serverPort+1)}
		q, err := s.NewSearcher(l, to...)
		if err != nil {
			return 0, err
		}
		ok := 0
		return ok, q.Do(func() error {
			for i := range n + bound + 3 {
				// The first few bind another address, and connect elsewhere, than the rest.
				how, destination := How{}, to[1]
				if i < bound {
					how, destination = How{Bind: true, From: l.ClientAddrs()[1], Port: classicLow + uint16(i), Reuse: true}, to[0]
				}
				o, err := q.Open(how, destination)
				if err != nil {
					return err
				}
				switch {
				case i < bound && !o.OK():
					return fmt.Errorf("a bound port: %s", o.Why())
				case i < bound && closed:
					err = q.Close(&o, false)
				default:
					q.Hold(&o)
				}
				if err != nil {
					return err
				}
				if i >= bound && o.OK() {
					ok++
				}
			}
			return nil
		})
	}
	open, err := left(false)
	if err != nil {
		return err
	}
	waiting, err := left(true)
	if err != nil {
		return err
	}
	s.Claim(Claim{
		Key: "bars-others", Text: "Its price: connect() that chooses a port passes over every one that somebody has bound, on any address and to any destination, open or in TIME_WAIT.",
		Holds: holdsOf(open == n-bound && waiting == n-bound), Expected: Yes,
		Evidence: Evidence{"ports": n, "bound": bound, "left while they are open": open, "left while they are in TIME_WAIT": waiting},
		History:  "__inet_hash_connect skips a bucket with fastreuse or fastreuseport set.",
	})
	return nil
}

// boundTwice has two sockets take one port for one destination.
func (s *Session) boundTwice() error {
	l, listener, from, to, err := s.ownPortNet()
	if err != nil {
		return err
	}
	if _, _, err := s.PairTo(l.Client(), listener, to, from, ReuseAddr); err != nil {
		return err
	}
	second, err := s.Socket(l.Client(), false, ReuseAddr)
	if err != nil {
		return err
	}
	bind := second.Bind(from)
	connect := second.Connect(to, patience)
	s.Claim(Claim{
		Key: "own-account", Text: "Its price: the program keeps account of what is in use. bind() does not say so, because of SO_REUSEADDR; connect() does, by EADDRNOTAVAIL.",
		Holds: holdsOf(bind == nil && errors.Is(connect, unix.EADDRNOTAVAIL)), Expected: Yes,
		Evidence: Evidence{"bind": Errno(bind), "connect": Errno(connect)},
	})
	return nil
}

// boundCost compares the processor time of both ways while nothing is taken.
func (s *Session) boundCost() error {
	const n, each = 1000, 200
	l, _, err := s.searchNet(n, "tcp_tw_reuse=0")
	if err != nil {
		return err
	}
	to := netip.AddrPortFrom(l.ServerAddr(), serverPort)
	q, err := s.NewSearcher(l, to)
	if err != nil {
		return err
	}
	var auto, own []Opened
	err = q.Do(func() error {
		for i := range each {
			for _, way := range []struct {
				how How
				to  *[]Opened
			}{{How{}, &auto}, {How{Bind: true, From: l.ServerAddr(), Port: ownPort + uint16(i), Reuse: true}, &own}} {
				one, err := q.Lap(1, always(way.how), to, true)
				if err != nil {
					return err
				}
				*way.to = append(*way.to, one...)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.Claim(Claim{
		Key: "cost", Text: "Its price: a system call more for each connection, which is less than what connect() itself costs.",
		Holds: holdsOf(medianCPU(own) < 2*medianCPU(auto)), Expected: Yes,
		Evidence: Evidence{"us of bind() and connect()": medianCPU(own), "us of connect() that chooses, with no port taken": medianCPU(auto)},
	})
	return nil
}
