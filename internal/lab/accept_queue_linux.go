package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/loadgen"
)

// acceptQueue is experiment 3: clients hold connections to a server that is slow to accept.
func acceptQueue(s *Session) error {
	defer moreProcs(40)()
	var e queueFindings
	took := make(map[string]float64)
	// One after the other: a storm delays single segments, and a trace makes every segment dearer.
	for _, phase := range []struct {
		name  string
		parts []func() error
	}{
		{"single connections", []func() error{
			func() error { return e.mechanics(s) },
			func() (err error) { e.ways, err = s.finWays(); return err },
			func() (err error) { e.thousand, err = s.finRuns(); return err },
		}},
		{"held by threads", []func() error{func() error { return e.hold(s) }}},
		{"held by processes", []func() error{func() error { return e.stopClients(s) }}},
		{"traced", []func() error{func() error { return e.storms(s) }}},
	} {
		begun := time.Now()
		if err := s.Together(phase.parts...); err != nil {
			return fmt.Errorf("%s: %w", phase.name, err)
		}
		took[phase.name] = time.Since(begun).Seconds()
	}
	s.Note("seconds", took)
	e.settle(s)
	return nil
}

// queueFindings is all that was measured.
type queueFindings struct {
	held     map[string]*held // by what is special about it
	stopped  *stoppedClients
	ways     []finWay
	thousand []finRun
	traced   []tracedStorm

	gaveUp, late, early, aborted *overflowed
	cookies                      *cookieFindings
	cookieAck                    *cookieAck
	silent                       map[string]int
	nobody                       *nobodyAccepts
	inFlight                     *inFlight
	closing                      *closing
	timedOut                     *synTimedOut
	finPsh                       int
}

// backlogLab is a network with a server that listens, and accepts when it is told to.
type backlogLab struct {
	s        *Session
	net      *netlab.Lab
	to       netip.AddrPort
	listener *Socket
	wire     *Capture // of the client's namespace
	before   netlab.Counters
}

func (s *Session) backlogLab(backlog int, sysctls ...string) (*backlogLab, error) {
	l, err := s.Network(netlab.Pair, sysctls...)
	if err != nil {
		return nil, err
	}
	q := &backlogLab{s: s, net: l, to: netip.AddrPortFrom(l.ServerAddr(), serverPort)}
	if q.wire, err = s.Capture(l.Client()); err != nil {
		return nil, err
	}
	if q.listener, err = s.Listener(l.Server(), q.to, backlog); err != nil {
		return nil, err
	}
	q.before, err = l.Server().Counters()
	return q, err
}

// connect opens n connections one after the other; connect() has to succeed.
func (q *backlogLab) connect(n int, options ...Option) (list []*Socket, err error) {
	for range n {
		k, err := q.s.Socket(q.net.Client(), false, options...)
		if err != nil {
			return nil, err
		}
		if err := k.Connect(q.to, patience); err != nil {
			return nil, fmt.Errorf("connect %d: %w", len(list)+1, err)
		}
		list = append(list, k)
	}
	return list, nil
}

// fill is connect, until the connections are in the accept queue.
func (q *backlogLab) fill(n int) (list []*Socket, err error) {
	if list, err = q.connect(n); err != nil {
		return nil, err
	}
	return list, q.s.Wait("the accept queue to have them", patience, func() (bool, error) {
		there, err := inState(q.net.Server(), tcp.Established)
		return there >= n, err
	})
}

// late fills an accept queue that has room for one, and begins a connect() that finds it full; at is where that
// comes from, begun just before.
func (q *backlogLab) late() (k *Socket, at netip.AddrPort, begun time.Time, err error) {
	if _, err = q.fill(1); err != nil {
		return nil, at, begun, err
	}
	if k, err = q.s.Socket(q.net.Client(), false); err != nil {
		return nil, at, begun, err
	}
	begun = time.Now()
	if err = k.Begin(q.to); err != nil {
		return nil, at, begun, err
	}
	at, err = k.Local()
	return k, at, begun, err
}

