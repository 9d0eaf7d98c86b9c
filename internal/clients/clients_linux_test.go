package clients

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/testenv"
	"github.com/twtrace/twtrace/loadgen"
	"github.com/twtrace/twtrace/tracer"
)

// TestMain makes the test binary the client processes too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Command {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		defer stop()
		if err := Serve(ctx, func() error { return nil }); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// pollLimit bounds the wait for what happens in other processes.
const pollLimit = 20 * time.Second

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(pollLimit); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("waited in vain for %s", what) // not always from the test's goroutine
			return
		}
	}
}

// here starts clients in the namespace of the test.
func here(f func() error) error { return f() }

func group(t *testing.T, n int, inside func(func() error) error) *Group {
	t.Helper()
	g, err := Start(n, inside)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		for _, pid := range g.PIDs() {
			if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
				t.Errorf("process %d is left: %v", pid, err)
			}
		}
	})
	return g
}

func server(t *testing.T, listen netip.AddrPort, enter func() error) *loadgen.Server {
	t.Helper()
	plan := loadgen.NewServerPlan(listen)
	plan.Enter = enter
	s, err := loadgen.NewServer(plan)
	if err == nil {
		err = s.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

var anyPort = netip.MustParseAddrPort("127.0.0.1:0")

// plan is a storm that leaves no TIME_WAIT, and its attempts.
func plan(s *loadgen.Server, loops, connections int) (loadgen.Plan, *[]loadgen.Attempt) {
	p := loadgen.NewPlan(s.Addr())
	p.Loops, p.Connections, p.Linger = loops, connections, 0
	attempts := new([]loadgen.Attempt)
	p.OnAttempts = func(a []loadgen.Attempt) { *attempts = append(*attempts, a...) }
	return p, attempts
}

// TestAll: every client does all of the storm, loop by loop together.
func TestAll(t *testing.T) {
	const n, loops, connections = 3, 3, 700 // more than a batch
	s := server(t, anyPort, nil)
	p, attempts := plan(s, loops, connections)
	p.Interval = time.Millisecond
	var seen []int
	ready := 0
	p.OnReady = func() error { ready++; return nil }
	p.OnLoop = func(l loadgen.LoopResult) {
		seen = append(seen, len(*attempts))
		if l.Loop != len(seen) || l.Attempts != n*connections || l.Finished != l.Attempts || l.Failed != 0 || l.Duration <= 0 {
			t.Errorf("%+v", l)
		}
	}
	g := group(t, n, here)
	result, err := g.Run(t.Context(), p)
	if err != nil || result.Canceled || len(result.Loops) != loops || ready != 1 {
		t.Fatalf("%+v, %v, %d times ready", result, err, ready)
	}
	if want := []int{n * connections, 2 * n * connections, 3 * n * connections}; !slices.Equal(seen, want) {
		t.Errorf("%v attempts at the ends of the loops, want %v", seen, want)
	}
	count := make(map[[3]int]int) // client, loop, index
	cookies := make(map[loadgen.Cookie]bool)
	begins, ends := make(map[uint32]int64), make(map[uint32]int64)
	for _, a := range *attempts {
		if a.Failed() {
			t.Fatalf("%+v", a)
		}
		count[[3]int{a.Client(), int(a.Loop), int(a.Index)}]++
		cookies[a.Cookie] = true
		if begins[a.Loop] == 0 || a.Started < begins[a.Loop] {
			begins[a.Loop] = a.Started
		}
		ends[a.Loop] = max(ends[a.Loop], a.Closed)
	}
	if len(count) != n*loops*connections || len(cookies) != len(*attempts) || len(*attempts) != len(count) {
		t.Errorf("%d attempts, %d different, %d sockets; want %d", len(*attempts), len(count), len(cookies), n*loops*connections)
	}
	for loop := uint32(2); loop <= loops; loop++ {
		if begins[loop] < ends[loop-1] {
			t.Errorf("loop %d began before all were through with the one before", loop)
		}
	}
	for i, a := range g.Accounts() {
		want := Account{PID: g.PIDs()[i], Attempts: loops * connections, Finished: loops * connections, Ended: Done}
		if fmt.Sprint(a.Errors) != "map[]" || a.Attempts != want.Attempts || a.Finished != want.Finished || a.NotReported != 0 || a.Ended != Done || a.PID != want.PID {
			t.Errorf("%+v, want %+v", a, want)
		}
	}
	if st := s.Stats(); st.Accepted != n*loops*connections {
		t.Errorf("the server accepted %d", st.Accepted)
	}
}

// TestStopOne: of three clients that hold their connections one is stopped and one killed. The
// server knows that all are open.
func TestStopOne(t *testing.T) {
	const n, connections = 3, 100
	s := server(t, anyPort, nil)
	p, attempts := plan(s, 2, connections)
	p.Hold = time.Hour
	g := group(t, n, here)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		closed := func(n uint64) func() bool { return func() bool { return s.Stats().Closed == n } }
		await(t, "all connections", func() bool { return s.Stats().Accepted == n*connections })
		_ = unix.Kill(g.PIDs()[1], unix.SIGINT)
		await(t, "the end of the one that was stopped", closed(connections))
		_ = unix.Kill(g.PIDs()[2], unix.SIGKILL)
		await(t, "the end of the one that was killed", closed(2*connections))
	}()
	result, err := g.Run(ctx, p)
	if err != nil || !result.Canceled || len(result.Loops) != 1 || result.Loops[0].Attempts != 2*connections {
		t.Errorf("%+v, %v", result, err)
	}
	for i, want := range []Account{
		{Attempts: connections, Failed: connections, Ended: Interrupted},
		{Attempts: connections, Failed: connections, Ended: Interrupted},
		{NotReported: connections, Ended: "killed by SIGKILL"},
	} {
		want.PID, want.Errors = g.PIDs()[i], make(map[tcp.Errno]int)
		if want.Failed > 0 {
			want.Errors[tcp.ECANCELED] = want.Failed
		}
		got := g.Accounts()[i]
		if !maps.Equal(got.Errors, want.Errors) {
			t.Errorf("client %d: errors %v, want %v", i, got.Errors, want.Errors)
		}
		if got.Errors, want.Errors = nil, nil; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("client %d: %+v, want %+v", i, got, want)
		}
	}
	for _, a := range *attempts {
		if a.Flags&loadgen.Cancelled == 0 || a.Client() > 1 {
			t.Fatalf("%+v", a)
		}
	}
}

