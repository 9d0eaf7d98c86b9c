package tracer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/tcp"
)

// perConnection is how many events a connection has whose client closes first:
// five changes of state at each end, and its TIME_WAIT.
const perConnection = 11

// TestStartIsReady: nothing of a connection made right after Start is missing.
// (Every scenario relies on it; here it is all that happens.)
func TestStartIsReady(t *testing.T) {
	for range 3 {
		s := newScene(t, setup{})
		c := s.dial(0)
		s.closeFirst(c.client, c.server)
		s.finish()
		s.wantEvents(perConnection)
	}
}

// TestPurge: the minisocks of a namespace end with it, while the trace goes on.
// How many there are is sock_diag's word.
func TestPurge(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "IPv4", true: "IPv6"}[v6], func(t *testing.T) {
			s := newScene(t, setup{Options: netlab.Options{IPv6: v6}})
			for range 5 {
				c := s.dial(0)
				s.closeFirst(c.client, c.server)
			}
			c := s.dial(0)
			s.close(c.client)
			s.waitEOF(c.server)
			s.await("FIN_WAIT2", func() bool { return s.minisocksIn(s.lab.Client(), tcp.FinWait2) == 1 })
			s.vanish(c.server)
			s.settle()
			left := make(map[tcp.Cookie]bool)
			for _, sock := range s.minisocks(s.lab.Client()) {
				left[diagCookie(sock)] = true
			}
			if len(left) != 6 || s.minisocksIn(s.lab.Client(), tcp.FinWait2) != 1 {
				t.Fatalf("%d minisocks, want 5 in TIME_WAIT and one in FIN_WAIT2", len(left))
			}
			s.close(s.listener)
			s.must("close the lab", s.lab.Close())
			s.await("the ends of all TIME_WAITs", func() bool {
				s.drain()
				return len(s.ofKind(tcp.KindTWEnd)) >= len(left)
			})
			s.testify()
			s.stop()
			for _, ev := range s.ended(tcp.CausePurged) {
				if !left[ev.Cookie] {
					t.Errorf("socket %d purged, which was not in TIME_WAIT", ev.Cookie)
				}
				delete(left, ev.Cookie)
			}
			if len(left) > 0 {
				t.Errorf("not purged: %v\n%s", left, s.list())
			}
			s.compareOracle()
			s.checkStream()
			s.checkTuples()
			s.checkAccount()
		})
	}
}

// TestRingFull: what does not fit into the ring is counted. How many events there
// are follows from the scenario.
func TestRingFull(t *testing.T) {
	const n = 100
	const ring = minRing
	s := newScene(t, setup{opts: Options{RingSize: ring, Kinds: connectionKinds}})
	for range n {
		c := s.dial(0)
		s.closeFirst(c.client, c.server)
	}
	s.settle()
	s.stop()
	checkAccount(t, s.stats, s.events)
	if st := s.stats; st.LostRing == 0 || st.Seen != n*perConnection {
		t.Errorf("Seen %d, LostRing %d; %d events happened", st.Seen, st.LostRing, n*perConnection)
	}
	if st := s.stats; st.Lost() != n*perConnection-uint64(len(s.events)) {
		t.Errorf("Lost %d, but Read gave %d of %d", st.Lost(), len(s.events), n*perConnection)
	}
	if st := s.stats; st.ByKind[tcp.KindTWEnter]+st.LostByKind[tcp.KindTWEnter] != n {
		t.Errorf("TIME_WAITs: %d recorded, %d lost, %d happened", st.ByKind[tcp.KindTWEnter], st.LostByKind[tcp.KindTWEnter], n)
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		t.Fatal(err)
	}
	if room := cpus * ring / slotSize; len(s.events) > room {
		t.Errorf("%d events came out of %d rings with room for %d", len(s.events), cpus, room)
	}
	t.Logf("recorded %d, lost %v", len(s.events), s.stats.LostByKind)
}

// TestRingRecovers: a full ring that is read again takes events again, and Seq has
// no hole for those that were lost.
func TestRingRecovers(t *testing.T) {
	s := newScene(t, setup{opts: Options{RingSize: minRing, Kinds: connectionKinds}})
	for range 3 {
		for range 20 {
			c := s.dial(0)
			s.closeFirst(c.client, c.server)
		}
		s.settle()
		before := len(s.events)
		s.drain()
		if len(s.events) == before {
			t.Error("nothing was recorded in a ring that had been emptied")
		}
	}
	s.stop()
	checkAccount(t, s.stats, s.events)
	for i, ev := range s.events {
		if ev.Seq != uint64(i)+1 {
			t.Fatalf("event %d has Seq %d", i+1, ev.Seq)
		}
	}
	if s.stats.Seen != 60*perConnection {
		t.Errorf("Seen %d, %d events happened", s.stats.Seen, 60*perConnection)
	}
}

