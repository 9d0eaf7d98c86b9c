package lab

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/fault"
	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/tcp"
)

// Match says which segments are meant; with all flags 0: any.
type Match struct {
	Out         bool        // from the namespace of the capture, or to it
	Flags, Mask fault.Flags // as in a fault.Rule
	Data        bool        // with data
	Port        uint16      // one of its ports; 0: any
}

func (m Match) fits(c *Segment) bool {
	return m.Out == c.Sent && c.Flags&m.Mask == m.Flags && (!m.Data || c.Len > 0) &&
		(m.Port == 0 || m.Port == c.From.Port() || m.Port == c.To.Port())
}

// Find returns the segments that match, of those seen so far.
func (c *Capture) Find(m Match) (found []Segment, err error) {
	all, err := c.Segments()
	for i := range all {
		if m.fits(&all[i]) {
			found = append(found, all[i])
		}
	}
	return found, err
}

// Await waits until n segments that match have been seen, and returns the last.
func (s *Session) Await(c *Capture, what string, m Match, n int) (last Segment, err error) {
	err = s.Wait(what, patience, func() (bool, error) {
		found, err := c.Find(m)
		if err != nil || len(found) < n {
			return false, err
		}
		last = found[n-1]
		return true, nil
	})
	return last, err
}

// Lines describes what was seen as tcpdump does: numbers count from each side's first, times from the first segment.
func (c *Capture) Lines(m func(*Segment) bool) (lines []string, err error) {
	all, err := c.Segments()
	type side struct{ from, to netip.AddrPort }
	first := make(map[side]uint32)
	var begun int64
	for i := range all {
		p := &all[i]
		if m != nil && !m(p) {
			continue
		}
		if begun == 0 {
			begun = p.MonoNS
		}
		here, there := side{p.From, p.To}, side{p.To, p.From}
		if _, ok := first[here]; !ok {
			first[here] = p.Seq
		}
		if _, ok := first[there]; !ok && p.Flags&fault.ACK != 0 {
			first[there] = p.Ack
		}
		rel := p.Segment
		rel.Seq -= first[here]
		rel.Ack -= first[there]
		lines = append(lines, fmt.Sprintf("%.3f s %v", float64(p.MonoNS-begun)/1e9, &rel))
	}
	return lines, err
}

// Sockets lists the TCP sockets of a namespace as sock_diag does, minisocks among them.
func (s *Session) Sockets(ns *netlab.Namespace) (all []*netlink.Socket, err error) {
	err = ns.Do(func() error {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			list, err := netlink.SocketDiagTCP(family)
			if err != nil {
				return fmt.Errorf("list sockets: %w", err)
			}
			all = append(all, list...)
		}
		return nil
	})
	return all, err
}

// timerKeepalive is idiag_timer of a full socket that waits for the keepalive timer (net/ipv4/inet_diag.c,
// inet_sk_diag_fill).
const timerKeepalive = 2

// InState waits until a namespace has exactly n sockets in a state, and returns them. TIME_WAIT and FIN_WAIT2 may be
// full sockets or minisocks.
func (s *Session) InState(ns *netlab.Namespace, state tcp.State, n int) (found []*netlink.Socket, err error) {
	err = s.Wait(fmt.Sprintf("%d sockets in %v", n, state), patience, func() (bool, error) {
		all, err := s.Sockets(ns)
		found = slices.DeleteFunc(all, func(k *netlink.Socket) bool { return tcp.State(k.State) != state })
		return err == nil && len(found) == n, err
	})
	return found, err
}

// left is how long the timer of a socket still runs.
func left(k *netlink.Socket) time.Duration { return time.Duration(k.Expires) * time.Millisecond }

// wire is a client and a server that listens, in a network of their own, and what passes between them.
type wire struct {
	*Session
	net            *netlab.Lab
	client, server *netlab.Namespace
	listener       *Socket
	at             netip.AddrPort // of the listener
	capture        *Capture       // at the client's end
}

// Wire makes one.
func (s *Session) wire(sysctls ...string) (*wire, error) {
	net, err := s.Network(netlab.Pair, sysctls...)
	if err != nil {
		return nil, err
	}
	w := &wire{Session: s, net: net, client: net.Client(), server: net.Server()}
	w.at = netip.AddrPortFrom(net.ServerAddr(), serverPort)
	if w.listener, err = s.Listener(w.server, w.at, 128, ReuseAddr); err != nil {
		return nil, err
	}
	w.capture, err = s.Capture(w.client)
	return w, err
}

// from is an address of the client.
func (w *wire) from(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(w.net.ClientAddrs()[0], port)
}

// pair connects from a port.
func (w *wire) pair(port uint16, options ...Option) (client, server *Socket, err error) {
	return w.PairTo(w.client, w.listener, w.at, w.from(port), append(options, ReuseAddr)...)
}

// faults has rules apply to what is sent to one end.
func (w *wire) faults(to *netlab.Namespace, rules ...fault.Rule) (*fault.Fault, error) {
	from := w.client
	if to == w.client {
		from = w.server
	}
	f, err := fault.Open(to, from, rules...)
	if err != nil {
		return nil, err
	}
	w.Defer(f.Close)
	return f, nil
}

// acted waits until a rule has acted upon n segments at least.
func (w *wire) acted(f *fault.Fault, rule int, n uint64) error {
	return w.Wait(fmt.Sprintf("%d segments for rule %d", n, rule), patience, func() (bool, error) {
		got, err := f.Acted(rule)
		return got >= n, err
	})
}

// counted reads some of the kernel's counters of a namespace.
func (s *Session) counted(ns *netlab.Namespace, names ...string) (Evidence, error) {
	c, err := ns.Counters()
	e := Evidence{}
	for _, name := range names {
		e[name] = c[name]
	}
	return e, err
}

// Flags that are looked at together.
const (
	controlFlags = fault.FIN | fault.SYN | fault.RST | fault.ACK
	synAck       = fault.SYN | fault.ACK
)
