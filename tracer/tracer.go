package tracer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/bpf"
	"github.com/twtrace/twtrace/internal/tcp"
)

// Why a trace can't be made on this machine.
var (
	// ErrNotPermitted: the kernel refused to load or attach a program (CAP_BPF
	// and CAP_PERFMON, or root, are missing).
	ErrNotPermitted = errors.New("not permitted to load BPF programs")
	// ErrNoBTF: the kernel does not describe its types
	// (CONFIG_DEBUG_INFO_BTF), which programs are relocated against.
	ErrNoBTF = errors.New("this kernel has no BTF")
	// ErrTooOld: the kernel lacks the tracepoint inet_sock_set_state or a
	// helper that the core set asks for (Linux 5.14 and later have all).
	ErrTooOld = errors.New("this kernel is too old")
)

// drainInterval is how often the ring is emptied. At 400,000 events a second
// it holds 0.8 MB by then.
const drainInterval = 20 * time.Millisecond

// Tracer is one trace. Read must be called from one goroutine at a time; the
// other methods may be called from any.
type Tracer struct {
	coll     *ebpf.Collection
	chosen   []probe
	coverage Coverage
	reasons  map[uint32]string
	ring     *ringbuf.Reader

	mu      sync.Mutex // guards links, started, closed and final
	links   []attached
	started bool
	closed  bool
	final   *Stats // set by Stop

	stopped chan struct{} // closed by Stop once nothing is written to the ring any more
	stop    sync.Once
	stopErr error

	firstTick tick // taken by Open; HZ takes the second

	// What only Read touches.
	rec     ringbuf.Record
	seq     uint64
	drained bool // the ring was empty: wait before the next look
	ticker  *time.Ticker
	recent  recentStates

	// What Read counts and Stats sums.
	recorded, rescued, duplicates atomic.Uint64
	byKind                        [tcp.NumKinds]atomic.Uint64
}

// attached is a program on its tracepoint.
type attached struct {
	link link.Link
	twin bool
}

// Open loads the programs that this kernel can run. Nothing is traced before
// Start. Errors: ErrNotPermitted, ErrNoBTF, ErrTooOld.
func Open(opts Options) (*Tracer, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	// Kernels before 5.11 charge maps to RLIMIT_MEMLOCK; where it can't be
	// raised the map's own creation says so.
	_ = rlimit.RemoveMemlock()

	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoBTF, err)
	}
	spec, err := bpf.LoadProbes()
	if err != nil {
		return nil, err
	}

	t := &Tracer{stopped: make(chan struct{}), reasons: rstReasons(kernel)}
	syms, symErr := readSymbols()
	if symErr != nil && !errors.Is(symErr, ErrNoKallsyms) {
		return nil, symErr
	}
	for _, p := range choose(kernel) {
		if !p.timeWait || symErr == nil {
			t.chosen = append(t.chosen, p)
		}
	}
	if len(t.chosen) == 0 || t.chosen[0].program != bpf.ProbesProgState {
		return nil, fmt.Errorf("%w: it has no tracepoint inet_sock_set_state", ErrTooOld)
	}
	t.coverage = coverage(t.chosen, syms)

	if err := specialise(spec, opts, syms, t.chosen); err != nil {
		return nil, err
	}
	t.coll, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		Programs: ebpf.ProgramOptions{KernelTypes: kernel},
	})
	if err != nil {
		return nil, loadError(err)
	}
	t.firstTick, err = t.readTick()
	if err != nil {
		t.coll.Close()
		return nil, loadError(err)
	}
	t.ring, err = ringbuf.NewReader(t.coll.Maps[bpf.ProbesMapEvents])
	if err != nil {
		t.coll.Close()
		return nil, fmt.Errorf("map the ring: %w", err)
	}
	// A deadline that has passed makes Read look and never wait: the programs
	// do not wake it.
	t.ring.SetDeadline(time.Unix(1, 0))
	return t, nil
}

