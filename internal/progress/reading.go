package progress

import (
	"fmt"
	"time"
)

// Reading is how far the reading of a file is.
type Reading struct {
	Elapsed   time.Duration
	Done, All int64 // bytes
}

// Line is as that of Run. The time to go is told once there is something to tell it by.
func (r Reading) Line(width int) string {
	if r.All <= 0 {
		return cut(seconds(r.Elapsed)+": reading", width)
	}
	done := min(max(0, r.Done), r.All)
	part := float64(done) / float64(r.All)
	parts := []string{fmt.Sprintf("%s: %.0f %% of %.1f MB", seconds(r.Elapsed), 100*part, float64(r.All)/1e6)}
	if part > 0.01 {
		left := time.Duration(float64(r.Elapsed) * (1 - part) / part)
		parts = append(parts, seconds(left)+" to go")
	}
	return fit(width, parts...)
}
