package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/clock"
	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/loadgen"
)

// holding is experiment 3: clients open connections and hold them without reading, and a server that is slow to
// accept sends 256 bytes to each.
type holding struct {
	threads, connections int
	ports                int // of the client's range
	backlog              int
	every                int // accepts, then
	delay                time.Duration
	sysctls              []string
}

// held is how it went.
type held struct {
	net      *netlab.Lab
	server   *loadgen.Server
	wire     *Capture
	before   [2]netlab.Counters // client, server
	mu       sync.Mutex
	attempts []tcp.Attempt
	looked   int64 // CLOCK_MONOTONIC
	progress loadgen.Progress

	Ports     int            `json:"ports"`
	Attempts  int            `json:"attempts"`
	Connected int            `json:"connected"` // connect() succeeded
	Errors    map[string]int `json:"errors"`    // of connect()
	// Accepted as the clients held everything, and when they had closed.
	Accepted      int `json:"accepted"`
	AcceptedAfter int `json:"accepted_after_the_clients_closed"`
	// FIN and RST are the client's connections that sent one, by a capture, before and after.
	FinBefore      int     `json:"client_fin_before"`
	RstBefore      int     `json:"client_rst_before"`
	ServerBefore   int     `json:"server_fin_or_rst_before"`
	FinAfter       int     `json:"client_fin_after"`
	RstAfter       int     `json:"client_rst_after"`
	DataAfter      int     `json:"server_data_after"`
	Cookies        uint64  `json:"syncookies_sent"`
	CookiesTaken   uint64  `json:"syncookies_received"`
	Overflows      uint64  `json:"listen_overflows"`
	SynRepeated    uint64  `json:"syn_repeated"`
	SynAckRepeated uint64  `json:"syn_ack_repeated"`
	Seconds        float64 `json:"seconds_until_nothing_changed"`
}

// portLow is where a narrow range of ports begins.
const portLow = 32768

// hold does it: everything is opened, and when accept() has returned nothing more for a while the clients are stopped
// as by Ctrl-C.
func (s *Session) hold(h holding) (_ *held, err error) {
	l, err := s.Network(netlab.Pair, append(h.sysctls, fmt.Sprintf("ip_local_port_range=%d %d", portLow, portLow+h.ports-1))...)
	if err != nil {
		return nil, err
	}
	r := &held{net: l, Ports: h.ports, Errors: make(map[string]int)}
	if r.wire, err = s.Capture(l.Client()); err != nil {
		return nil, err
	}
	if err := r.listen(s, h); err != nil {
		return nil, err
	}
	for i, ns := range []*netlab.Namespace{l.Client(), l.Server()} {
		if r.before[i], err = ns.Counters(); err != nil {
			return nil, err
		}
	}
	plan := r.plan(h)
	ready := make(chan struct{})
	plan.OnReady = func() error { close(ready); return nil }
	storm, err := loadgen.NewStorm(plan)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(s.ctx)
	defer stop()
	done := make(chan error, 1)
	go func() {
		_, err := storm.Run(ctx)
		done <- err
	}()
	select {
	case <-ready:
		err = r.watch(s, int64(h.connections))
		stop()
		err = errors.Join(err, <-done)
	case err = <-done:
	}
	if err != nil {
		return nil, err
	}
	return r, r.finish(s)
}

// moreProcs lets n threads more run at once, until the returned function is called: those of storms are in system
// calls most of the time (loadgen.Storm.Shards).
func moreProcs(n int) (restore func()) {
	before := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(before + n)
	return func() { runtime.GOMAXPROCS(before) }
}

func (r *held) listen(s *Session, h holding) (err error) {
	plan := loadgen.NewServerPlan(netip.AddrPortFrom(r.net.ServerAddr(), serverPort))
	plan.Bytes, plan.First = 0, 256
	plan.Backlog, plan.AcceptDelay, plan.AcceptEvery = h.backlog, h.delay, h.every
	plan.Concurrency = h.ports
	plan.Enter = r.net.Server().Enter
	if r.server, err = loadgen.NewServer(plan); err != nil {
		return err
	}
	s.Defer(r.server.Close)
	return r.server.Start()
}

// plan opens and never reads. A connection is done when it is connected, and held from then on.
func (r *held) plan(h holding) loadgen.Plan {
	plan := loadgen.NewPlan(r.server.Addr())
	plan.Loops, plan.Connections, plan.Shards = 1, h.connections, h.threads
	plan.Bytes, plan.Hold, plan.Timeout = 0, time.Hour, time.Hour
	plan.Enter = r.net.Client().Enter
	plan.Progress = &r.progress
	plan.OnAttempts = func(list []loadgen.Attempt) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.attempts = append(r.attempts, list...)
	}
	return plan
}

