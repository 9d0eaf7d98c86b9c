package tcp

import (
	"fmt"
	"maps"
	"strings"
)

// Errno is a Linux error number. It is not syscall.Errno because recordings are
// read on other systems too, where the same numbers mean other things.
type Errno uint16

// The error numbers that decide about a cause.
const (
	EPERM         Errno = 1
	EINTR         Errno = 4
	EAGAIN        Errno = 11
	ENOMEM        Errno = 12
	EACCES        Errno = 13
	EBUSY         Errno = 16
	EINVAL        Errno = 22
	ENFILE        Errno = 23
	EMFILE        Errno = 24
	EPIPE         Errno = 32
	ENONET        Errno = 64
	EPROTO        Errno = 71
	ENOPROTOOPT   Errno = 92
	EOPNOTSUPP    Errno = 95
	EADDRINUSE    Errno = 98
	EADDRNOTAVAIL Errno = 99
	ENETDOWN      Errno = 100
	ENETUNREACH   Errno = 101
	ECONNABORTED  Errno = 103
	ECONNRESET    Errno = 104
	ENOBUFS       Errno = 105
	ETIMEDOUT     Errno = 110
	ECONNREFUSED  Errno = 111
	EHOSTDOWN     Errno = 112
	EHOSTUNREACH  Errno = 113
	ECANCELED     Errno = 125
)

// LinkDropped is -NET_XMIT_DROP as the event of a retransmit carries it, no error number: the segment was sent, and the link had no
// room for it, as a veth has none beyond net.core.netdev_max_backlog of its peer.
const LinkDropped Errno = 1<<16 - 1

// errnoNames are the names of include/uapi/asm-generic/errno*.h for what the
// socket calls return; the numbers are the same on amd64 and arm64.
var errnoNames = map[Errno]string{
	EPERM: "EPERM", 2: "ENOENT", EINTR: "EINTR", 5: "EIO", 9: "EBADF", EAGAIN: "EAGAIN",
	ENOMEM: "ENOMEM", EACCES: "EACCES", 14: "EFAULT", EBUSY: "EBUSY", 19: "ENODEV",
	EINVAL: "EINVAL", ENFILE: "ENFILE", EMFILE: "EMFILE", EPIPE: "EPIPE", ENONET: "ENONET", EPROTO: "EPROTO",
	88: "ENOTSOCK", 89: "EDESTADDRREQ", 90: "EMSGSIZE", ENOPROTOOPT: "ENOPROTOOPT", 93: "EPROTONOSUPPORT",
	EOPNOTSUPP: "EOPNOTSUPP", 97: "EAFNOSUPPORT", EADDRINUSE: "EADDRINUSE", EADDRNOTAVAIL: "EADDRNOTAVAIL",
	ENETDOWN: "ENETDOWN", ENETUNREACH: "ENETUNREACH", ECONNABORTED: "ECONNABORTED",
	ECONNRESET: "ECONNRESET", ENOBUFS: "ENOBUFS", 106: "EISCONN", 107: "ENOTCONN",
	108: "ESHUTDOWN", ETIMEDOUT: "ETIMEDOUT", ECONNREFUSED: "ECONNREFUSED", EHOSTDOWN: "EHOSTDOWN",
	EHOSTUNREACH: "EHOSTUNREACH", 114: "EALREADY", 115: "EINPROGRESS", ECANCELED: "ECANCELED",
}

// String returns the error's name, ECONNRESET, or "errno N" where it has none
// here. It returns "" for 0.
func (e Errno) String() string {
	if e == 0 {
		return ""
	}
	if name, ok := errnoNames[e]; ok {
		return name
	}
	return fmt.Sprintf("errno %d", uint16(e))
}

// ErrnoNames returns the names of all that have one.
func ErrnoNames() map[Errno]string { return maps.Clone(errnoNames) }

// ParseErrno reads an error's name (ECONNRESET, in any case).
func ParseErrno(name string) (Errno, error) {
	for e, n := range errnoNames {
		if strings.EqualFold(n, name) {
			return e, nil
		}
	}
	return 0, fmt.Errorf("no error is called %q", name)
}
