package tracer

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/testenv"
)

// enrichedScene is a scene on a kernel that lets this fact be seen in its functions.
func enrichedScene(t *testing.T, o setup, fact tcp.Fact, sysctls string) *scene {
	t.Helper()
	testenv.Require(t, testenv.Fentry)
	for text := range strings.FieldsSeq(sysctls) {
		sysctl, err := netlab.ParseSysctl("net.ipv4." + strings.ReplaceAll(text, "_4", " 4"))
		if err != nil {
			t.Fatal(err)
		}
		o.Sysctls = append(o.Sysctls, sysctl)
	}
	s := newScene(t, o)
	if grade := s.trace.Coverage()[fact]; grade != tcp.Exact {
		t.Fatalf("%s is %s: %v", fact, grade, s.trace.enriched.gaps[fact])
	}
	return s
}

// families runs a test over IPv4 and IPv6.
func families(t *testing.T, name string, test func(t *testing.T, v6 bool)) {
	t.Run(name+"/IPv4", func(t *testing.T) { test(t, false) })
	t.Run(name+"/IPv6", func(t *testing.T) { test(t, true) })
}

// timeWaits makes connections and leaves each in TIME_WAIT.
func (s *scene) timeWaits(n int) {
	s.Helper()
	for range n {
		c := s.dial(0)
		s.closeFirst(c.client, c.server)
	}
	s.await("TIME_WAIT", func() bool { return s.minisocksIn(s.lab.Client(), tcp.TimeWait) == n })
}

// refused is a connect() that finds no port.
func (s *scene) refused(port uint16) {
	s.Helper()
	fd, err := s.tryDial(port)
	if !errors.Is(err, unix.EADDRNOTAVAIL) {
		s.Fatalf("connect: %v, want EADDRNOTAVAIL", err)
	}
	s.close(fd)
}

