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
	return c
}

// begin readies p, which may be nil, for a run.
func (p *Progress) begin() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shards, p.loop, p.before = nil, 0, ProgressCounts{}
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

// nextLoop is called when no shard has a connection under way.
func (p *Progress) nextLoop(loop int) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.loop, p.before = loop, p.sum()
}
