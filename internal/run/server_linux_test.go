package run

import (
	"context"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/twtrace/twtrace/internal/control"
	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/report"
	"github.com/twtrace/twtrace/internal/verdict"
	"github.com/twtrace/twtrace/loadgen"
)

func TestServerFirst(t *testing.T) {
	require(t)
	opts := storm(netlab.Pair)
	opts.Plan.ServerFirst = 256
	s := do(t, opts)
	allFinished(t, s)
	if s.Options.ServerFirst != 256 || s.Options.ServerMode != report.ServerEcho {
		t.Errorf("options %+v", s.Options)
	}
}

// TestServerResets: the client closes first and yet keeps no TIME_WAIT, for the server's
// RST takes it (or the socket in FIN_WAIT2) away.
func TestServerResets(t *testing.T) {
	require(t)
	opts := storm(netlab.Pair)
	opts.Server = loadgen.ResetOnClose
	s := do(t, opts)
	allFinished(t, s)
	// The kernel's count for each side says whose they were.
	for _, c := range s.CrossCheck {
		if c.Side == "server" && c.Counter == "Tcp.OutRsts" && c.Kernel < loops*connections {
			t.Errorf("the server sent %d RSTs, want one for each of %d", c.Kernel, loops*connections)
		}
	}
	if s.TimeWait.Now != 0 {
		t.Errorf("%+v", s.TimeWait)
	}
}

// TestServerSilent: every attempt waits for a reply until it is given up.
func TestServerSilent(t *testing.T) {
	require(t)
	opts := storm(netlab.Pair)
	opts.Plan.Loops, opts.Plan.Connections, opts.Plan.Timeout = 1, 40, 500*time.Millisecond
	opts.Server = loadgen.NeverRead
	s := do(t, opts)
	if len(s.Failures) != 1 || s.Failures[0].Cause != verdict.TimedOut || s.Failures[0].Phase != "receive" || s.Failures[0].Count != 40 {
		t.Errorf("failures %+v", s.Failures)
	}
	if s.Server.Accepted != 40 || s.Server.Closed != 40 || *s.Server.NeverAccepted != 0 {
		t.Errorf("server %+v, %d never accepted", *s.Server, *s.Server.NeverAccepted)
	}
}

// TestServerNeverAccepts: the kernel completes backlog + 1 handshakes (sk_acceptq_is_full),
// which the program takes for connections. All others wait for an answer to their SYN.
func TestServerNeverAccepts(t *testing.T) {
	require(t)
	const backlog, attempts = 20, 60
	opts := storm(netlab.Pair)
	opts.Plan.Loops, opts.Plan.Connections, opts.Plan.Timeout = 1, attempts, 500*time.Millisecond
	opts.Server, opts.Backlog = loadgen.NeverAccept, backlog
	s := do(t, opts)
	if s.Totals.Finished != 0 || s.Totals.Errors["ETIMEDOUT"] != attempts {
		t.Errorf("%+v", s.Totals)
	}
	phases := make(map[string]int)
	for _, f := range s.Failures {
		phases[f.Phase] += f.Count
	}
	for _, f := range s.Failures {
		if want := map[string]verdict.Cause{"connect": verdict.AcceptQueueFull, "receive": verdict.NeverAccepted}[f.Phase]; f.Cause != want {
			t.Errorf("%d × %s: %s (%s), want %s", f.Count, f.Phase, f.Cause, f.Detail, want)
		}
		if f.Phase == "connect" && (f.Peer == nil || f.Peer.SynDrops["accept-queue"] == 0 || f.Peer.ListenerPID != os.Getpid()) {
			t.Errorf("of the peer is known %+v", f.Peer)
		}
	}
	connected := phases["receive"]
	if connected < backlog+1 || phases["connect"] != attempts-connected || phases["connect"] == 0 {
		t.Errorf("%v, the accept queue has room for %d", phases, backlog+1)
	}
	if s.Server.Accepted != 0 || s.Server.Closed != 0 || *s.Server.NeverAccepted != connected {
		t.Errorf("server %+v, %d never accepted, %d connected", *s.Server, *s.Server.NeverAccepted, connected)
	}
	if got := kernel(t, s, "TcpExt.ListenOverflows"); got == 0 {
		t.Error("the kernel counted no overflow: the test shows nothing")
	}
}

