package tracer

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
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

// drainInterval is how often the rings are emptied. At 400,000 events a second
// they hold 1 MB by then.
const drainInterval = 20 * time.Millisecond

// Tracer is one trace. Read must be called from one goroutine at a time; the
// other methods may be called from any.
type Tracer struct {
	coll     *ebpf.Collection
	enriched *enriched
	chosen   []probe
	coverage Coverage
	reasons  map[uint32]string
	rings    *rings

	mu      sync.Mutex // guards links, started, closed and final
	links   []attached
	started bool
	// watching: the programs of listeners are attached; asked for every tick if drops
	// are wanted and the kernel shows them.
	watching, drops bool
	closed          bool
	before          skipped // when the recording began
	final           *Stats  // set by Stop

	stopped chan struct{} // closed by Stop once nothing is written to the rings any more
	stop    sync.Once
	stopErr error

	firstTick tick // taken by Open; HZ takes the second

	ticker *time.Ticker // of the drain

	reading  sync.Mutex // held while Read looks at the rings; guards unmapped
	unmapped bool       // Close has taken the rings away

	// What only Read touches.
	seq     uint64
	drained bool // the rings were empty: wait before the next look
	recent  recentCalls
	convert conversions

	// What Read counts and Stats sums.
	recorded, rescued, duplicates, late atomic.Uint64
	byKind                              [tcp.NumKinds]atomic.Uint64
}

// attached is a program on its tracepoint.
type attached struct {
	link link.Link
	twin bool
	how  attachment
}

// Open loads the programs that this kernel can run. Nothing is traced before
// Start. Errors: ErrNotPermitted, ErrNoBTF, ErrTooOld.
func Open(opts Options) (_ *Tracer, err error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	// Kernels before 5.11 charge maps to RLIMIT_MEMLOCK; where it can't be
	// raised the map's own creation says so.
	_ = rlimit.RemoveMemlock()

	types := btf.NewCache() // the kernel's are parsed once
	kernel, err := types.Kernel()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoBTF, err)
	}
	spec, err := bpf.LoadProbes()
	if err != nil {
		return nil, err
	}

	t := &Tracer{stopped: make(chan struct{}), reasons: rstReasons(kernel), convert: conversions{wanted: slices.Contains(opts.kinds(), tcp.KindTWConvert)}}
	syms, symErr := readSymbols()
	if symErr != nil && !errors.Is(symErr, ErrNoKallsyms) {
		return nil, symErr
	}
	t.chosen = choose(kernel, &opts, symErr == nil)
	if len(t.chosen) == 0 || t.chosen[0].program != bpf.ProbesProgState {
		return nil, fmt.Errorf("%w: it has no tracepoint inet_sock_set_state", ErrTooOld)
	}
	t.coverage = coverage(t.chosen, syms, opts.kinds())

	t.drops = slices.ContainsFunc(t.chosen, func(p probe) bool { return p.how == withListener })

	if err := specialise(spec, opts, syms, t.chosen); err != nil {
		return nil, err
	}
	t.enriched, err = enrich(spec, &opts, t.coverage, types)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = t.enriched.close()
		}
	}()
	t.enriched.grade(t.coverage)
	if err := t.enriched.tell(spec); err != nil {
		return nil, err
	}
	t.coll, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Cache: types, MapReplacements: t.enriched.shared})
	if err != nil {
		return nil, loadError(err)
	}
	t.firstTick, err = t.readTick()
	if err != nil {
		t.coll.Close()
		return nil, loadError(err)
	}
	t.rings, err = newRings(t.coll.Maps[bpf.ProbesMapSlots], t.coll.Maps[bpf.ProbesMapCursors])
	if err != nil {
		t.coll.Close()
		return nil, err
	}
	t.ticker = time.NewTicker(drainInterval)
	return t, nil
}

// Start attaches the programs. When it returns without error every one of them
// is in place: what happens from then on is recorded or counted as lost.
func (t *Tracer) Start() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-t.stopped:
		return errors.New("the trace has been stopped")
	default:
	}
	if t.started {
		return errors.New("a trace can be started once")
	}
	t.started = true
	// A tracepoint calls its programs in the order in which they came: each
	// twin after its main program. The state program comes last, so that the
	// TIME_WAIT of every close that it sees is seen too.
	for i := len(t.chosen) - 1; i >= 0; i-- {
		p := &t.chosen[i]
		if p.how == withListener || p.how == iterator {
			continue
		}
		err := t.attach(p, p.program, false)
		if err == nil && p.twin != "" {
			err = t.attach(p, p.twin, true)
		}
		if err != nil {
			return errors.Join(err, t.detach(nil))
		}
	}
	if err := t.record(true); err != nil {
		return errors.Join(err, t.detach(nil))
	}
	before, err := t.skipped()
	if err != nil {
		return errors.Join(err, t.detach(nil))
	}
	t.before = before
	return nil
}

// record lets the programs begin, or makes them end.
func (t *Tracer) record(on bool) error {
	if err := t.coll.Variables[bpf.ProbesVarRecording].Set(on); err != nil {
		return fmt.Errorf("set recording: %w", err)
	}
	return nil
}

// attach puts one program of a row in its place. The caller holds mu.
func (t *Tracer) attach(p *probe, name string, twin bool) error {
	var (
		l    link.Link
		err  error
		prog = t.coll.Programs[name]
	)
	if p.how == syscall {
		l, err = link.Tracepoint("syscalls", p.tracepoint, prog, nil)
	} else {
		l, err = link.AttachTracing(link.TracingOptions{Program: prog})
	}
	if errors.Is(err, os.ErrPermission) {
		err = fmt.Errorf("%w: %w", ErrNotPermitted, err)
	}
	if err != nil {
		return fmt.Errorf("attach %s: %w", name, err)
	}
	t.links = append(t.links, attached{l, twin, p.how})
	return nil
}

// detach takes programs off, those that which picks or, if it is nil, all, and the
// twins first: a twin without its main program would take every event for a
// skipped one. The caller holds mu.
func (t *Tracer) detach(which func(attached) bool) error {
	var errs []error
	for _, twins := range []bool{true, false} {
		n := len(t.links)
		t.links = slices.DeleteFunc(t.links, func(a attached) bool {
			if a.twin != twins || which != nil && !which(a) {
				return false
			}
			errs = append(errs, a.link.Close())
			return true
		})
		if len(t.links) == n {
			continue
		}
		// A program that was running when it was taken off may still write.
		// MEMBARRIER_CMD_GLOBAL waits for a grace period of RCU, which such a
		// program holds up (kernel/sched/membarrier.c).
		if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, 1, 0, 0); errno != 0 {
			time.Sleep(50 * time.Millisecond)
		}
	}
	return errors.Join(errs...)
}

// Stop detaches the programs and waits until none of them runs any more. Read
// then hands over what is left in the ring and ends with io.EOF. It may be
// called more than once.
func (t *Tracer) Stop() error {
	t.stop.Do(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		// What is skipped from now on is nobody's loss.
		skipped, err := t.skipped()
		t.stopErr = errors.Join(err, t.record(false), t.detach(nil), t.enriched.detach())
		if t.final, err = t.kernelStats(skipped); err != nil {
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
	t.ticker.Stop()
	t.reading.Lock()
	defer t.reading.Unlock()
	t.unmapped = true
	err = errors.Join(err, t.rings.close())
	t.coll.Close()
	return errors.Join(err, t.enriched.close())
}

// Coverage says how well this kernel shows each fact.
func (t *Tracer) Coverage() Coverage { return t.coverage }
