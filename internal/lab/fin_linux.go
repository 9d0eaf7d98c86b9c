package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/tcp"
)

// finWay is something that happens to held connections, and what their clients' ends send because of it.
type finWay struct {
	Way string `json:"way"`
	// Closed: the program closed them, or the kernel for it, because nothing of it refers to them any more.
	Closed bool `json:"closed"`
	Held   int  `json:"connections"`
	Fin    int  `json:"sent_fin"`
	Rst    int  `json:"sent_rst"`
}

// heldPairs are connections with both ends.
type heldPairs struct {
	*backlogLab
	clients, servers []*Socket
}

// pairs is how many connections a way is tried on: an even number, because connect() uses one port less of a range of an
// odd number (__inet_hash_connect).
const pairs = 4

// open opens connections that the server accepts at once.
func (p *heldPairs) open(options ...Option) error {
	for range pairs {
		c, v, err := p.s.PairTo(p.net.Client(), p.listener, p.to, netip.AddrPort{}, options...)
		if err != nil {
			return err
		}
		p.clients, p.servers = append(p.clients, c), append(p.servers, v)
	}
	return nil
}

// all does something with each of the sockets.
func all(sockets []*Socket, f func(*Socket) error) (err error) {
	for _, k := range sockets {
		err = errors.Join(err, f(k))
	}
	return err
}

// tries are the ways.
var tries = []struct {
	way    string
	sysctl string
	closed bool
	f      func(*heldPairs) error
}{
	{"nothing happens for three seconds", "", false, func(p *heldPairs) error {
		return errors.Join(p.open(), p.s.Sleep(3*time.Second))
	}},
	{"the thread that opened them ends", "", false, func(p *heldPairs) error {
		return errors.Join(p.open(), p.s.Sleep(time.Second)) // Namespace.Do's threads have ended
	}},
	{"the server closes", "", false, func(p *heldPairs) error {
		return errors.Join(p.open(), all(p.servers, (*Socket).Close), p.s.Sleep(time.Second))
	}},
	{"the server aborts", "", false, func(p *heldPairs) error {
		return errors.Join(p.open(), all(p.servers, func(k *Socket) error {
			return errors.Join(Linger(0)(k.FD), k.Close())
		}), p.givesUp())
	}},
	{"the server is silent, and keepalive gives up", "", false, func(p *heldPairs) error {
		return errors.Join(p.open(KeepAlive(1, 1, 1)), p.silence(), p.givesUp())
	}},
	{"the server is silent, and TCP_USER_TIMEOUT is over", "", false, func(p *heldPairs) error {
		return errors.Join(p.open(UserTimeout(500*time.Millisecond)), p.silence(), p.send(), p.givesUp())
	}},
	{"the server is silent, and retransmitting gives up", "tcp_retries2=1", false, func(p *heldPairs) error {
		return errors.Join(p.open(), p.silence(), p.send(), p.givesUp())
	}},
	{"connect() was given up (a signal, SO_SNDTIMEO), and succeeds by itself", "", false, (*heldPairs).interrupted},
	{"others' connect() fails with EADDRNOTAVAIL", fmt.Sprintf("ip_local_port_range=%d %d", portLow, portLow+pairs-1), false, (*heldPairs).exhausted},
	{"the program closes them", "", true, func(p *heldPairs) error {
		return errors.Join(p.open(), all(p.clients, (*Socket).Close), p.ends())
	}},
	{"the program shuts them down", "", true, func(p *heldPairs) error {
		return errors.Join(p.open(), all(p.clients, (*Socket).Shutdown), p.ends())
	}},
	{"another file takes their descriptor (dup2)", "", true, func(p *heldPairs) error {
		return errors.Join(p.open(), all(p.clients, func(k *Socket) error {
			return unix.Dup3(p.listener.FD, k.FD, unix.O_CLOEXEC)
		}), p.ends())
	}},
	{"a garbage collector closes what nothing refers to", "", true, func(p *heldPairs) error {
		return errors.Join(p.open(), all(p.clients, func(k *Socket) error {
			fd, err := unix.FcntlInt(uintptr(k.FD), unix.F_DUPFD_CLOEXEC, 0)
			if err == nil {
				os.NewFile(uintptr(fd), "connection") // and is forgotten
			}
			return errors.Join(err, k.Close())
		}), p.collected())
	}},
}

func (p *heldPairs) silence() error {
	return all(p.servers, func(k *Socket) error { return k.Drop(dropAll) })
}

func (p *heldPairs) send() error {
	return all(p.clients, func(k *Socket) error { return k.Send([]byte{1}) })
}

// givesUp waits until the kernel has closed the clients' sockets.
func (p *heldPairs) givesUp() error {
	return p.s.Wait("the kernel to give up", 2*patience, func() (bool, error) {
		for _, k := range p.clients {
			if st, err := k.State(); err != nil || st != tcp.Close {
				return false, err
			}
		}
		return true, nil
	})
}

// ends waits for the end of the streams.
func (p *heldPairs) ends() error {
	return all(p.servers, func(k *Socket) error {
		_, err := k.Receive(make([]byte, 1), patience)
		return err
	})
}

// collected waits for it, and for the garbage collector.
func (p *heldPairs) collected() error {
	return p.s.Wait("the garbage collector", patience, func() (bool, error) {
		runtime.GC()
		for _, k := range p.servers {
			if st, err := k.State(); err != nil || st != tcp.CloseWait {
				return false, err
			}
		}
		return true, nil
	})
}