// TestTwoTraces: a trace of everything and a trace of one network, at once, agree
// about that network, and the first sees others too.
func TestTwoTraces(t *testing.T) {
	s := newScene(t, setup{})
	other := newScene(t, setup{})
	all := open(t, Options{})
	s.must("start", all.Start())
	for _, s := range []*scene{s, other} {
		c := s.dial(0)
		s.closeFirst(c.client, c.server)
		s.finish()
	}
	s.must("stop", all.Stop())
	events := readAll(t, all)
	for _, s := range []*scene{s, other} {
		var got []Event
		for _, ev := range events {
			if ev.NetNS == NetNS(s.lab.Client().Cookie()) || ev.NetNS == NetNS(s.lab.Server().Cookie()) {
				got = append(got, ev)
			}
		}
		same := func(a, b Event) bool {
			// A tick can pass between one trace's program and the other's.
			if a.Ticks != b.Ticks && a.Ticks-b.Ticks+1 <= 2 {
				a.Ticks = b.Ticks
			}
			// Nor does it know who listened before it began.
			for _, ev := range []*Event{&a, &b} {
				ev.Seq, ev.MonoNS, ev.Owner = 0, 0, tcp.Owner{}
				ev.Flags &^= tcp.FlagOwner
				// One trace's program can be interrupted where the other's is not.
				ev.Flags &^= tcp.FlagRescued
			}
			return a == b
		}
		// The trace of everything took no snapshot.
		own := s.filter(func(ev *Event) bool { return ev.Kind != tcp.KindSnapshot })
		// Each takes the time itself: what two CPUs did at once can come in either order.
		byCookie := func(a, b Event) int { return cmp.Compare(a.Cookie, b.Cookie) }
		slices.SortStableFunc(got, byCookie)
		slices.SortStableFunc(own, byCookie)
		if !slices.EqualFunc(got, own, same) {
			t.Errorf("the trace of everything has %d events of a network, its own trace %d:\n%+v\n%s", len(got), len(own), got, s.list())
		}
	}
}

// TestFirstCookie: an event of a connection that is older than the trace, and has no
// cookie until a program asks for it, is recorded once.
func TestFirstCookie(t *testing.T) {
	s := newScene(t, setup{Options: netlab.Options{Kind: netlab.Pair}, traced: serverOnly})
	client, err := s.tryDial(0)
	s.must("connect", err)
	server, err := accept(s.listener)
	s.must("accept", err)
	s.open[server] = true

	trace := open(t, Options{NetNS: []NetNS{NetNS(s.lab.Client().Cookie())}})
	s.must("start", trace.Start())
	s.abort(server)
	s.waitReset(client)
	s.must("stop", trace.Stop())
	count := make(map[Kind]int)
	for _, ev := range readAll(t, trace) {
		count[ev.Kind]++
	}
	if want := map[Kind]int{tcp.KindRstReceived: 1, tcp.KindError: 1, tcp.KindState: 1}; !maps.Equal(count, want) {
		t.Errorf("%v, want %v", count, want)
	}
	stats, err := trace.Stats()
	s.must("stats", err)
	if stats.Rescued > stats.SkippedRecursion {
		t.Errorf("%d were rescued, of %d that were skipped", stats.Rescued, stats.SkippedRecursion)
	}
}

// TestNotPermitted: without the capability, what the library takes for an old kernel is a
// refusal.
func TestNotPermitted(t *testing.T) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			done <- err
			return
		}
		done <- loadError(fmt.Errorf("map create: %w", ebpf.ErrNotSupported))
	}()
	err := <-done
	if !errors.Is(err, ErrNotPermitted) || !errors.Is(err, os.ErrPermission) || errors.Is(err, ebpf.ErrNotSupported) {
		t.Error(err)
	}
}

func TestReadEnds(t *testing.T) {
	s := newScene(t, setup{})
	c := s.dial(0)
	s.closeFirst(c.client, c.server)
	s.settle()

	if n, err := s.trace.Read(t.Context(), nil); n != 0 || err == nil {
		t.Errorf("Read without room: %d, %v", n, err)
	}
	// One event at a time: room for less than there is.
	for len(s.events) < perConnection {
		buf := make([]Event, 1)
		n, err := s.trace.Read(t.Context(), buf)
		s.must("read", err)
		s.events = append(s.events, buf[:n]...)
	}
	// A trace of which nobody reads the end can still be left.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.await("the context's error", func() bool {
		n, err := s.trace.Read(ctx, make([]Event, 1))
		if n != 0 || err != nil && !errors.Is(err, context.Canceled) {
			t.Fatalf("Read of a quiet trace: %d, %v", n, err)
		}
		return err != nil
	})
	s.stop()
	s.wantEvents(perConnection)
	for range 3 {
		if n, err := s.trace.Read(t.Context(), make([]Event, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("Read after the end: %d, %v; want io.EOF", n, err)
		}
	}
}

