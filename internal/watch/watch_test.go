package watch

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twtrace/twtrace/internal/eventline"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/tracer"
)

// scripted is a trace whose events a test puts in. Its ring has little room, so that
// whoever fills it waits for the session to read.
type scripted struct {
	ring    chan tcp.Event
	stopped chan struct{}
	stop    sync.Once
	list    func() error // Snapshot

	mu       sync.Mutex
	calls    []string
	startErr error
	readErr  error
	stats    tracer.Stats
	coverage tcp.Coverage
}

func newScripted() *scripted {
	return &scripted{
		ring: make(chan tcp.Event, 2), stopped: make(chan struct{}), coverage: everything(), list: func() error { return nil },
	}
}

// everything is the coverage of a kernel that shows all.
func everything() tcp.Coverage {
	c := tcp.Coverage{tcp.FactOwner: tcp.Exact}
	for _, k := range kinds {
		for _, f := range k.facts {
			c[f] = tcp.Exact
		}
	}
	return c
}

func (s *scripted) note(call string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, call)
}

func (s *scripted) Start() error                  { s.note("start"); return s.startErr }
func (s *scripted) Close() error                  { s.note("close"); return s.Stop() }
func (s *scripted) Coverage() tcp.Coverage        { return s.coverage }
func (s *scripted) RstReasons() map[uint32]string { return map[uint32]string{1: "ONE"} }
func (s *scripted) HZ() (int, error)              { return 250, nil }
func (s *scripted) Snapshot() error               { s.note("snapshot"); return s.list() }

func (s *scripted) Stats() (tracer.Stats, error) {
	select {
	case <-s.stopped:
		return s.stats, nil
	default:
		return tracer.Stats{}, errors.New("the account was taken of a trace that goes on")
	}
}

func (s *scripted) Stop() error {
	s.stop.Do(func() { s.note("stop"); close(s.stopped) })
	return nil
}

func (s *scripted) Read(ctx context.Context, events []tcp.Event) (int, error) {
	select {
	case <-s.stopped:
	default:
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-s.stopped:
		case ev := <-s.ring:
			events[0] = ev
			return 1, s.readErr
		}
	}
	for n := range events {
		select {
		case events[n] = <-s.ring:
		default:
			if n == 0 {
				return 0, io.EOF
			}
			return n, nil
		}
	}
	return len(events), nil
}

// lines is a Writer that keeps what it is given.
type lines struct {
	mu      sync.Mutex
	written []eventline.Line
	headers int
	pending int
	err     error // of Flush, once there are lines
	onLine  func()
}

func (l *lines) Header() { l.headers++ }
func (l *lines) Line(line *eventline.Line) {
	ev := *line.Event
	l.mu.Lock()
	l.written = append(l.written, eventline.Line{Event: &ev, Past: line.Past, Wall: line.Wall})
	l.pending++
	l.mu.Unlock()
	if l.onLine != nil {
		l.onLine()
	}
}

func (l *lines) Flush() error {
	if l.pending > 0 {
		l.pending = 0
		return l.err
	}
	return nil
}

func (l *lines) kinds() (out []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.written {
		out = append(out, line.Event.Kind.String())
	}
	return out
}

// here is a network namespace that is listed where one is.
type here struct{}

func (here) Do(f func() error) error { return f() }

var (
	owner = tcp.Owner{PID: 42, Comm: tcp.Comm{'c', 'u', 'r', 'l'}}
	tuple = tcp.FourTuple{Local: netip.MustParseAddrPort("127.0.0.1:40000"), Peer: netip.MustParseAddrPort("127.0.0.1:7")}
)

func connect(cookie tcp.Cookie) tcp.Event {
	return tcp.Event{
		Kind: tcp.KindState, MonoNS: 1000, Cookie: cookie, Tuple: tuple, Old: tcp.Close, New: tcp.SynSent,
		Flags: tcp.FlagOwner, Owner: owner,
	}
}

func timeWait(cookie tcp.Cookie) tcp.Event {
	return tcp.Event{Kind: tcp.KindTWEnter, MonoNS: 3000, Cookie: cookie, Tuple: tuple, New: tcp.TimeWait, Substate: tcp.TimeWait}
}

// play runs a session to its end in a bubble of time. What act does happens while it
// runs; end ends the context of the session.
func play(t *testing.T, opts Options, src *scripted, out *lines, act func(end func())) (account *Account, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		// Channels belong to the bubble that they are made in.
		src.ring, src.stopped = make(chan tcp.Event, cap(src.ring)), make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		opts.Writer = func(Start) eventline.Writer { return out }
		done := make(chan struct{})
		go func() {
			defer close(done)
			account, err = run(ctx, src, []space{here{}, here{}}, opts)
		}()
		if act != nil {
			act(cancel)
		}
		<-done
		if src.calls[len(src.calls)-1] != "close" && !slices.Contains(src.calls, "close") {
			t.Errorf("the trace was not closed: %v", src.calls)
		}
	})
	return account, err
}

