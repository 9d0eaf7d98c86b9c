package run

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/report"
	"github.com/twtrace/twtrace/internal/verdict"
	"github.com/twtrace/twtrace/loadgen"
)

// TestCensusOwners: of two programs that share a destination each has in the census the ports of what it was told had
// finished, to one.
func TestCensusOwners(t *testing.T) {
	require(t)
	opts := storm(netlab.Pair, "net.ipv4.tcp_tw_reuse=0", "net.ipv4.ip_local_port_range=40000 40399", "net.ipv4.ip_local_reserved_ports=40100-40109")
	opts.Clients, opts.Plan.Loops, opts.Plan.Connections = 2, 2, 200
	s := do(t, opts)
	f := onlyFailure(t, s, verdict.PortExhausted, "connect", "EADDRNOTAVAIL")
	c := f.LastCensus
	if c == nil || f.Census == nil {
		t.Fatalf("no census: %+v", f)
	}
	for _, c := range []*report.Census{f.Census, c} {
		if !c.Sums || c.Sum != 400 || c.Reserved != 10 || c.Open+c.TimeWait.ReuseOff+c.TimeWait.FinWait2 != 390 {
			t.Errorf("%+v does not come to the range", c)
		}
	}
	if c.OldestSeconds == nil || c.NextSeconds == nil || *c.OldestSeconds+*c.NextSeconds < 60 || *c.OldestSeconds+*c.NextSeconds > 62.1 {
		t.Errorf("the oldest TIME_WAIT: %v old, %v left", c.OldestSeconds, c.NextSeconds)
	}
	if assassinated(t, s) > 0 {
		t.Skip("TIME_WAITs ended early: what finished is not what is held")
	}
	want := make(map[int]int)
	for _, client := range s.Clients {
		want[client.PID] = client.Finished
	}
	for _, o := range c.Owners {
		if o.Open+o.TimeWait != want[o.PID] || o.Comm == "" {
			t.Errorf("%+v, and it finished %d", o, want[o.PID])
		}
		delete(want, o.PID)
	}
	if len(want) != 0 {
		t.Errorf("nothing is said of %v", want)
	}
}

// TestCensusBound: a port that another socket is bound to, on whatever address, is one that connect() passes over, and one
// that it may not take yet is too young.
func TestCensusBound(t *testing.T) {
	require(t)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 9}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 1); err != nil { // kernels before 6.8 do not list what is bound and no more
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := sa.(*unix.SockaddrInet4).Port
	low := min(max(port-50, 32768), 60900)
	opts := storm(netlab.Host)
	opts.Plan.LocalPorts = loadgen.PortRange{Low: uint16(low), High: uint16(low + 99)}
	opts.Plan.Loops, opts.Plan.Connections = 1, 150
	if err := opts.Plan.CheckKernel(); errors.Is(err, loadgen.ErrNoPortRange) {
		t.Skip(err)
	}
	s := do(t, opts)
	f := onlyFailure(t, s, verdict.PortExhausted, "connect", "EADDRNOTAVAIL")
	c := f.Census
	bound := func(b report.BoundPort) bool {
		return b.Port == port && b.Addr == "127.0.0.9" && b.PID == os.Getpid() && b.Comm != "" && b.State == "LISTEN"
	}
	if c == nil || !c.Sums || c.Ports != 100 || c.Bound < 1 || !slices.ContainsFunc(c.BoundBy, bound) {
		t.Fatalf("port %d is bound by %d; census %+v", port, os.Getpid(), c)
	}
	// On a slow machine the last to close may wait for the peer's FIN still.
	if w := c.TimeWait; w.TooYoung+w.FinWait2 != c.Ports-c.Bound-c.Open-c.Reserved || *c.NextSeconds > 1 {
		t.Errorf("%+v, and the next port in %g s", *c, *c.NextSeconds)
	}
}

// TestBoundPorts: of sockets that nobody listens on, too, where the kernel lists them.
func TestBoundPorts(t *testing.T) {
	var want []int
	for _, listens := range []bool{false, true} {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Skip(err)
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, &unix.SockaddrInet6{}); err != nil {
			t.Skip(err)
		}
		if listens {
			if err := unix.Listen(fd, 1); err != nil {
				t.Fatal(err)
			}
		}
		sa, err := unix.Getsockname(fd)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, sa.(*unix.SockaddrInet6).Port)
	}
	for i, port := range want {
		got, err := boundPorts(port, port)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 && len(got) == 0 {
			t.Log("this kernel does not list sockets that are bound and no more (before 6.8)")
			continue
		}
		if len(got) != 1 || got[0].PID != os.Getpid() || got[0].Addr != "::" || got[0].State != []string{"BOUND_INACTIVE", "LISTEN"}[i] {
			t.Errorf("port %d: %+v", port, got)
		}
	}
}

