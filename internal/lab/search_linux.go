package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
)

// How says how a client's socket gets its port.
type How struct {
	Bind   bool       // bind(From, Port), before connect()
	From   netip.Addr // the zero value: any
	Port   uint16     // 0: bind() or connect() chooses
	NoPort bool       // IP_BIND_ADDRESS_NO_PORT: connect() does
	Reuse  bool       // SO_REUSEADDR
	Range  [2]uint16  // IP_LOCAL_PORT_RANGE; the zero value: not set
}

// Opened is what came of one attempt to connect.
type Opened struct {
	Phase string // of the error
	Errno unix.Errno
	Port  uint16 // the client's; 0: it got none
	CPU   time.Duration
	Wall  time.Duration

	client, server int
}

// OK reports whether it is connected.
func (o *Opened) OK() bool { return o.Errno == 0 }

// is reports whether a call failed with an error.
func (o *Opened) is(phase string, errno unix.Errno) bool { return o.Phase == phase && o.Errno == errno }

// Why is the call that failed, and its error.
func (o *Opened) Why() string {
	if o.OK() {
		return "ok"
	}
	return o.Phase + " " + unix.ErrnoName(o.Errno)
}

// Searcher opens connections one after the other and measures what bind() and connect() cost, in the processor time of
// the one thread that does it, which others that run on the machine do not add to.
type Searcher struct {
	s         *Session
	listeners map[netip.AddrPort]int
	ipv6      bool
	clients   *netlab.Namespace
	servers   *netlab.Namespace
}

// NewSearcher listens on each of destinations.
func (s *Session) NewSearcher(l *netlab.Lab, destinations ...netip.AddrPort) (*Searcher, error) {
	q := &Searcher{s: s, listeners: make(map[netip.AddrPort]int), clients: l.Client(), servers: l.Server()}
	for _, to := range destinations {
		k, err := s.Listener(l.Server(), to, 128)
		if err != nil {
			return nil, err
		}
		if err := unix.SetNonblock(k.FD, true); err != nil {
			return nil, err
		}
		q.listeners[to] = k.FD
		q.ipv6 = to.Addr().Is6()
	}
	return q, nil
}

// Do runs f on the one thread, inside the client's namespace. All other methods are called from f.
func (q *Searcher) Do(f func() error) error { return q.clients.Do(f) }

// threadCPU is the processor time that the calling thread has had.
func threadCPU() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0, fmt.Errorf("CLOCK_THREAD_CPUTIME_ID: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}

// Open makes a socket and connects it. A refusal of bind() or connect() is a result.
func (q *Searcher) Open(h How, to netip.AddrPort) (o Opened, err error) {
	if err := q.s.ctx.Err(); err != nil {
		return o, err
	}
	family := unix.AF_INET
	if q.ipv6 {
		family = unix.AF_INET6
	}
	if o.client, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP); err != nil {
		return o, fmt.Errorf("socket: %w", err)
	}
	o.server = -1
	if err := q.set(o.client, h); err != nil {
		return o, errors.Join(err, unix.Close(o.client))
	}
	begin := time.Now()
	before, err := threadCPU()
	if err != nil {
		return o, errors.Join(err, unix.Close(o.client))
	}
	if o.Phase, err = q.connect(o.client, h, to); !errors.As(err, &o.Errno) && err != nil {
		return o, errors.Join(err, unix.Close(o.client))
	}
	after, err := threadCPU()
	o.CPU, o.Wall = after-before, time.Since(begin)
	if err != nil || o.Errno != 0 {
		return o, errors.Join(err, unix.Close(o.client))
	}
	return o, q.accept(&o, to)
}

func (q *Searcher) set(fd int, h How) error {
	if h.Reuse {
		if err := ReuseAddr(fd); err != nil {
			return fmt.Errorf("SO_REUSEADDR: %w", err)
		}
	}
	if h.NoPort {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return fmt.Errorf("IP_BIND_ADDRESS_NO_PORT: %w", err)
		}
	}
	if h.Range != [2]uint16{} {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_LOCAL_PORT_RANGE, int(h.Range[0])|int(h.Range[1])<<16); err != nil {
			return fmt.Errorf("IP_LOCAL_PORT_RANGE: %w", err)
		}
	}
	return nil
}