// TestGoOn: the others go on after one has ended, however it did, and are done.
func TestGoOn(t *testing.T) {
	for _, sig := range []unix.Signal{unix.SIGINT, unix.SIGKILL} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			const loops, connections = 20, 50
			s := server(t, anyPort, nil)
			p, _ := plan(s, loops, connections)
			g := group(t, 3, here)
			p.OnLoop = func(l loadgen.LoopResult) {
				if l.Loop == 2 {
					_ = unix.Kill(g.PIDs()[0], sig)
					await(t, "its end", func() bool { return unix.Kill(g.PIDs()[0], 0) != nil })
				}
			}
			result, err := g.Run(t.Context(), p)
			if err != nil || result.Canceled || len(result.Loops) != loops {
				t.Fatalf("%+v, %v", result, err)
			}
			for i, l := range result.Loops {
				if want := connections * map[bool]int{true: 3, false: 2}[i < 2]; l.Attempts != want {
					t.Errorf("loop %d has %d attempts, want %d", l.Loop, l.Attempts, want)
				}
			}
			a := g.Accounts()
			ended := map[unix.Signal]string{unix.SIGINT: Interrupted, unix.SIGKILL: "killed by SIGKILL"}[sig]
			if a[0].Ended != ended || a[1].Ended != Done || a[2].Ended != Done || a[0].NotReported != 0 {
				t.Errorf("%+v", a)
			}
		})
	}
}

