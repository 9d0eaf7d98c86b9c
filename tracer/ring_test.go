package tracer

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twtrace/twtrace/bpf"
)

// testRings are rings without maps, with the kernel side played by the test.
func testRings(cpus, slots int) *rings {
	r := &rings{slots: make([]bpf.ProbesSlot, cpus*slots), cursors: make([]bpf.ProbesCursor, cpus)}
	r.slice()
	return r
}

// reserve is ring_reserve() of bpf/ring.h, on one CPU; nil: no room.
func (r *rings) reserve(cpu int) *bpf.ProbesSlot {
	g := &r.of[cpu]
	head := g.cursor.Head
	if head-atomic.LoadUint64(&g.cursor.Tail) >= uint64(len(g.slots)) {
		return nil
	}
	slot := g.at(head)
	atomic.StoreUint64(&slot.Seq, (head+1)|1<<63)
	atomic.StoreUint64(&g.cursor.Head, head+1)
	return slot
}

func commit(slot *bpf.ProbesSlot, time uint64) {
	slot.Event.MonoNs = time
	atomic.StoreUint64(&slot.Seq, slot.Seq&^(1<<63))
}

func (r *rings) write(t *testing.T, cpu int, times ...uint64) {
	t.Helper()
	for _, at := range times {
		slot := r.reserve(cpu)
		if slot == nil {
			t.Fatal("no room")
		}
		commit(slot, at)
	}
}

// batch reads what is there, and returns the times.
func (r *rings) batch() (times []uint64) {
	r.begin()
	for e := r.next(); e != nil; e = r.next() {
		times = append(times, e.MonoNs)
	}
	r.release()
	return times
}

func TestRingsMerge(t *testing.T) {
	for _, tt := range []struct {
		name  string
		perCP [][]uint64
		want  []uint64
	}{
		{"nothing", [][]uint64{nil, nil}, nil},
		{"one CPU", [][]uint64{nil, {1, 2, 3}}, []uint64{1, 2, 3}},
		{"in turns", [][]uint64{{1, 3, 5}, {2, 4, 6}}, []uint64{1, 2, 3, 4, 5, 6}},
		{"in blocks", [][]uint64{{4, 5, 6}, {1, 2, 3}, {7, 8}}, []uint64{1, 2, 3, 4, 5, 6, 7, 8}},
		{"at once", [][]uint64{{1, 1, 2}, {1, 2}}, []uint64{1, 1, 1, 2, 2}},
		{"three CPUs", [][]uint64{{1, 9}, {2, 3, 8}, {4, 5, 6, 7}}, []uint64{1, 2, 3, 4, 5, 6, 7, 8, 9}},
	} {
		r := testRings(len(tt.perCP), 8)
		for cpu, times := range tt.perCP {
			r.write(t, cpu, times...)
		}
		if got := r.batch(); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
		if got := r.batch(); got != nil {
			t.Errorf("%s: %v came a second time", tt.name, got)
		}
	}
}

// TestRingsFull: slots are free again only after release, and numbers go on behind the end of the
// ring.
func TestRingsFull(t *testing.T) {
	const slots = 4
	r := testRings(2, slots)
	for round := range uint64(5) {
		var want []uint64
		for i := range uint64(slots) {
			want = append(want, round*10+i)
		}
		r.write(t, 1, want...)
		if r.reserve(1) != nil {
			t.Fatalf("round %d: a fifth slot of four", round)
		}
		if got := r.batch(); !slices.Equal(got, want) {
			t.Fatalf("round %d: %v, want %v", round, got, want)
		}
	}
	if n := r.written(); n != 5*slots {
		t.Errorf("%d written, want %d", n, 5*slots)
	}
}

