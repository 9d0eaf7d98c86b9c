package loadgen_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twtrace/twtrace/loadgen"
	"golang.org/x/sys/unix"
)

var localhosts = map[string]netip.AddrPort{
	"ipv4": netip.MustParseAddrPort("127.0.0.1:0"),
	"ipv6": netip.MustParseAddrPort("[::1]:0"),
}

// startServer starts a server that the test's end closes.
func startServer(t testing.TB, p loadgen.ServerPlan) *loadgen.Server {
	t.Helper()
	s, err := loadgen.NewServer(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		if p.Listen.Addr().Is6() && errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Skipf("no IPv6 here: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// storm runs p and returns what it came to and every attempt, sorted by loop and
// index, having checked what holds for any storm.
func storm(ctx context.Context, t testing.TB, p loadgen.Plan) (loadgen.Result, []loadgen.Attempt) {
	t.Helper()
	var (
		attempts []loadgen.Attempt
		loops    []loadgen.LoopResult
	)
	onAttempts, onLoop := p.OnAttempts, p.OnLoop
	var mu sync.Mutex // held by neither callback when the other runs, if the package keeps its word
	p.OnAttempts = func(batch []loadgen.Attempt) {
		mu.Lock()
		defer mu.Unlock()
		attempts = append(attempts, batch...)
		if onAttempts != nil {
			onAttempts(batch)
		}
	}
	p.OnLoop = func(l loadgen.LoopResult) {
		mu.Lock()
		defer mu.Unlock()
		loops = append(loops, l)
		n := 0
		for i := range loops {
			n += loops[i].Attempts
		}
		if n != len(attempts) {
			t.Errorf("OnLoop %d: %d attempts were started, %d delivered", l.Loop, n, len(attempts))
		}
		if onLoop != nil {
			onLoop(l)
		}
	}
	s, err := loadgen.NewStorm(p)
	if err != nil {
		t.Fatal(err)
	}
	result, err := s.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(loops, result.Loops) {
		t.Errorf("OnLoop was given %v, Run returned %v", loops, result.Loops)
	}
	slices.SortFunc(attempts, func(a, b loadgen.Attempt) int {
		return int(int64(a.Loop)<<32+int64(a.Index)) - int(int64(b.Loop)<<32+int64(b.Index))
	})
	checkAttempts(t, result, attempts)
	if !result.Canceled {
		if len(result.Loops) != p.Loops {
			t.Errorf("%d loops ran, not %d", len(result.Loops), p.Loops)
		}
		for i := range attempts {
			a := &attempts[i]
			if int(a.Loop) != 1+i/p.Connections || int(a.Index) != i%p.Connections {
				t.Fatalf("attempt %d is number %d of loop %d: one is missing or twice there", i, a.Index, a.Loop)
			}
		}
		if len(attempts) != p.Loops*p.Connections {
			t.Errorf("%d attempts, not %d x %d", len(attempts), p.Loops, p.Connections)
		}
	}
	return result, attempts
}

// checkAttempts checks what holds for the attempts of any storm: each is there
// once and has a cookie of its own, its times are in order, and the loops are
// their sum.
func checkAttempts(t testing.TB, result loadgen.Result, attempts []loadgen.Attempt) {
	t.Helper()
	sums := make([]loadgen.LoopResult, len(result.Loops))
	cookies := make(map[loadgen.Cookie]bool)
	seen := make(map[[2]uint32]bool)
	for i := range attempts {
		a := &attempts[i]
		if int(a.Loop) < 1 || int(a.Loop) > len(sums) {
			t.Fatalf("attempt of loop %d of %d", a.Loop, len(sums))
		}
		sum := &sums[a.Loop-1]
		sum.Attempts++
		if a.Failed() {
			sum.Failed++
		} else {
			sum.Finished++
		}
		if key := [2]uint32{a.Loop, a.Index}; seen[key] {
			t.Errorf("attempt %v was delivered twice", key)
		} else {
			seen[key] = true
		}
		if a.ReachedConnect() {
			if a.Cookie == 0 || cookies[a.Cookie] {
				t.Errorf("cookie %#x of %+v is not its own", a.Cookie, *a)
			}
			cookies[a.Cookie] = true
		}
		if a.Failed() != (a.Errno != 0) {
			t.Errorf("phase %s and errno %s contradict each other", a.Phase, a.Errno)
		}
		last := int64(1)
		for _, at := range []int64{a.Started, a.Connected, a.FirstByte, a.Closed} {
			if at == 0 {
				continue
			}
			if at < last {
				t.Errorf("times not in order: %+v", *a)
			}
			last = at
		}
		if a.Started == 0 || a.Closed == 0 {
			t.Errorf("not started or not closed: %+v", *a)
		}
		if a.Phase > loadgen.PhaseConnect && a.Connected == 0 || a.FirstByte != 0 && a.Connected == 0 {
			t.Errorf("got to %s unconnected: %+v", a.Phase, *a)
		}
	}
	for i, l := range result.Loops {
		if sums[i].Attempts != l.Attempts || sums[i].Finished != l.Finished || sums[i].Failed != l.Failed {
			t.Errorf("loop %d: attempts come to %+v, its result says %+v", i+1, sums[i], l)
		}
		if l.Loop != i+1 {
			t.Errorf("loop %d is called %d", i+1, l.Loop)
		}
	}
}

// all checks that every attempt ended alike.
func all(t *testing.T, attempts []loadgen.Attempt, phase loadgen.Phase, errno loadgen.Errno, flags loadgen.AttemptFlags) {
	t.Helper()
	for i := range attempts {
		if a := &attempts[i]; a.Phase != phase || a.Errno != errno || a.Flags != flags {
			t.Fatalf("attempt %d of loop %d ended with %s %s flags %#x, not %s %s %#x",
				a.Index, a.Loop, a.Phase, a.Errno, a.Flags, phase, errno, flags)
		}
	}
}

// closed closes the server and returns what it counted.
func closed(t *testing.T, s *loadgen.Server) loadgen.ServerStats {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	return s.Stats()
}

// TestStorm runs every way of exchanging and closing, and takes the server's
// counts as the second account.
func TestStorm(t *testing.T) {
	const connections, loops = 200, 2
	for name, listen := range localhosts {
		for _, c := range []struct {
			name   string
			bytes  int
			close  loadgen.Closer
			change func(*loadgen.Plan, *loadgen.ServerPlan)
			resets uint64 // seen by the server
		}{
			{name: "client closes", bytes: 100},
			{name: "server closes", bytes: 100, close: loadgen.ServerCloses},
			{name: "both close", bytes: 100, close: loadgen.BothClose},
			{name: "0 bytes, client closes", bytes: 0},
			{name: "0 bytes, server closes", bytes: 0, close: loadgen.ServerCloses},
			{name: "0 bytes, both close", bytes: 0, close: loadgen.BothClose},
			{name: "1 byte", bytes: 1},
			{name: "1 byte, server closes", bytes: 1, close: loadgen.ServerCloses},
			{name: "64 KiB and 1", bytes: 64<<10 + 1, close: loadgen.ServerCloses},
			{name: "1 MiB", bytes: 1 << 20, change: func(p *loadgen.Plan, _ *loadgen.ServerPlan) {
				p.Concurrency = 50
			}},
			{name: "1 MiB, server closes", bytes: 1 << 20, close: loadgen.ServerCloses, change: func(p *loadgen.Plan, _ *loadgen.ServerPlan) {
				p.Concurrency = 50
			}},
			{name: "linger 0", bytes: 100, resets: connections * loops, change: func(p *loadgen.Plan, _ *loadgen.ServerPlan) {
				p.Linger = 0
			}},
			{name: "linger 2 s", bytes: 100, change: func(p *loadgen.Plan, _ *loadgen.ServerPlan) {
				p.Linger = 2 * time.Second
			}},
			{name: "reuse", bytes: 100, change: func(p *loadgen.Plan, _ *loadgen.ServerPlan) {
				p.ReuseAddr, p.ReusePort = true, true
			}},
			{name: "three shards each", bytes: 100, change: func(p *loadgen.Plan, s *loadgen.ServerPlan) {
				p.Shards, s.Shards = 3, 3
			}},
			{name: "one at a time", bytes: 100, change: func(p *loadgen.Plan, _ *loadgen.ServerPlan) {
				p.Concurrency = 1
			}},
			{name: "hold and interval", bytes: 100, change: func(p *loadgen.Plan, _ *loadgen.ServerPlan) {
				p.Hold, p.Interval = 5*time.Millisecond, time.Millisecond
			}},
		} {
			t.Run(name+"/"+c.name, func(t *testing.T) {
				server := loadgen.NewServerPlan(listen)
				server.Bytes, server.Close = c.bytes, c.close
				plan := loadgen.NewPlan(listen)
				plan.Loops, plan.Connections, plan.Bytes, plan.Close = loops, connections, c.bytes, c.close
				if c.change != nil {
					c.change(&plan, &server)
				}
				s := startServer(t, server)
				plan.Target = s.Addr()
				_, attempts := storm(t.Context(), t, plan)
				all(t, attempts, loadgen.PhaseDone, 0, 0)
				for i := range attempts {
					a := &attempts[i]
					if (a.FirstByte != 0) != (c.bytes != 0) {
						t.Errorf("%d bytes, but FirstByte is %d", c.bytes, a.FirstByte)
					}
					if plan.Hold != 0 && a.Closed-a.FirstByte < int64(plan.Hold) {
						t.Errorf("held for %d ns only", a.Closed-a.FirstByte)
					}
				}
				stats := closed(t, s)
				want := loadgen.ServerStats{Accepted: connections * loops, Closed: connections * loops, Resets: c.resets}
				stats.Drops = 0 // the host's to say
				if c.bytes >= 1<<20 {
					// A kernel short of memory for sockets closes by RST what has much unsent or
					// unread (TCPAbortOnMemory): seen in machines of 1 GiB.
					stats.Resets = 0
				}
				if stats != want {
					t.Errorf("server counted %+v, not %+v", stats, want)
				}
			})
		}
	}
}

// TestOpenLoop: attempts are due when the rate says so, whatever those before take, and none is left
// out or begun before its time.
func TestOpenLoop(t *testing.T) {
	for _, tt := range []struct {
		name     string
		from, to float64
		shards   int
		room     int
		hold     time.Duration
	}{
		{name: "constant", from: 2000, shards: 1},
		{name: "two shards, a rate that rises", from: 500, to: 4000, shards: 2},
		{name: "no room for what is due", from: 4000, shards: 1, room: 2, hold: 2 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			const n, loops = 200, 2
			s := startServer(t, loadgen.NewServerPlan(localhosts["ipv4"]))
			p := loadgen.NewPlan(s.Addr())
			p.Loops, p.Connections, p.Concurrency, p.Hold = loops, n, tt.room, tt.hold
			p.Rate, p.RateTo, p.Shards = tt.from, tt.to, tt.shards
			_, attempts := storm(t.Context(), t, p)
			all(t, attempts, loadgen.PhaseDone, 0, 0)
			slices.SortStableFunc(attempts, func(a, b loadgen.Attempt) int {
				return cmp.Or(cmp.Compare(a.Loop, b.Loop), cmp.Compare(a.Intended, b.Intended))
			})
			for loop := range loops {
				of := attempts[loop*n : (loop+1)*n]
				for k, a := range of {
					if a.Started < a.Intended {
						t.Fatalf("loop %d: attempt %d began %d ns before it was due", loop+1, k, a.Intended-a.Started)
					}
					if k > 0 && a.Intended == of[k-1].Intended {
						t.Fatalf("loop %d: two attempts are due at once", loop+1)
					}
				}
				// The last of n is due after n-1 intervals.
				want := float64(n-1) / tt.from
				if tt.to != 0 {
					want = float64(n) * 2 / (tt.from + tt.to)
				}
				if got := float64(of[n-1].Intended-of[0].Intended) / 1e9; got > want*1.001 || got < want*0.98 {
					t.Errorf("loop %d: %d attempts are due within %.4f s, want %.4f", loop+1, n, got, want)
				}
			}
		})
	}
}

// TestServerLinger has the server close by RST: the reply arrives whole, the
// FIN that the client waits for does not.
func TestServerLinger(t *testing.T) {
	server := loadgen.NewServerPlan(localhosts["ipv4"])
	server.Close, server.Linger = loadgen.ServerCloses, 0
	s := startServer(t, server)
	plan := loadgen.NewPlan(s.Addr())
	plan.Loops, plan.Connections, plan.Close = 1, 200, loadgen.ServerCloses
	_, attempts := storm(t.Context(), t, plan)
	all(t, attempts, loadgen.PhaseReceive, loadgen.Errno(unix.ECONNRESET), 0)
	for i := range attempts {
		if attempts[i].FirstByte == 0 {
			t.Fatal("the RST took the reply away")
		}
	}
}

// refusedAddr is an address that nobody listens on: its port stays bound.
func refusedAddr(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	v4 := name.(*unix.SockaddrInet4)
	return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), uint16(v4.Port))
}

