package clock_test

import (
	"testing"

	"github.com/twtrace/twtrace/internal/clock"
	"golang.org/x/sys/unix"
)

// TestMonoIsTheKernels brackets Mono by the kernel's own answer; the slack is
// for the width of the pair that the package starts from.
func TestMonoIsTheKernels(t *testing.T) {
	const slack = int64(100_000) // ns
	kernel := func() int64 {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
			t.Fatal(err)
		}
		return ts.Nano()
	}
	for range 1000 {
		before := kernel()
		got := clock.Mono()
		after := kernel()
		if got < before-slack || got > after+slack {
			t.Fatalf("Mono() = %d, not between %d and %d", got, before, after)
		}
	}
}

func TestMonoDoesNotAllocate(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() { clock.Mono() }); n != 0 {
		t.Errorf("%v allocations per reading", n)
	}
}

func BenchmarkMono(b *testing.B) {
	for b.Loop() {
		clock.Mono()
	}
}