// TestDeaf: a client that can't hear that it is to stop is killed.
func TestDeaf(t *testing.T) {
	s := server(t, anyPort, nil)
	p, _ := plan(s, 1, 10)
	p.Hold = time.Hour
	g := group(t, 2, here)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		await(t, "all connections", func() bool { return s.Stats().Accepted == 20 })
		_ = unix.Kill(g.PIDs()[1], unix.SIGSTOP)
		await(t, "all its threads to stop", func() bool { return stopped(g.PIDs()[1]) })
	}()
	result, err := g.Run(ctx, p)
	if err != nil || !result.Canceled {
		t.Errorf("%+v, %v", result, err)
	}
	a := g.Accounts()
	if a[0].Ended != Interrupted || a[0].Attempts != 10 || !strings.HasPrefix(a[1].Ended, "killed") || a[1].NotReported != 10 {
		t.Errorf("%+v", a)
	}
}

// stopped reports whether no thread of a process runs.
func stopped(pid int) bool {
	paths, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, path := range paths {
		if text, err := os.ReadFile(path); err != nil || !strings.Contains(string(text), "State:\tT") {
			return false
		}
	}
	return len(paths) > 0
}

// TestBeforeReady: what happens before the storm does.
func TestBeforeReady(t *testing.T) {
	s := server(t, anyPort, nil)
	t.Run("canceled", func(t *testing.T) {
		p, attempts := plan(s, 2, 10)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		result, err := group(t, 2, here).Run(ctx, p)
		if err != nil || !result.Canceled || len(*attempts) != 0 {
			t.Errorf("%+v, %v, %d attempts", result, err, len(*attempts))
		}
	})
	t.Run("all killed", func(t *testing.T) {
		p, attempts := plan(s, 2, 10)
		g := group(t, 2, here)
		for _, pid := range g.PIDs() {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		result, err := g.Run(t.Context(), p)
		if err != nil || !result.Canceled || len(*attempts) != 0 {
			t.Errorf("%+v, %v, %d attempts", result, err, len(*attempts))
		}
	})
	t.Run("bad plan", func(t *testing.T) {
		p, _ := plan(s, 2, 0)
		if result, err := group(t, 2, here).Run(t.Context(), p); err == nil || !strings.Contains(err.Error(), "connections must be at least 1") {
			t.Errorf("%+v, %v", result, err)
		}
	})
	t.Run("not ready", func(t *testing.T) {
		p, attempts := plan(s, 2, 10)
		no := errors.New("no")
		p.OnReady = func() error { return no }
		if _, err := group(t, 2, here).Run(t.Context(), p); !errors.Is(err, no) || len(*attempts) != 0 {
			t.Errorf("%v, %d attempts", err, len(*attempts))
		}
	})
	t.Run("never run", func(t *testing.T) { group(t, 2, here) })
	t.Run("not inside", func(t *testing.T) {
		no := errors.New("no")
		if _, err := Start(2, func(func() error) error { return no }); !errors.Is(err, no) {
			t.Error(err)
		}
	})
}

// TestOwners: the kernel says that the connections of each client are its process's.
func TestOwners(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.BPF)
	lab, err := netlab.New(netlab.Options{Kind: netlab.Loopback})
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	trace, err := tracer.Open(tracer.Options{NetNS: []tracer.NetNS{tracer.NetNS(lab.Client().Cookie())}, Kinds: []tracer.Kind{tcp.KindState}})
	if err != nil {
		t.Fatal(err)
	}
	defer trace.Close()
	if err := trace.Start(); err != nil {
		t.Fatal(err)
	}
	owners := make(map[tcp.Cookie]tcp.Owner)
	pumped := make(chan error, 1)
	go func() {
		events := make([]tcp.Event, 1024)
		for {
			n, err := trace.Read(context.Background(), events)
			for _, ev := range events[:n] {
				if ev.Old == tcp.Close && ev.New == tcp.SynSent && ev.Flags&tcp.FlagOwner != 0 {
					owners[ev.Cookie] = ev.Owner
				}
			}
			if err != nil {
				pumped <- err
				return
			}
		}
	}()
	s := server(t, netip.AddrPortFrom(lab.ServerAddr(), 7), lab.Server().Enter)
	p, attempts := plan(s, 2, 100)
	g := group(t, 3, lab.Client().Do)
	result, err := g.Run(t.Context(), p)
	if err != nil || result.Canceled {
		t.Fatalf("%+v, %v", result, err)
	}
	if err := trace.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := <-pumped; !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if len(*attempts) != 600 {
		t.Fatalf("%d attempts", len(*attempts))
	}
	var name tcp.Comm // as the kernel cuts it
	copy(name[:15], filepath.Base(os.Args[0]))
	for _, a := range *attempts {
		owner := owners[a.Cookie]
		if want := g.PIDs()[a.Client()]; owner.PID != uint32(want) || owner.Comm != name {
			t.Fatalf("a connection of client %d belongs to process %d, %q; want %d, %q", a.Client(), owner.PID, owner.Comm, want, name)
		}
	}
}