func TestLifecycle(t *testing.T) {
	trace := open(t, Options{})
	if err := trace.Start(); err != nil {
		t.Fatal(err)
	}
	if err := trace.Start(); err == nil {
		t.Error("started twice")
	}
	if _, err := trace.Stats(); err != nil {
		t.Errorf("Stats of a running trace: %v", err)
	}
	for range 2 {
		if err := trace.Stop(); err != nil {
			t.Errorf("Stop: %v", err)
		}
	}
	for range 2 {
		if err := trace.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if err := trace.Stop(); err != nil {
		t.Errorf("Stop after Close: %v", err)
	}
	if _, err := trace.Stats(); err != nil {
		t.Errorf("Stats after Close: %v", err)
	}
	if err := trace.Start(); err == nil {
		t.Error("started after Close")
	}
	if _, err := trace.HZ(); err == nil {
		t.Error("HZ after Close")
	}
}

func TestStartAfterStop(t *testing.T) {
	trace := open(t, Options{})
	if err := trace.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := trace.Start(); err == nil {
		t.Error("started after Stop, so that Close would leave the programs attached")
	}
}

// TestCloseWhileReading is for the race detector.
func TestCloseWhileReading(t *testing.T) {
	trace := open(t, Options{})
	if err := trace.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		for {
			if _, err := trace.Read(t.Context(), make([]Event, 64)); err != nil {
				ended <- err
				return
			}
		}
	}()
	if err := trace.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read: %v, want io.EOF or os.ErrClosed", err)
	}
}

// TestReadOfADeadContext: even where there is always more to read.
func TestReadOfADeadContext(t *testing.T) {
	trace := open(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := trace.Read(ctx, make([]Event, 1)); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("Read: %d, %v; want %v", n, err, context.Canceled)
	}
	// What a stopped trace has left is handed over all the same.
	if err := trace.Stop(); err != nil {
		t.Fatal(err)
	}
	if n, err := trace.Read(ctx, make([]Event, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("Read of a stopped trace: %d, %v; want io.EOF", n, err)
	}
}

// TestCloseDetaches: neither a trace that was never started nor one that was never
// stopped leaves a program behind. The list is the kernel's.
func TestCloseDetaches(t *testing.T) {
	for _, start := range []bool{false, true} {
		trace := open(t, Options{})
		var ids []ebpf.ProgramID
		for _, p := range trace.coll.Programs {
			ids = append(ids, programID(t, p))
		}
		if start {
			if err := trace.Start(); err != nil {
				t.Fatal(err)
			}
		}
		if err := trace.Close(); err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			// The kernel frees a program after a grace period of RCU.
			(&scene{trial: &trial{T: t}}).await("the end of a program", func() bool {
				p, err := ebpf.NewProgramFromID(id)
				if err == nil {
					p.Close()
				}
				return errors.Is(err, os.ErrNotExist)
			})
		}
	}
}

func programID(t *testing.T, p *ebpf.Program) ebpf.ProgramID {
	t.Helper()
	info, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, ok := info.ID()
	if !ok {
		t.Fatal("this kernel gives programs no number")
	}
	return id
}

// TestHZ: a TIME_WAIT is set for sixty seconds (TCP_TIMEWAIT_LEN, net/tcp.h), and
// sock_diag tells in milliseconds how much of it is left.
func TestHZ(t *testing.T) {
	s := newScene(t, setup{})
	c := s.dial(0)
	s.closeFirst(c.client, c.server)
	s.settle()
	left := s.minisocks(s.lab.Client())
	s.finish()
	enter := s.one("TIME_WAIT", s.ofKind(tcp.KindTWEnter))
	hz := s.hz()
	// A tick can pass between the kernel's look at the clock and the program's.
	if want := uint32(60 * hz); enter.Ticks != want && enter.Ticks != want-1 {
		t.Errorf("set for %d jiffies of 1/%d s, want 60 s", enter.Ticks, hz)
	}
	if len(left) != 1 {
		t.Fatalf("sock_diag shows %d minisocks, want 1", len(left))
	}
	if ms := int(enter.Ticks) * 1000 / hz; int(left[0].Expires) > ms {
		t.Errorf("set for %d ms, of which %d are left", ms, left[0].Expires)
	}
}

