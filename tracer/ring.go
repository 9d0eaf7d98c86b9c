package tracer

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/bpf"
)

const (
	slotSize = int(unsafe.Sizeof(bpf.ProbesSlot{}))
	minRing  = 32 * slotSize

	// patience is how long an event that a program has begun to write holds up those
	// after it. Mostly that is an interrupt's time; where a tracepoint can
	// be preempted (7.x), the time of another task.
	patience = 100 * time.Millisecond
)

// DefaultRingSize is the size of one CPU's ring in bytes, on a machine with so many CPUs: 16 MiB
// in all, which hold 131,072 events, a third of a second of the fastest
// storm that was seen (400,000 events a second); and no less than 1 MiB a CPU.
func DefaultRingSize(cpus int) int {
	const all, least = 16 << 20, 1 << 20
	share := all / max(cpus, 1)
	return max(1<<(bits.Len(uint(share))-1), least)
}

// sizeRings sets the sizes of the rings' maps; size is that of one ring in bytes, 0: the default.
func sizeRings(spec *ebpf.CollectionSpec, size int) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count the CPUs: %w", err)
	}
	if size == 0 {
		size = DefaultRingSize(cpus)
	}
	slots := uint64(size / slotSize)
	if slots*uint64(cpus) > math.MaxInt32 {
		return fmt.Errorf("rings of %d bytes for %d CPUs are too large", size, cpus)
	}
	spec.Maps[bpf.ProbesMapSlots].MaxEntries = uint32(slots) * uint32(cpus)
	spec.Maps[bpf.ProbesMapCursors].MaxEntries = uint32(cpus)
	return spec.Variables[bpf.ProbesVarRingSlots].Set(uint32(slots))
}

// rings reads what the programs write: one ring a CPU, merged by time. What one CPU
// caused on another comes after its cause. Within a CPU, what interrupted a program may come
// after the interrupted event, and is then a moment earlier.
type rings struct {
	slotMem, cursorMem []byte // mappings of the two maps
	slots              []bpf.ProbesSlot
	cursors            []bpf.ProbesCursor

	of    []ring
	limit uint64 // CLOCK_MONOTONIC: later events wait for the next batch
	// turn is the ring whose event comes next as long as that is not after until, which
	// is when the other rings' first is.
	turn  *ring
	until uint64
}

// ring is one CPU's part of a batch.
type ring struct {
	slots     []bpf.ProbesSlot
	cursor    *bpf.ProbesCursor
	next, end uint64 // what is to be read
}

func newRings(slots, cursors *ebpf.Map) (*rings, error) {
	r := &rings{}
	var err error
	if r.cursorMem, err = mapArray(cursors); err != nil {
		return nil, err
	}
	if r.slotMem, err = mapArray(slots); err != nil {
		return nil, errors.Join(err, unix.Munmap(r.cursorMem))
	}
	cpus := int(cursors.MaxEntries())
	r.cursors = unsafe.Slice((*bpf.ProbesCursor)(unsafe.Pointer(unsafe.SliceData(r.cursorMem))), cpus)
	r.slots = unsafe.Slice((*bpf.ProbesSlot)(unsafe.Pointer(unsafe.SliceData(r.slotMem))), int(slots.MaxEntries()))
	r.slice()
	return r, nil
}

// slice divides the slots among the CPUs.
func (r *rings) slice() {
	per := len(r.slots) / len(r.cursors)
	r.of = make([]ring, len(r.cursors))
	for i := range r.of {
		r.of[i] = ring{slots: r.slots[i*per : (i+1)*per], cursor: &r.cursors[i]}
	}
}

// mapArray maps the values of an array.
func mapArray(m *ebpf.Map) ([]byte, error) {
	page := os.Getpagesize()
	size := (int(m.ValueSize())*int(m.MaxEntries()) + page - 1) / page * page
	mem, err := unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the ring: %w", err)
	}
	return mem, nil
}

func (r *rings) close() error {
	r.of, r.turn = nil, nil
	return errors.Join(unix.Munmap(r.slotMem), unix.Munmap(r.cursorMem))
}

// at is the slot of event n, counted from 0.
func (g *ring) at(n uint64) *bpf.ProbesSlot { return &g.slots[n&uint64(len(g.slots)-1)] }

// whole reports whether event n has been written.
func (g *ring) whole(n uint64) bool { return atomic.LoadUint64(&g.at(n).Seq) == n+1 }

// begin starts a batch: everything that has happened until now. An event's time is
// taken after its slot. So once the times of all that is there have been seen, and after that how
// far the rings are written, no event up to the latest of these times is
// missing.
func (r *rings) begin() {
	r.limit = 0
	for i := range r.of {
		g := &r.of[i]
		end := atomic.LoadUint64(&g.cursor.Head)
		for n := g.next; n < end && g.whole(n); n++ {
			r.limit = max(r.limit, g.at(n).Event.MonoNs)
		}
	}
	for i := range r.of {
		g := &r.of[i]
		g.end = atomic.LoadUint64(&g.cursor.Head)
	}
	r.turn = nil
}

// next is the batch's next event by time; nil: there is no more. It is valid until
// release.
func (r *rings) next() *bpf.ProbesEvent {
	if r.turn == nil || !r.turn.ready() || r.turn.first().MonoNs > r.until {
		r.choose()
	}
	if r.turn == nil {
		return nil
	}
	e := r.turn.first()
	if e.MonoNs > r.limit {
		return nil
	}
	r.turn.next++
	return e
}

// choose looks for the ring with the earliest event.
func (r *rings) choose() {
	r.turn, r.until = nil, math.MaxUint64
	var earliest uint64
	for i := range r.of {
		g := &r.of[i]
		if !g.ready() {
			continue
		}
		if t := g.first().MonoNs; r.turn == nil || t < earliest {
			if r.turn != nil {
				r.until = earliest
			}
			r.turn, earliest = g, t
		} else {
			r.until = min(r.until, t)
		}
	}
}

func (g *ring) first() *bpf.ProbesEvent { return &g.at(g.next).Event }

// ready reports whether the ring has an event for this batch. It waits for one that is being
// written, and after a while leaves it for another batch.
func (g *ring) ready() bool {
	if g.next == g.end {
		return false
	}
	if g.whole(g.next) {
		return true
	}
	for begun := time.Now(); time.Since(begun) < patience; time.Sleep(10 * time.Microsecond) {
		if g.whole(g.next) {
			return true
		}
	}
	g.end = g.next
	return false
}

// release gives the slots of what has been read back to the programs.
func (r *rings) release() {
	for i := range r.of {
		atomic.StoreUint64(&r.of[i].cursor.Tail, r.of[i].next)
	}
}

// written is how many events the programs have put into slots.
func (r *rings) written() (n uint64) {
	for i := range r.cursors {
		n += atomic.LoadUint64(&r.cursors[i].Head)
	}
	return n
}