func TestRefused(t *testing.T) {
	for _, bytes := range []int{0, 100} {
		plan := loadgen.NewPlan(refusedAddr(t))
		plan.Loops, plan.Connections, plan.Bytes = 2, 200, bytes
		result, attempts := storm(t.Context(), t, plan)
		all(t, attempts, loadgen.PhaseConnect, loadgen.Errno(unix.ECONNREFUSED), 0)
		if result.Loops[1].Failed != 200 || result.Canceled {
			t.Errorf("result %+v", result)
		}
	}
}

func TestUnreachable(t *testing.T) {
	// 255.255.255.255 is refused by connect() itself (ip_route_connect: broadcast).
	plan := loadgen.NewPlan(netip.MustParseAddrPort("255.255.255.255:80"))
	plan.Loops, plan.Connections = 1, 10
	_, attempts := storm(t.Context(), t, plan)
	all(t, attempts, loadgen.PhaseConnect, loadgen.Errno(unix.ENETUNREACH), 0)
}

// mute is a listener that never accepts.
func mute(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// TestCancel stops a storm whose connections wait for a reply that never comes.
// The server's account says when they all do.
func TestCancel(t *testing.T) {
	for _, c := range []struct {
		name   string
		linger time.Duration
	}{{"no linger", loadgen.NoLinger}, {"linger 100 s", 100 * time.Second}} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			// A server that wants one byte more than the client sends never replies.
			server := loadgen.NewServerPlan(localhosts["ipv4"])
			server.Bytes = 101
			s := startServer(t, server)
			go func() {
				for s.Stats().Accepted < 100 {
					time.Sleep(time.Millisecond)
				}
				cancel()
			}()
			plan := loadgen.NewPlan(s.Addr())
			plan.Loops, plan.Connections, plan.Concurrency, plan.Linger = 3, 200, 100, c.linger
			result, attempts := storm(ctx, t, plan)
			all(t, attempts, loadgen.PhaseReceive, loadgen.Errno(unix.ECANCELED), loadgen.Cancelled)
			if len(attempts) != 100 || !result.Canceled || len(result.Loops) != 1 {
				t.Errorf("%d attempts, result %+v", len(attempts), result)
			}
		})
	}
}