// quiet is for how long accept() has to return nothing before it counts as done: longer than the second after which
// what was dropped first comes again, and its next times are counted as what they are, repetitions.
const quiet = 2500 * time.Millisecond

// watch waits until the server's count stands still, and looks.
func (r *held) watch(s *Session, all int64) error {
	begun, changed := time.Now(), time.Now()
	last := uint64(0)
	err := s.Wait("the end of accepting", 3*time.Minute, func() (bool, error) {
		now := r.server.Stats().Accepted
		if now != last {
			last, changed = now, time.Now()
		}
		if time.Since(changed) < quiet || r.progress.Now().All.Started < all {
			return false, nil
		}
		// What the listener knows of comes in with the next repetition of its SYN+ACK.
		n, err := inState(r.net.Server(), tcp.SynRecv)
		return n == 0 && last == r.server.Stats().Accepted, err
	})
	if err != nil {
		return err
	}
	r.looked = clock.Mono()
	r.Seconds = time.Since(begun).Seconds()
	r.Accepted = int(last)
	sent, err := r.wire.Segments()
	if err != nil {
		return err
	}
	r.FinBefore, r.RstBefore, r.ServerBefore = r.ends(sent)
	return nil
}

// ends counts the client's ports that sent FIN, and RST, and those of the server's connections that sent either.
func (r *held) ends(all []Segment) (fins, rsts, server int) {
	var f, x, o = map[uint16]bool{}, map[uint16]bool{}, map[uint16]bool{}
	for i := range all {
		g := &all[i]
		switch {
		case g.Sent && g.has(fin):
			f[g.From.Port()] = true
		case g.Sent && g.has(rst):
			x[g.From.Port()] = true
		case g.has(fin), g.has(rst):
			o[g.To.Port()] = true
		}
	}
	return len(f), len(x), len(o)
}

// finish looks when the clients have closed.
func (r *held) finish(s *Session) error {
	stopped := clock.Mono()
	last, changed := uint64(0), time.Now()
	err := s.Wait("the end of accepting", time.Minute, func() (bool, error) {
		now := r.server.Stats().Accepted
		if now != last {
			last, changed = now, time.Now()
		}
		return time.Since(changed) > quiet/2, nil
	})
	if err != nil {
		return err
	}
	r.AcceptedAfter = int(last)
	if err := r.server.Close(); err != nil {
		return err
	}
	all, err := r.wire.Segments()
	if err != nil {
		return err
	}
	fins, rsts, _ := r.ends(all)
	r.FinAfter, r.RstAfter = fins-r.FinBefore, rsts-r.RstBefore
	r.DataAfter = count(all, func(g *Segment) bool { return !g.Sent && g.Len > 0 && g.MonoNS > stopped })
	r.Attempts = len(r.attempts)
	for i := range r.attempts {
		a := &r.attempts[i]
		switch {
		case a.Connected != 0 && a.Connected < r.looked-int64(soon): // later ones may be on their way to accept()
			r.Connected++
		case a.Connected != 0:
		default:
			r.Errors[a.Errno.String()]++
		}
	}
	for i, ns := range []*netlab.Namespace{r.net.Client(), r.net.Server()} {
		c, err := ns.Counters()
		if err != nil {
			return err
		}
		r.before[i] = c.Sub(r.before[i])
	}
	client, server := r.before[0], r.before[1]
	r.Cookies, r.CookiesTaken = server["TcpExt.SyncookiesSent"], server["TcpExt.SyncookiesRecv"]
	r.Overflows, r.SynRepeated, r.SynAckRepeated = server["TcpExt.ListenOverflows"], client["TcpExt.TCPSynRetrans"], server["TcpExt.TCPSynRetrans"]
	return r.net.Close()
}

// sockets lists the sockets of a namespace, by sock_diag.
func sockets(ns *netlab.Namespace) (all []*netlink.Socket, err error) {
	err = ns.Do(func() (err error) {
		all, err = netlink.SocketDiagTCP(unix.AF_INET)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	return all, nil
}

// inState is how many there are in a state.
func inState(ns *netlab.Namespace, state tcp.State) (n int, err error) {
	all, err := sockets(ns)
	for _, k := range all {
		if tcp.State(k.State) == state {
			n++
		}
	}
	return n, err
}