func same(t *testing.T, got *Account, want Account) {
	t.Helper()
	if !reflect.DeepEqual(*got, want) {
		t.Errorf("the account is %+v, want %+v", *got, want)
	}
}

// TestContext: everything that happened before the end is written, also what is still in the ring.
func TestContext(t *testing.T) {
	src, out := newScripted(), &lines{}
	src.stats = tracer.Stats{LostRing: 3, SkippedRecursion: 5, Rescued: 4}
	account, err := play(t, Options{}, src, out, func(end func()) {
		src.ring <- connect(1)
		src.ring <- timeWait(1)
		synctest.Wait()
		end()
		src.ring <- connect(2)
		src.ring <- connect(3)
	})
	if err != nil {
		t.Fatal(err)
	}
	same(t, account, Account{Recorded: 4, Lost: 3, Skipped: 5, Rescued: 4})
	if got := out.kinds(); len(got) != 4 || out.headers != 1 {
		t.Errorf("%v, %d headers", got, out.headers)
	}
	if past := out.written[1].Past; past.Owner != owner || past.InState != 2000 {
		t.Errorf("the TIME_WAIT is of %+v", past)
	}
}

func TestDuration(t *testing.T) {
	src, out := newScripted(), &lines{}
	var took time.Duration
	account, err := play(t, Options{Duration: 10 * time.Second}, src, out, func(func()) {
		start := time.Now()
		src.ring <- connect(1)
		<-src.stopped
		took = time.Since(start)
	})
	if err != nil || account.Recorded != 1 {
		t.Errorf("%+v, %v", account, err)
	}
	if took != 10*time.Second {
		t.Errorf("it took %v", took)
	}
}

// TestMax: exactly so many lines, and the rest of what was read is accounted for.
func TestMax(t *testing.T) {
	src, out := newScripted(), &lines{}
	opts := Options{Max: 2}
	opts.Tracer.Kinds = []tcp.Kind{tcp.KindTWEnter}
	account, err := play(t, opts, src, out, func(func()) {
		for c := tcp.Cookie(1); ; c++ {
			for _, ev := range []tcp.Event{connect(c), timeWait(c)} {
				select {
				case src.ring <- ev:
				case <-src.stopped:
					return
				}
			}
		}
	})
	if err != nil || account.Recorded != 2 || !slices.Equal(out.kinds(), []string{"tw-enter", "tw-enter"}) {
		t.Fatalf("%+v, %v: %v", account, err, out.kinds())
	}
	if account.Along < 2 {
		t.Errorf("%+v", account)
	}
}

func TestAfterMax(t *testing.T) {
	src, out := newScripted(), &lines{}
	src.ring = make(chan tcp.Event, 8)
	account, err := play(t, Options{Max: 1}, src, out, func(func()) {
		out.onLine = func() { // all of them while the first is written
			for c := tcp.Cookie(2); c <= 4; c++ {
				src.ring <- connect(c)
			}
		}
		src.ring <- connect(1)
	})
	if err != nil {
		t.Fatal(err)
	}
	same(t, account, Account{Recorded: 1, AfterEnd: 3})
}

// TestKinds: what is read along gives owners and is not written.
func TestKinds(t *testing.T) {
	src, out := newScripted(), &lines{}
	opts := Options{}
	opts.Tracer.Kinds = []tcp.Kind{tcp.KindTWEnter}
	account, err := play(t, opts, src, out, func(end func()) {
		src.ring <- connect(1)
		src.ring <- timeWait(1)
		synctest.Wait()
		end()
	})
	if err != nil {
		t.Fatal(err)
	}
	same(t, account, Account{Recorded: 1, Along: 1})
	if len(out.written) != 1 || out.written[0].Past.Owner != owner {
		t.Errorf("%+v", out.written)
	}
}

