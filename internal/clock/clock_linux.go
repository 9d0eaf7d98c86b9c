package clock

import (
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// start pairs the runtime's clock with CLOCK_MONOTONIC. Both are the same clock
// (runtime.nanotime reads CLOCK_MONOTONIC) with different origins, so that one
// pair holds for ever. The pair is the narrowest of several: another thread may
// run between two readings.
func start() (time.Time, int64) {
	var (
		base     time.Time
		offset   int64
		narrowed int64 = math.MaxInt64
	)
	for range 32 {
		before := read()
		now := time.Now()
		after := read()
		if width := after - before; width < narrowed {
			base, offset, narrowed = now, before+width/2, width
		}
	}
	return base, offset
}

// read asks the kernel. clock_gettime(CLOCK_MONOTONIC) can't fail on Linux.
func read() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}
