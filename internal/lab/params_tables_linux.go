package lab

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
)

// paramsBuckets has a server close more connections than tcp_max_tw_buckets allows TIME_WAITs.
func (s *Session) paramsBuckets() ([]Claim, error) {
	const limit, n = 100, 300
	l, err := s.Network(netlab.Pair)
	if err != nil {
		return nil, err
	}
	usual, err := l.Server().Sysctl("net.ipv4.tcp_max_tw_buckets")
	if err != nil {
		return nil, err
	}
	if err := s.Set(l, l.Server(), "tcp_max_tw_buckets="+strconv.Itoa(limit)); err != nil {
		return nil, err
	}
	log, logErr := openLog()
	if logErr == nil {
		defer unix.Close(log)
	}
	at := netip.AddrPortFrom(l.ServerAddr(), serverPort)
	listener, err := s.Listener(l.Server(), at, 16)
	if err != nil {
		return nil, err
	}
	if err := s.closeMany(l, listener, at, n); err != nil {
		return nil, err
	}
	if err := s.TimeWaits(l.Server(), limit); err != nil {
		return nil, err
	}
	c, err := l.Server().Counters()
	if err != nil {
		return nil, err
	}
	skipped := c["TcpExt.TCPTimeWaitOverflow"]
	// Those made, which are more than those there if a late ACK's RST ended one and made room (TIME_WAIT assassination).
	made := c["TcpExt.TW"] + c["TcpExt.TWKilled"]
	message := Claim{
		Key: "buckets-log", Text: `The log fills with "TCP: time wait bucket table overflow".`, Expected: No,
		History: "Held once: none of the kernels read (5.4 to 6.18) has the message; the counter TCPTimeWaitOverflow has what it said.",
	}
	if logErr == nil {
		text, err := readLog(log)
		if err != nil {
			return nil, err
		}
		message.Holds = holdsOf(bytes.Contains(text, []byte("time wait bucket table overflow")))
		message.Evidence = Evidence{"TIME_WAITs skipped": skipped, "new lines of the kernel's log": bytes.Count(text, []byte("\n"))}
	} else {
		message.Evidence = Evidence{"the kernel's log": logErr.Error()}
	}
	return []Claim{
		{
			Key: "buckets", Text: "tcp_max_tw_buckets is how many TIME_WAITs there are at most: what is closed beyond that has none.",
			Holds: holdsOf(c["sockstat.TCP.tw"] == limit && skipped > 0 && made+skipped == n), Expected: Yes,
			Evidence: Evidence{"tcp_max_tw_buckets": limit, "closed": n, "TIME_WAITs": c["sockstat.TCP.tw"], "TIME_WAITs made": made, "TCPTimeWaitOverflow": skipped, "the setting's default here": usual},
			History:  "inet_twsk_alloc; of each network namespace. It is no way to shorten TIME_WAIT: those that are there stay.",
		},
		{
			Key: "buckets-service", Text: "A server whose tcp_max_tw_buckets is reached for good serves as before.",
			Holds: holdsOf(c["Tcp.PassiveOpens"] >= n && c["Tcp.EstabResets"] == 0), Expected: Yes,
			Evidence: Evidence{"connections": n, "accepted and closed in order": n, "EstabResets": c["Tcp.EstabResets"]},
			History:  "What it gives up is TIME_WAIT's use: a last ACK that is lost is answered by RST (lost-last-ack).",
		},
		message,
	}, nil
}

// openLog opens the kernel's log at its end.
func openLog() (int, error) {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("/dev/kmsg: %w", err)
	}
	if _, err := unix.Seek(fd, 0, 2); err != nil {
		return -1, errors.Join(fmt.Errorf("/dev/kmsg: %w", err), unix.Close(fd))
	}
	return fd, nil
}

// readLog reads what has come since; each read is one record.
func readLog(fd int) (text []byte, err error) {
	record := make([]byte, 8192)
	for {
		n, err := unix.Read(fd, record)
		switch {
		case errors.Is(err, unix.EAGAIN) || err == nil && n == 0:
			return text, nil
		case errors.Is(err, unix.EPIPE) || errors.Is(err, unix.EINTR): // overwritten meanwhile: the next is the oldest there is
		case err != nil:
			return nil, fmt.Errorf("/dev/kmsg: %w", err)
		default:
			text = append(text, record[:n]...)
		}
	}
}