// TestRingsLater: what comes while a batch is read, and is later than all of it, waits for
// the next, as another CPU's cause of it may not be known yet.
func TestRingsLater(t *testing.T) {
	r := testRings(2, 8)
	r.write(t, 0, 1, 5)
	r.begin()
	r.write(t, 1, 3)
	r.of[1].end = 1 // written between the two looks of begin
	r.write(t, 0, 7)
	r.of[0].end = 3
	var got []uint64
	for e := r.next(); e != nil; e = r.next() {
		got = append(got, e.MonoNs)
	}
	if want := []uint64{1, 3, 5}; !slices.Equal(got, want) {
		t.Errorf("first %v, want %v", got, want)
	}
	if got := r.batch(); !slices.Equal(got, []uint64{7}) {
		t.Errorf("then %v, want 7", got)
	}
}

// TestRingsUnfinished: an event that is being written is waited for, in its place.
func TestRingsUnfinished(t *testing.T) {
	r := testRings(2, 8)
	r.write(t, 1, 1, 3)
	slot := r.reserve(0)
	go func() {
		time.Sleep(time.Millisecond)
		commit(slot, 2)
	}()
	if got := r.batch(); !slices.Equal(got, []uint64{1, 2, 3}) {
		t.Errorf("%v, want 1 2 3", got)
	}
}

// TestRingsStuck: a program that does not end holds up its own CPU's events only.
func TestRingsStuck(t *testing.T) {
	r := testRings(2, 8)
	r.write(t, 1, 1, 3)
	slot := r.reserve(0)
	r.write(t, 0, 4)
	if got := r.batch(); !slices.Equal(got, []uint64{1, 3}) {
		t.Errorf("%v, want 1 3", got)
	}
	commit(slot, 2)
	if got := r.batch(); !slices.Equal(got, []uint64{2, 4}) {
		t.Errorf("then %v, want 2 4", got)
	}
}

// TestRingsStress: CPUs that write while the reader reads, with interruptions. Everything
// comes once, and in order of time but for what interrupted.
func TestRingsStress(t *testing.T) {
	const (
		cpus  = 4
		slots = 64
		each  = 20000
	)
	r := testRings(cpus, slots)
	var (
		clock, lost, inside atomic.Uint64
		writers             sync.WaitGroup
	)
	for cpu := range cpus {
		writers.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(cpu)))
			for range each {
				slot := r.reserve(cpu)
				if slot == nil {
					lost.Add(1)
					time.Sleep(time.Microsecond)
					continue
				}
				if random.IntN(4) == 0 { // one that interrupts, and ends before
					if inner := r.reserve(cpu); inner != nil {
						commit(inner, clock.Add(1))
						inside.Add(1)
					}
				}
				commit(slot, clock.Add(1))
			}
		})
	}
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	var got []uint64
	for last := false; ; {
		select {
		case <-done:
			last = true
		default:
		}
		batch := r.batch()
		if last && len(batch) == 0 {
			break
		}
		got = append(got, batch...)
	}
	if uint64(len(got)) != clock.Load() || r.written() != clock.Load() {
		t.Errorf("%d events read, %d in the rings, %d happened", len(got), r.written(), clock.Load())
	}
	for i, at := range slices.Sorted(slices.Values(got)) {
		if at != uint64(i)+1 {
			t.Fatalf("event %d is missing or came twice", i+1)
		}
	}
	// What interrupts another has a later slot and an earlier time; of the others few come late.
	late := 0
	for i := 1; i < len(got); i++ {
		if got[i] < got[i-1] {
			late++
		}
	}
	if late > int(inside.Load())+len(got)/10 {
		t.Errorf("%d of %d events out of order, and %d interrupted others", late, len(got), inside.Load())
	}
	t.Logf("%d read, %d found no room, %d after a later one", len(got), lost.Load(), late)
}

func TestDefaultRingSize(t *testing.T) {
	for cpus, want := range map[int]int{0: 16 << 20, 1: 16 << 20, 2: 8 << 20, 3: 4 << 20, 4: 4 << 20, 16: 1 << 20, 128: 1 << 20} {
		if got := DefaultRingSize(cpus); got != want {
			t.Errorf("%d CPUs: %d bytes each, want %d", cpus, got, want)
		}
	}
}