// specialise writes the constants and leaves out the programs that were not chosen.
func specialise(spec *ebpf.CollectionSpec, opts Options, syms symbols, chosen []probe) error {
	keep := map[string]bool{bpf.ProbesProgJiffiesNow: true}
	for _, p := range chosen {
		keep[p.program] = true
		if p.twin != "" {
			keep[p.twin] = true
		}
	}
	for name := range spec.Programs {
		if !keep[name] {
			delete(spec.Programs, name)
		}
	}
	if opts.RingSize != 0 {
		spec.Maps[bpf.ProbesMapEvents].MaxEntries = uint32(opts.RingSize)
	} else {
		spec.Maps[bpf.ProbesMapEvents].MaxEntries = DefaultRingSize
	}

	var netns [MaxNetNS]uint64
	for i, ns := range opts.NetNS {
		netns[i] = uint64(ns)
	}
	var table [maxFrames]bpf.ProbesFrame
	copy(table[:], syms.frames)
	for _, c := range []struct {
		name  string
		value any
	}{
		{bpf.ProbesVarNetnsCount, uint32(len(opts.NetNS))},
		{bpf.ProbesVarNetnsFilter, netns},
		{bpf.ProbesVarTwTimerHandlerAddr, syms.twTimerHandler},
		{bpf.ProbesVarFrameCount, uint32(len(syms.frames))},
		{bpf.ProbesVarFrames, table},
	} {
		if err := spec.Variables[c.name].Set(c.value); err != nil {
			return fmt.Errorf("set %s: %w", c.name, err)
		}
	}
	return nil
}

// RstReasons returns this kernel's names for Event.Reason (enum sk_rst_reason,
// Linux 6.10 and later), without their common prefix. They differ between
// kernels. Empty where the kernel gives no reasons.
func (t *Tracer) RstReasons() map[uint32]string { return t.reasons }

func rstReasons(kernel *btf.Spec) map[uint32]string {
	names := make(map[uint32]string)
	var enum *btf.Enum
	if err := kernel.TypeByName("sk_rst_reason", &enum); err == nil {
		for _, v := range enum.Values {
			names[uint32(v.Value)] = strings.TrimPrefix(v.Name, "SK_RST_REASON_")
		}
	}
	return names
}

// loadError says in one line why the kernel refused; a verifier's log stays
// reachable by errors.As.
func loadError(err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w: %w", ErrNotPermitted, err)
	case errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("%w: %w", ErrTooOld, err)
	}
	return fmt.Errorf("load BPF programs: %w", err)
}

// coverage grades each fact by what was chosen.
func coverage(chosen []probe, syms symbols) Coverage {
	c := Coverage{
		tcp.FactState: tcp.NotObservable, tcp.FactConnectFail: tcp.NotObservable,
		tcp.FactRstSent: tcp.NotObservable, tcp.FactRstReason: tcp.NotObservable,
		tcp.FactRstReceived: tcp.NotObservable, tcp.FactTWEnter: tcp.NotObservable,
		tcp.FactTWEnd: tcp.NotObservable, tcp.FactTWCause: tcp.NotObservable,
		tcp.FactTWOverflow: tcp.NotObservable,
	}
	for _, p := range chosen {
		for _, f := range p.facts {
			c[f] = tcp.Exact
		}
		if p.program == bpf.ProbesProgRstSentPlain {
			c[tcp.FactRstSent] = tcp.Inferred
		}
	}
	// Every cause needs one function of this kernel to be known by.
	known := make(map[uint64]bool)
	for _, f := range syms.frames {
		known[f.Cause] = true
	}
	for _, f := range frames {
		if c[tcp.FactTWCause] == tcp.Exact && !known[uint64(f.cause)] {
			c[tcp.FactTWCause] = tcp.Inferred
		}
	}
	return c
}

// Start attaches the programs. When it returns without error every one of them
// is in place: what happens from then on is recorded or counted as lost.
func (t *Tracer) Start() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.started || t.closed {
		return errors.New("a trace can be started once")
	}
	t.started = true
	attach := func(name string, twin bool) error {
		l, err := link.AttachTracing(link.TracingOptions{Program: t.coll.Programs[name]})
		if errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w: %w", ErrNotPermitted, err)
		}
		if err != nil {
			return fmt.Errorf("attach %s: %w", name, err)
		}
		t.links = append(t.links, attached{l, twin})
		return nil
	}
	// A tracepoint calls its programs in the order in which they came: each
	// twin after its main program. The state program comes last, so that the
	// TIME_WAIT of every close that it sees is seen too.
	for i := len(t.chosen) - 1; i >= 0; i-- {
		p := t.chosen[i]
		err := attach(p.program, false)
		if err == nil && p.twin != "" {
			err = attach(p.twin, true)
		}
		if err != nil {
			return errors.Join(err, t.detach())
		}
	}
	return nil
}