// paramsSlab makes many TIME_WAITs and compares the kernel's caches.
func (s *Session) paramsSlab() ([]Claim, error) {
	const n = 2000
	const low, high = 200, 320
	claim := Claim{
		Key: "slab", Text: "A TIME_WAIT costs a quarter of a kilobyte of slab (tw_sock_TCP: 262,230 objects of 0.25 K).",
		Expected: Yes,
		History:  "struct tcp_timewait_sock; a client's also has its port's tcp_bind_bucket (and since 6.1 a tcp_bind2_bucket).",
	}
	before, err := slabs()
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		claim.Evidence = Evidence{"/proc/slabinfo": err.Error()}
		return []Claim{claim}, nil
	}
	if err != nil {
		return nil, err
	}
	l, _, err := s.searchNet(2*n, "tcp_tw_reuse=0", "tcp_max_tw_buckets=100000")
	if err != nil {
		return nil, err
	}
	at := netip.AddrPortFrom(l.ServerAddr(), serverPort)
	q, err := s.NewSearcher(l, at)
	if err != nil {
		return nil, err
	}
	if ok, err := q.fill(n, at); err != nil || ok != n {
		return nil, errors.Join(fmt.Errorf("%d of %d connected", ok, n), err)
	}
	after, err := slabs()
	if err != nil {
		return nil, err
	}
	// A cache that is merged with another of its size has no line of its own.
	claim.Evidence = Evidence{"TIME_WAITs made": n}
	for _, name := range []string{"tw_sock_TCP", "tcp_bind_bucket", "tcp_bind2_bucket"} {
		if now, ok := after[name]; ok {
			claim.Evidence[name+" objects more"] = now.Objects - before[name].Objects
			claim.Evidence[name+" bytes"] = now.Size
		}
	}
	if one, ok := after["tw_sock_TCP"]; ok {
		more := one.Objects - before["tw_sock_TCP"].Objects
		// Others on the machine have TIME_WAITs too, and half-empty slabs are filled first.
		claim.Holds = holdsOf(one.Size >= low && one.Size <= high && more > n/2)
	}
	return []Claim{claim}, nil
}

// repaired runs f on a socket whose sending half can be read and written, and which sends nothing meanwhile nor after.
func repaired(k *Socket, f func() error) error {
	const tcpSendQueue, offNoWindowProbe = 2, -1
	if err := unix.SetsockoptInt(k.FD, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1); err != nil {
		return fmt.Errorf("TCP_REPAIR: %w", err)
	}
	err := unix.SetsockoptInt(k.FD, unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, tcpSendQueue)
	return errors.Join(err, f(), unix.SetsockoptInt(k.FD, unix.IPPROTO_TCP, unix.TCP_REPAIR, offNoWindowProbe))
}

