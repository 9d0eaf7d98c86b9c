package loadgen

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
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

// TestLimiter has shards that look at random moments begin whatever they may.
func TestLimiter(t *testing.T) {
	for _, tt := range []struct {
		rate   float64
		shards int
		every  time.Duration // the mean time between two looks of a shard
		least  float64       // of the rate, on average
	}{
		{1000, 1, 100 * time.Microsecond, 0.99},
		{1000, 7, 100 * time.Microsecond, 0.99},
		{3, 5, time.Millisecond, 0.9},
		{50_000, 3, 200 * time.Microsecond, 0.99},
		{1000, 2, 5 * time.Millisecond, 0.1}, // most slots are too old by the time somebody looks
	} {
		t.Run(fmt.Sprintf("%g a second, %d shards, %v", tt.rate, tt.shards, tt.every), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(1, 2))
			const seconds = 4
			var begun []int64
			for id := range tt.shards {
				l := newLimiter(&Plan{MaxRate: tt.rate}, id, tt.shards)
				for now := int64(0); now < seconds*1e9; now += rnd.Int64N(2 * int64(tt.every)) {
					for l.ready(now) {
						l.begin()
						begun = append(begun, now)
					}
				}
			}
			slices.Sort(begun)
			if least := tt.least * tt.rate * seconds; float64(len(begun)) < least {
				t.Errorf("%d began in %d s, want at least %g", len(begun), seconds, least)
			}
			n := int(math.Ceil(tt.rate))
			for i := n; i < len(begun); i++ {
				if begun[i]-begun[i-n] < 1e9 {
					t.Fatalf("%d begin within %v from %v on", n+1, time.Duration(begun[i]-begun[i-n]), time.Duration(begun[i-n]))
				}
			}
		})
	}
	if l := newLimiter(&Plan{}, 0, 1); l != nil {
		t.Errorf("a plan without a limit has %+v", l)
	}
	// An open loop at the limit keeps its times: k of one is not before k of the other.
	l := newLimiter(&Plan{MaxRate: 5000, Rate: 5000}, 0, 1)
	p := pacer{from: 5000, to: 5000, n: 1 << 20}
	for k := range 1 << 20 {
		if late := l.due() - p.due(k); late > 1000 {
			t.Fatalf("attempt %d may begin %d ns after it is due", k, late)
		}
		l.begin()
	}
}