// TestSnapshot: the sockets of every namespace are listed once, with the programs
// attached, and read meanwhile, since there are more than fit into the ring.
func TestSnapshot(t *testing.T) {
	const sockets = 100
	src, out := newScripted(), &lines{}
	src.list = func() error {
		for c := range tcp.Cookie(sockets) {
			src.ring <- tcp.Event{Kind: tcp.KindSnapshot, Cookie: c + 1, MonoNS: 1, Old: tcp.Established, New: tcp.Established}
		}
		return nil
	}
	account, err := play(t, Options{Snapshot: true}, src, out, func(end func()) { synctest.Wait(); end() })
	if err != nil || account.Recorded != 2*sockets {
		t.Errorf("%+v, %v", account, err)
	}
	if want := []string{"start", "snapshot", "snapshot", "stop", "close"}; !slices.Equal(src.calls, want) {
		t.Errorf("%v, want %v", src.calls, want)
	}

	t.Run("an end in the middle of it", func(t *testing.T) {
		src, out := newScripted(), &lines{}
		src.list = func() error {
			for c := range tcp.Cookie(sockets) {
				src.ring <- tcp.Event{Kind: tcp.KindSnapshot, Cookie: c + 1, MonoNS: 1, Old: tcp.Established, New: tcp.Established}
				time.Sleep(time.Millisecond)
			}
			return nil
		}
		account, err := play(t, Options{Snapshot: true, Duration: 20 * time.Millisecond}, src, out, nil)
		if err != nil || account.Recorded != 2*sockets {
			t.Errorf("%+v, %v", account, err)
		}
	})
	t.Run("not asked for", func(t *testing.T) {
		src := newScripted()
		if _, err := play(t, Options{}, src, &lines{}, func(end func()) { synctest.Wait(); end() }); err != nil {
			t.Error(err)
		}
		if slices.Contains(src.calls, "snapshot") {
			t.Errorf("%v", src.calls)
		}
	})
	t.Run("that fails", func(t *testing.T) {
		src, failure := newScripted(), errors.New("no iterator")
		src.list = func() error { return failure }
		if _, err := play(t, Options{Snapshot: true}, src, &lines{}, nil); !errors.Is(err, failure) {
			t.Errorf("%v", err)
		}
	})
}

// TestWriteErrors: nobody reads any more is an end like any other; a full disk is not.
func TestWriteErrors(t *testing.T) {
	for _, tt := range []struct {
		err    error
		failed bool
	}{{syscall.EPIPE, false}, {syscall.ENOSPC, true}} {
		t.Run(tt.err.Error(), func(t *testing.T) {
			src, out := newScripted(), &lines{err: tt.err}
			account, err := play(t, Options{}, src, out, func(func()) { src.ring <- connect(1) })
			if tt.failed {
				if !errors.Is(err, tt.err) {
					t.Errorf("%+v, %v", account, err)
				}
				return
			}
			if err != nil || !account.Unwritten {
				t.Errorf("%+v, %v", account, err)
			}
		})
	}
}

func TestTraceErrors(t *testing.T) {
	failure := errors.New("out of order")
	t.Run("start", func(t *testing.T) {
		src := newScripted()
		src.startErr = failure
		if _, err := play(t, Options{}, src, &lines{}, nil); !errors.Is(err, failure) {
			t.Error(err)
		}
	})
	t.Run("read", func(t *testing.T) {
		src, out := newScripted(), &lines{}
		src.readErr = failure
		if _, err := play(t, Options{}, src, out, func(func()) { src.ring <- connect(1) }); !errors.Is(err, failure) {
			t.Error(err)
		}
		if len(out.written) != 1 { // what came with the error is not lost
			t.Errorf("%d lines", len(out.written))
		}
	})
}

// TestStart: the writer is told what the kernel does not show.
func TestStart(t *testing.T) {
	src, out := newScripted(), &lines{}
	src.coverage[tcp.FactListenDrop] = tcp.NotObservable
	var got Start
	opts := Options{Duration: time.Second}
	synctest.Test(t, func(t *testing.T) {
		src.ring, src.stopped = make(chan tcp.Event), make(chan struct{})
		opts.Writer = func(s Start) eventline.Writer { got = s; return out }
		account, err := run(t.Context(), src, nil, opts)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(account.NotObservable, got.NotObservable) {
			t.Errorf("%v in the account, %v at the start", account.NotObservable, got.NotObservable)
		}
	})
	if got.HZ != 250 || got.Reasons[1] != "ONE" || got.MonoNS == 0 {
		t.Errorf("%+v", got)
	}
	if want := []Missing{{tcp.FactListenDrop, tcp.KindListenDrop}}; !slices.Equal(got.NotObservable, want) {
		t.Errorf("%v, want %v", got.NotObservable, want)
	}
}