// TestRefusals exhausts ten ports in every way. What is expected comes from how
// the ports were taken, and is compared with what sock_diag shows of them.
func TestRefusals(t *testing.T) {
	const ten = "ip_local_port_range=40000_40009 "
	for _, tt := range []struct {
		name, sysctls string
		kind          netlab.Kind
		do            func(*scene)
		want          tcp.Refusals
		cause         tcp.Cause
	}{
		{
			name: "tcp_tw_reuse off", sysctls: ten + "tcp_tw_reuse=0",
			do:   func(s *scene) { s.timeWaits(10); s.refused(0) },
			want: tcp.Refusals{NotAllowed: 10}, cause: tcp.CausePortSearch,
		},
		{
			name: "tcp_tw_reuse for loopback alone", sysctls: ten + "tcp_tw_reuse=2",
			do:   func(s *scene) { s.timeWaits(10); s.refused(0) },
			want: tcp.Refusals{NotAllowed: 10}, cause: tcp.CausePortSearch,
		},
		{
			name: "too young", sysctls: ten + "tcp_tw_reuse=1 tcp_tw_reuse_delay=60000",
			do:   func(s *scene) { s.timeWaits(10); s.refused(0) },
			want: tcp.Refusals{TooYoung: 10}, cause: tcp.CausePortSearch,
		},
		{
			name: "too young on loopback", kind: netlab.Loopback, sysctls: ten + "tcp_tw_reuse=2 tcp_tw_reuse_delay=60000",
			do:   func(s *scene) { s.timeWaits(10); s.refused(0) },
			want: tcp.Refusals{TooYoung: 10}, cause: tcp.CausePortSearch,
		},
		{
			name: "without timestamps", sysctls: ten + "tcp_tw_reuse=1 tcp_timestamps=0",
			do:   func(s *scene) { s.timeWaits(10); s.refused(0) },
			want: tcp.Refusals{NoTimestamps: 10}, cause: tcp.CausePortSearch,
		},
		{
			name: "established", sysctls: ten + "tcp_tw_reuse=1",
			do: func(s *scene) {
				for range 10 {
					s.dial(0)
				}
				s.refused(0)
			},
			want: tcp.Refusals{Taken: 10}, cause: tcp.CausePortSearch,
		},
		{
			// Two ports are reserved and one is bound: nobody asks for them.
			name: "of every kind", sysctls: ten + "tcp_tw_reuse=0 ip_local_reserved_ports=40000-40001",
			do: func(s *scene) {
				holder := s.socket(s.lab.Client())
				s.bind(holder, netip.AddrPortFrom(s.lab.ClientAddrs()[0], 40005))
				s.timeWaits(3)
				c := s.dial(0)
				s.close(c.client)
				s.await("FIN_WAIT2", func() bool { return s.minisocksIn(s.lab.Client(), tcp.FinWait2) == 1 })
				for range 3 {
					s.dial(0)
				}
				s.refused(0)
				s.close(holder)
			},
			want: tcp.Refusals{NotAllowed: 4, Taken: 3}, cause: tcp.CausePortSearch,
		},
		{
			name: "again on the same socket", sysctls: ten + "tcp_tw_reuse=0",
			do: func(s *scene) {
				s.timeWaits(10)
				fd, err := s.tryDial(0)
				for range 2 {
					if !errors.Is(err, unix.EADDRNOTAVAIL) {
						s.Fatalf("connect: %v, want EADDRNOTAVAIL", err)
					}
					err = connect(fd, s.sockaddr(s.server))
					s.noPort = append(s.noPort, s.cookie(fd))
				}
				s.close(fd)
			},
			want: tcp.Refusals{NotAllowed: 10}, cause: tcp.CausePortSearch,
		},
		{
			name: "nobody asks for what is bound", sysctls: "ip_local_port_range=40000_40001 ",
			do: func(s *scene) {
				for _, port := range []uint16{40000, 40001} {
					fd := s.socket(s.lab.Client())
					s.bind(fd, netip.AddrPortFrom(s.lab.ClientAddrs()[0], port))
					defer s.close(fd)
				}
				s.refused(0)
			},
			cause: tcp.CausePortSearch,
		},
		{
			name: "many at once", sysctls: ten + "tcp_tw_reuse=0",
			do: func(s *scene) {
				s.timeWaits(10)
				var fds [100]int
				for i := range fds {
					fds[i] = s.socket(s.lab.Client())
				}
				to := s.sockaddr(s.server)
				errs := make([]error, len(fds))
				var wg sync.WaitGroup
				for part := range 4 {
					wg.Go(func() {
						for i := part; i < len(fds); i += 4 {
							errs[i] = connect(fds[i], to)
						}
					})
				}
				wg.Wait()
				for i, fd := range fds {
					if !errors.Is(errs[i], unix.EADDRNOTAVAIL) {
						s.Fatalf("connect: %v, want EADDRNOTAVAIL", errs[i])
					}
					s.noPort = append(s.noPort, s.cookie(fd))
					s.close(fd)
				}
			},
			want: tcp.Refusals{NotAllowed: 10}, cause: tcp.CausePortSearch,
		},
		{
			name: "bound port", sysctls: "tcp_tw_reuse=0",
			do:   func(s *scene) { s.dial(bound); s.refused(bound) },
			want: tcp.Refusals{Taken: 1}, cause: tcp.CauseFourTupleBusy,
		},
		{
			name: "bound port without timestamps", sysctls: "tcp_tw_reuse=1 tcp_timestamps=0",
			do: func(s *scene) {
				c := s.dial(bound)
				s.closeFirst(c.client, c.server)
				s.await("TIME_WAIT", func() bool { return s.minisocksIn(s.lab.Client(), tcp.TimeWait) == 1 })
				s.refused(bound)
			},
			want: tcp.Refusals{NoTimestamps: 1}, cause: tcp.CauseFourTupleBusy,
		},
	} {
		families(t, tt.name, func(t *testing.T, v6 bool) {
			if _, err := os.Stat("/proc/sys/net/ipv4/tcp_tw_reuse_delay"); err != nil && tt.want.TooYoung > 0 {
				t.Skip("this kernel has no tcp_tw_reuse_delay (6.14): what is too young is older a moment later")
			}
			s := enrichedScene(t, setup{Options: netlab.Options{Kind: tt.kind, IPv6: v6}}, tcp.FactRefusals, tt.sysctls)
			tt.do(s)
			waiting, live := s.clientPorts()
			for _, c := range s.conns {
				if s.open[c.client] {
					s.close(c.client)
				}
				if s.open[c.server] {
					s.waitEOF(c.server)
					s.close(c.server)
				}
			}
			s.finish()
			failed := s.ofKind(tcp.KindConnectFailed)
			if len(failed) != len(s.noPort) || len(failed) == 0 {
				t.Errorf("%d events for %d failed connects", len(failed), len(s.noPort))
			}
			for _, ev := range failed {
				if ev.Flags&tcp.FlagRefusals == 0 || ev.Refusals != tt.want || ev.Cause != tt.cause {
					t.Errorf("%q %+v (flags %b), want %q %+v", ev.Cause, ev.Refusals, ev.Flags, tt.cause, tt.want)
				}
				if r := ev.Refusals; int(r.TooYoung)+int(r.NotAllowed)+int(r.NoTimestamps) != waiting || int(r.Taken) != live {
					t.Errorf("%+v, but sock_diag has %d minisocks and %d connections", r, waiting, live)
				}
			}
		})
	}
}

// clientPorts counts what sock_diag shows of the client's ends.
func (s *scene) clientPorts() (waiting, live int) {
	s.Helper()
	for _, sock := range s.sockets(s.lab.Client()) {
		switch {
		case sock.ID.DestinationPort != serverPort:
		case sock.Timer == timerTimeWait:
			waiting++
		default:
			live++
		}
	}
	return waiting, live
}

