package loadgen

import (
	"math"
	"time"
)

// pacer says when the attempts of a loop are due: at a constant rate, or one that rises
// or falls linearly over the loop.
type pacer struct {
	from, to float64 // attempts a second, as the loop begins and ends
	n        int     // attempts of the loop
}

// due is when attempt k, counted from 0, is to begin, in ns since the loop began.
func (p *pacer) due(k int) int64 {
	slope := (p.to - p.from) * (p.to + p.from) / (2 * float64(p.n)) // of the rate, per second
	if slope == 0 {
		return int64(float64(k) / p.from * 1e9)
	}
	// from*t + slope*t²/2 = k; rounding may take the root a little below 0 at the end of
	// a loop that ends with rate 0.
	root := math.Sqrt(max(p.from*p.from+2*slope*float64(k), 0))
	return int64((root - p.from) / slope * 1e9)
}

// catchUp is how late a slot of a limiter may be used, in ns: a thread that was not
// woken in time need not lose what it was allowed.
const catchUp = int64(2 * time.Millisecond)

// limiter says when a shard may begin its next attempt. Its slots are every nth of one
// grid, which the shards share, so that none has to ask another. A slot is used once, or
// not at all if it is older than catchUp. So what begins in a second has slots from a second and catchUp, and
// that is how much the grid is wider than the rate asks for.
type limiter struct {
	gap   float64 // ns between two slots of the grid
	every int64   // of the slots this shard has each so-manieth
	next  int64   // the number of its next slot
}

// newLimiter returns the limiter of shard id of n, nil if the plan has no limit. An open
// loop at the limit itself is left its own rate: with less it would be later and later.
func newLimiter(p *Plan, id, n int) *limiter {
	if p.MaxRate == 0 {
		return nil
	}
	rate := max(p.MaxRate/(1+float64(catchUp)/1e9), p.Rate, p.RateTo)
	return &limiter{gap: 1e9 / rate, every: int64(n), next: int64(id)}
}

// due is when the next attempt may begin, in ns since the storm did.
func (l *limiter) due() int64 { return int64(math.Ceil(float64(l.next) * l.gap)) }

// ready reports whether the next attempt may begin now, ns since the storm did, and
// passes over slots that are too old.
func (l *limiter) ready(now int64) bool {
	if oldest := int64(math.Ceil(float64(now-catchUp) / l.gap)); l.next < oldest {
		l.next += (oldest - l.next + l.every - 1) / l.every * l.every
	}
	return l.due() <= now
}

// begin uses the slot up.
func (l *limiter) begin() { l.next += l.every }
