package recording

import "testing"

func TestClocks(t *testing.T) {
	const second = int64(1e9)
	c := Clocks{close: clockJitter}
	c.Add(100*second, 1000*second)
	c.Add(101*second, 1001*second+5) // as long as a reading takes
	c.Add(102*second, 1002*second)
	c.Add(103*second, 4003*second) // somebody set the clock, after 102 and before 103
	c.Add(104*second, 4004*second)
	for _, tt := range []struct{ mono, want int64 }{
		{0, 900 * second}, // before the first
		{100 * second, 1000 * second},
		{101*second + 7, 1001*second + 7},
		{102*second + second/2 - 1, 1002*second + second/2 - 1},
		{102*second + second/2 + 1, 4002*second + second/2 + 1}, // nearer to the sample after
		{103 * second, 4003 * second},
		{999 * second, 4899 * second},
	} {
		if got := c.WallNS(tt.mono); got != tt.want {
			t.Errorf("%d was at %d, want %d", tt.mono, got, tt.want)
		}
	}
}

// TestClocksBounded: whatever a recording says of its clocks, it does not take all memory.
func TestClocksBounded(t *testing.T) {
	c := Clocks{close: clockJitter}
	for i := range int64(3 * maxClockSpans) {
		c.Add(i, i*i*1_000_000*(i&1*2-1)) // from minus to plus, and beyond
	}
	if len(c.spans) > maxClockSpans {
		t.Errorf("%d spans", len(c.spans))
	}
	c.WallNS(-1 << 63)
}