// connect is what is measured.
func (q *Searcher) connect(fd int, h How, to netip.AddrPort) (phase string, err error) {
	if h.Bind {
		from := h.From
		if !from.IsValid() {
			from = netip.IPv4Unspecified()
		}
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(from, h.Port))); err != nil {
			return "bind", err
		}
	}
	if err := unix.Connect(fd, sockaddr(to)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return "connect", err
	}
	return "", nil
}

// accept waits for the other end.
func (q *Searcher) accept(o *Opened, to netip.AddrPort) error {
	listener := &Socket{FD: q.listeners[to]}
	if ok, err := listener.poll(unix.POLLIN, patience); err != nil || !ok {
		return errors.Join(errors.New("accept: nothing came"), err, unix.Close(o.client))
	}
	fd, peer, err := unix.Accept4(listener.FD, unix.SOCK_CLOEXEC)
	if err != nil {
		return errors.Join(fmt.Errorf("accept: %w", err), unix.Close(o.client))
	}
	o.server, o.Port = fd, addrPort(peer).Port()
	return nil
}

// Close ends a connection: with the client first and a TIME_WAIT on its side, or by RST, with none.
func (q *Searcher) Close(o *Opened, reset bool) error {
	if !o.OK() {
		return nil
	}
	var problems []error
	if reset {
		problems = append(problems, Linger(0)(o.client))
	}
	problems = append(problems, unix.Close(o.client))
	server := &Socket{FD: o.server}
	if _, err := server.Receive(make([]byte, 1), patience); err != nil && !errors.Is(err, unix.ECONNRESET) {
		problems = append(problems, fmt.Errorf("wait for the end of the stream: %w", err))
	}
	return errors.Join(append(problems, unix.Close(o.server))...)
}

// window is how many ports Take has connect() choose from at once, so that it never walks far.
const window = 500

// Take makes TIME_WAITs of `to` ports of a range that has n, of which `from` are taken already, those of one parity first, spread over
// the range, as if nothing else had gone on. It narrows the range of the namespace meanwhile: one as large as the default takes longer to
// use up than TIME_WAIT lasts otherwise.
func (q *Searcher) Take(l *netlab.Lab, n, from, to int, how How, at netip.AddrPort) error {
	for begin := 0; begin < n; begin += window {
		end := min(begin+window, n)
		share := func(all int) int { return all*end/n - all*begin/n } // the window's
		missing := share(to) - share(from)
		if missing == 0 {
			continue
		}
		if err := q.s.Set(l, l.Client(), fmt.Sprintf("ip_local_port_range=%d %d", classicLow+begin, classicLow+end-1)); err != nil {
			return err
		}
		all, err := q.Lap(missing, always(how), at, false)
		if err != nil {
			return err
		}
		if ok := okOf(all); ok != missing {
			return fmt.Errorf("%d of %d connections were made in a window of the range", ok, missing)
		}
	}
	return q.s.Set(l, l.Client(), fmt.Sprintf("ip_local_port_range=%d %d", classicLow, classicLow+n-1))
}

// Hold leaves a connection open until the entry ends.
func (q *Searcher) Hold(o *Opened) {
	if o.OK() {
		client, server := o.client, o.server
		q.s.Defer(func() error { return errors.Join(unix.Close(client), unix.Close(server)) })
	}
}

// Lap opens and closes n connections, and returns what came of each.
func (q *Searcher) Lap(n int, how func(i int) How, to netip.AddrPort, reset bool) (all []Opened, err error) {
	for i := range n {
		o, err := q.Open(how(i), to)
		if err != nil {
			return all, err
		}
		if err := q.Close(&o, reset); err != nil {
			return all, err
		}
		all = append(all, o)
	}
	return all, nil
}

// always is the same How for each connection of a Lap.
func always(h How) func(int) How { return func(int) How { return h } }

// okOf counts those that were connected.
func okOf(all []Opened) (n int) {
	for i := range all {
		if all[i].OK() {
			n++
		}
	}
	return n
}

// medianCPU is in microseconds.
func medianCPU(all []Opened) float64 {
	if len(all) == 0 {
		return 0
	}
	times := make([]time.Duration, len(all))
	for i := range all {
		times[i] = all[i].CPU
	}
	slices.Sort(times)
	return float64(times[len(times)/2].Nanoseconds()) / 1000
}

// ofParity counts the ports with the parity of low.
func ofParity(all []Opened, low uint16) (n int) {
	for i := range all {
		if all[i].OK() && all[i].Port%2 == low%2 {
			n++
		}
	}
	return n
}
