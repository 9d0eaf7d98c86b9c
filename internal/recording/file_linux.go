package recording

import (
	"math"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// reserve is room on the disk for a footer, for when there is no more: a file without a name, which is
// gone with the process.
type reserve struct{ f *os.File }

// reserved is how many bytes. A summary is compressed, and mostly a tenth of it.
const reserved = 256 << 10

// newReserve keeps room beside a file. A file system that can't do so has none.
func newReserve(name string) reserve {
	fd, err := unix.Open(filepath.Dir(name), unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return reserve{}
	}
	f := os.NewFile(uintptr(fd), "reserve")
	if unix.Fallocate(fd, 0, 0, reserved) != nil {
		_ = f.Close()
		return reserve{}
	}
	return reserve{f}
}

// free gives the room back. It may be called again.
func (r *reserve) free() error {
	if r.f == nil {
		return nil
	}
	f := r.f
	r.f = nil
	return f.Close()
}

// dataSync writes a file's data to the disk, and of its inode what is needed to read them (fdatasync(2)).
// What has no disk behind it needs none: the kernel says EINVAL.
func dataSync(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var syncErr error
	err = raw.Control(func(fd uintptr) {
		for syncErr = unix.EINTR; syncErr == unix.EINTR; {
			syncErr = unix.Fdatasync(int(fd))
		}
	})
	if syncErr != nil && syncErr != unix.EINVAL {
		return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: syncErr}
	}
	return err
}

// Now reads three clocks. The two others are read between two readings of CLOCK_MONOTONIC, some times, of which the
// closest count: the task may be preempted between.
func Now() (c Clock) {
	narrowest := int64(math.MaxInt64)
	for range 5 {
		before := readClock(unix.CLOCK_MONOTONIC)
		real, boot := readClock(unix.CLOCK_REALTIME), readClock(unix.CLOCK_BOOTTIME)
		if width := readClock(unix.CLOCK_MONOTONIC) - before; width < narrowest {
			narrowest, c = width, Clock{MonoNS: before + width/2, RealNS: real, BootNS: boot}
		}
	}
	return c
}

func readClock(id int32) int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(id, &ts) // can't fail for those of Linux
	return ts.Nano()
}