// TestOverflowSeen: what looks like a TIME_WAIT that was not made, and is none. The
// client's FIN is acknowledged by data, which nobody will read any more
// (net/ipv4/tcp_input.c, tcp_rcv_state_process).
func TestOverflowSeen(t *testing.T) {
	families(t, "data after close", func(t *testing.T, v6 bool) {
		s := enrichedScene(t, setup{Options: netlab.Options{IPv6: v6}}, tcp.FactTWOverflow, "tcp_max_tw_buckets=0")
		c := s.dial(0)
		// Only segments with data get through: TCP's header with timestamps has 32 bytes.
		data := []unix.SockFilter{
			{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_LEN},
			{Code: unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K, K: 32, Jf: 1},
			{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 16},
			{Code: unix.BPF_RET | unix.BPF_K},
		}
		s.must("attach a filter", unix.SetsockoptSockFprog(c.client, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(data)), Filter: &data[0]}))
		s.close(c.client)
		s.waitEOF(c.server)
		s.write(c.server)
		s.awaitReset()
		s.close(c.server)
		s.finish()
		s.wantCounter("client.TcpExt.TCPAbortOnData", 1)
		s.wantCounter("client.TcpExt.TCPTimeWaitOverflow", 0)
		s.wantStates(c.clientCookie, activeClose...)
		s.wantNone(tcp.KindTWOverflow)
	})
}

// TestBindHolder: who holds the port is known by SO_COOKIE and getsockname.
func TestBindHolder(t *testing.T) {
	for _, tt := range []struct {
		name string
		// hold returns the socket that has the server's port then, and its state.
		hold func(*scene) (tcp.Cookie, tcp.State)
	}{
		{
			name: "listener from before the trace",
			hold: func(s *scene) (tcp.Cookie, tcp.State) { return s.cookie(s.listener), tcp.Listen },
		},
		{
			name: "listener among its connections",
			hold: func(s *scene) (tcp.Cookie, tcp.State) {
				for range 5 {
					s.dial(0)
				}
				return s.cookie(s.listener), tcp.Listen
			},
		},
		{
			name: "connection",
			hold: func(s *scene) (tcp.Cookie, tcp.State) {
				c := s.dial(0)
				s.close(s.listener)
				return c.serverCookie, tcp.Established
			},
		},
		{
			name: "TIME_WAIT",
			hold: func(s *scene) (tcp.Cookie, tcp.State) {
				c := s.dial(0)
				s.closeFirst(c.server, c.client)
				s.close(s.listener)
				s.await("TIME_WAIT", func() bool { return s.minisocksIn(s.lab.Server(), tcp.TimeWait) == 1 })
				return c.serverCookie, tcp.TimeWait
			},
		},
		{
			name: "bound, and no more",
			hold: func(s *scene) (tcp.Cookie, tcp.State) {
				s.close(s.listener)
				fd := s.socket(s.lab.Server())
				s.bind(fd, s.server)
				return s.cookie(fd), tcp.Close
			},
		},
	} {
		families(t, tt.name, func(t *testing.T, v6 bool) {
			s := enrichedScene(t, setup{Options: netlab.Options{IPv6: v6}}, tcp.FactBindOwner, "")
			cookie, state := tt.hold(s)
			ev := s.denied(s.server)
			want := tcp.Holder{State: state, Cookie: cookie, Addr: s.server.Addr()}
			if ev.Holder != want {
				t.Errorf("%+v has the port, want %+v", ev.Holder, want)
			}
		})
	}
	// Every address is also this one, whichever side asks for which.
	for _, tt := range []struct{ name, holds, wants string }{
		{"all addresses hold, one is wanted", "0.0.0.0", "127.0.0.1"},
		{"one is held, all addresses are wanted", "127.0.0.1", "0.0.0.0"},
		{"all IPv6 addresses hold, one is wanted", "::", "::1"},
		{"IPv6 holds IPv4 too", "::", "127.0.0.1"},
		{"IPv4 holds, IPv6 wants both", "127.0.0.1", "::"},
		{"IPv6 alone holds, IPv4 is free", "::1", "127.0.0.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := enrichedScene(t, setup{Options: netlab.Options{Kind: netlab.Loopback}}, tcp.FactBindOwner, "")
			holds, wants := netip.AddrPortFrom(netip.MustParseAddr(tt.holds), 8081), netip.AddrPortFrom(netip.MustParseAddr(tt.wants), 8081)
			fd := s.socketFor(holds)
			s.must("bind", unix.Bind(fd, sockaddrOf(holds)))
			s.must("listen", unix.Listen(fd, 1))
			if holds.Addr() == netip.IPv6Loopback() {
				s.must("bind what is free", unix.Bind(s.socketFor(wants), sockaddrOf(wants)))
				return
			}
			ev := s.denied(wants)
			want := tcp.Holder{State: tcp.Listen, Cookie: s.cookie(fd), Addr: holds.Addr()}
			if ev.Holder != want {
				t.Errorf("%+v has the port, want %+v", ev.Holder, want)
			}
		})
	}
	// What Go's net.Listen asks with, where the kernel has MPTCP.
	t.Run("MPTCP", func(t *testing.T) {
		s := enrichedScene(t, setup{}, tcp.FactBindOwner, "")
		var fd int
		err := s.lab.Server().Do(func() (err error) {
			fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
			return err
		})
		if err != nil {
			t.Skipf("no MPTCP here: %v", err)
		}
		s.open[fd] = true
		if err := unix.Bind(fd, s.sockaddr(s.server)); !errors.Is(err, unix.EADDRINUSE) {
			t.Fatalf("bind: %v, want EADDRINUSE", err)
		}
		s.drain()
		ev := s.one("bind()", s.ofKind(tcp.KindBindFailed))
		if want := (tcp.Holder{State: tcp.Listen, Cookie: s.cookie(s.listener), Addr: s.server.Addr()}); ev.Holder != want {
			t.Errorf("%+v has the port, want %+v", ev.Holder, want)
		}
		s.wantOwner(ev)
	})
	// Another reason than a socket, in the same task as a conflict before it.
	t.Run("nobody", func(t *testing.T) {
		s := enrichedScene(t, setup{}, tcp.FactBindOwner, "")
		s.denied(s.server)
		fd := s.socket(s.lab.Server())
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{203, 0, 113, 1}, Port: serverPort}); !errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Fatalf("bind: %v, want EADDRNOTAVAIL", err)
		}
		s.drain()
		failed := s.ofKind(tcp.KindBindFailed)
		if len(failed) != 2 || failed[1].Holder != (tcp.Holder{}) {
			t.Errorf("%+v, want no holder in the second of two", failed)
		}
	})
}

