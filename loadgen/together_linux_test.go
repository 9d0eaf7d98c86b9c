package loadgen_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/twtrace/twtrace/loadgen"
	"golang.org/x/sys/unix"
)

// host starts a server with a thread on each processor for storms to run on.
func host(t *testing.T, p loadgen.ServerPlan) *loadgen.Server {
	t.Helper()
	cpus, err := loadgen.AllowedCPUs()
	if err != nil {
		t.Fatal(err)
	}
	p.Shards, p.CPUs = len(cpus), cpus
	return startServer(t, p)
}

// TestHost: storms on the server's own threads, one after the other, and what the
// server counts is theirs.
func TestHost(t *testing.T) {
	for family, addr := range localhosts {
		for _, closer := range []loadgen.Closer{loadgen.ClientCloses, loadgen.ServerCloses, loadgen.BothClose} {
			for _, hold := range []time.Duration{0, 20 * time.Millisecond} {
				t.Run(fmt.Sprintf("%s, %s closes, held %s", family, closer, hold), func(t *testing.T) {
					server := loadgen.NewServerPlan(addr)
					server.Close = closer
					s := host(t, server)
					plan := loadgen.NewPlan(s.Addr())
					plan.Loops, plan.Connections, plan.Close, plan.Hold, plan.Host = 3, 200, closer, hold, s
					plan.Interval = time.Millisecond
					for range 2 {
						_, attempts := storm(t.Context(), t, plan)
						all(t, attempts, loadgen.PhaseDone, 0, 0)
					}
					if stats := closed(t, s); stats.Accepted != 1200 || stats.Closed != 1200 || stats.AcceptErrors != 0 {
						t.Errorf("server: %+v, want 1200 accepted and closed", stats)
					}
				})
			}
		}
	}
}

// TestHostServesOthers: a server with a storm of its own answers others too, before, while and
// after.
func TestHostServesOthers(t *testing.T) {
	s := host(t, loadgen.NewServerPlan(localhosts["ipv4"]))
	other := func() {
		plan := loadgen.NewPlan(s.Addr())
		plan.Loops, plan.Connections = 1, 50
		_, attempts := storm(t.Context(), t, plan)
		all(t, attempts, loadgen.PhaseDone, 0, 0)
	}
	other()
	plan := loadgen.NewPlan(s.Addr())
	plan.Loops, plan.Connections, plan.Host = 2, 50, s
	plan.OnLoop = func(loadgen.LoopResult) { other() }
	_, attempts := storm(t.Context(), t, plan)
	all(t, attempts, loadgen.PhaseDone, 0, 0)
	other()
	if stats := closed(t, s); stats.Accepted != 300 || stats.Closed != 300 {
		t.Errorf("server: %+v, want 300 accepted and closed", stats)
	}
}

// TestHostCancel: a storm that waits in vain for its own threads' reply is stopped.
func TestHostCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	server := loadgen.NewServerPlan(localhosts["ipv4"])
	server.Bytes = 101 // one more than the client sends
	s := host(t, server)
	go func() {
		await(t, "100 connections", func() bool { return s.Stats().Accepted == 100 })
		cancel()
	}()
	plan := loadgen.NewPlan(s.Addr())
	plan.Loops, plan.Connections, plan.Concurrency, plan.Host = 3, 200, 100, s
	result, attempts := storm(ctx, t, plan)
	all(t, attempts, loadgen.PhaseReceive, loadgen.Errno(unix.ECANCELED), loadgen.Cancelled)
	if len(attempts) != 100 || !result.Canceled {
		t.Errorf("%d attempts, result %+v", len(attempts), result)
	}
	if stats := closed(t, s); stats.Closed != 100 {
		t.Errorf("server: %+v, want 100 closed", stats)
	}
}

// TestTogether: what is about the two ends not keeping pace has threads of its own.
func TestTogether(t *testing.T) {
	for name, c := range map[string]struct {
		change   func(*loadgen.Plan, *loadgen.ServerPlan)
		together bool
	}{
		"a closed loop":       {func(*loadgen.Plan, *loadgen.ServerPlan) {}, true},
		"linger 0":            {func(p *loadgen.Plan, _ *loadgen.ServerPlan) { p.Linger = 0 }, true},
		"linger":              {func(p *loadgen.Plan, _ *loadgen.ServerPlan) { p.Linger = time.Second }, false},
		"an open loop":        {func(p *loadgen.Plan, _ *loadgen.ServerPlan) { p.Rate = 100 }, false},
		"threads asked for":   {func(p *loadgen.Plan, _ *loadgen.ServerPlan) { p.Shards = 1 }, false},
		"a small queue":       {func(_ *loadgen.Plan, s *loadgen.ServerPlan) { s.Backlog = 16 }, false},
		"a slow acceptor":     {func(_ *loadgen.Plan, s *loadgen.ServerPlan) { s.AcceptDelay = 1 }, false},
		"RST on close":        {func(_ *loadgen.Plan, s *loadgen.ServerPlan) { s.Mode = loadgen.ResetOnClose }, true},
		"never reads":         {func(_ *loadgen.Plan, s *loadgen.ServerPlan) { s.Mode = loadgen.NeverRead }, false},
		"never accepts":       {func(_ *loadgen.Plan, s *loadgen.ServerPlan) { s.Mode = loadgen.NeverAccept }, false},
		"too many files":      {func(p *loadgen.Plan, _ *loadgen.ServerPlan) { p.Connections = 1 << 30 }, false},
		"not many at a time":  {func(p *loadgen.Plan, _ *loadgen.ServerPlan) { p.Connections, p.Concurrency = 1<<30, 100 }, true},
		"a single connection": {func(p *loadgen.Plan, _ *loadgen.ServerPlan) { p.Connections = 1 }, true},
	} {
		t.Run(name, func(t *testing.T) {
			server := loadgen.NewServerPlan(localhosts["ipv4"])
			plan := loadgen.NewPlan(localhosts["ipv4"])
			plan.Connections = 100
			c.change(&plan, &server)
			cpus, err := loadgen.Together(&plan, &server)
			if err != nil {
				t.Fatal(err)
			}
			if got := len(cpus) != 0; got != c.together {
				t.Errorf("on processors %v, want together %t", cpus, c.together)
			}
			if len(cpus) > plan.Connections {
				t.Errorf("%d threads for %d connections", len(cpus), plan.Connections)
			}
		})
	}
}
