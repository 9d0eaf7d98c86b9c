package run

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/report"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/testenv"
	"github.com/twtrace/twtrace/internal/verdict"
	"github.com/twtrace/twtrace/loadgen"
)

// narrow is a run of 3 × 200 connections over 300 ports, none of which tcp_tw_reuse
// gives back.
func narrow(net netlab.Options, sysctls ...string) Options {
	opts := storm(net.Kind, append([]string{
		"net.ipv4.tcp_tw_reuse=0", "net.ipv4.ip_local_port_range=40000 40299",
	}, sysctls...)...)
	opts.Net.IPv6 = net.IPv6
	opts.Plan.Loops, opts.Plan.Connections = 3, 200
	// The other end closes too before a port is taken again.
	opts.Plan.Interval = 100 * time.Millisecond
	return opts
}

const narrowPorts = 300

// onlyFailure is the one way in which attempts of the run failed.
func onlyFailure(t *testing.T, s *report.Summary, cause verdict.Cause, phase, errno string) report.Failure {
	t.Helper()
	if len(s.Failures) != 1 {
		t.Fatalf("failures %+v, want one cause", s.Failures)
	}
	f := s.Failures[0]
	if f.Cause != cause || f.Phase != phase || f.Errno != errno || f.Count != s.Totals.Failed {
		t.Errorf("%d × %s %s: %s, want %d × %s %s: %s", f.Count, f.Phase, f.Errno, f.Cause, s.Totals.Failed, phase, errno, cause)
	}
	return f
}

// TestBindPort: all finish, each leaves a TIME_WAIT, and connect() takes over those it
// needs, by the kernel's count (do compares them).
func TestBindPort(t *testing.T) {
	require(t)
	for _, n := range networks {
		t.Run(n.name, func(t *testing.T) {
			opts := narrow(n.net)
			opts.Plan.Bind = loadgen.BindPort
			s := do(t, opts)
			if s.Totals.Finished != 600 || s.TimeWait.Entered != 600 || s.Totals.PortsSkipped != 0 {
				t.Errorf("%d of 600 finished, %d TIME_WAITs, %d ports skipped: %v",
					s.Totals.Finished, s.TimeWait.Entered, s.Totals.PortsSkipped, s.Totals.Errors)
			}
			// Of the first 300, those that were not killed before.
			least := narrowPorts - assassinated(t, s)
			if got := s.TimeWait.ReusedByConnect; got < least || got > narrowPorts {
				t.Errorf("%d were reused by connect, want %d to %d", got, least, narrowPorts)
			}
			if notes := strings.Join(s.Notes, " "); !strings.Contains(notes, "whatever tcp_tw_reuse says (it is 0)") {
				t.Errorf("no note says why: %q", notes)
			}
			if s.Options.Bind != "port" || s.Options.Sources != 1 {
				t.Errorf("options %+v", s.Options)
			}
		})
	}
}

// TestBindPortNoTimestamps: without them no TIME_WAIT is taken over, bound or not.
func TestBindPortNoTimestamps(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.Veth)
	for _, trace := range []bool{true, false} {
		t.Run(map[bool]string{true: "traced", false: "untraced"}[trace], func(t *testing.T) {
			opts := narrow(netlab.Options{}, "net.ipv4.tcp_timestamps=0")
			opts.Plan.Bind = loadgen.BindPort
			if opts.Trace = trace; trace {
				require(t)
			}
			s := do(t, opts)
			onlyFailure(t, s, verdict.TupleBusy, "connect", "EADDRNOTAVAIL")
			if s.Totals.Finished < narrowPorts {
				t.Errorf("%d finished", s.Totals.Finished)
			}
		})
	}
}

// TestBindAddr: bind() finds no port any more.
func TestBindAddr(t *testing.T) {
	require(t)
	for _, n := range networks {
		t.Run(n.name, func(t *testing.T) {
			opts := narrow(n.net)
			opts.Plan.Bind = loadgen.BindAddr
			s := do(t, opts)
			f := onlyFailure(t, s, verdict.BindConflict, "bind", "EADDRINUSE")
			if want := narrowPorts + assassinated(t, s); s.Totals.Finished < narrowPorts || s.Totals.Finished > want {
				t.Errorf("%d finished, want %d to %d", s.Totals.Finished, narrowPorts, want)
			}
			if advice := strings.Join(f.Advice, " "); !strings.Contains(advice, "--no-port") {
				t.Errorf("advice %q", advice)
			}
			if s.Joined.Attempts != s.Totals.Finished {
				t.Errorf("%d reached connect(), and %d finished", s.Joined.Attempts, s.Totals.Finished)
			}
		})
	}
}

// TestSources: two addresses have twice the ports, whoever chooses them in connect(),
// and the evidence counts those of one.
func TestSources(t *testing.T) {
	require(t)
	for _, n := range networks {
		for _, bind := range []loadgen.Binding{loadgen.BindNone, loadgen.BindAddr} {
			t.Run(n.name+", bind "+bind.String(), func(t *testing.T) {
				opts := narrow(n.net)
				opts.Net.Sources = 2
				opts.Plan.Loops, opts.Plan.Bind, opts.Plan.NoPort = 4, bind, bind == loadgen.BindAddr
				s := do(t, opts)
				f := onlyFailure(t, s, verdict.PortExhausted, "connect", "EADDRNOTAVAIL")
				if want := 2*narrowPorts + assassinated(t, s); s.Totals.Finished < 2*narrowPorts || s.Totals.Finished > want {
					t.Errorf("%d finished, want %d to %d", s.Totals.Finished, 2*narrowPorts, want)
				}
				timeWait, _ := f.Evidence["time_wait"].(int)
				open, _ := f.Evidence["open"].(int)
				if timeWait+open != narrowPorts || f.Evidence["ports"] != narrowPorts {
					t.Errorf("%d in TIME_WAIT and %d open, of %v ports", timeWait, open, f.Evidence["ports"])
				}
			})
		}
	}
}

// TestLocalPorts has 50 of the 300 ports.
func TestLocalPorts(t *testing.T) {
	require(t)
	opts := narrow(netlab.Options{})
	opts.Plan.LocalPorts = loadgen.PortRange{Low: 40100, High: 40149}
	opts.Plan.Loops = 1
	if err := opts.Plan.CheckKernel(); errors.Is(err, loadgen.ErrNoPortRange) {
		t.Skip(err)
	}
	s := do(t, opts)
	f := onlyFailure(t, s, verdict.PortExhausted, "connect", "EADDRNOTAVAIL")
	if finished := s.Totals.Finished; finished < 50 || finished > 50+assassinated(t, s) || f.Evidence["ports"] != 50 {
		t.Errorf("%d finished, of %v ports", finished, f.Evidence["ports"])
	}
}

// TestBindOnHost binds an address of the host's own loopback, and changes nothing there.
func TestBindOnHost(t *testing.T) {
	for _, bind := range []loadgen.Binding{loadgen.BindAddr, loadgen.BindPort} {
		opts := storm(netlab.Host)
		opts.Trace, opts.Net.Sources = false, 3
		opts.Plan.Linger, opts.Plan.Bind, opts.Plan.NoPort = 0, bind, bind == loadgen.BindAddr
		s := do(t, opts)
		if s.Totals.Finished != loops*connections || s.Coverage[tcp.FactState] != tcp.NotObservable {
			t.Errorf("bind %s: %d of %d finished: %v", bind, s.Totals.Finished, s.Totals.Attempts, s.Totals.Errors)
		}
	}
}
