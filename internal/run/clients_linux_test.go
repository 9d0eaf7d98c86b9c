package run

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/signal"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/clients"
	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/progress"
	"github.com/twtrace/twtrace/internal/report"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/verdict"
	"github.com/twtrace/twtrace/loadgen"
)

// TestMain makes the test binary the client processes too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == clients.Command {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		defer stop()
		if err := clients.Serve(ctx, func() error { return nil }); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// account checks that the clients' account is that of the whole.
func account(t *testing.T, s *report.Summary, n int) {
	t.Helper()
	if len(s.Clients) != n || s.Options.Clients != n {
		t.Fatalf("%d clients, %d asked for, want %d", len(s.Clients), s.Options.Clients, n)
	}
	var sum report.Client
	errs := make(map[string]int)
	for i, c := range s.Clients {
		if c.Client != i+1 || c.Attempts != c.Finished+c.Failed {
			t.Errorf("%+v does not add up", c)
		}
		sum.Attempts += c.Attempts
		sum.Finished += c.Finished
		for e, n := range c.Errors {
			errs[e] += n
		}
	}
	if sum.Attempts != s.Totals.Attempts || sum.Finished != s.Totals.Finished || fmt.Sprint(errs) != fmt.Sprint(s.Totals.Errors) {
		t.Errorf("the clients' %+v, %v are not the totals' %+v", sum, errs, s.Totals)
	}
}

func several(n int) Options {
	opts := storm(netlab.Pair)
	opts.Clients = n
	return opts
}

func TestClients(t *testing.T) {
	require(t)
	const n, connections = 3, 500
	for _, network := range networks {
		t.Run(network.name, func(t *testing.T) {
			opts := several(n)
			opts.Net = network.net
			opts.Plan.Connections = connections
			opts.Plan.Concurrency = 100 // an emulated machine drops the SYNs of all at once
			s := do(t, opts)
			account(t, s, n)
			for _, c := range s.Clients {
				if c.Finished != loops*connections || c.Failed != 0 || c.Ended != clients.Done || c.NotReported != 0 {
					t.Errorf("%+v", c)
				}
			}
			for _, l := range s.Loops {
				if l.Attempts != n*connections {
					t.Errorf("loop %d has %d attempts, want %d", l.Loop, l.Attempts, n*connections)
				}
			}
			if want := n * loops * connections; s.Joined.ByCookie != want || s.Server.Accepted != want || *s.Server.NeverAccepted != 0 {
				t.Errorf("joined %+v, server %+v; want %d", s.Joined, s.Server, want)
			}
			if s.Interrupted {
				t.Error("it says that it was interrupted")
			}
		})
	}
}

// TestOneClient: the account of the storm that needs no other process is this one's.
func TestOneClient(t *testing.T) {
	require(t)
	s := do(t, storm(netlab.Loopback))
	account(t, s, 1)
	if c := s.Clients[0]; c.PID != os.Getpid() || c.Ended != clients.Done {
		t.Errorf("%+v", c)
	}
}

// TestClientsUntraced is without a trace, on the host.
func TestClientsUntraced(t *testing.T) {
	opts := several(2)
	opts.Net.Kind, opts.Trace = netlab.Host, false
	opts.Plan.Linger = 0 // by RST: nothing is left on the host
	s := do(t, opts)
	account(t, s, 2)
	if s.Totals.Finished != 2*loops*connections {
		t.Errorf("%+v", s.Totals)
	}
}