func TestIncomplete(t *testing.T) {
	for _, tt := range []struct {
		account      Account
		plain, stern bool
	}{
		{Account{Recorded: 5, Along: 3, AfterEnd: 2}, false, false},
		{Account{Lost: 1}, true, true},
		{Account{Skipped: 2, Rescued: 1}, true, true},
		{Account{Skipped: 2, Rescued: 2}, false, false},
		{Account{NotObservable: []Missing{{Fact: tcp.FactError}}}, false, true},
		{Account{Unfollowed: 1}, false, true},
	} {
		if got := tt.account.Incomplete(false); got != tt.plain {
			t.Errorf("%+v: Incomplete(false) = %t", tt.account, got)
		}
		if got := tt.account.Incomplete(true); got != tt.stern {
			t.Errorf("%+v: Incomplete(true) = %t", tt.account, got)
		}
	}
}

// TestTable: every kind has a row, and what is read along with it is told over again
// by nothing but kinds that end.
func TestTable(t *testing.T) {
	for k := tcp.Kind(1); int(k) < tcp.NumKinds; k++ {
		if len(kinds[k].facts) == 0 {
			t.Errorf("%s has no fact", k)
		}
		// Who follows TIME_WAITs has to hear of their end.
		all := append(slices.Clone(kinds[k].along), k)
		if slices.Contains(all, tcp.KindTWEnter) && !slices.Contains(all, tcp.KindTWEnd) {
			t.Errorf("%s follows TIME_WAITs without their ends", k)
		}
	}
}

func TestRead(t *testing.T) {
	for _, tt := range []struct {
		kinds    string
		snapshot bool
		want     string
	}{
		{"", true, ""},
		{"", false, ""},
		{"state", false, "state"},
		{"state", true, "state snapshot"},
		{"tw-end", false, "state tw-enter tw-end tw-convert"},
		{"bind-failed error", false, "state tw-enter tw-end error tw-convert bind-failed"},
		{"bind-failed", false, "state tw-enter tw-end tw-convert bind-failed"},
		{"snapshot", true, "snapshot"},
	} {
		opts := Options{Snapshot: tt.snapshot}
		for name := range strings.FieldsSeq(tt.kinds) {
			k, err := tcp.ParseKind(name)
			if err != nil {
				t.Fatal(err)
			}
			opts.Tracer.Kinds = append(opts.Tracer.Kinds, k)
		}
		var got []string
		for _, k := range read(&opts) {
			got = append(got, k.String())
		}
		if s := strings.Join(got, " "); s != tt.want {
			t.Errorf("%q (snapshot %t) reads %q, want %q", tt.kinds, tt.snapshot, s, tt.want)
		}
	}
}

func TestMissing(t *testing.T) {
	without := func(facts ...tcp.Fact) tcp.Coverage {
		c := everything()
		for _, f := range facts {
			c[f] = tcp.NotObservable
		}
		return c
	}
	inferred := everything()
	inferred[tcp.FactRstSent] = tcp.Inferred
	untold := everything()
	delete(untold, tcp.FactError)
	for name, tt := range map[string]struct {
		opts     Options
		coverage tcp.Coverage
		want     string
	}{
		"all there":                   {Options{Snapshot: true}, everything(), ""},
		"inferred is there":           {Options{}, inferred, ""},
		"the tracer does not know it": {Options{}, untold, "error"},
		"of all kinds":                {Options{}, without(tcp.FactTWCause, tcp.FactError), "tw-end (time-wait-end-cause), error"},
		"of a kind that is not asked": {Options{Tracer: tracer.Options{Kinds: []tcp.Kind{tcp.KindState}}}, without(tcp.FactError), ""},
		"of a kind that is asked":     {Options{Tracer: tracer.Options{Kinds: []tcp.Kind{tcp.KindError}}}, without(tcp.FactError), "error"},
		"no snapshot is wanted":       {Options{}, without(tcp.FactSnapshot), ""},
		"a snapshot is wanted":        {Options{Snapshot: true}, without(tcp.FactSnapshot), "snapshot"},
		"no failure":                  {Options{Tracer: tracer.Options{FailuresOnly: true}}, without(tcp.FactTWEnd), ""},
		"a failure":                   {Options{Tracer: tracer.Options{FailuresOnly: true}}, without(tcp.FactListenDrop), "listen-drop"},
		"an owner nobody asked for":   {Options{}, without(tcp.FactOwner), ""},
		"a filter by owner":           {Options{Tracer: tracer.Options{PIDs: []uint32{1}}}, without(tcp.FactOwner), "owner"},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, m := range missing(&tt.opts, tt.coverage) {
				got = append(got, m.String())
			}
			if s := strings.Join(got, ", "); s != tt.want {
				t.Errorf("%q, want %q", s, tt.want)
			}
		})
	}
}