// interrupted are connections whose first SYN+ACK is lost, and whose connect() returns before the next.
func (p *heldPairs) interrupted() error {
	for range pairs {
		k, err := p.s.Socket(p.net.Client(), false)
		if err != nil {
			return err
		}
		p.clients = append(p.clients, k)
		limit := unix.NsecToTimeval(int64(20 * time.Millisecond))
		if err := errors.Join(k.Drop(dropAll), unix.SetsockoptTimeval(k.FD, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit)); err != nil {
			return err
		}
		if err := unix.Connect(k.FD, sockaddr(p.to)); !errors.Is(err, unix.EINPROGRESS) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("connect: %s, want EINPROGRESS", Errno(err))
		}
		if err := k.Drop(nil); err != nil {
			return err
		}
	}
	return errors.Join(all(p.clients, func(k *Socket) error { return k.Connected(patience) }), p.s.Sleep(500*time.Millisecond))
}

// exhausted are connections that have all ports there are.
func (p *heldPairs) exhausted() error {
	if err := p.open(); err != nil {
		return err
	}
	for range pairs {
		k, err := p.s.Socket(p.net.Client(), false)
		if err != nil {
			return err
		}
		if err := k.Connect(p.to, patience); !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("connect: %s, want EADDRNOTAVAIL", Errno(err))
		}
		if err := k.Close(); err != nil {
			return err
		}
	}
	return p.s.Sleep(500 * time.Millisecond)
}

// finWays tries them all, side by side.
func (s *Session) finWays() ([]finWay, error) {
	found := make([]finWay, len(tries))
	var parts []func() error
	for i := range tries {
		parts = append(parts, func() (err error) {
			t := &tries[i]
			if found[i], err = s.finTry(t.way, t.sysctl, t.f); err != nil {
				return fmt.Errorf("%s: %w", t.way, err)
			}
			found[i].Closed = t.closed
			return nil
		})
	}
	return found, s.Together(parts...)
}

func (s *Session) finTry(way, sysctl string, f func(*heldPairs) error) (w finWay, err error) {
	var sysctls []string
	if sysctl != "" {
		sysctls = append(sysctls, sysctl)
	}
	q, err := s.backlogLab(pairs, sysctls...)
	if err != nil {
		return w, err
	}
	p := &heldPairs{backlogLab: q}
	if err := f(p); err != nil {
		return w, err
	}
	w = finWay{Way: way, Held: len(p.clients)}
	w.Fin, w.Rst, err = q.sentEnds()
	return w, err
}

// sentEnds is how many of the client's ports have sent a FIN, and an RST.
func (q *backlogLab) sentEnds() (fins, rsts int, err error) {
	segments, err := q.wire.Segments()
	f, r := make(map[uint16]bool), make(map[uint16]bool)
	for i := range segments {
		if g := &segments[i]; g.Sent && g.has(fin) {
			f[g.From.Port()] = true
		} else if g.Sent && g.has(rst) {
			r[g.From.Port()] = true
		}
	}
	return len(f), len(r), err
}

// finRun is a client of several threads that hold connections until no port is left, and what it sends then.
type finRun struct {
	Program string `json:"when_connect_fails"`
	Threads int    `json:"threads"`
	Each    int    `json:"connections_of_each"`
	Failed  int    `json:"eaddrnotavail"`
	Fin     int    `json:"sent_fin"`
	// InARow is how many FINs were sent with no other segment of a client between but ACKs.
	InARow int `json:"in_a_row"`
}

// finRuns has connect() fail in all threads of a client, and the program deal with it in several ways.
func (s *Session) finRuns() ([]finRun, error) {
	threads, held := 20, 10
	programs := []struct {
		name string
		// gone are the threads that close, and how many of their own each does.
		threads, close int
	}{
		{"each thread closes the socket that failed, and nothing else", 0, 0},
		{"each thread closes one connection that it has (a wrong descriptor, a retry from the start)", threads, 1},
		{"two threads give up, and with each go all that it has", 2, held},
	}
	var found []finRun
	for _, p := range programs {
		r := finRun{Program: p.name, Threads: threads, Each: held}
		q, err := s.backlogLab(threads*held, fmt.Sprintf("ip_local_port_range=%d %d", portLow, portLow+threads*held-1))
		if err != nil {
			return nil, err
		}
		list, err := q.connect(threads * held)
		if err != nil {
			return nil, err
		}
		for range threads {
			k, err := s.Socket(q.net.Client(), false)
			if err != nil {
				return nil, err
			}
			if err := k.Connect(q.to, patience); !errors.Is(err, unix.EADDRNOTAVAIL) {
				n, _ := inState(q.net.Client(), tcp.Established)
				return nil, fmt.Errorf("connect: %s where %d of %d ports are taken, want EADDRNOTAVAIL", Errno(err), n, threads*held)
			}
			r.Failed++
			if err := k.Close(); err != nil {
				return nil, err
			}
		}
		for t := range p.threads {
			if err := all(list[t*held:t*held+p.close], (*Socket).Close); err != nil {
				return nil, err
			}
		}
		if r.Fin, _, err = q.sentEnds(); err != nil {
			return nil, err
		}
		segments, err := q.wire.Segments()
		if err != nil {
			return nil, err
		}
		run := 0
		for i := range segments {
			switch g := &segments[i]; {
			case !g.Sent:
			case g.has(fin):
				run++
				r.InARow = max(r.InARow, run)
			case g.Flags != ack || g.Len > 0:
				run = 0
			}
		}
		found = append(found, r)
	}
	return found, nil
}
