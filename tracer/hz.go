package tracer

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/cilium/ebpf"

	"github.com/twtrace/twtrace/bpf"
)

// tick is a reading of both clocks.
type tick struct {
	jiffies uint32
	at      time.Time
}

func (t *Tracer) readTick() (tick, error) {
	jiffies, err := t.coll.Programs[bpf.ProbesProgJiffiesNow].Run(&ebpf.RunOptions{})
	if err != nil {
		return tick{}, fmt.Errorf("read the kernel's jiffies: %w", err)
	}
	return tick{jiffies, time.Now()}, nil
}

// HZ returns the number of jiffies a second (CONFIG_HZ), the unit of
// Event.Ticks, measured over the time since Open, of which it waits for a tenth
// of a second at least.
func (t *Tracer) HZ() (int, error) {
	time.Sleep(time.Until(t.firstTick.at.Add(100 * time.Millisecond)))
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return 0, errors.New("the trace is closed")
	}
	now, err := t.readTick()
	if err != nil {
		return 0, err
	}
	measured := float64(now.jiffies-t.firstTick.jiffies) / now.at.Sub(t.firstTick.at).Seconds()
	best := 0
	for _, hz := range []int{100, 250, 300, 1000} { // kernel/Kconfig.hz
		if best == 0 || math.Abs(float64(hz)-measured) < math.Abs(float64(best)-measured) {
			best = hz
		}
	}
	return best, nil
}
