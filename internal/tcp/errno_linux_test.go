package tcp

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestErrnoOfLinux compares numbers and names with those of the kernel's own
// headers, from which package unix is made.
func TestErrnoOfLinux(t *testing.T) {
	for e, name := range errnoNames {
		got := unix.ErrnoName(unix.Errno(e))
		if got == "ENOTSUP" {
			got = "EOPNOTSUPP" // ENOTSUP is the C library's second name for it
		}
		if got != name {
			t.Errorf("%d is called %s here, and %s by Linux", e, name, got)
		}
	}
	for e, want := range map[Errno]unix.Errno{
		EPERM: unix.EPERM, EINTR: unix.EINTR, EAGAIN: unix.EAGAIN, ENOMEM: unix.ENOMEM, EACCES: unix.EACCES,
		EINVAL: unix.EINVAL, ENFILE: unix.ENFILE, EMFILE: unix.EMFILE, EPIPE: unix.EPIPE, EPROTO: unix.EPROTO,
		EADDRINUSE: unix.EADDRINUSE, EADDRNOTAVAIL: unix.EADDRNOTAVAIL, ENETUNREACH: unix.ENETUNREACH,
		ECONNABORTED: unix.ECONNABORTED, ECONNRESET: unix.ECONNRESET, ENOBUFS: unix.ENOBUFS,
		ETIMEDOUT: unix.ETIMEDOUT, ECONNREFUSED: unix.ECONNREFUSED, EHOSTUNREACH: unix.EHOSTUNREACH,
		ECANCELED: unix.ECANCELED,
	} {
		if unix.Errno(e) != want {
			t.Errorf("%s is %d, want %d", e, e, want)
		}
	}
}
