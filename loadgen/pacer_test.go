package loadgen

import (
	"testing"
	"time"
)

func TestPacer(t *testing.T) {
	for _, tt := range []struct {
		name string
		p    pacer
		k    int
		want time.Duration
	}{
		{"the first", pacer{1000, 1000, 5000}, 0, 0},
		{"constant", pacer{1000, 1000, 5000}, 2500, 2500 * time.Millisecond},
		{"slow", pacer{0.5, 0.5, 3}, 2, 4 * time.Second},
		// 0 to 1000 a second in 10 s: k = 50 t².
		{"from nothing", pacer{0, 1000, 5000}, 1250, 5 * time.Second},
		{"from nothing, to the end", pacer{0, 1000, 5000}, 5000, 10 * time.Second},
		{"upwards", pacer{1000, 3000, 20000}, 20000, 10 * time.Second},
		{"upwards, half of the time", pacer{1000, 3000, 20000}, 7500, 5 * time.Second},
		{"downwards", pacer{3000, 1000, 20000}, 12500, 5 * time.Second},
		{"downwards to nothing", pacer{1000, 0, 5000}, 5000, 10 * time.Second},
	} {
		if got := time.Duration(tt.p.due(tt.k)); (got - tt.want).Abs() > time.Microsecond {
			t.Errorf("%s: attempt %d is due after %v, want %v", tt.name, tt.k, got, tt.want)
		}
	}
	for _, p := range []pacer{{1e6, 1e6, 1000}, {0, 1, 100}, {1, 0, 100}, {10, 1e6, 1000}} {
		for k := 1; k <= p.n; k++ {
			if p.due(k) < p.due(k-1) {
				t.Errorf("%+v: attempt %d is due before the one before it", p, k)
			}
		}
	}
}