// writeSeq is the next sequence number that a socket with SO_REUSEADDR will write.
func writeSeq(k *Socket) (seq uint32, err error) {
	err = repaired(k, func() error {
		n, err := unix.GetsockoptInt(k.FD, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
		seq = uint32(n)
		return err
	})
	return seq, errors.Join(err, ReuseAddr(k.FD)) // which the end of TCP_REPAIR took away
}

func (s *Session) paramsRFC1337() ([]Claim, error) {
	off, err := s.rstIntoTimeWait("tcp_rfc1337=0", 0)
	if err != nil {
		return nil, err
	}
	on, err := s.rstIntoTimeWait("tcp_rfc1337=1", 0)
	if err != nil {
		return nil, err
	}
	return []Claim{{
		Key: "rfc1337", Text: "With tcp_rfc1337=1 an RST does not end a TIME_WAIT; with 0, the default, it does.",
		Holds: holdsOf(!off && on), Expected: Yes,
		Evidence: Evidence{"survives with 0": off, "survives with 1": on},
		History:  "tcp_timewait_state_process. The kernel's own text about the setting (ip-sysctl.rst) reads as if 0 were the protection.",
	}}, nil
}

// paramsRange narrows the range of both sides.
func (s *Session) paramsRange() ([]Claim, error) {
	const client, server, n = 10, 2, 30
	room, last, err := s.countRoom(client, searchPart{-1, false, 0})
	if err != nil {
		return nil, err
	}
	l, err := s.Network(netlab.Pair)
	if err != nil {
		return nil, err
	}
	if err := s.Set(l, l.Server(), fmt.Sprintf("ip_local_port_range=%d %d", classicLow, classicLow+server-1)); err != nil {
		return nil, err
	}
	at := netip.AddrPortFrom(l.ServerAddr(), serverPort)
	q, err := s.NewSearcher(l, at)
	if err != nil {
		return nil, err
	}
	open := 0
	err = q.Do(func() error {
		for range n {
			o, err := q.Open(How{}, at)
			if err != nil {
				return err
			}
			q.Hold(&o)
			if o.OK() {
				open++
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return []Claim{
		{
			Key: "range-client", Text: "ip_local_port_range on who connects is how many connections there can be to one destination.",
			Holds: holdsOf(room[0] == client && last.is("connect", unix.EADDRNOTAVAIL)), Expected: Yes,
			Evidence: Evidence{"ports": client, "connections": room[0], "then": last.Why()},
		},
		{
			Key: "range-server", Text: "On a server it does nothing: all its connections have the listener's port.",
			Holds: holdsOf(open == n), Expected: Yes,
			Evidence: Evidence{"ports of the server's range": server, "connections accepted": open},
		},
	}, nil
}

func (s *Session) paramsReserved() ([]Claim, error) {
	const n, reserved = 10, 4
	l, err := s.Network(netlab.Pair,
		fmt.Sprintf("ip_local_port_range=%d %d", classicLow, classicLow+n-1),
		fmt.Sprintf("ip_local_reserved_ports=%d-%d", classicLow, classicLow+reserved-1))
	if err != nil {
		return nil, err
	}
	at := netip.AddrPortFrom(l.ServerAddr(), serverPort)
	q, err := s.NewSearcher(l, at)
	if err != nil {
		return nil, err
	}
	auto, bound := 0, 0
	err = q.Do(func() error {
		for i := range n + reserved {
			how := How{}
			if i >= n {
				how = How{Bind: true, Port: classicLow + uint16(i-n)}
			}
			o, err := q.Open(how, at)
			if err != nil {
				return err
			}
			q.Hold(&o)
			switch {
			case !o.OK():
			case i < n:
				auto++
			default:
				bound++
			}
		}
		return nil
	})
	return []Claim{{
		Key: "reserved", Text: "ip_local_reserved_ports are left out of the range by connect(), and can be bound by who names them.",
		Holds: holdsOf(auto == n-reserved && bound == reserved), Expected: Yes,
		Evidence: Evidence{"ports": n, "reserved": reserved, "connected": auto, "bound by name and connected": bound},
	}}, err
}

// paramsDefaults settles what the settings are if nobody sets them.
func (s *Session) paramsDefaults() ([]Claim, error) {
	l, err := s.Network(netlab.Loopback)
	if err != nil {
		return nil, err
	}
	values := Evidence{}
	for _, key := range []string{"tcp_tw_reuse", "tcp_timestamps", "tcp_fin_timeout", "tcp_max_tw_buckets", "tcp_rfc1337", "ip_local_port_range", "tcp_tw_reuse_delay"} {
		v, err := l.Client().Sysctl("net.ipv4." + key)
		if errors.Is(err, netlab.ErrNoSetting) {
			continue
		}
		if err != nil {
			return nil, err
		}
		values[key] = v
	}
	return []Claim{{
		Key: "reuse-default", Text: "tcp_tw_reuse is off by default.",
		Holds: holdsOf(values["tcp_tw_reuse"] == "0"), Expected: No, Evidence: values,
		History: "Until 4.18; since then it is 2, on between loopback addresses.",
	}}, nil
}