func TestCancelBeforeAndBetween(t *testing.T) {
	s := startServer(t, loadgen.NewServerPlan(localhosts["ipv4"]))
	plan := loadgen.NewPlan(s.Addr())
	plan.Loops, plan.Connections, plan.Interval = 2, 20, time.Hour

	ctx, cancel := context.WithCancel(t.Context())
	plan.OnLoop = func(loadgen.LoopResult) { cancel() }
	result, attempts := storm(ctx, t, plan)
	all(t, attempts, loadgen.PhaseDone, 0, 0)
	if len(attempts) != 20 || !result.Canceled {
		t.Errorf("between loops: %d attempts, result %+v", len(attempts), result)
	}
	result, attempts = storm(ctx, t, plan)
	if len(attempts) != 0 || !result.Canceled || len(result.Loops) != 0 {
		t.Errorf("before: %d attempts, result %+v", len(attempts), result)
	}
}

// TestCancelHeld stops a storm whose connections are held open for longer than
// anyone waits.
func TestCancelHeld(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := startServer(t, loadgen.NewServerPlan(localhosts["ipv4"]))
	go func() {
		for s.Stats().Accepted < 50 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	plan := loadgen.NewPlan(s.Addr())
	plan.Loops, plan.Connections, plan.Hold = 1, 50, 1000*time.Hour
	result, attempts := storm(ctx, t, plan)
	if len(attempts) != 50 || !result.Canceled {
		t.Errorf("%d attempts, result %+v", len(attempts), result)
	}
	for i := range attempts {
		a := &attempts[i]
		if a.Errno != loadgen.Errno(unix.ECANCELED) || a.Flags != loadgen.Cancelled || a.Phase != loadgen.PhaseReceive && a.Phase != loadgen.PhaseClose {
			t.Errorf("%+v", *a)
		}
	}
}

// TestRuntimeAlongside runs storms while the rest of the program does what makes
// the runtime use its poller from any thread: garbage collections, timers, and
// files that are polled. The runtime throws if a shard's table lacks the poller.
func TestRuntimeAlongside(t *testing.T) {
	server := loadgen.NewServerPlan(localhosts["ipv4"])
	server.Shards = 2
	s := startServer(t, server)

	stop := make(chan struct{})
	var others sync.WaitGroup
	forever := func(f func()) {
		others.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					f()
				}
			}
		})
	}
	forever(runtime.GC)
	forever(func() { <-time.After(10 * time.Microsecond) })
	forever(func() {
		r, w, err := os.Pipe()
		if err != nil {
			t.Error(err)
			return
		}
		go func() {
			_, _ = w.Write([]byte("x"))
			w.Close()
		}()
		// Ends only if no shard keeps a copy of the writing end.
		if b, err := io.ReadAll(r); string(b) != "x" || err != nil {
			t.Errorf("read %q, %v", b, err)
		}
		r.Close()
	})
	for range 5 { // new threads, new tables
		plan := loadgen.NewPlan(s.Addr())
		plan.Loops, plan.Connections, plan.Shards, plan.Linger = 2, 300, 3, 0
		_, attempts := storm(t.Context(), t, plan)
		all(t, attempts, loadgen.PhaseDone, 0, 0)
	}
	close(stop)
	others.Wait()
}