// TestAbortOnOverflow: the client hears by RST that the accept queue had no room for it.
func TestAbortOnOverflow(t *testing.T) {
	require(t)
	opts := storm(netlab.Pair, "net.ipv4.tcp_abort_on_overflow=1")
	opts.Plan.Loops, opts.Plan.Connections, opts.Plan.Timeout = 1, 60, 700*time.Millisecond
	opts.Server, opts.Backlog = loadgen.NeverAccept, 5
	s := do(t, opts)
	for _, f := range s.Failures {
		switch f.Cause {
		case verdict.AcceptQueueFull, verdict.NeverAccepted:
		case verdict.Refused:
			if f.Detail != verdict.AbortOnOverflow {
				t.Errorf("%+v", f)
			}
		default:
			t.Errorf("%+v", f)
		}
	}
}

// TestSlow: SYNs that met a full accept queue are sent again a second later, and have room then.
func TestSlow(t *testing.T) {
	require(t)
	opts := storm(netlab.Pair)
	opts.Plan.Loops, opts.Plan.Connections, opts.Plan.Timeout = 1, 120, 30*time.Second
	opts.AcceptDelay, opts.AcceptEvery, opts.Backlog = 400*time.Millisecond, 30, 30
	s := do(t, opts)
	var slow, drops, syns int
	for _, g := range s.Slow {
		if g.Cause == verdict.AcceptQueueFull {
			slow, drops = slow+g.Count, drops+g.Drops
			if g.StallSeconds < 1 || len(g.Events) == 0 {
				t.Errorf("%+v", g)
			}
		}
		syns += g.Syns
	}
	if slow == 0 || drops < slow || syns > s.Retransmits.Syn {
		t.Errorf("slow %+v, %d SYNs were sent again", s.Slow, s.Retransmits.Syn)
	}
}

// TestForecast: an open loop runs out of ports when that was foretold, or the machine did not keep to the pace.
func TestForecast(t *testing.T) {
	require(t)
	opts := storm(netlab.Pair, "net.ipv4.tcp_tw_reuse=0", "net.ipv4.ip_local_port_range=40000 40999")
	opts.Plan.Loops, opts.Plan.Connections, opts.Plan.Rate = 1, 1100, 250
	s := do(t, opts)
	f := s.Forecast
	if f == nil || f.FirstFailureSeconds == nil || f.ObservedSeconds == nil || f.Error == nil || f.Revised == nil {
		t.Fatalf("forecast %+v", f)
	}
	t.Logf("%+v, foretold %.3f, came %.3f, error %.4f", *f, *f.FirstFailureSeconds, *f.ObservedSeconds, *f.Error)
	if late := s.Totals.OpenLoop.Late; *f.Error > 0.1 && late < 100 {
		t.Errorf("%.0f %% wrong, though only %d attempts began late", 100**f.Error, late)
	}
}

// TestResets: who reset a connection, and by what act.
func TestResets(t *testing.T) {
	require(t)
	for name, tt := range map[string]struct {
		accepted func(*net.TCPConn) // nil: nobody accepts
		cause    verdict.Cause
		detail   verdict.Detail
	}{
		"unread": {func(c *net.TCPConn) { waitUnread(c); c.Close() }, verdict.Reset, verdict.UnreadData},
		"linger": {func(c *net.TCPConn) { waitUnread(c); readAll(c); _ = c.SetLinger(0); c.Close() }, verdict.AbortedByLinger, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var lc net.ListenConfig
			lc.SetMultipathTCP(false)
			l, err := lc.Listen(context.Background(), "tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					tt.accepted(c.(*net.TCPConn))
				}
			}()
			defer func() { l.Close(); <-done }()
			opts := storm(netlab.Host)
			opts.Target = netip.MustParseAddrPort(l.Addr().String())
			opts.Plan.Loops, opts.Plan.Connections = 1, 20
			s := do(t, opts)
			if len(s.Failures) == 0 || s.Totals.Failed != 20 {
				t.Fatalf("failures %+v", s.Failures)
			}
			for _, f := range s.Failures {
				if f.Cause != tt.cause || f.Detail != tt.detail {
					t.Errorf("%d × %s %s: %s (%s), want %s (%s): %+v", f.Count, f.Phase, f.Errno, f.Cause, f.Detail, tt.cause, tt.detail, f.Peer)
				}
			}
		})
	}
}

// readAll reads what has come.
func readAll(c *net.TCPConn) {
	if _, err := c.Read(make([]byte, 1000)); err != nil {
		return // the client will say so too
	}
}

// waitUnread returns when data has come that nobody has read.
func waitUnread(c *net.TCPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	for {
		n := 0
		if err := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCINQ) }); err != nil || n > 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}
