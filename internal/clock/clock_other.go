//go:build !linux

package clock

import "time"

// start sets the origin: the start of the program.
func start() (time.Time, int64) { return time.Now(), 1 }
