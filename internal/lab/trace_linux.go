package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/tracer"
)

// Trace is a trace of a network, for entries that look at single connections.
type Trace struct {
	t      *tracer.Tracer
	cancel context.CancelFunc
	ended  sync.WaitGroup

	mu     sync.Mutex
	events []tcp.Event
	err    error
}

// Trace begins to trace networks; it ends with the entry.
func (s *Session) Trace(nets ...*netlab.Lab) (*Trace, error) {
	var o tracer.Options
	for _, l := range nets {
		o.NetNS = append(o.NetNS, tcp.NetNS(l.Client().Cookie()))
		if l.Server() != l.Client() {
			o.NetNS = append(o.NetNS, tcp.NetNS(l.Server().Cookie()))
		}
	}
	t, err := tracer.Open(o)
	if err != nil {
		return nil, err
	}
	s.Defer(t.Close)
	if err := t.Start(); err != nil {
		return nil, err
	}
	for _, l := range nets {
		// So that drops by listeners that there are can be seen.
		if err := l.Server().Do(t.Snapshot); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithCancel(s.ctx)
	tr := &Trace{t: t, cancel: cancel}
	s.Defer(func() error {
		_, _ = tr.Stop() // what an entry needs of it, it has asked for
		return nil
	})
	tr.ended.Add(1)
	go tr.read(ctx)
	return tr, nil
}

func (t *Trace) read(ctx context.Context) {
	defer t.ended.Done()
	buf := make([]tcp.Event, 1024)
	for {
		n, err := t.t.Read(ctx, buf)
		t.mu.Lock()
		t.events = append(t.events, buf[:n]...)
		if err != nil && !errors.Is(err, io.EOF) {
			t.err = fmt.Errorf("read the trace: %w", err)
		}
		t.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Stop ends the trace and returns all of its events. The error says if some were lost. It may be called again.
func (t *Trace) Stop() ([]tcp.Event, error) {
	if err := t.t.Stop(); err != nil {
		return nil, err
	}
	t.ended.Wait()
	t.cancel()
	if t.err != nil {
		return nil, t.err
	}
	st, err := t.t.Stats()
	if err == nil && st.Lost() > 0 {
		err = fmt.Errorf("the trace lost %d events", st.Lost())
	}
	return t.events, err
}

// Sees reports whether a fact is seen exactly here.
func (t *Trace) Sees(f tcp.Fact) bool { return t.t.Coverage()[f] == tcp.Exact }

// reason is the kernel's name for why an RST was sent; empty where it gives none.
func (t *Trace) reason(ev *tcp.Event) string { return t.t.RstReasons()[ev.Reason] }
