//go:build !linux

package recording

import (
	"os"
	"time"

	"github.com/twtrace/twtrace/internal/clock"
)

// reserve is room on the disk for a footer: none, on this system.
type reserve struct{}

func newReserve(string) reserve { return reserve{} }

func (r *reserve) free() error { return nil }

func dataSync(f *os.File) error { return f.Sync() }

// Now reads the clocks there are.
func Now() Clock {
	mono := clock.Mono()
	return Clock{MonoNS: mono, RealNS: time.Now().UnixNano(), BootNS: mono}
}