// handshakes is connect, but the last ACK of each is lost on its way to the listener. It stays on one processor, and so
// do the timers that repeat the SYN+ACKs (TIMER_PINNED in reqsk_queue_hash_req) and the ACKs that answer them: two
// processors that find room for one more at the same time both take it (sk_acceptq_is_full in tcp_v4_syn_recv_sock,
// without the listener's lock), and the accept queue has one too many.
func (q *backlogLab) handshakes(n int, options ...Option) (list []*Socket, err error) {
	err = q.s.Wait("the last ACKs of those before", patience, func() (bool, error) {
		n, err := inState(q.net.Server(), tcp.SynRecv)
		return n == 0, err
	})
	if err != nil {
		return nil, err
	}
	before, err := q.listener.Drops()
	if err != nil {
		return nil, err
	}
	if err := q.listener.Drop(dropAcks); err != nil {
		return nil, err
	}
	err = onOneCPU(func() error {
		list, err = q.connect(n, options...)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = q.s.Wait("the last ACKs to be dropped", patience, func() (bool, error) {
		now, err := q.listener.Drops()
		return int(now-before) >= n, err
	})
	if err != nil {
		return nil, err
	}
	return list, q.listener.Drop(nil)
}

// onOneCPU runs f on a thread that is bound to a processor, and ends with it.
func onOneCPU(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		cpus, err := loadgen.AllowedCPUs()
		if err == nil {
			var set unix.CPUSet
			set.Set(cpus[0])
			err = unix.SchedSetaffinity(0, &set)
		}
		if err != nil {
			done <- fmt.Errorf("bind a thread to a processor: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// counted is by how much a counter of the server has risen.
func (q *backlogLab) counted(name string) (uint64, error) {
	now, err := q.net.Server().Counters()
	return now[name] - q.before[name], err
}

// await waits until a counter of the server has risen by n at least.
func (q *backlogLab) await(name string, n uint64) error {
	return q.s.Wait(fmt.Sprintf("%d %s", n, name), patience, func() (bool, error) {
		now, err := q.counted(name)
		return now >= n, err
	})
}

// accepted is what accept() returned.
type accepted struct {
	*Socket
	peer netip.AddrPort
}

// accept takes connections until none comes for limit.
func (q *backlogLab) accept(limit time.Duration) (list []accepted, err error) {
	for {
		k, peer, err := q.s.Accept(q.listener, limit)
		if errors.Is(err, unix.ETIMEDOUT) {
			return list, nil
		}
		if err != nil {
			return nil, err
		}
		list = append(list, accepted{k, peer})
	}
}

// revived is accept, for a connection that what a client has just sent is to bring.
func (q *backlogLab) revived() (list []accepted, err error) {
	k, peer, err := q.s.Accept(q.listener, patience)
	if errors.Is(err, unix.ETIMEDOUT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	more, err := q.accept(soon)
	return append([]accepted{{k, peer}}, more...), err
}

// soon is how long accept() waits for what is there already, or should not be.
const soon = 200 * time.Millisecond

// ports are the local ports of sockets.
func ports(list []*Socket) (map[uint16]*Socket, error) {
	m := make(map[uint16]*Socket)
	for _, k := range list {
		at, err := k.Local()
		if err != nil {
			return nil, err
		}
		m[at.Port()] = k
	}
	return m, nil
}

// overflowed is what became of handshakes whose last ACK found the accept queue full.
type overflowed struct {
	Connected int `json:"connected"` // connect() succeeded
	// SynRecv is how many the listener still knew of.
	SynRecv     int    `json:"in_syn_recv"`
	Overflows   uint64 `json:"listen_overflows"`
	Established int    `json:"clients_established"`
	Reset       int    `json:"clients_reset"`
	SynAcks     int    `json:"syn_acks_to_one"` // to one of those that were dropped
	Accepted    int    `json:"accepted"`
	// What one of them met that sent data, and one that closed.
	Send  string `json:"client_that_sends_gets"`
	Close string `json:"client_that_closes_gets"`
	// Fins that clients sent which had not closed.
	Fins int `json:"fins_unasked"`
}

// room is the accept queue's in these experiments, waiting how many are in it from the start, and known how many
// handshakes the SYN queue has room for (sk_acceptq_is_full and inet_csk_reqsk_queue_is_full: more than the backlog).
const (
	backlog = 7
	room    = backlog + 1
	waiting = 3
	known   = backlog + 1
	tooMany = waiting + known - room
)

// overflow brings a listener to drop last ACKs: the accept queue has room for five of eight handshakes whose SYN+ACK is
// repeated after a second.
func (s *Session) overflow(sysctls ...string) (q *backlogLab, clients []*Socket, o *overflowed, err error) {
	if q, err = s.backlogLab(backlog, sysctls...); err != nil {
		return nil, nil, nil, err
	}
	first, err := q.fill(waiting)
	if err != nil {
		return nil, nil, nil, err
	}
	clients, err = q.handshakes(known)
	if err != nil {
		return nil, nil, nil, err
	}
	o = &overflowed{Connected: len(first) + len(clients)}
	if err := q.await("TcpExt.ListenOverflows", tooMany); err != nil {
		return nil, nil, nil, err
	}
	if o.SynRecv, err = inState(q.net.Server(), tcp.SynRecv); err != nil {
		return nil, nil, nil, err
	}
	if o.Overflows, err = q.counted("TcpExt.ListenOverflows"); err != nil {
		return nil, nil, nil, err
	}
	return q, clients, o, nil
}

// dropped are those of the clients that the server has no socket for.
func (q *backlogLab) dropped(clients []*Socket) (list []*Socket, err error) {
	mine, err := ports(clients)
	if err != nil {
		return nil, err
	}
	there, err := sockets(q.net.Server())
	if err != nil {
		return nil, err
	}
	for _, k := range there {
		if tcp.State(k.State) != tcp.SynRecv {
			delete(mine, k.ID.DestinationPort)
		}
	}
	for _, k := range mine {
		list = append(list, k)
	}
	return list, nil
}

// states counts what the clients' sockets are in.
func (o *overflowed) states(clients []*Socket) error {
	for _, k := range clients {
		st, err := k.State()
		if err != nil {
			return err
		}
		switch st {
		case tcp.Established:
			o.Established++
		case tcp.Close:
			o.Reset++
		}
	}
	return nil
}

// overflowGivesUp lets the listener repeat its SYN+ACKs until it gives up, after seven seconds.
func (s *Session) overflowGivesUp() (*overflowed, error) {
	q, clients, o, err := s.overflow("tcp_syncookies=0", "tcp_synack_retries=2")
	if err != nil {
		return nil, err
	}
	gone, err := q.dropped(clients)
	if err != nil {
		return nil, err
	}
	if len(gone) != tooMany {
		return nil, fmt.Errorf("%d handshakes were dropped, want %d", len(gone), tooMany)
	}
	err = s.Wait("the listener to give up", 2*patience, func() (bool, error) {
		n, err := inState(q.net.Server(), tcp.SynRecv)
		return n == 0, err
	})
	if err != nil {
		return nil, err
	}
	if err := o.states(gone); err != nil {
		return nil, err
	}
	all, err := q.accept(soon)
	if err != nil {
		return nil, err
	}
	o.Accepted = len(all)
	if err := gone[0].Send([]byte{1}); err != nil {
		return nil, err
	}
	_, err = gone[0].Receive(make([]byte, 1), patience)
	o.Send = Errno(err)
	at, err := gone[1].Local()
	if err != nil {
		return nil, err
	}
	if err := gone[1].Close(); err != nil {
		return nil, err
	}
	return o, o.wire(q, gone, at.Port())
}

// wire looks at what a client that has closed got, and what the last sent of itself.
func (o *overflowed) wire(q *backlogLab, gone []*Socket, closed uint16) error {
	last, err := gone[len(gone)-1].Local()
	if err != nil {
		return err
	}
	o.Close = "nothing"
	return q.s.Wait("an answer to the FIN", patience, func() (bool, error) {
		all, err := q.wire.Segments()
		if err != nil {
			return false, err
		}
		o.SynAcks, o.Fins = 0, 0
		for i := range all {
			g := &all[i]
			switch {
			case g.From.Port() == last.Port() && g.has(fin):
				o.Fins++
			case g.To.Port() == last.Port() && g.has(syn|ack):
				o.SynAcks++
			case g.To.Port() == closed && g.has(rst):
				o.Close = "RST"
			}
		}
		return o.Close != "nothing", nil
	})
}

// overflowDrained accepts while the listener still repeats; close has the clients that it dropped close at once, as by
// Ctrl-C, so that the ACK with their FIN comes before the next SYN+ACK.
func (s *Session) overflowDrained(closing bool) (*overflowed, error) {
	q, clients, o, err := s.overflow("tcp_syncookies=0")
	if err != nil {
		return nil, err
	}
	gone, err := q.dropped(clients)
	if err != nil {
		return nil, err
	}
	if err := o.states(gone); err != nil {
		return nil, err
	}
	all, err := q.accept(soon)
	if err != nil {
		return nil, err
	}
	o.Accepted = len(all)
	limit := patience / 2
	if closing {
		for _, k := range gone {
			if err := k.Close(); err != nil {
				return nil, err
			}
		}
		limit = soon
	}
	for range gone {
		if _, _, err := s.Accept(q.listener, limit); err == nil {
			o.Accepted++
		} else if !errors.Is(err, unix.ETIMEDOUT) {
			return nil, err
		}
	}
	return o, nil
}

// overflowAborts is with tcp_abort_on_overflow.
func (s *Session) overflowAborts() (*overflowed, error) {
	q, clients, o, err := s.overflow("tcp_syncookies=0", "tcp_abort_on_overflow=1")
	if err != nil {
		return nil, err
	}
	err = s.Wait("RSTs", patience, func() (bool, error) {
		o.Established, o.Reset = 0, 0
		err := o.states(clients)
		return o.Reset >= tooMany, err
	})
	if err != nil {
		return nil, err
	}
	all, err := q.accept(soon)
	o.Accepted = len(all)
	return o, err
}

// cookieFindings is what became of handshakes by cookie whose last ACK was lost.
type cookieFindings struct {
	SynRecv     int    `json:"in_syn_recv"`
	Cookies     uint64 `json:"syncookies_sent"`
	Clients     int    `json:"handshakes_by_cookie"`
	Established int    `json:"clients_established"`
	SynAcks     int    `json:"syn_acks_to_each"` // at most
	Accepted    int    `json:"accepted"`         // of those that the listener knew
	Of          int    `json:"of"`
	AfterFin    int    `json:"accepted_after_a_fin"`
	AfterData   int    `json:"accepted_after_data"`
	AfterRst    int    `json:"accepted_after_an_rst"`
	// FinRead is what the server reads of the one that came by FIN: 0 is the end of the stream.
	FinRead int `json:"bytes_read_of_the_first"`
}

const byCookie = 4

// lostCookies loses the last ACKs of more handshakes than the SYN queue has room for.
func (s *Session) lostCookies() (*cookieFindings, error) {
	q, err := s.backlogLab(backlog, "tcp_syncookies=1")
	if err != nil {
		return nil, err
	}
	clients, err := q.handshakes(known + byCookie)
	if err != nil {
		return nil, err
	}
	c := &cookieFindings{Of: known, Clients: byCookie}
	if c.SynRecv, err = inState(q.net.Server(), tcp.SynRecv); err != nil {
		return nil, err
	}
	if c.Cookies, err = q.counted("TcpExt.SyncookiesSent"); err != nil {
		return nil, err
	}
	// The known ones come in after a second, when their SYN+ACKs are repeated. What is not repeated by the second
	// repetition, at three seconds, never is.
	for range known {
		if _, _, err := s.Accept(q.listener, patience); err != nil {
			return nil, fmt.Errorf("accept: %w", err)
		}
		c.Accepted++
	}
	if err := s.Sleep(2500 * time.Millisecond); err != nil {
		return nil, err
	}
	more, err := q.accept(soon)
	if err != nil {
		return nil, err
	}
	c.Accepted += len(more)
	return c, c.revive(q, clients[known:])
}

// revive has the clients that the server knows nothing of send something: each but the last in its way.
func (c *cookieFindings) revive(q *backlogLab, lost []*Socket) error {
	all, err := q.wire.Segments()
	if err != nil {
		return err
	}
	for _, k := range lost {
		st, err := k.State()
		if err != nil {
			return err
		}
		if st == tcp.Established {
			c.Established++
		}
		at, err := k.Local()
		if err != nil {
			return err
		}
		c.SynAcks = max(c.SynAcks, count(all, func(g *Segment) bool { return g.To == at && g.has(syn|ack) }))
	}
	if err := lost[0].Close(); err != nil {
		return err
	}
	came, err := q.revived()
	if err != nil {
		return err
	}
	if c.AfterFin = len(came); c.AfterFin > 0 {
		if c.FinRead, err = came[0].Receive(make([]byte, 1), patience); err != nil {
			return err
		}
	}
	if err := lost[1].Send([]byte{1}); err != nil {
		return err
	}
	if came, err = q.revived(); err != nil {
		return err
	}
	c.AfterData = len(came)
	if err := errors.Join(Linger(0)(lost[2].FD), lost[2].Close()); err != nil {
		return err
	}
	came, err = q.accept(soon)
	c.AfterRst = len(came)
	return err
}

// cookieAck is what a listener with a full accept queue does with the ACKs of cookies.
type cookieAck struct {
	Clients     int    `json:"clients"`
	Overflows   uint64 `json:"listen_overflows"`
	Resets      uint64 `json:"rsts_sent"`
	Established int    `json:"clients_established"`
	SynRecv     int    `json:"in_syn_recv"`
	Accepted    int    `json:"accepted_once_there_was_room"`
}

// cookieAcks is with tcp_abort_on_overflow, which has no say here.
func (s *Session) cookieAcks() (*cookieAck, error) {
	q, err := s.backlogLab(0, "tcp_syncookies=2", "tcp_abort_on_overflow=1")
	if err != nil {
		return nil, err
	}
	c := &cookieAck{Clients: 3}
	clients, err := q.handshakes(c.Clients)
	if err != nil {
		return nil, err
	}
	if _, err := q.fill(1); err != nil {
		return nil, err
	}
	for _, k := range clients {
		if err := k.Send([]byte{1}); err != nil {
			return nil, err
		}
	}
	if err := q.await("TcpExt.ListenOverflows", uint64(c.Clients)); err != nil {
		return nil, err
	}
	if c.Overflows, err = q.counted("TcpExt.ListenOverflows"); err != nil {
		return nil, err
	}
	if c.Resets, err = q.counted("Tcp.OutRsts"); err != nil {
		return nil, err
	}
	if c.SynRecv, err = inState(q.net.Server(), tcp.SynRecv); err != nil {
		return nil, err
	}
	for _, k := range clients {
		if st, err := k.State(); err != nil {
			return nil, err
		} else if st == tcp.Established {
			c.Established++
		}
	}
	// The data is sent again, each time later.
	for range c.Clients + 1 {
		if _, _, err := s.Accept(q.listener, patience); err != nil {
			return nil, fmt.Errorf("accept: %w", err)
		}
		c.Accepted++
	}
	return c, nil
}

// silentPort is the port of a client that answers nothing.
const silentPort = 41000

// synAcks is how many SYN+ACKs a SYN gets within three and a half seconds whose sender says nothing more.
func (s *Session) synAcks(sysctls ...string) (n int, err error) {
	q, err := s.backlogLab(backlog, sysctls...)
	if err != nil {
		return 0, err
	}
	from := netip.AddrPortFrom(q.net.ClientAddrs()[0], silentPort)
	// The SYN+ACK meets a listener that drops everything, else the kernel would answer by RST.
	deaf, err := s.Listener(q.net.Client(), from, 0)
	if err != nil {
		return 0, err
	}
	if err := deaf.Drop(dropAll); err != nil {
		return 0, err
	}
	if err := s.SendSyn(q.net.Client(), from, q.to, 1000); err != nil {
		return 0, err
	}
	if err := s.Sleep(3500 * time.Millisecond); err != nil {
		return 0, err
	}
	all, err := q.wire.Segments()
	return count(all, func(g *Segment) bool { return g.To == from && g.has(syn|ack) }), err
}

// nobodyAccepts is a listener whose owner never accepts, and clients that connect one after the other.
type nobodyAccepts struct {
	Connected int               `json:"connected"`
	Clients   int               `json:"clients"`
	SynRecv   int               `json:"in_syn_recv"`
	Cookies   uint64            `json:"syncookies_sent"`
	Overflows uint64            `json:"listen_overflows"`
	Answers   int               `json:"answers_to_the_syns_dropped"`
	Always    map[string]uint64 `json:"with_tcp_syncookies_2"`
}

func (s *Session) nobodyAccepts() (*nobodyAccepts, error) {
	n := &nobodyAccepts{Clients: room + 4, Always: make(map[string]uint64)}
	for _, cookies := range []int{1, 2} {
		q, err := s.backlogLab(backlog, fmt.Sprintf("tcp_syncookies=%d", cookies))
		if err != nil {
			return nil, err
		}
		if _, err := q.fill(room); err != nil {
			return nil, err
		}
		sent, err := q.counted("TcpExt.SyncookiesSent") // by mode 2: all
		if err != nil {
			return nil, err
		}
		for range n.Clients - room {
			k, err := s.Socket(q.net.Client(), false)
			if err != nil {
				return nil, err
			}
			if err := k.Begin(q.to); err != nil {
				return nil, err
			}
			at, err := k.Local()
			if err != nil {
				return nil, err
			}
			if err := q.await("TcpExt.ListenOverflows", 1); err != nil {
				return nil, err
			}
			all, err := q.wire.Segments()
			if err != nil {
				return nil, err
			}
			n.Answers += count(all, func(g *Segment) bool { return g.To == at })
		}
		if err := q.await("TcpExt.ListenOverflows", uint64(n.Clients-room)); err != nil {
			return nil, err
		}
		overflows, err := q.counted("TcpExt.ListenOverflows")
		if err != nil {
			return nil, err
		}
		after, err := q.counted("TcpExt.SyncookiesSent")
		if err != nil {
			return nil, err
		}
		if cookies == 2 {
			n.Always["syncookies_sent_with_a_full_accept_queue"] = after - sent
			n.Always["listen_overflows"] = overflows
			continue
		}
		n.Connected, n.Overflows, n.Cookies = room, overflows, after
		if n.SynRecv, err = inState(q.net.Server(), tcp.SynRecv); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// inFlight is SYNs whose senders have not answered yet.
type inFlight struct {
	Syns    int    `json:"syns"`
	SynRecv int    `json:"in_syn_recv"`
	Cookies uint64 `json:"syncookies_sent"`
	Drops   uint64 `json:"listen_drops_without_cookies"`
}

func (s *Session) synsInFlight() (*inFlight, error) {
	f := &inFlight{Syns: known + 4}
	for _, cookies := range []int{1, 0} {
		q, err := s.backlogLab(backlog, fmt.Sprintf("tcp_syncookies=%d", cookies))
		if err != nil {
			return nil, err
		}
		for i := range f.Syns {
			from := netip.AddrPortFrom(q.net.ClientAddrs()[0], silentPort+uint16(i))
			deaf, err := s.Listener(q.net.Client(), from, 0)
			if err != nil {
				return nil, err
			}
			if err := deaf.Drop(dropAll); err != nil {
				return nil, err
			}
			if err := s.SendSyn(q.net.Client(), from, q.to, 1000); err != nil {
				return nil, err
			}
		}
		if cookies == 0 {
			if err := q.await("TcpExt.ListenDrops", uint64(f.Syns-known)); err != nil {
				return nil, err
			}
			if f.Drops, err = q.counted("TcpExt.ListenDrops"); err != nil {
				return nil, err
			}
			continue
		}
		if err := q.await("TcpExt.SyncookiesSent", uint64(f.Syns-known)); err != nil {
			return nil, err
		}
		if f.SynRecv, err = inState(q.net.Server(), tcp.SynRecv); err != nil {
			return nil, err
		}
		if f.Cookies, err = q.counted("TcpExt.SyncookiesSent"); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// closing is what a client's connections send when it closes all at once: some were accepted and have unread data,
// the rest waits in the accept queue, is accepted then, and is sent data.
type closing struct {
	Accepted int            `json:"accepted"`
	Waiting  int            `json:"waiting"`
	Rst      int            `json:"accepted_that_sent_rst"`
	Fin      int            `json:"waiting_that_sent_fin"`
	FinOther int            `json:"accepted_that_sent_fin"`
	Late     int            `json:"accepted_afterwards"`
	Data     int            `json:"data_segments_after_the_fin"`
	Answers  int            `json:"rsts_that_answer_them"`
	Second   string         `json:"second_send"`
	Reasons  map[string]int `json:"rst_reasons"`
}

func (s *Session) closesAll() (*closing, error) {
	const each = 5
	q, err := s.backlogLab(2 * each)
	if err != nil {
		return nil, err
	}
	trace, err := s.Trace(q.net)
	if err != nil {
		return nil, err
	}
	clients, err := q.fill(2 * each)
	if err != nil {
		return nil, err
	}
	c := &closing{Accepted: each, Waiting: each, Reasons: make(map[string]int)}
	first := make(map[netip.AddrPort]bool)
	for range each {
		k, peer, err := s.Accept(q.listener, patience)
		if err != nil {
			return nil, fmt.Errorf("accept: %w", err)
		}
		first[peer] = true
		if err := k.Send(make([]byte, 256)); err != nil {
			return nil, err
		}
	}
	for _, k := range clients {
		at, err := k.Local()
		if err != nil {
			return nil, err
		}
		if first[at] { // until the data is there
			if _, err := k.poll(unix.POLLIN, patience); err != nil {
				return nil, err
			}
		}
		if err := k.Close(); err != nil {
			return nil, err
		}
	}
	late, err := q.accept(soon)
	if err != nil {
		return nil, err
	}
	c.Late = len(late)
	for i, k := range late {
		if err := k.Send(make([]byte, 256)); err != nil {
			return nil, err
		}
		if i > 0 {
			continue
		}
		err := s.Wait("the RST", patience, func() (bool, error) {
			st, err := k.State()
			return st == tcp.Close, err
		})
		if err != nil {
			return nil, err
		}
		c.Second = Errno(k.Send([]byte{1}))
	}
	return c, c.look(s, q, trace, first)
}

func (c *closing) look(s *Session, q *backlogLab, trace *Trace, first map[netip.AddrPort]bool) error {
	err := s.Wait("RSTs", patience, func() (bool, error) {
		all, err := q.wire.Segments()
		c.Rst, c.Fin, c.FinOther, c.Data, c.Answers = 0, 0, 0, 0, 0
		for i := range all {
			g := &all[i]
			switch {
			case g.Sent && g.has(rst) && first[g.From]:
				c.Rst++
			case g.Sent && g.has(rst):
				c.Answers++
			case g.Sent && g.has(fin) && first[g.From]:
				c.FinOther++
			case g.Sent && g.has(fin):
				c.Fin++
			case !g.Sent && g.Len > 0 && !first[g.To]:
				c.Data++
			}
		}
		return c.Answers >= c.Late, err
	})
	if err != nil {
		return err
	}
	events, err := trace.Stop()
	if err != nil {
		return err
	}
	for i := range events {
		if ev := &events[i]; ev.Kind == tcp.KindRstSent && trace.Sees(tcp.FactRstReason) {
			c.Reasons[trace.reason(ev)]++
		}
	}
	return nil
}

// synTimedOut is a connect() all of whose SYNs were dropped.
type synTimedOut struct {
	Errno   string  `json:"connect"`
	Seconds float64 `json:"seconds"`
	Syns    int     `json:"syns"`
	Drops   uint64  `json:"listen_drops"`
}

func (s *Session) synTimesOut() (*synTimedOut, error) {
	q, err := s.backlogLab(0, append([]string{"tcp_syn_retries=1"}, s.classicSyn()...)...)
	if err != nil {
		return nil, err
	}
	k, at, begun, err := q.late()
	if err != nil {
		return nil, err
	}
	o := &synTimedOut{Errno: Errno(k.Connected(patience)), Seconds: time.Since(begun).Seconds()}
	if o.Drops, err = q.counted("TcpExt.ListenDrops"); err != nil {
		return nil, err
	}
	all, err := q.wire.Segments()
	o.Syns = count(all, func(g *Segment) bool { return g.From == at && g.has(syn) })
	return o, err
}

// dataAndFin is how many segments have both, if what a server sent and its FIN get lost and are sent again.
func (s *Session) dataAndFin() (n int, err error) {
	q, err := s.backlogLab(1)
	if err != nil {
		return 0, err
	}
	client, server, err := s.PairTo(q.net.Client(), q.listener, q.to, netip.AddrPort{})
	if err != nil {
		return 0, err
	}
	if err := client.Drop(dropAll); err != nil {
		return 0, err
	}
	if err := errors.Join(server.Send(make([]byte, 256)), server.Close()); err != nil {
		return 0, err
	}
	err = s.Wait("the data to be sent again with the FIN", patience, func() (bool, error) {
		all, err := q.wire.Segments()
		n = count(all, func(g *Segment) bool { return !g.Sent && g.has(fin|psh) && g.Len == 256 })
		return n > 0, err
	})
	return n, err
}

// mechanics runs the experiments on single connections.
func (e *queueFindings) mechanics(s *Session) error {
	e.silent = make(map[string]int)
	var repeated, cookie int
	err := s.Together(
		func() (err error) { e.gaveUp, err = s.overflowGivesUp(); return err },
		func() (err error) { e.late, err = s.overflowDrained(false); return err },
		func() (err error) { e.early, err = s.overflowDrained(true); return err },
		func() (err error) { e.aborted, err = s.overflowAborts(); return err },
		func() (err error) { e.cookies, err = s.lostCookies(); return err },
		func() (err error) { e.cookieAck, err = s.cookieAcks(); return err },
		func() (err error) { repeated, err = s.synAcks("tcp_syncookies=1"); return err },
		func() (err error) { cookie, err = s.synAcks("tcp_syncookies=2"); return err },
		func() (err error) { e.nobody, err = s.nobodyAccepts(); return err },
		func() (err error) { e.inFlight, err = s.synsInFlight(); return err },
		func() (err error) { e.closing, err = s.closesAll(); return err },
		func() (err error) { e.timedOut, err = s.synTimesOut(); return err },
		func() (err error) { e.finPsh, err = s.dataAndFin(); return err },
	)
	e.silent["syn_acks_with_state"], e.silent["syn_acks_of_a_cookie"] = repeated, cookie
	return err
}

// hold runs the experiment itself: threads × connections as the original had them, or a twentieth of all that.
func (e *queueFindings) hold(s *Session) error {
	by := 20
	if s.Full() {
		by = 1
	}
	type variant struct {
		name string
		holding
	}
	list := []variant{
		{"20 threads", holding{threads: max(2, 20/by), connections: 20_000 / by}},
		{"no cookies", holding{threads: max(2, 20/by), connections: 20_000 / by, sysctls: []string{"tcp_syncookies=0"}}},
		{"abort_on_overflow", holding{threads: max(2, 20/by), connections: 20_000 / by, sysctls: []string{"tcp_abort_on_overflow=1"}}},
		{"large backlog", holding{threads: max(2, 20/by), connections: 20_000 / by, backlog: loadgen.DefaultBacklog, sysctls: []string{"net.core.somaxconn=4096"}}},
		{"200 connections", holding{threads: 2, connections: 200, backlog: 20}}, // at any size
		{"more than ports", holding{threads: 100 / by, connections: 50_000 / by}},
	}
	e.held = make(map[string]*held)
	found := make([]*held, len(list))
	var parts []func() error
	for i, v := range list {
		h := v.holding
		h.ports = 28_232 / by &^ 1 // of an odd number connect() uses one less
		if h.backlog == 0 {
			h.backlog = 64
		}
		if h.backlog == loadgen.DefaultBacklog && s.Full() {
			h.backlog, h.sysctls = 28_232, []string{"net.core.somaxconn=65535", "tcp_max_syn_backlog=65535"}
		}
		h.every, h.delay = max(10, h.connections/20), 100*time.Millisecond
		parts = append(parts, func() (err error) {
			if found[i], err = s.hold(h); err != nil {
				return fmt.Errorf("%s: %w", v.name, err)
			}
			return nil
		})
	}
	err := s.Together(parts...)
	for i, v := range list {
		e.held[v.name] = found[i]
	}
	return err
}