// denied asks for an address that somebody holds, and returns the event of it.
func (s *scene) denied(addr netip.AddrPort) Event {
	s.Helper()
	fd := s.socketFor(addr)
	if err := unix.Bind(fd, sockaddrOf(addr)); !errors.Is(err, unix.EADDRINUSE) {
		s.Fatalf("bind: %v, want EADDRINUSE", err)
	}
	s.drain()
	ev := s.one("bind()", s.ofKind(tcp.KindBindFailed))
	if ev.Errno != tcp.Errno(unix.EADDRINUSE) || ev.Tuple.Local != addr || ev.Substate != tcp.StateNone || ev.Tuple.Peer.Addr() != unspecified(addr) {
		s.Errorf("%+v, want EADDRINUSE of %v", ev, addr)
	}
	s.wantOwner(ev)
	return ev
}

func unspecified(like netip.AddrPort) netip.Addr {
	if like.Addr().Is6() {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// socketFor is a socket of the address's own family, in the server's namespace.
func (s *scene) socketFor(addr netip.AddrPort) (fd int) {
	s.Helper()
	family := unix.AF_INET
	if addr.Addr().Is6() {
		family = unix.AF_INET6
	}
	s.must("socket", s.lab.Server().Do(func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		return err
	}))
	s.open[fd] = true
	return fd
}

func sockaddrOf(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is6() {
		return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}

// TestEnrichmentDenied: where programs may not be attached to functions everything else
// works, and what is missing is said.
func TestEnrichmentDenied(t *testing.T) {
	trace := open(t, Options{})
	for _, row := range enrichments {
		grade, gap := trace.Coverage()[row.fact], trace.enriched.gaps[row.fact]
		attached := false
		for _, r := range trace.enriched.rows {
			attached = attached || r.fact == row.fact
		}
		if attached == (gap != nil) {
			t.Errorf("%s: attached is %v, the gap is %v", row.fact, attached, gap)
		}
		if attached && grade != tcp.Exact {
			t.Errorf("%s is %s, although it is attached", row.fact, grade)
		}
		if !attached && row.fact != tcp.FactTWOverflow && grade != tcp.NotObservable {
			t.Errorf("%s is %s, although there is a gap: %v", row.fact, grade, gap)
		}
	}
	// A trace that does not ask has no gap.
	some := open(t, Options{Kinds: []Kind{tcp.KindRetransmit}})
	if len(some.enriched.rows)+len(some.enriched.gaps) != 0 {
		t.Errorf("%v attached and %v not, though nobody asked", some.enriched.rows, some.enriched.gaps)
	}
	for _, fact := range []tcp.Fact{tcp.FactRefusals, tcp.FactBindOwner} {
		if grade, asked := some.Coverage()[fact]; asked {
			t.Errorf("%s is %s, though nobody asked", fact, grade)
		}
	}
}