// detach takes the twins off first: a twin without its main program would take
// every event for a skipped one.
func (t *Tracer) detach() error {
	var errs []error
	for _, twins := range []bool{true, false} {
		for _, a := range t.links {
			if a.twin == twins {
				errs = append(errs, a.link.Close())
			}
		}
		// A program that was running when it was taken off may still write.
		// MEMBARRIER_CMD_GLOBAL waits for a grace period of RCU, which such a
		// program holds up (kernel/sched/membarrier.c).
		if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, 1, 0, 0); errno != 0 {
			time.Sleep(50 * time.Millisecond)
		}
	}
	t.links = nil
	return errors.Join(errs...)
}

// Stop detaches the programs and waits until none of them runs any more. Read
// then hands over what is left in the ring and ends with io.EOF. It may be
// called more than once.
func (t *Tracer) Stop() error {
	t.stop.Do(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.stopErr = t.detach()
		if st, err := t.kernelStats(); err == nil {
			t.final = st
		} else {
			t.stopErr = errors.Join(t.stopErr, err)
		}
		close(t.stopped)
	})
	return t.stopErr
}

// Close frees everything, stopping the trace if it still runs. It may be called
// more than once.
func (t *Tracer) Close() error {
	err := t.Stop()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return err
	}
	t.closed = true
	if t.ticker != nil {
		t.ticker.Stop()
	}
	err = errors.Join(err, t.ring.Close())
	t.coll.Close()
	return err
}

// Coverage says how well this kernel shows each fact.
func (t *Tracer) Coverage() Coverage { return t.coverage }

// Read fills events and returns how many it wrote. It waits for the next tick of
// the drain, 20 ms at most, not for the next event, so that programs need not
// wake it; 0 means that nothing happened. A return of less than len(events)
// means that every event which happened before the call has been handed over.
// It returns io.EOF when the trace has been stopped and the ring is empty, and
// ctx's error when that ends first.
func (t *Tracer) Read(ctx context.Context, events []Event) (int, error) {
	if len(events) == 0 {
		return 0, errors.New("no room for events")
	}
	if t.ticker == nil {
		t.ticker = time.NewTicker(drainInterval)
	}
	stopped := false
	select {
	case <-t.stopped:
		stopped = true
	default:
		if t.drained {
			select {
			case <-ctx.Done():
				return 0, ctx.Err()
			case <-t.stopped:
				stopped = true
			case <-t.ticker.C:
			}
		}
	}
	n, err := t.drain(events)
	if n == 0 && err == nil && stopped {
		return 0, io.EOF
	}
	return n, err
}

// drain moves what is in the ring to events and returns how many there were.
func (t *Tracer) drain(events []Event) (int, error) {
	t.drained = false
	n := 0
	for n < len(events) {
		err := t.ring.ReadInto(&t.rec)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.drained = true
			break
		}
		if err != nil {
			return n, fmt.Errorf("read the ring: %w", err)
		}
		ev := &events[n]
		if err := decode(t.rec.RawSample, ev); err != nil {
			return n, err
		}
		if t.recent.duplicate(ev) {
			t.duplicates.Add(1)
			continue
		}
		t.seq++
		ev.Seq = t.seq
		if ev.Flags&tcp.FlagRescued != 0 {
			t.rescued.Add(1)
		} else {
			t.recorded.Add(1)
		}
		if int(ev.Kind) < len(t.byKind) {
			t.byKind[ev.Kind].Add(1)
		}
		n++
	}
	return n, nil
}

