package run

import (
	"context"
	"fmt"
	"time"

	"github.com/twtrace/twtrace/internal/control"
	"github.com/twtrace/twtrace/internal/report"
)

// askEvery is the pause between two questions for a server's counts.
const askEvery = 100 * time.Millisecond

// ask asks a server elsewhere for its counts.
func (r *session) ask(ctx context.Context) (c control.Counts, err error) {
	err = r.lab.Client().Do(func() error {
		c, err = control.Ask(ctx, r.opts.Control, r.target.Port())
		return err
	})
	return c, err
}

// askFirst notes what a server elsewhere had counted before the storm, before the
// trace begins, which sees nothing of the question.
func (r *session) askFirst(ctx context.Context) {
	if !r.opts.Control.IsValid() {
		return
	}
	c, err := r.ask(ctx)
	if err != nil {
		r.notAsked = err
		return
	}
	r.first = &c
}

// askLast asks a server elsewhere until it has closed what it accepted and two
// answers are the same, for settleLimit at most; once only if the run was interrupted, and
// then for settleStopped.
func (r *session) askLast(ctx context.Context) (control.Counts, error) {
	asked := ctx
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleLimit)
	defer cancel()
	defer context.AfterFunc(asked, func() { time.AfterFunc(settleStopped, cancel) })()
	last, err := r.ask(ctx)
	for err == nil && asked.Err() == nil {
		select {
		case <-ctx.Done():
			return last, nil
		case <-time.After(askEvery):
		}
		now, again := r.ask(ctx)
		if again != nil {
			return last, nil // of a moment ago
		}
		if now == last && now.Accepted-r.first.Accepted == now.Closed-r.first.Closed {
			return now, nil
		}
		last = now
	}
	return last, err
}

// account completes the server's account: its own server's once that is closed, so
// that what accept() has not returned by then, it never will; and of a server
// elsewhere what it answers, or a note why that is not known.
func (r *session) account(ctx context.Context) (*report.Server, error) {
	if r.server != nil {
		st := r.server.Stats()
		if err := r.server.Close(); err != nil {
			return nil, err
		}
		return &report.Server{Accepted: int(r.server.Stats().Accepted), Closed: int(st.Closed)}, nil
	}
	switch {
	case r.notAsked != nil:
		r.unknown(r.notAsked.Error() + "; start it with `twtrace serve`, or name its port with --control")
		return nil, nil
	case r.first == nil:
		r.unknown("it was not asked (--control none)")
		return nil, nil
	}
	last, err := r.askLast(ctx)
	if err != nil {
		r.unknown(err.Error())
		return nil, nil
	}
	if last.Accepted < r.first.Accepted || last.Closed < r.first.Closed {
		r.unknown("it counts less than before the storm: it was started anew")
		return nil, nil
	}
	return &report.Server{
		Elsewhere: true,
		Accepted:  int(last.Accepted - r.first.Accepted),
		Closed:    int(last.Closed - r.first.Closed),
	}, nil
}

// unknown notes why a server's account is missing.
func (r *session) unknown(why string) {
	r.summary.Notes = append(r.summary.Notes, fmt.Sprintf("What the server accepted is not known: %s.", why))
}
