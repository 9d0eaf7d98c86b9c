package loadgen

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"
)

// TestPrivateFDs checks what a shard's table keeps of the process's, by what the
// kernel says is in it.
func TestPrivateFDs(t *testing.T) {
	startPoller()
	wake, err := newWakeUp()
	if err != nil {
		t.Fatal(err)
	}
	defer wake.close()
	// A pipe stands for what must not be kept: its reader sees EOF only when no
	// table has the other end any more.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()

	var (
		files []openFile
		fail  error
		unmet = make(chan struct{})
		end   = make(chan struct{})
		done  = make(chan struct{})
	)
	go onDisposableThread(func() {
		defer close(done)
		if unix.Gettid() == unix.Getpid() {
			fail = errors.New("ran on the process's first thread")
		} else if _, err := privateFDs(wake.fd); err != nil {
			fail = err
		} else {
			files, fail = listFDs()
		}
		close(unmet)
		<-end
	})
	<-unmet
	defer func() { close(end); <-done }()
	if fail != nil {
		t.Fatal(fail)
	}
	var pollers int
	for _, f := range files {
		switch {
		case f.link == "anon_inode:[eventpoll]":
			pollers++
		case f.number <= 2 || f.link == "anon_inode:[eventfd]":
		default:
			t.Errorf("descriptor %d, %s, was kept", f.number, f.link)
		}
	}
	if pollers == 0 {
		t.Error("the runtime's epoll instance was not kept")
	}
	if !slices.ContainsFunc(files, func(f openFile) bool { return f.number == wake.fd }) {
		t.Error("the eventfd that wakes shards was not kept")
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("read %d bytes from a closed pipe: %v", n, err)
	}
}

// TestPrivateFDsNeedsPoller must fail instead of leaving the runtime without its
// poller: here, the eventfd asked for is none.
func TestPrivateFDsNeedsPoller(t *testing.T) {
	startPoller()
	result := make(chan error, 1)
	go onDisposableThread(func() {
		_, err := privateFDs(0)
		result <- err
	})
	if <-result == nil {
		t.Error("no error")
	}
}

// TestStall fills every batch of a shard while nobody collects.
func TestStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var delivered []uint32
		c := newCollector(&Plan{OnAttempts: func(b []Attempt) {
			for i := range b {
				delivered = append(delivered, b[i].Index)
			}
		}}, 1)
		o := newOutlet(c)
		room := batchesPerShard(1) * batchSize
		total := room + 10
		go func() {
			for i := range total {
				o.put(&Attempt{Index: uint32(i), Phase: PhaseDone}, int64(i))
			}
			o.flush(1)
			close(c.full)
		}()
		synctest.Wait()
		if o.stalls != 1 || len(delivered) != 0 {
			t.Errorf("with all batches full: %d stalls, %d delivered", o.stalls, len(delivered))
		}
		c.run()
		if len(delivered) != total || !slices.IsSorted(delivered) {
			t.Errorf("%d attempts delivered, not %d in order", len(delivered), total)
		}
		if done := <-c.loopDone; done.Finished != total {
			t.Errorf("loop: %+v", done)
		}
	})
}

func TestSplit(t *testing.T) {
	for _, n := range []int{1, 2, 3, 7} {
		next := 0
		for i := range n {
			from, count := split(20, i, n)
			if from != next {
				t.Errorf("part %d of %d begins at %d, not %d", i, n, from, next)
			}
			next += count
		}
		if next != 20 {
			t.Errorf("%d parts come to %d", n, next)
		}
	}
}

func TestShardsFor(t *testing.T) {
	for _, c := range []struct {
		n, limit int
		fill     float64
		want     int
	}{
		{0, 20000, 1, 1}, {1, 20000, 1, 1}, {19936, 20000, 1, 1}, {19937, 20000, 1, 2},
		{500000, 20000, 1, 26}, {20000, 20000, 0.9, 2}, {10, 10, 1, 10},
	} {
		if got := shardsFor(c.n, c.limit, c.fill); got != c.want {
			t.Errorf("shardsFor(%d, %d, %v) = %d, not %d", c.n, c.limit, c.fill, got, c.want)
		}
	}
}

// TestSteering: over loopback each of the server's threads accepts what a client's thread on
// the same processor opened, whether there is one of them or two.
func TestSteering(t *testing.T) {
	cpus, err := AllowedCPUs()
	if err != nil {
		t.Fatal(err)
	}
	if len(cpus) < 2 {
		t.Skip("one processor")
	}
	for _, each := range []int{1, 2} {
		server := NewServerPlan(netip.MustParseAddrPort("127.0.0.1:0"))
		server.CPUs, server.Shards = cpus, each*len(cpus)
		s, err := NewServer(server)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
		opened := make([]uint64, len(cpus))
		plan := NewPlan(s.Addr())
		plan.Loops, plan.Connections, plan.Shards, plan.CPUs = 1, 200*len(cpus)+1, len(cpus), cpus
		plan.OnAttempts = func(attempts []Attempt) {
			for i := range attempts {
				opened[attempts[i].Shard]++
			}
		}
		st, err := NewStorm(plan)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		accepted := make([]uint64, len(cpus))
		for i, sh := range s.shards {
			n := sh.counts.accepted.Load()
			accepted[i%len(cpus)] += n
			if n == 0 {
				t.Errorf("%d a processor: thread %d accepted nothing", each, i)
			}
		}
		if !slices.Equal(accepted, opened) {
			t.Errorf("%d a processor: accepted %v of %v opened", each, accepted, opened)
		}
	}
}
