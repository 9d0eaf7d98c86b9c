package tracer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

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
		// A rescued state change can bring a tw-overflow along: one was skipped.
		if ev.Flags&tcp.FlagRescued != 0 && ev.Kind != tcp.KindTWOverflow {
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
