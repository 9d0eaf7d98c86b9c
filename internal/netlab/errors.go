package netlab

import "errors"

// Errors that a caller can decide on, with [errors.Is].
var (
	// ErrNotPermitted: the kernel refused to make a namespace or a link
	// (EPERM). It needs CAP_SYS_ADMIN and CAP_NET_ADMIN.
	ErrNotPermitted = errors.New("not permitted: needs root, or CAP_SYS_ADMIN and CAP_NET_ADMIN")
	// ErrNoVeth: this kernel has no veth driver (EOPNOTSUPP). Loopback works
	// without it.
	ErrNoVeth = errors.New("this kernel has no veth links (CONFIG_VETH)")
	// ErrNoIPv6: this kernel has no IPv6, or it was switched off at boot.
	ErrNoIPv6 = errors.New("this kernel has no IPv6")
	// ErrNoSetting: a sysctl key does not exist in a network namespace of this
	// kernel, because the kernel is older or newer than the setting, or lacks
	// the feature.
	ErrNoSetting = errors.New("this kernel has no such setting in a network namespace")
	// ErrValue: the kernel refused the value of a sysctl, or made another of it.
	ErrValue = errors.New("the kernel refuses the value")
	// ErrHostSetting: writing a sysctl key changes, or might change, the whole
	// host.
	ErrHostSetting = errors.New("writing it could change the whole host, which is never done")
	// ErrNoNamespace: a path is not that of a network namespace.
	ErrNoNamespace = errors.New("not a network namespace")
	// ErrClosed: the lab has been closed.
	ErrClosed = errors.New("the network lab is closed")
)
