// Package clock reads the one clock of the project: CLOCK_MONOTONIC in
// nanoseconds, the clock of the kernel's events (bpf_ktime_get_ns).
package clock

import "time"

// base is read once; every later reading is its distance from it. The runtime's
// monotonic clock is read through the vDSO (about 30 ns, no system call, no
// allocation); golang.org/x/sys/unix.ClockGettime would be a system call.
var base, offset = start()

// Mono returns CLOCK_MONOTONIC in nanoseconds. On Linux it is comparable to
// bpf_ktime_get_ns to within the time of one clock reading, except inside a time
// namespace, whose offset bpf_ktime_get_ns does not have. On other systems its
// origin is arbitrary.
func Mono() int64 {
	return offset + int64(time.Since(base))
}