// TestSelfConnect gives the kernel one port to choose from, which is the target's.
func TestSelfConnect(t *testing.T) {
	plan := loadgen.NewPlan(netip.MustParseAddrPort("127.0.0.1:5000"))
	plan.Loops, plan.Connections, plan.Concurrency, plan.Linger = 1, 10, 1, 0
	plan.Enter = func() error { return onlyPort(5000) }
	st, err := loadgen.NewStorm(plan)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Run(t.Context()); errors.Is(err, unix.EPERM) {
		t.Skipf("a network namespace of its own: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	_, attempts := storm(t.Context(), t, plan)
	all(t, attempts, loadgen.PhaseConnect, loadgen.Errno(unix.EADDRINUSE), loadgen.SelfConnected)
}

// onlyPort moves the calling thread to a new network namespace whose only
// ephemeral port is port.
func onlyPort(port int) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", fmt.Appendf(nil, "%d %d", port, port), 0)
}

func TestOwnTimeout(t *testing.T) {
	plan := loadgen.NewPlan(mute(t))
	plan.Loops, plan.Connections, plan.Timeout = 1, 50, 20*time.Millisecond
	_, attempts := storm(t.Context(), t, plan)
	all(t, attempts, loadgen.PhaseReceive, loadgen.Errno(unix.ETIMEDOUT), loadgen.OwnTimeout)
}

// TestServerKilled closes the server when the first attempts have come in. What
// follows is refused or reset, and the server's account still holds.
func TestServerKilled(t *testing.T) {
	s := startServer(t, loadgen.NewServerPlan(localhosts["ipv4"]))
	plan := loadgen.NewPlan(s.Addr())
	plan.Loops, plan.Connections, plan.Concurrency = 20, 500, 50
	var once sync.Once
	plan.OnAttempts = func([]loadgen.Attempt) { once.Do(func() { s.Close() }) }
	_, attempts := storm(t.Context(), t, plan)
	var finished uint64
	failures := make(map[string]int)
	for i := range attempts {
		a := &attempts[i]
		if !a.Failed() {
			finished++
			continue
		}
		failures[a.Phase.String()+" "+a.Errno.String()]++
	}
	stats := s.Stats()
	if stats.Accepted != stats.Closed {
		t.Errorf("server: %+v", stats)
	}
	if finished > stats.Accepted || finished == 0 {
		t.Errorf("%d attempts finished, but %d were accepted", finished, stats.Accepted)
	}
	if failures["connect ECONNREFUSED"] == 0 {
		t.Errorf("failures: %v", failures)
	}
	t.Logf("finished %d, failures %v, server %+v", finished, failures, stats)
}

// TestShortReply talks to a server that sends less than was agreed.
func TestShortReply(t *testing.T) {
	server := loadgen.NewServerPlan(localhosts["ipv4"])
	server.Bytes, server.Close = 100, loadgen.ServerCloses
	s := startServer(t, server)
	plan := loadgen.NewPlan(s.Addr())
	// 100 of the 101 bytes are read; the last one makes the server's close() an
	// RST if it comes late, so that it has to be one segment: it is.
	plan.Loops, plan.Connections, plan.Bytes = 1, 50, 101
	_, attempts := storm(t.Context(), t, plan)
	for i := range attempts {
		a := &attempts[i]
		short := a.Errno == loadgen.Errno(unix.EPROTO) && a.Flags == loadgen.ShortReply
		reset := a.Errno == loadgen.Errno(unix.ECONNRESET) && a.Flags == 0
		if a.Phase != loadgen.PhaseReceive || !short && !reset {
			t.Fatalf("%+v", *a)
		}
	}
}

// TestFileLimit gives a shard fewer descriptors than its plan needs.
func TestFileLimit(t *testing.T) {
	s := startServer(t, loadgen.NewServerPlan(localhosts["ipv4"])) // with a table of the old limit
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	low := unix.Rlimit{Cur: 200, Max: old.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Error(err)
		}
	}()

	plan := loadgen.NewPlan(s.Addr())
	plan.Loops, plan.Connections, plan.Shards = 1, 400, 1
	plan.Hold = 500 * time.Millisecond // so that all of them want to be open at once
	_, attempts := storm(t.Context(), t, plan)
	counts := make(map[loadgen.Errno]int)
	for i := range attempts {
		a := &attempts[i]
		counts[a.Errno]++
		if a.Failed() && a.Phase != loadgen.PhaseSocket {
			t.Errorf("%+v", *a)
		}
	}
	if counts[0] == 0 || counts[loadgen.Errno(unix.EMFILE)] == 0 || len(counts) != 2 {
		t.Errorf("errors: %v", counts)
	}

	plan.Shards = 0 // as many as it takes: none fails
	st, err := loadgen.NewStorm(plan)
	if err != nil {
		t.Fatal(err)
	}
	if st.Shards() != 3 { // ceil(400 / (200-64))
		t.Errorf("%d shards for 400 connections and a limit of 200", st.Shards())
	}
	_, attempts = storm(t.Context(), t, plan)
	all(t, attempts, loadgen.PhaseDone, 0, 0)
}

