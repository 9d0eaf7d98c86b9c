package loadgen

import (
	"sync"
	"sync/atomic"
)

// Progress tells how far a storm is (Plan.Progress). The zero value is ready; it is of
// one run at a time.
type Progress struct {
	mu     sync.Mutex
	shards []*shardCounts
	others []func() ProgressCounts
	loop   int
	before ProgressCounts // of all loops before this one
}

// ProgressCounts are attempts: those that began are finished, failed, or open.
type ProgressCounts struct{ Started, Finished, Failed, Open int64 }

// ProgressNow is how things stand, a few milliseconds ago at most, or as long as one
// burst of connect() calls takes where those are slow.
type ProgressNow struct {
	Loop   int            // under way, or done last; 0: none has begun
	InLoop ProgressCounts // of that loop
	All    ProgressCounts // of all loops
}

// Now may be called at any time and from any goroutine.
func (p *Progress) Now() ProgressNow {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := p.sum()
	return ProgressNow{Loop: p.loop, All: all, InLoop: ProgressCounts{
		Started:  all.Started - p.before.Started,
		Finished: all.Finished - p.before.Finished,
		Failed:   all.Failed - p.before.Failed,
		Open:     all.Open,
	}}
}

// shardCounts are written by one shard's thread and read by anyone. The padding keeps
// two shards' counts out of one cache line.
type shardCounts struct {
	_                     [64]byte
	started, failed, open atomic.Int64
	_                     [64]byte
}

// sum is called with mu held.
func (p *Progress) sum() (c ProgressCounts) {
	for _, s := range p.shards {
		// What begins between two of these must not count as finished.
		c.Started += s.started.Load()
		c.Failed += s.failed.Load()
		c.Open += s.open.Load()
	}
	c.Finished = max(0, c.Started-c.Failed-c.Open)
	for _, count := range p.others {
		o := count()
		c.Started += o.Started
		c.Finished += o.Finished
		c.Failed += o.Failed
		c.Open += o.Open
	}
	return c
}

// Begin readies p, which may be nil, for a run, of which others count parts that are not in
// this process. Storm.Run does so by itself.
func (p *Progress) Begin(others ...func() ProgressCounts) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shards, p.others, p.loop, p.before = nil, others, 0, ProgressCounts{}
}

// shard returns the counts for one more shard, nil if nobody asks.
func (p *Progress) shard() *shardCounts {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s := new(shardCounts)
	p.shards = append(p.shards, s)
	return s
}

// NextLoop says which loop begins, while no connection is under way. Storm.Run does so by itself.
func (p *Progress) NextLoop(loop int) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.loop, p.before = loop, p.sum()
}
