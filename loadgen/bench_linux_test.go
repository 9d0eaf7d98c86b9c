package loadgen_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/twtrace/twtrace/loadgen"
)

// BenchmarkStorm opens b.N connections over loopback, up to 1,000 at once, from
// one client thread to one server thread of the same process. They are closed by
// RST, so that the host's ports do not run out.
func BenchmarkStorm(b *testing.B) {
	for _, threads := range []int{1, 2} {
		b.Run(fmt.Sprintf("shards=%d", threads), func(b *testing.B) {
			server := loadgen.NewServerPlan(localhosts["ipv4"])
			server.Shards = threads
			s := startServer(b, server)
			plan := loadgen.NewPlan(s.Addr())
			plan.Loops, plan.Connections, plan.Concurrency, plan.Shards, plan.Linger = 1, b.N, 1000, threads, 0
			var failed int
			plan.OnLoop = func(l loadgen.LoopResult) { failed = l.Failed }
			storm, err := loadgen.NewStorm(plan)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			b.ResetTimer()
			if _, err := storm.Run(b.Context()); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conn/s")
			if failed != 0 {
				b.Errorf("%d of %d failed", failed, b.N)
			}
		})
	}
}

// BenchmarkBindPort is BenchmarkStorm's one shard with ports of the storm's own.
func BenchmarkBindPort(b *testing.B) {
	s := startServer(b, loadgen.NewServerPlan(localhosts["ipv4"]))
	plan := loadgen.NewPlan(s.Addr())
	plan.Loops, plan.Connections, plan.Concurrency, plan.Linger = 1, b.N, 1000, 0
	plan.Bind, plan.Sources = loadgen.BindPort, []netip.Addr{s.Addr().Addr()}
	storm, err := loadgen.NewStorm(plan)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	if _, err := storm.Run(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conn/s")
}

// TestAllocations bounds what an attempt costs the garbage collector by the
// difference between a short and a long storm: nothing.
func TestAllocations(t *testing.T) {
	for _, bind := range []loadgen.Binding{loadgen.BindNone, loadgen.BindPort} {
		t.Run("bind "+bind.String(), func(t *testing.T) { testAllocations(t, bind) })
	}
}

func testAllocations(t *testing.T, bind loadgen.Binding) {
	s := startServer(t, loadgen.NewServerPlan(localhosts["ipv4"]))
	mallocs := func(connections int) uint64 {
		plan := loadgen.NewPlan(s.Addr())
		if plan.Bind = bind; bind != loadgen.BindNone {
			plan.Sources = []netip.Addr{s.Addr().Addr()}
		}
		plan.Loops, plan.Connections, plan.Concurrency, plan.Linger = 1, connections, 100, 0
		plan.OnAttempts = func([]loadgen.Attempt) {}
		storm, err := loadgen.NewStorm(plan)
		if err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := storm.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		return after.Mallocs - before.Mallocs
	}
	const short, long = 1000, 21000
	few, many := mallocs(short), mallocs(long)
	t.Logf("%d allocations for %d attempts, %d for %d", few, short, many, long)
	if per := float64(int64(many)-int64(few)) / (long - short); per > 0.05 {
		t.Errorf("%.3f allocations per attempt", per)
	}
}
