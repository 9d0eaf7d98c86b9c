package tracer

import (
	"errors"
	"fmt"
	"io"

	"github.com/cilium/ebpf/link"
)

// Snapshot puts an event KindSnapshot into the stream for each TCP socket that exists
// now in the network namespace of the calling thread, connections, listeners and
// minisocks: it is called once for each namespace of the trace, after Start, so that
// nothing falls between, and what happens meanwhile can come before or after. With
// a filter by process it also says which of the connections there are are theirs;
// and drops by the listeners there are can be seen from then on.
// Owners are the processes that have a socket open; a minisock has none any more.
//
// The error is nil, and there is no event, where this kernel has no iterators or
// Options.Kinds leaves out both snapshots and drops: Coverage tells.
func (t *Tracer) Snapshot() error {
	if err := t.iterate(); err != nil {
		return err
	}
	if t.drops {
		return t.watchListeners()
	}
	return nil
}

func (t *Tracer) iterate() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.started || t.closed {
		return errors.New("a snapshot needs a trace that has been started")
	}
	for _, p := range t.chosen {
		if p.how != iterator {
			continue
		}
		iter, err := link.AttachIter(link.IterOptions{Program: t.coll.Programs[p.program]})
		if err != nil {
			return fmt.Errorf("iterate over %s: %w", p.tracepoint, err)
		}
		r, err := iter.Open()
		if err == nil {
			_, err = io.Copy(io.Discard, r)
			err = errors.Join(err, r.Close())
		}
		if err = errors.Join(err, iter.Close()); err != nil {
			return fmt.Errorf("iterate over %s: %w", p.tracepoint, err)
		}
	}
	return nil
}
