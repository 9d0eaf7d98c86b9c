package loadgen

// batchSize is the number of attempts that a shard hands over at once.
const batchSize = 512

// batch is what goes from a shard to the collector.
type batch struct {
	from     *outlet
	attempts []Attempt
	loopEnd  int // 0, or the loop of which the shard has now handed over everything
}

// collector gives the attempts of all shards to Plan.OnAttempts, and adds up the
// loops. Its goroutine belongs to Storm.Run.
type collector struct {
	onAttempts func([]Attempt)
	shards     int
	// full has room for every batch that exists and one end of a loop per shard:
	// a shard never waits here, but only for a free batch, where it counts it.
	full chan batch
	// loopDone has room for the one loop that can be under way.
	loopDone chan LoopCount
}

// batchesPerShard is chosen so that a few shards can run ahead of a slow
// OnAttempts by thousands of attempts, and many shards do not take much memory.
func batchesPerShard(shards int) int { return min(max(128/shards, 4), 32) }

func newCollector(p *Plan, shards int) *collector {
	return &collector{
		onAttempts: p.OnAttempts,
		shards:     shards,
		full:       make(chan batch, shards*(batchesPerShard(shards)+1)),
		loopDone:   make(chan LoopCount, 1),
	}
}

func (c *collector) run() {
	var (
		loop  LoopCount
		ended int
	)
	for b := range c.full {
		loop.Add(b.attempts)
		if len(b.attempts) != 0 && c.onAttempts != nil {
			c.onAttempts(b.attempts)
		}
		if b.attempts != nil {
			b.from.free <- b.attempts[:0]
		}
		if b.loopEnd == 0 {
			continue
		}
		if ended++; ended == c.shards {
			loop.Loop = b.loopEnd
			c.loopDone <- loop
			loop, ended = LoopCount{}, 0
		}
	}
}

// outlet is a shard's end of the collector: the batch it fills, and the free ones.
type outlet struct {
	full    chan<- batch
	free    chan []Attempt // has room for all of the shard's batches
	current []Attempt
	stalls  uint64
	oldest  int64 // when the first of current was put, CLOCK_MONOTONIC ns
	failed  int64 // of all that were put
}

func newOutlet(c *collector) outlet {
	n := batchesPerShard(c.shards)
	o := outlet{full: c.full, free: make(chan []Attempt, n)}
	all := make([]Attempt, n*batchSize)
	for i := range n {
		o.free <- all[i*batchSize : i*batchSize : (i+1)*batchSize]
	}
	return o
}

// put hands a over, at the time now.
func (o *outlet) put(a *Attempt, now int64) {
	if o.current == nil {
		select {
		case o.current = <-o.free:
		default:
			o.stalls++
			o.current = <-o.free
		}
	}
	if len(o.current) == 0 {
		o.oldest = now
	}
	if a.Failed() {
		o.failed++
	}
	o.current = append(o.current, *a)
	if len(o.current) == cap(o.current) {
		o.flush(0)
	}
}

// flush sends what there is; loopEnd, if not 0, says that this was all of a loop.
func (o *outlet) flush(loopEnd int) {
	if len(o.current) == 0 && loopEnd == 0 {
		return
	}
	o.full <- batch{from: o, attempts: o.current, loopEnd: loopEnd}
	o.current = nil
}