// TestServerFileLimit gives the server fewer descriptors than it is asked to hold:
// connections wait in the accept queue, and all are served in the end.
func TestServerFileLimit(t *testing.T) {
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	low := unix.Rlimit{Cur: 100, Max: old.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Error(err)
		}
	}()
	server := loadgen.NewServerPlan(localhosts["ipv4"])
	server.Shards = 1
	s := startServer(t, server)
	plan := loadgen.NewPlan(s.Addr())
	plan.Loops, plan.Connections, plan.Shards, plan.Hold = 1, 300, 5, 100*time.Millisecond
	_, attempts := storm(t.Context(), t, plan)
	all(t, attempts, loadgen.PhaseDone, 0, 0)
	if stats := closed(t, s); stats.Accepted != 300 || stats.Closed != 300 || stats.AcceptErrors == 0 {
		t.Errorf("server: %+v", stats)
	}
}

func TestEnter(t *testing.T) {
	want := errors.New("no such namespace")
	fail := func() error { return want }
	enters, entersGuests := loadgen.NewServerPlan(localhosts["ipv4"]), loadgen.NewServerPlan(localhosts["ipv4"])
	enters.Enter, entersGuests.EnterGuests = fail, fail
	for _, server := range []loadgen.ServerPlan{enters, entersGuests} {
		s, err := loadgen.NewServer(server)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Start(); !errors.Is(err, want) {
			t.Errorf("Start: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}

	plan := loadgen.NewPlan(netip.MustParseAddrPort("127.0.0.1:1"))
	plan.Shards, plan.Enter = 3, fail
	st, err := loadgen.NewStorm(plan)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Run(t.Context()); !errors.Is(err, want) {
		t.Errorf("Run: %v", err)
	}
}

func TestServerLife(t *testing.T) {
	a := startServer(t, loadgen.NewServerPlan(localhosts["ipv4"]))
	if a.Addr().Port() == 0 {
		t.Error("no port was chosen")
	}
	if err := a.Start(); err == nil {
		t.Error("a server was started twice")
	}
	b, err := loadgen.NewServer(loadgen.NewServerPlan(a.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("second server on the same port: %v", err)
	}
	for range 2 {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	closed(t, a)
	// SO_REUSEADDR: a restart on the same port.
	startServer(t, loadgen.NewServerPlan(a.Addr()))
}

// TestOnReady: it is called once all threads have entered, before the server has seen
// anything, and what it says ends the storm.
func TestOnReady(t *testing.T) {
	server := startServer(t, loadgen.NewServerPlan(localhosts["ipv4"]))
	plan := loadgen.NewPlan(server.Addr())
	plan.Loops, plan.Connections, plan.Shards = 2, 30, 3
	var entered atomic.Int32
	plan.Enter = func() error { entered.Add(1); return nil }
	var calls int
	plan.OnReady = func() error {
		calls++
		if n, st := entered.Load(), server.Stats(); n != 3 || st.Accepted != 0 {
			t.Errorf("%d threads of 3 have entered, %d connections were accepted", n, st.Accepted)
		}
		return nil
	}
	storm(t.Context(), t, plan)
	if calls != 1 {
		t.Errorf("called %d times", calls)
	}

	failure := errors.New("not today")
	plan.OnReady = func() error { return failure }
	plan.OnAttempts = func(a []loadgen.Attempt) { t.Errorf("%d attempts", len(a)) }
	s, err := loadgen.NewStorm(plan)
	if err != nil {
		t.Fatal(err)
	}
	if result, err := s.Run(t.Context()); !errors.Is(err, failure) || len(result.Loops) != 0 {
		t.Errorf("%+v, %v", result, err)
	}
}

// TestRecord: of each connection is known what was asked for, and a port that was bound.
func TestRecord(t *testing.T) {
	// Below the ports that connect() chooses from: else the port is asked for, to see
	// whether a socket is connected to itself.
	server := loadgen.NewServerPlan(netip.AddrPortFrom(localhosts["ipv4"].Addr(), uint16(10000+rand.IntN(20000))))
	s := startServer(t, server)
	for name, c := range map[string]struct {
		record         loadgen.Record
		bind           loadgen.Binding
		cookies, ports bool
	}{
		"all":           {loadgen.RecordAll, loadgen.BindNone, true, true},
		"cookie":        {loadgen.RecordCookie, loadgen.BindNone, true, false},
		"times":         {loadgen.RecordTimes, loadgen.BindNone, false, false},
		"cookie, bound": {loadgen.RecordCookie, loadgen.BindPort, true, true},
		"times, bound":  {loadgen.RecordTimes, loadgen.BindPort, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			plan := loadgen.NewPlan(s.Addr())
			plan.Loops, plan.Connections, plan.Hold, plan.Record = 1, 50, time.Millisecond, c.record
			if plan.Bind = c.bind; c.bind != loadgen.BindNone {
				plan.Sources = []netip.Addr{s.Addr().Addr()}
			}
			cookies, ports := make(map[loadgen.Cookie]bool), make(map[uint16]bool)
			plan.OnAttempts = func(batch []loadgen.Attempt) {
				for i := range batch {
					if batch[i].Failed() {
						t.Errorf("%+v", batch[i])
					}
					cookies[batch[i].Cookie], ports[batch[i].LocalPort] = true, true
				}
			}
			st, err := loadgen.NewStorm(plan)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := st.Run(t.Context()); err != nil {
				t.Fatal(err)
			}
			if cookies[0] == c.cookies || c.cookies && len(cookies) != 50 {
				t.Errorf("%d cookies, none: %t, want them %t", len(cookies), cookies[0], c.cookies)
			}
			if ports[0] == c.ports {
				t.Errorf("%d ports, none: %t, want them %t", len(ports), ports[0], c.ports)
			}
		})
	}
}
