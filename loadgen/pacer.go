package loadgen

import "math"

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
