package tracer

import (
	"fmt"

	"github.com/twtrace/twtrace/bpf"
)

// watchListeners attaches the programs that look at every segment which is freed
// when there is a listener to look for, and takes them off when there is none.
// Nothing is missed in between: what a listener dropped is the difference of a
// counter of its own, which the first look finds out (bpf/listen.h).
func (t *Tracer) watchListeners() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-t.stopped:
		return nil
	default:
	}
	var perCPU []bpf.ProbesAccount
	if err := t.coll.Maps[bpf.ProbesMapAccounts].Lookup(uint32(0), &perCPU); err != nil {
		return fmt.Errorf("count the listeners: %w", err)
	}
	var listeners int64
	for _, a := range perCPU {
		listeners += int64(a.ListenersBegun) - int64(a.ListenersEnded)
	}
	if listeners > 0 == t.watching {
		return nil
	}
	t.watching = listeners > 0
	if !t.watching {
		return t.detach(func(a attached) bool { return a.how == withListener })
	}
	for i := range t.chosen {
		if p := &t.chosen[i]; p.how == withListener {
			if err := t.attach(p, p.program, false); err != nil {
				return err
			}
		}
	}
	return nil
}