// TestStopClient: one of three is stopped or killed in the middle of a loop; the two others
// go on, and the trace and the kernel's counters agree about all three.
func TestStopClient(t *testing.T) {
	require(t)
	for sig, ended := range map[unix.Signal]string{
		unix.SIGINT: clients.Interrupted, unix.SIGTERM: "killed by SIGTERM", unix.SIGKILL: "killed by SIGKILL",
	} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			opts := several(3)
			opts.Plan.Loops = 100_000
			opts.Plan.Bytes = 20_000 // some replies are on their way as their sockets are closed
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var pid int
			opts.OnStart = func(s *report.Summary) { pid = s.Clients[1].PID }
			opts.OnLoop = func(l report.Loop) {
				if l.Loop == 1 {
					if err := unix.Kill(pid, sig); err != nil {
						t.Error(err)
					}
				}
				if l.Loop > 3 && l.Attempts == 2*connections {
					cancel()
				}
			}
			s, err := Run(ctx, opts)
			if err != nil {
				t.Fatal(err)
			}
			account(t, s, 3)
			a, b, c := s.Clients[0], s.Clients[1], s.Clients[2]
			if b.Ended != ended || a.Ended != clients.Interrupted || c.Ended != clients.Interrupted {
				t.Errorf("%+v", s.Clients)
			}
			if b.Attempts >= a.Attempts || b.Attempts >= c.Attempts {
				t.Errorf("the others did not go on: %+v", s.Clients)
			}
			if a.NotReported+c.NotReported != 0 || sig == unix.SIGINT && b.NotReported != 0 {
				t.Errorf("not reported: %+v", s.Clients)
			}
			if (s.Server.NeverAccepted == nil) != (b.NotReported > 0) {
				t.Errorf("server %+v with %d attempts not reported", s.Server, b.NotReported)
			}
			if !s.Interrupted || s.Joined.ByCookie != s.Joined.Attempts {
				t.Errorf("interrupted %t, joined %+v", s.Interrupted, s.Joined)
			}
			for _, f := range s.Failures {
				if f.Cause != verdict.Interrupted {
					t.Errorf("%d × %s %s: %s", f.Count, f.Phase, f.Errno, f.Cause)
				}
			}
			for _, row := range s.CrossCheck {
				// Of replies that meet a closed socket only some show where RSTs have no
				// reasons (timeline.Totals.DataAfterClose).
				if row.Counter == "TcpExt.TCPAbortOnData" && s.Coverage[tcp.FactRstReason] != tcp.Exact {
					continue
				}
				// SYNs that the link had no room for, where the kernel's tracepoint does not show them (KNOWN_ISSUES.md).
				if row.Counter == "TcpExt.TCPSynRetrans" && row.Kernel > row.Twtrace && s.Coverage[tcp.FactRstReason] != tcp.Exact {
					continue
				}
				if !row.Agrees {
					t.Errorf("%s %s: the kernel counted %d, twtrace %d", row.Side, row.Counter, row.Kernel, row.Twtrace)
				}
			}
		})
	}
}

// TestClientsBindPort: each has its own part of the ports, and so none tries another's, though
// together they use most of them.
func TestClientsBindPort(t *testing.T) {
	require(t)
	const n = 3
	opts := narrow(netlab.Options{Kind: netlab.Pair})
	opts.Clients, opts.Plan.Linger = n, 0
	opts.Plan.Bind = loadgen.BindPort
	opts.Plan.Connections = narrowPorts/n - 20
	s := do(t, opts)
	account(t, s, n)
	if s.Totals.Failed != 0 || s.Totals.PortsSkipped != 0 {
		t.Errorf("%+v", s.Totals)
	}
}

// TestClientsLimits: a cap is of all clients together, and so is the progress.
func TestClientsLimits(t *testing.T) {
	require(t)
	const n, most = 2, 1000
	opts := several(n)
	opts.Plan.Connections, opts.Plan.Loops = 100000, 1
	opts.Plan.MaxRate, opts.Plan.MaxDuration = most, time.Second
	var last progress.Run
	opts.OnProgress = func(p progress.Run) {
		if p.Started < p.Finished+p.Failed || p.Started < last.Started {
			t.Errorf("%+v after %+v", p, last)
		}
		last = p
	}
	opts.ProgressEvery = 50 * time.Millisecond
	s := do(t, opts)
	account(t, s, n)
	if s.StoppedBy != report.StoppedByMaxDuration || s.Totals.HeldBack == 0 {
		t.Errorf("stopped by %q, %d held back", s.StoppedBy, s.Totals.HeldBack)
	}
	for _, c := range s.Clients {
		if c.Attempts == 0 || c.Ended != clients.Interrupted {
			t.Errorf("%+v", c)
		}
	}
	// In whole seconds, of which the last is not over.
	if begun := s.Totals.Attempts; float64(begun) > most*math.Ceil(s.Totals.Seconds) {
		t.Errorf("%d began in %.3f s, at most %d a second", begun, s.Totals.Seconds, most)
	}
	if last.Stage != progress.Storm && last.Stage != progress.Settling || last.Started != int64(s.Totals.Attempts) {
		t.Errorf("the last progress was %+v, of %d attempts", last, s.Totals.Attempts)
	}
}
