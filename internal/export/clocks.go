package export

import (
	"math"
	"slices"
	"time"

	"github.com/twtrace/twtrace/internal/recording"
)

// clocks tell the time of day of a time of CLOCK_MONOTONIC. The two part whenever the time is set or
// corrected, so that each sample of the recording has a pair of them: the nearest one counts.
type clocks struct {
	spans []span
	last  int64 // MonoNS of the latest sample
	// close is how far apart two samples may be and still count as one, ns.
	close int64
}

// span is a piece of the recording in which the clocks are the same distance apart.
type span struct {
	from   int64 // CLOCK_MONOTONIC, ns
	offset int64 // CLOCK_REALTIME less CLOCK_MONOTONIC, ns
}

// jitter is what two readings of two clocks differ by though nothing has changed.
const jitter = int64(10 * time.Microsecond)

// maxSpans bounds the memory: a clock that is corrected all the time fills them in a day or more.
const maxSpans = 1 << 17

// add takes the next sample.
func (c *clocks) add(monoNS, realNS int64) {
	offset, from := realNS-monoNS, monoNS/2+c.last/2
	c.last = monoNS
	if n := len(c.spans); n > 0 && (near(c.spans[n-1].offset, offset, c.close) || from < c.spans[n-1].from) {
		return
	}
	if len(c.spans) == maxSpans {
		c.thin()
	}
	c.spans = append(c.spans, span{from, offset})
}

// thin makes room by taking what is twice as far apart for one.
func (c *clocks) thin() {
	for len(c.spans) > maxSpans/2 {
		if c.close = 2 * c.close; c.close < 0 {
			c.close = math.MaxInt64 // of a recording that makes no sense
		}
		c.spans = slices.CompactFunc(c.spans, func(a, b span) bool { return near(a.offset, b.offset, c.close) })
	}
}

func near(a, b, within int64) bool { return max(a, b)-min(a, b) <= within }

// wallNS is the time of day of a time of CLOCK_MONOTONIC, nanoseconds since 1970.
func (c *clocks) wallNS(monoNS int64) int64 {
	i, found := slices.BinarySearchFunc(c.spans, monoNS, func(s span, at int64) int {
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

// wall is wallNS as a time.
func (c *clocks) wall(monoNS int64) time.Time { return time.Unix(0, c.wallNS(monoNS)).UTC() }

// readClocks reads the samples alone.
func (j *job) readClocks() error {
	first := j.r.Header().Clock
	j.clocks = clocks{close: jitter}
	j.clocks.add(first.MonoNS, first.RealNS)
	_, err := j.r.Scan(recording.Query{Tables: []recording.Table{recording.TableSamples}}, func(b *recording.Batch) error {
		for i := range b.Samples {
			if s := &b.Samples[i]; s.RealNS != 0 {
				j.clocks.add(s.MonoNS, s.RealNS)
			}
		}
		return j.ctx.Err()
	})
	return err
}