// TestAttemptSize: what comes through the link is the same on both sides, and a cache line.
func TestAttemptSize(t *testing.T) {
	if size := unsafe.Sizeof(loadgen.Attempt{}); size != 64 {
		t.Errorf("an attempt has %d bytes", size)
	}
	var a loadgen.Attempt
	for _, client := range []int{0, 1, Max - 1} {
		a.Shard = loadgen.MaxShards - 1
		a.SetClient(client)
		if a.Client() != client || a.Shard&(loadgen.MaxShards-1) != loadgen.MaxShards-1 {
			t.Errorf("client %d: %d, shard %d", client, a.Client(), a.Shard)
		}
	}
}

// TestNotAClient: what is no message of a client ends in an error, whatever it is.
func TestNotAClient(t *testing.T) {
	for name, c := range map[string]struct {
		message []byte
		want    error
	}{
		"nothing":        {nil, io.EOF},
		"half a header":  {[]byte{4, 0, 0}, io.ErrUnexpectedEOF},
		"unknown kind":   {header(99, 0), errMessage},
		"no attempts":    {header(kindAttempts, 0), errMessage},
		"half attempts":  {header(kindAttempts, attemptSize/2), errMessage},
		"too many":       {header(kindAttempts, (maxAttempts+1)*attemptSize), errMessage},
		"cut short":      {append(header(kindAttempts, attemptSize), 1, 2, 3), io.ErrUnexpectedEOF},
		"long outcome":   {header(kindResult, maxJSON+1), errMessage},
		"no JSON":        {append(header(kindResult, 1), '{'), errMessage},
		"never sent one": {header(kindPlan, 0), errMessage},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := pair(t)
			if _, err := theirs.Write(c.message); err != nil {
				t.Fatal(err)
			}
			theirs.Close()
			r := groupRun{plan: new(loadgen.Plan), news: make(chan news, 1)}
			p := &process{link: &link{conn: ours}}
			if _, err := r.receive(p); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if p.outcome != nil || r.loop.Attempts != 0 {
				t.Errorf("%+v, %d attempts", p.outcome, r.loop.Attempts)
			}
		})
	}
}

func header(k kind, length int) []byte {
	words := []uint32{uint32(k), uint32(length)}
	return slices.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), headerSize))
}

func pair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns []*net.UnixConn
	for _, fd := range fds {
		file := os.NewFile(uintptr(fd), "pair")
		conn, err := net.FileConn(file)
		if err != nil {
			t.Fatal(err)
		}
		file.Close()
		t.Cleanup(func() { conn.Close() })
		conns = append(conns, conn.(*net.UnixConn))
	}
	return conns[0], conns[1]
}

// TestByHand: a program that nobody started as a client leaves its files alone.
func TestByHand(t *testing.T) {
	before, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", linkFD))
	if err := Serve(t.Context(), func() error { return nil }); !errors.Is(err, ErrByHand) {
		t.Errorf("%v, want ErrByHand", err)
	}
	if after, again := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", linkFD)); after != before || (err == nil) != (again == nil) {
		t.Errorf("descriptor %d was %q, %v; is %q, %v", linkFD, before, err, after, again)
	}
}
