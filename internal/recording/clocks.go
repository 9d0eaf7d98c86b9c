package recording

import (
	"math"
	"slices"
	"time"
)

// Clocks tell the time of day of a time of CLOCK_MONOTONIC. The two part whenever the time is set or
// corrected, so that each sample of the recording has a pair of them: the nearest one counts.
type Clocks struct {
	spans []clockSpan
	last  int64 // MonoNS of the latest sample
	// close is how far apart two samples may be and still count as one, ns.
	close int64
}

// clockSpan is a piece of the recording in which the clocks are the same distance apart.
type clockSpan struct {
	from   int64 // CLOCK_MONOTONIC, ns
	offset int64 // CLOCK_REALTIME less CLOCK_MONOTONIC, ns
}

// clockJitter is what two readings of two clocks differ by though nothing has changed.
const clockJitter = int64(10 * time.Microsecond)

// maxClockSpans bounds the memory: a clock that is corrected all the time fills them in a day or more.
const maxClockSpans = 1 << 17

// NewClocks returns the Clocks of a recording that begins with a moment.
func NewClocks(first Clock) *Clocks {
	c := &Clocks{close: clockJitter}
	c.Add(first.MonoNS, first.RealNS)
	return c
}

// Add takes the next sample, which has both clocks (Sample.RealNS is not 0).
func (c *Clocks) Add(monoNS, realNS int64) {
	offset, from := realNS-monoNS, monoNS/2+c.last/2
	c.last = monoNS
	if n := len(c.spans); n > 0 && (near(c.spans[n-1].offset, offset, c.close) || from < c.spans[n-1].from) {
		return
	}
	if len(c.spans) == maxClockSpans {
		c.thin()
	}
	c.spans = append(c.spans, clockSpan{from, offset})
}

// thin makes room by taking what is twice as far apart for one.
func (c *Clocks) thin() {
	for len(c.spans) > maxClockSpans/2 {
		if c.close = 2 * c.close; c.close < 0 {
			c.close = math.MaxInt64 // of a recording that makes no sense
		}
		c.spans = slices.CompactFunc(c.spans, func(a, b clockSpan) bool { return near(a.offset, b.offset, c.close) })
	}
}

func near(a, b, within int64) bool { return max(a, b)-min(a, b) <= within }

// WallNS is the time of day of a time of CLOCK_MONOTONIC, nanoseconds since 1970.
func (c *Clocks) WallNS(monoNS int64) int64 {
	i, found := slices.BinarySearchFunc(c.spans, monoNS, func(s clockSpan, at int64) int {
		switch {
		case s.from < at:
			return -1
		case s.from > at:
			return 1
		}
		return 0
	})
	if !found {
		i = max(0, i-1)
	}
	return monoNS + c.spans[i].offset
}

// Wall is WallNS as a time.
func (c *Clocks) Wall(monoNS int64) time.Time { return time.Unix(0, c.WallNS(monoNS)).UTC() }
