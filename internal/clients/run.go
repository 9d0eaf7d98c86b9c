package clients

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/twtrace/twtrace/loadgen"
)

// groupRun is one call of Run.
type groupRun struct {
	procs   []*process
	plan    *loadgen.Plan
	news    chan news
	alive   map[*process]bool
	stopped bool  // all were told to stop
	errs    error // what went wrong beyond connections

	mu   sync.Mutex // of what follows, and of calls of Plan.OnAttempts
	loop loadgen.LoopCount
}

// news is what a client has come to, apart from its attempts.
type news struct {
	what kind // kindReady, kindLoopEnd; kindResult once, when its process has ended
	from *process
	err  error
}

// Run is Storm.Run, with the whole plan in each client; loops begin in all of them together.
// Plan.Enter is not called: the clients were started where they belong. A client that ends
// early by a signal is no error, and the others go on; Accounts tells. Canceled means that ctx
// ended before all were done, or that none was left to be.
func (g *Group) Run(ctx context.Context, plan loadgen.Plan) (loadgen.Result, error) {
	// What a client has to say in a loop and at its end finds room.
	r := &groupRun{procs: g.procs, plan: &plan, news: make(chan news, 3*len(g.procs)), alive: make(map[*process]bool)}
	var counts []func() loadgen.ProgressCounts
	for _, p := range g.procs {
		counts = append(counts, p.progress)
	}
	plan.Progress.Begin(counts...)
	var following sync.WaitGroup
	defer following.Wait()
	for _, p := range g.procs {
		r.alive[p] = true
		following.Go(func() { r.follow(p) })
	}
	err := r.setUp(ctx)
	if err == nil && plan.OnReady != nil {
		err = plan.OnReady()
	}
	if err != nil {
		for _, p := range g.procs {
			p.kill()
		}
		r.rest(ctx)
		return loadgen.Result{}, err
	}
	result := r.loops(ctx)
	r.rest(ctx)
	for _, p := range g.procs {
		if p.outcome != nil {
			result.PortSkips += p.outcome.PortSkips
			result.Stalls += p.outcome.Stalls
			result.HeldBack += p.outcome.HeldBack
			result.TimeIsUp = result.TimeIsUp || p.outcome.TimeIsUp
		}
	}
	result.Canceled = result.TimeIsUp || r.canceled()
	return result, r.errs
}

// setUp gives each client its plan, and returns when all are ready or have ended.
func (r *groupRun) setUp(ctx context.Context) error {
	for i, p := range r.procs {
		plan := *r.plan
		plan.Part, plan.Parts = i, len(r.procs)
		plan.MaxRate /= float64(len(r.procs)) // it is of all of them
		text, err := json.Marshal(&plan)
		if err != nil {
			return fmt.Errorf("write the storm's plan: %w", err)
		}
		_ = p.link.send(kindPlan, text) // it fails if the client has ended, which its follower says
	}
	r.await(ctx, kindReady)
	return r.errs
}

// await returns when every client that lives has said what, and reports whether any has.
func (r *groupRun) await(ctx context.Context, what kind) (some bool) {
	open := make(map[*process]bool)
	for p := range r.alive {
		open[p] = true
	}
	for len(open) > 0 {
		n := r.hear(ctx)
		switch n.what {
		case what:
			some = true
			delete(open, n.from)
		case kindResult:
			delete(open, n.from)
		}
	}
	return some
}

// rest waits until every client has ended.
func (r *groupRun) rest(ctx context.Context) {
	for len(r.alive) > 0 {
		r.hear(ctx)
	}
}

