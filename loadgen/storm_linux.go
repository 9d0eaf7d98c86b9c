package loadgen

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twtrace/twtrace/internal/clock"
)

// Storm runs a Plan. It holds nothing between runs, and may run more than once.
type Storm struct {
	plan   Plan
	shards int
}

// NewStorm returns the storm of p, or every problem of p at once; ErrNoPortRange if
// this kernel can't do it.
func NewStorm(p Plan) (*Storm, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if err := p.CheckKernel(); err != nil {
		return nil, err
	}
	p.Concurrency = p.AtOnce()
	if p.Timeout == 0 {
		p.Timeout = DefaultTimeout
	}
	shards := p.Shards
	if p.Host != nil {
		shards = p.Host.Shards()
	}
	if shards == 0 {
		limit, err := fdLimit()
		if err != nil {
			return nil, err
		}
		shards = min(shardsFor(p.Concurrency, limit, 1), MaxShards)
	}
	return &Storm{plan: p, shards: min(shards, p.Concurrency)}, nil
}

// Shards returns the number of threads that Run will use: what is worth adding
// to GOMAXPROCS.
func (s *Storm) Shards() int { return s.shards }

// Run runs all loops and returns what they came to. If ctx ends first, Run ends
// what is under way (those attempts have the flag Cancelled) and returns what
// there was until then, with Canceled set and without an error. The only errors
// are those of the set-up: of Plan.Enter and Plan.OnReady, or of making threads' tables
// and epoll instances. Connections that fail are a result.
func (s *Storm) Run(ctx context.Context) (Result, error) {
	startPoller()
	r := stormRun{plan: &s.plan}
	if s.plan.Host != nil {
		// The one that its threads have; it may be written as often as one likes.
		r.wake = s.plan.Host.wake
	} else {
		var err error
		if r.wake, err = newWakeUp(); err != nil {
			return Result{}, err
		}
		defer r.wake.close()
	}
	s.plan.Progress.Begin()
	r.collector = newCollector(&s.plan, s.shards)
	if err := r.startShards(s.shards); err != nil {
		return Result{}, err
	}
	if s.plan.OnReady != nil {
		if err := s.plan.OnReady(); err != nil {
			r.stopShards()
			return Result{}, err
		}
	}
	collected := make(chan struct{})
	go func() {
		defer close(collected)
		r.collector.run()
	}()

	result := r.loops(ctx)

	r.stopShards()
	close(r.collector.full)
	<-collected
	for _, sh := range r.shards {
		result.Stalls += sh.out.stalls
		result.HeldBack += sh.heldBack
		result.PortSkips += sh.source.skips
	}
	return result, nil
}

// stormRun is one call of Run.
type stormRun struct {
	plan      *Plan
	wake      wakeUp
	cancel    atomic.Bool // read by the shards in every turn; wake is what rouses them
	collector *collector
	shards    []*shard
	running   sync.WaitGroup
	begun     int64 // CLOCK_MONOTONIC ns; set before the first loop begins
}

// loopStart begins a loop on every shard.
type loopStart struct {
	loop int
	at   int64 // CLOCK_MONOTONIC ns
}

// startShards returns when every shard is ready, or none runs any more.
func (r *stormRun) startShards(n int) error {
	ready := make(chan error, n)
	for i := range n {
		sh := newShard(i, n, r)
		r.shards = append(r.shards, sh)
		r.running.Add(1)
		run := func() {
			defer r.running.Done()
			sh.run(ready)
		}
		if sh.host != nil {
			sh.host.guests <- run
		} else {
			go onDisposableThread(run)
		}
	}
	r.wakeHost()
	var errs []error
	for range n {
		if err := <-ready; err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) != 0 {
		r.stopShards()
		return errors.Join(errs...)
	}
	return nil
}

func (r *stormRun) stopShards() {
	for _, sh := range r.shards {
		close(sh.start)
	}
	r.wakeHost()
	r.running.Wait()
}

// hostOf returns the server's thread that shard i of the storm runs on; nil: one of its own.
func (r *stormRun) hostOf(i int) *serverShard {
	if r.plan.Host == nil {
		return nil
	}
	return r.plan.Host.shards[i]
}

// wakeHost makes the server's threads look for what the storm has for them.
func (r *stormRun) wakeHost() {
	if r.plan.Host != nil {
		r.wake.wake()
	}
}

// loops runs the loops one after the other until they or ctx end.
func (r *stormRun) loops(ctx context.Context) (result Result) {
	r.begun = clock.Mono()
	if d := r.plan.MaxDuration; d != 0 {
		limited, stop := context.WithTimeout(ctx, d)
		defer stop()
		defer func(ctx context.Context) { result.TimeIsUp = result.Canceled && ctx.Err() == nil }(ctx)
		ctx = limited
	}
	for loop := 1; loop <= r.plan.Loops; loop++ {
		if ctx.Err() != nil || loop > 1 && !pause(ctx, r.plan.Interval) {
			result.Canceled = true
			return result
		}
		r.plan.Progress.NextLoop(loop)
		begin := loopStart{loop, clock.Mono()}
		for _, sh := range r.shards {
			sh.start <- begin
		}
		r.wakeHost()
		var done LoopCount
		select {
		case done = <-r.collector.loopDone:
		case <-ctx.Done():
			done, result.Canceled = r.cancelLoop()
		}
		result.Loops = append(result.Loops, done.LoopResult)
		if done.cancelled || done.Attempts < r.plan.Connections {
			result.Canceled = true
		}
		if r.plan.OnLoop != nil {
			r.plan.OnLoop(done.LoopResult)
		}
	}
	return result
}

// cancelLoop has every shard end what is under way, and returns what the loop came to, and
// whether it was cut short: if not an attempt, then the wait for one to be closed.
func (r *stormRun) cancelLoop() (done LoopCount, cut bool) {
	select {
	case done := <-r.collector.loopDone:
		return done, false
	default:
	}
	r.cancel.Store(true)
	r.wake.wake()
	for {
		select {
		case done := <-r.collector.loopDone:
			return done, true
		case <-time.After(interruptEvery):
			for _, sh := range r.shards {
				if sh.mayBlock {
					interrupt(int(sh.thread.Load()))
				}
			}
		}
	}
}

// pause reports whether ctx lasted for d.
func pause(ctx context.Context, d time.Duration) bool {
	if d == 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// split returns the part that shard i of n has of total: where it begins, and
// how much it is.
func split(total, i, n int) (from, count int) {
	each, rest := total/n, total%n
	from = i*each + min(i, rest)
	if i < rest {
		each++
	}
	return from, each
}

// setupError names the shard where setting up failed.
func setupError(what string, id int, err error) error {
	return fmt.Errorf("set up %s %d: %w", what, id, err)
}