// TestStress compares the trace with the kernel's counters when two CPUs make
// connections as fast as they can, in every way at once.
func TestStress(t *testing.T) {
	for _, tt := range []struct {
		name, sysctls string
		v6            bool
	}{
		{"reuse", "ip_local_port_range=40000 40299;tcp_tw_reuse=1;tcp_tw_reuse_delay=1", false},
		{"reuse over IPv6", "ip_local_port_range=40000 40299;tcp_tw_reuse=1;tcp_tw_reuse_delay=1", true},
		{"overflow", "tcp_max_tw_buckets=100", false},
		{"exhaustion", "ip_local_port_range=40000 40299;tcp_tw_reuse=0", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := setup{Options: netlab.Options{Kind: netlab.Loopback, IPv6: tt.v6}}
			for text := range strings.SplitSeq(tt.sysctls, ";") {
				sysctl, err := netlab.ParseSysctl("net.ipv4." + text)
				if err != nil {
					t.Fatal(err)
				}
				o.Sysctls = append(o.Sysctls, sysctl)
			}
			s := newScene(t, o)
			s.busy = true
			s.storm(2, 1500)
			s.finish()
			t.Logf("%d events, rescued %d, lost %d; ends %v", len(s.events), s.stats.Rescued, s.stats.Lost(), s.ends())
			if t.Failed() {
				t.Logf("%+v", s.stats)
			}
		})
	}
}

// ends counts the minisocks by the way they ended.
func (s *scene) ends() map[tcp.Cause]int {
	n := make(map[tcp.Cause]int)
	for _, ev := range s.ofKind(tcp.KindTWEnd) {
		n[ev.Cause]++
	}
	return n
}

// storm makes connections on as many threads, each with a partner at the server,
// and reads the trace meanwhile. A client asks the server by a byte to close
// first, to abort, or to wait for the client's close; the server's answer keeps
// the queue of the listener short.
func (s *scene) storm(threads, connections int) {
	s.Helper()
	var (
		clients, servers sync.WaitGroup
		mu               sync.Mutex // guards noPort and problems
		problems         []error
	)
	fail := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		problems = append(problems, err)
	}
	for range threads {
		servers.Go(func() {
			for {
				fd, err := accept(s.listener)
				if err != nil {
					return // the listener is shut down
				}
				s.serve(fd)
			}
		})
		clients.Go(func() {
			runtime.LockOSThread()
			if err := s.lab.Client().Enter(); err != nil {
				fail(err)
				return
			}
			for range connections {
				cookie, err := s.request("RCS"[rand.IntN(3)])
				if errors.Is(err, unix.EADDRNOTAVAIL) {
					mu.Lock()
					s.noPort = append(s.noPort, cookie)
					mu.Unlock()
				} else if err != nil {
					fail(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { clients.Wait(); close(done) }()
	for running := true; running; {
		s.drain()
		select {
		case <-done:
			running = false
		default: // Read has waited
		}
	}
	s.must("end accepting", unix.Shutdown(s.listener, unix.SHUT_RD))
	servers.Wait()
	if len(problems) > 0 {
		s.Fatalf("%d problems: %v", len(problems), errors.Join(problems[:min(5, len(problems))]...))
	}
}

// serve does what the client asks for. What goes wrong here goes wrong there too.
func (s *scene) serve(fd int) {
	defer unix.Close(fd)
	b := make([]byte, 1)
	if n, _ := unix.Read(fd, b); n != 1 {
		return
	}
	_, _ = unix.Write(fd, b)
	switch b[0] {
	case 'R':
		_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	case 'C':
		_, _ = unix.Read(fd, b)
	}
}

// request makes one connection on the calling thread. A reset is no error: it was
// asked for, or a four-tuple used again after a millisecond met what was left of
// the one before, which the kernel counts and the trace has to show all the same.
func (s *scene) request(how byte) (tcp.Cookie, error) {
	family := unix.AF_INET
	if s.server.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return 0, err
	}
	if err := connect(fd, s.sockaddr(s.server)); err != nil {
		return tcp.Cookie(cookie), err
	}
	b := []byte{how}
	_, err = unix.Write(fd, b)
	if err == nil {
		_, err = unix.Read(fd, b)
	}
	if err == nil && how != 'C' {
		_, err = unix.Read(fd, b)
	}
	if errors.Is(err, unix.ECONNRESET) {
		err = nil
	}
	return tcp.Cookie(cookie), err
}