// hear returns the next news. If ctx ends meanwhile, or has, the clients are told to stop.
func (r *groupRun) hear(ctx context.Context) news {
	var n news
	if r.stopped {
		n = <-r.news
	} else {
		select {
		case n = <-r.news:
		case <-ctx.Done():
			r.stopped = true
			for p := range r.alive {
				p.stop()
			}
			n = <-r.news
		}
	}
	if n.what == kindResult {
		delete(r.alive, n.from)
	}
	if n.err != nil {
		r.errs = errors.Join(r.errs, fmt.Errorf("client process %d: %w", n.from.number+1, n.err))
	}
	return n
}

// loops runs the loops one after the other until they, the clients or ctx end.
func (r *groupRun) loops(ctx context.Context) (result loadgen.Result) {
	for loop := 1; loop <= r.plan.Loops && len(r.alive) > 0 && ctx.Err() == nil; loop++ {
		r.mu.Lock()
		r.loop = loadgen.LoopCount{}
		r.loop.Loop = loop
		r.mu.Unlock()
		r.plan.Progress.NextLoop(loop)
		for p := range r.alive {
			_ = p.link.send(kindBegin, nil) // as with the plan
		}
		ended := r.await(ctx, kindLoopEnd)
		r.mu.Lock()
		done := r.loop.LoopResult
		r.mu.Unlock()
		if !ended && done.Attempts == 0 {
			break // none got that far
		}
		result.Loops = append(result.Loops, done)
		if r.plan.OnLoop != nil {
			r.plan.OnLoop(done)
		}
	}
	return result
}

// canceled reports what Result.Canceled is to say.
func (r *groupRun) canceled() bool {
	done := 0
	for _, p := range r.procs {
		if p.outcome != nil && !p.outcome.Canceled {
			done++
		}
	}
	return done == 0 || r.stopped && done < len(r.procs)
}

// follow receives what a client sends until its end.
func (r *groupRun) follow(p *process) {
	ready, err := r.receive(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		p.silent = true
	}
	if p.silent || errors.Is(err, errMessage) {
		p.kill()
	}
	p.wait()
	p.tally.Ended = p.ended()
	p.tally.NotReported = p.begun() - p.tally.Attempts
	n := news{what: kindResult, from: p}
	status, _ := p.state.Sys().(syscall.WaitStatus)
	switch {
	case errors.Is(err, errMessage):
		n.err = err
	case p.outcome != nil && p.outcome.Error != "":
		n.err = errors.New(p.outcome.Error)
	case !ready && !status.Signaled():
		n.err = fmt.Errorf("it ended before it was ready: %s", p.state)
	}
	r.news <- n
}

// receive hands on what the client sends until it has told its outcome or can't any more.
func (r *groupRun) receive(p *process) (ready bool, err error) {
	buf := make([]loadgen.Attempt, maxAttempts)
	for {
		if p.stopping.Load() {
			if err := p.link.conn.SetReadDeadline(time.Now().Add(stopLimit)); err != nil {
				return ready, err
			}
		}
		what, length, err := p.link.next()
		if err != nil {
			return ready, err
		}
		switch what {
		case kindAttempts:
			attempts, err := p.link.receiveAttempts(length, buf)
			if err != nil {
				return ready, err
			}
			r.deliver(p, attempts)
		case kindReady, kindLoopEnd:
			ready = true
			r.news <- news{what: what, from: p}
		case kindResult:
			var o outcome
			if err := p.link.receiveJSON(length, &o); err != nil {
				return ready, err
			}
			p.outcome = &o
			return ready, nil
		default:
			return ready, fmt.Errorf("%w: kind %d", errMessage, what)
		}
	}
}

// deliver counts a client's attempts and hands them on.
func (r *groupRun) deliver(p *process, attempts []loadgen.Attempt) {
	failed := p.tally.Failed
	p.tally.take(attempts)
	p.failed.Add(int64(p.tally.Failed - failed))
	p.reported.Add(int64(len(attempts)))
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range attempts {
		attempts[i].SetClient(p.number)
	}
	r.loop.Add(attempts)
	if r.plan.OnAttempts != nil {
		r.plan.OnAttempts(attempts)
	}
}
