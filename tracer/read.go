package tracer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/twtrace/twtrace/bpf"
	"github.com/twtrace/twtrace/internal/tcp"
)

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
	stopped := false
	select {
	case <-t.stopped:
		stopped = true
	default:
		if err := ctx.Err(); err != nil {
			return 0, err
		}
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
	if t.drops && !stopped {
		if err := t.watchListeners(); err != nil {
			return 0, err
		}
	}
	t.reading.Lock()
	defer t.reading.Unlock()
	if t.unmapped {
		return 0, fmt.Errorf("read the trace: %w", os.ErrClosed)
	}
	n := t.drain(events)
	if n == 0 && stopped {
		return 0, io.EOF
	}
	return n, nil
}

// drain moves what is in the rings to events and returns how many there were.
func (t *Tracer) drain(events []Event) int {
	defer t.rings.release()
	t.drained = false
	for n, fresh := 0, false; ; {
		if n == len(events) {
			return n
		}
		ev := &events[n]
		if t.convert.pop(ev) {
			t.handOver(ev, 0)
			n++
			continue
		}
		w := t.rings.next()
		if w == nil && fresh {
			t.drained = true
			return n
		}
		if w == nil {
			t.rings.begin()
			fresh = true
			continue
		}
		decode(w, ev)
		if t.recent.duplicate(w) || t.convert.repeated(ev) {
			t.duplicates.Add(1)
			continue
		}
		if t.convert.late(ev) {
			t.late.Add(1)
			t.stamp(ev)
		} else {
			t.handOver(ev, w.Nth)
		}
		n++
	}
}

// handOver counts an event of the ring. Of the events that one call of a program made
// only the first was skipped, if any was.
func (t *Tracer) handOver(ev *Event, nth uint8) {
	if ev.Flags&tcp.FlagRescued != 0 && nth == 0 {
		t.rescued.Add(1)
	} else {
		t.recorded.Add(1)
	}
	t.stamp(ev)
}

func (t *Tracer) stamp(ev *Event) {
	t.seq++
	ev.Seq = t.seq
	if int(ev.Kind) < len(t.byKind) {
		t.byKind[ev.Kind].Add(1)
	}
}

// sameCall is the longest that main program and twin can be apart in time.
const sameCall = uint64(100 * time.Millisecond)

// recentCalls remembers the last events, so as to drop one that main program and
// twin both recorded. That happens when the note which the one leaves for the
// other got lost (bpf/emit.h); the two are then at most one softirq's events
// apart, or the time for which a task was taken off its CPU.
type recentCalls struct {
	calls [2048]call
	next  int
}

// call names a call of a tracepoint, and the event of it. A socket can do the same again
// later: retransmit, connect anew.
type call struct {
	cookie    uint64
	time      uint64
	call      uint32
	kind, nth uint8
}

func (c *call) same(d *call) bool {
	return c.cookie == d.cookie && c.call == d.call && c.kind == d.kind && c.nth == d.nth && d.time-c.time < sameCall
}

func (r *recentCalls) duplicate(w *bpf.ProbesEvent) bool {
	if w.Call == 0 {
		return false // of a program without a twin
	}
	c := call{w.Cookie, w.MonoNs, w.Call, w.Kind, w.Nth}
	if tcp.Flags(w.Flags)&tcp.FlagRescued != 0 {
		return slices.ContainsFunc(r.calls[:], func(d call) bool { return d.same(&c) })
	}
	r.calls[r.next%len(r.calls)] = c
	r.next++
	return false
}

// conversions knows which minisocks wait in FIN_WAIT2. The kernel side reports each
// FIN that a TIME_WAIT acknowledged, of which the first made it one; where it
// can't, the minisock ends as TIME_WAIT and must have become so before.
type conversions struct {
	wanted  bool
	waiting map[tcp.Cookie]struct{}
	end     Event // comes after the conversion that it gave away
	hasEnd  bool
}

// repeated says that ev is a FIN for a minisock that is TIME_WAIT already.
func (c *conversions) repeated(ev *Event) bool {
	if !c.wanted {
		return false
	}
	switch ev.Kind {
	case tcp.KindTWEnter, tcp.KindSnapshot:
		if ev.Substate == tcp.FinWait2 && ev.New == tcp.TimeWait {
			if c.waiting == nil {
				c.waiting = make(map[tcp.Cookie]struct{})
			}
			c.waiting[ev.Cookie] = struct{}{}
		}
	case tcp.KindTWConvert:
		_, waits := c.waiting[ev.Cookie]
		delete(c.waiting, ev.Cookie)
		return !waits
	}
	return false
}

// late turns the end of a minisock, whose conversion was not seen, into the
// conversion; the end itself is the next that pop gives.
func (c *conversions) late(ev *Event) bool {
	if ev.Kind != tcp.KindTWEnd || len(c.waiting) == 0 {
		return false
	}
	_, waits := c.waiting[ev.Cookie]
	delete(c.waiting, ev.Cookie)
	if !waits || ev.Substate != tcp.TimeWait {
		return false
	}
	c.end, c.hasEnd = *ev, true
	ev.Kind, ev.Cause = tcp.KindTWConvert, tcp.CauseNone
	ev.Old, ev.New = tcp.TimeWait, tcp.TimeWait
	ev.Flags |= tcp.FlagLate
	return true
}

func (c *conversions) pop(ev *Event) bool {
	if !c.hasEnd {
		return false
	}
	*ev, c.hasEnd = c.end, false
	return true
}
