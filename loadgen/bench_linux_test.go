package loadgen_test

import (
	"net/netip"
	"runtime"
	"testing"

	"github.com/twtrace/twtrace/loadgen"
)

// BenchmarkStorm opens b.N connections over loopback, up to 1,000 at once, from
// client threads to as many server threads of the same process, or from threads that are both
// ends; with more or less recorded, and with ports of the storm's own. They are closed by RST, so that the
// host's ports do not run out.
func BenchmarkStorm(b *testing.B) {
	for _, c := range []struct {
		name    string
		threads int
		host    bool
		record  loadgen.Record
		bind    loadgen.Binding
	}{
		{"threads=1+1/record=all", 1, false, loadgen.RecordAll, loadgen.BindNone},
		{"threads=1+1/record=cookie", 1, false, loadgen.RecordCookie, loadgen.BindNone},
		{"threads=1+1/record=times", 1, false, loadgen.RecordTimes, loadgen.BindNone},
		{"threads=2+2/record=all", 2, false, loadgen.RecordAll, loadgen.BindNone},
		{"threads=1+1/record=all/bind=port", 1, false, loadgen.RecordAll, loadgen.BindPort},
		{"together/record=all", 0, true, loadgen.RecordAll, loadgen.BindNone},
		{"together/record=cookie", 0, true, loadgen.RecordCookie, loadgen.BindNone},
		{"together/record=times", 0, true, loadgen.RecordTimes, loadgen.BindNone},
	} {
		b.Run(c.name, func(b *testing.B) {
			server := loadgen.NewServerPlan(localhosts["ipv4"])
			server.Shards = c.threads
			if c.host {
				cpus, err := loadgen.AllowedCPUs()
				if err != nil {
					b.Fatal(err)
				}
				server.Shards, server.CPUs = len(cpus), cpus
			}
			s := startServer(b, server)
			plan := loadgen.NewPlan(s.Addr())
			plan.Loops, plan.Connections, plan.Concurrency, plan.Shards, plan.Linger = 1, b.N, 1000, c.threads, 0
			plan.Record = c.record
			if plan.Bind = c.bind; c.bind != loadgen.BindNone {
				plan.Sources = []netip.Addr{s.Addr().Addr()}
			}
			if c.host {
				plan.Host = s
			}
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