// TestSlowAcceptor: an acceptor that falls asleep for good after ten. What it has not
// accepted by the end of the run is counted, and no more accepted for the occasion.
func TestSlowAcceptor(t *testing.T) {
	require(t)
	opts := storm(netlab.Pair)
	opts.Plan.Loops, opts.Plan.Connections, opts.Plan.Timeout = 1, 30, 500*time.Millisecond
	opts.AcceptDelay, opts.AcceptEvery = time.Hour, 10
	s := do(t, opts)
	if s.Totals.Finished != 10 || s.Totals.Errors["ETIMEDOUT"] != 20 {
		t.Errorf("%+v", s.Totals)
	}
	if s.Server.Accepted != 10 || s.Server.Closed != 10 || *s.Server.NeverAccepted != 20 {
		t.Errorf("server %+v, %d never accepted", *s.Server, *s.Server.NeverAccepted)
	}
	if s.Options.AcceptDelayS != 3600 || s.Options.AcceptEvery != 10 {
		t.Errorf("options %+v", s.Options)
	}
}

// elsewhere starts a server that is not the run's own, and what tells its counts.
func elsewhere(t *testing.T, plan loadgen.ServerPlan) (target, told netip.AddrPort) {
	t.Helper()
	server, err := loadgen.NewServer(plan)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	c, err := control.Listen(anyPort, func() control.Counts {
		st := server.Stats()
		return control.Counts{Port: server.Addr().Port(), Accepted: st.Accepted, Closed: st.Closed}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return server.Addr(), c.Addr()
}

var anyPort = netip.MustParseAddrPort("127.0.0.1:0")

// toward is an untraced run against target, which needs no privilege.
func toward(target, told netip.AddrPort) Options {
	opts := storm(netlab.Host)
	opts.Trace = false
	opts.Target, opts.Control = target, told
	opts.Plan.Loops, opts.Plan.Connections, opts.Plan.Linger = 1, 50, 0
	return opts
}

// TestElsewhere: two runs against one server, each of which is told its own share.
func TestElsewhere(t *testing.T) {
	target, told := elsewhere(t, loadgen.NewServerPlan(anyPort))
	for range 2 {
		s := do(t, toward(target, told))
		if s.Server == nil {
			t.Fatalf("the server is unknown: %q", s.Notes)
		}
		if !s.Server.Elsewhere || s.Server.Accepted != 50 || s.Server.Closed != 50 || *s.Server.NeverAccepted != 0 {
			t.Errorf("server %+v", *s.Server)
		}
		if s.Options.ServerMode != report.ServerElsewhere {
			t.Errorf("options %+v", s.Options)
		}
	}
}

func TestElsewhereNeverAccepts(t *testing.T) {
	plan := loadgen.NewServerPlan(anyPort)
	plan.Mode = loadgen.NeverAccept
	opts := toward(elsewhere(t, plan))
	opts.Plan.Timeout = 200 * time.Millisecond
	s := do(t, opts)
	if s.Server == nil || s.Server.Accepted != 0 || *s.Server.NeverAccepted != 50 {
		t.Errorf("server %+v, notes %q", s.Server, s.Notes)
	}
}

// TestElsewhereUnknown: a server that can't be asked is unknown, for the reason that the
// notes give.
func TestElsewhereUnknown(t *testing.T) {
	target, told := elsewhere(t, loadgen.NewServerPlan(anyPort))
	other, _ := elsewhere(t, loadgen.NewServerPlan(anyPort))
	for _, c := range []struct {
		name         string
		target, told netip.AddrPort
		says         string
	}{
		{"not asked", target, netip.AddrPort{}, "--control none"},
		{"refused", target, netip.AddrPortFrom(told.Addr(), 1), "connection refused"},
		{"an echo server, which waits for the request", target, other, "timeout"},
		{"another server's", other, told, "its port is"},
	} {
		s := do(t, toward(c.target, c.told))
		if s.Server != nil || !strings.Contains(strings.Join(s.Notes, " "), c.says) {
			t.Errorf("%s: server %+v, notes %q", c.name, s.Server, s.Notes)
		}
		if s.Totals.Finished != 50 {
			t.Errorf("%s: the storm needs no answer, and yet %+v", c.name, s.Totals)
		}
	}
}

// TestElsewhereInterrupted: after Ctrl-C the server is asked once.
func TestElsewhereInterrupted(t *testing.T) {
	opts := toward(elsewhere(t, loadgen.NewServerPlan(anyPort)))
	opts.Plan.Loops, opts.Plan.Interval = 2, time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	opts.OnLoop = func(report.Loop) { cancel() }
	s, err := Run(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	if !s.Interrupted || s.Server == nil || s.Server.Accepted != 50 {
		t.Errorf("interrupted %t, server %+v, notes %q", s.Interrupted, s.Server, s.Notes)
	}
}