// Stats returns the account so far. It is complete, and Seen is exact, once
// Read has returned io.EOF.
func (t *Tracer) Stats() (Stats, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var s Stats
	if t.final != nil {
		s = *t.final
	} else {
		k, err := t.kernelStats()
		if err != nil {
			return Stats{}, err
		}
		s = *k
	}
	s.Recorded = t.recorded.Load()
	s.Rescued = t.rescued.Load()
	s.Duplicates = t.duplicates.Load()
	s.ByKind = make(map[Kind]uint64)
	for k := range t.byKind {
		if n := t.byKind[k].Load(); n > 0 {
			s.ByKind[Kind(k)] = n
		}
	}
	s.Seen = s.Recorded + s.LostRing + s.SkippedRecursion
	return s, nil
}

// kernelStats reads what the kernel side counted. The caller holds mu.
func (t *Tracer) kernelStats() (*Stats, error) {
	if t.closed {
		return nil, errors.New("the trace is closed")
	}
	var perCPU []bpf.ProbesAccount
	if err := t.coll.Maps[bpf.ProbesMapAccounts].Lookup(uint32(0), &perCPU); err != nil {
		return nil, fmt.Errorf("read the counters: %w", err)
	}
	s := &Stats{LostByKind: make(map[Kind]uint64)}
	foreign := make(map[Kind]uint64)
	for _, a := range perCPU {
		for k, n := range a.Lost {
			if n > 0 {
				s.LostByKind[Kind(k)] += n
				s.LostRing += n
			}
		}
		for k, n := range a.Foreign {
			foreign[Kind(k)] += n
		}
	}
	for _, p := range t.chosen {
		for _, name := range []string{p.program, p.twin} {
			if name == "" {
				continue
			}
			st, err := t.coll.Programs[name].Stats()
			if err != nil {
				return nil, fmt.Errorf("read the counters of program %s: %w", name, err)
			}
			s.Programs = append(s.Programs, ProgramStats{
				Name: name, Runs: st.RunCount, RuntimeNS: uint64(st.Runtime), RecursionMisses: st.RecursionMisses,
			})
			if name == p.program {
				s.SkippedRecursion += st.RecursionMisses - min(foreign[p.kind], st.RecursionMisses)
			}
		}
	}
	return s, nil
}

// tick is a reading of both clocks.
type tick struct {
	jiffies uint32
	at      time.Time
}

func (t *Tracer) readTick() (tick, error) {
	jiffies, err := t.coll.Programs[bpf.ProbesProgJiffiesNow].Run(&ebpf.RunOptions{})
	if err != nil {
		return tick{}, fmt.Errorf("read the kernel's jiffies: %w", err)
	}
	return tick{jiffies, time.Now()}, nil
}

// HZ returns the number of jiffies a second (CONFIG_HZ), the unit of
// Event.Ticks, measured over the time since Open, of which it waits for a tenth
// of a second at least.
func (t *Tracer) HZ() (int, error) {
	time.Sleep(time.Until(t.firstTick.at.Add(100 * time.Millisecond)))
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return 0, errors.New("the trace is closed")
	}
	now, err := t.readTick()
	if err != nil {
		return 0, err
	}
	measured := float64(now.jiffies-t.firstTick.jiffies) / now.at.Sub(t.firstTick.at).Seconds()
	best := 0
	for _, hz := range []int{100, 250, 300, 1000} { // kernel/Kconfig.hz
		if best == 0 || math.Abs(float64(hz)-measured) < math.Abs(float64(best)-measured) {
			best = hz
		}
	}
	return best, nil
}

// recentStates remembers the last state changes, so as to drop one that main
// program and twin both recorded. That happens when an interrupt between the
// two overwrites the main program's note (bpf/emit.h): the two are then at most
// one softirq's events apart.
type recentStates struct {
	keys [2048]stateKey
	next int
}

type stateKey struct {
	cookie   tcp.Cookie
	old, new tcp.State
}

func (r *recentStates) duplicate(ev *Event) bool {
	if ev.Kind != tcp.KindState || ev.Cookie == 0 {
		return false
	}
	key := stateKey{ev.Cookie, ev.Old, ev.New}
	if ev.Flags&tcp.FlagRescued != 0 {
		for _, k := range r.keys {
			if k == key {
				return true
			}
		}
		return false
	}
	r.keys[r.next%len(r.keys)] = key
	r.next++
	return false
}
