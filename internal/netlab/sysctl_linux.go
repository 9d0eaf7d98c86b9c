package netlab

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// How the host is kept from changing, in the order of the code:
//
//  1. Only families known to be per namespace are admitted (perNamespace,
//     already in Options.Validate). This is the only rule that nothing in the
//     kernel can defeat.
//  2. The setting must exist inside the fresh namespace. Tables registered for
//     the first namespace alone (net.ipv4.tcp_mem, net.ipv4.tcp_max_orphans,
//     net.core.netdev_max_backlog) are not visible in another.
//  3. It must be another file than the host's: a per-namespace table has inodes
//     of its own, a table shared by all namespaces has one inode.
//  4. It must be writable inside. Shared members of a per-namespace table are
//     read-only in other namespaces (net.core.rmem_max), and no capability
//     overrides that (fs/proc/proc_sysctl.c, test_perm).
//  5. The host's value must be the same afterwards; if it is the one that was
//     written, it is put back, and New fails.

// hostSetting is a setting as the host has it.
type hostSetting struct {
	key   string
	file  *os.File // nil where the host has no such setting, or it can't be read
	value string
}

// lookUp reads a setting in the namespace of the calling thread. The file is
// kept open because an inode number of /proc/sys lives only as long as the
// kernel caches the name.
func lookUp(key string) (hostSetting, error) {
	h := hostSetting{key: key}
	f, err := os.Open(sysctlPath(key))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		return h, nil
	}
	if err != nil {
		return h, fmt.Errorf("%s: %w", key, err)
	}
	h.file = f
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
		h.value, err = readSysctlFile(key, f)
		return h, err
	}
	return h, nil
}

// refuse says why the setting may not be written in the namespace of the calling
// thread, or returns nil.
func (h hostSetting) refuse(value string) error {
	info, err := os.Stat(sysctlPath(h.key))
	if errors.Is(err, os.ErrNotExist) {
		if h.file != nil && !namesLink(h.key) {
			return fmt.Errorf("%s: belongs to the whole machine: %w", h.key, ErrHostSetting)
		}
		return fmt.Errorf("%s: %w", h.key, ErrNoSetting)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", h.key, err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s: a group of settings, not one", h.key)
	}
	if h.file != nil {
		hostInfo, err := h.file.Stat()
		if err != nil {
			return fmt.Errorf("%s: %w", h.key, err)
		}
		if os.SameFile(hostInfo, info) {
			return fmt.Errorf("%s: shared by all network namespaces: %w", h.key, ErrHostSetting)
		}
		if info.Mode()&0o222 == 0 && hostInfo.Mode()&0o222 != 0 {
			return fmt.Errorf("%s: read-only in a network namespace: %w", h.key, ErrHostSetting)
		}
	}
	if info.Mode()&0o222 == 0 {
		return fmt.Errorf("%s: %w: it can't be written", h.key, unix.EACCES)
	}
	if info.Mode()&0o444 == 0 {
		return fmt.Errorf("%s: an action, not a setting: it can't be read back", h.key)
	}
	return refuseModule(h.key, value)
}

// refuseModule keeps a congestion control that the kernel has not loaded from
// being loaded: that would change the host (net/ipv4/tcp_cong.c,
// tcp_set_default_congestion_control).
func refuseModule(key, value string) error {
	if key != "net.ipv4.tcp_congestion_control" {
		return nil
	}
	available, err := readSysctl("net.ipv4.tcp_available_congestion_control")
	if err != nil {
		return err
	}
	if !slices.Contains(strings.Fields(available), value) {
		return fmt.Errorf("%s: %q is not loaded (loaded: %s): load it first (modprobe tcp_%s)", key, value, available, value)
	}
	return nil
}

// write sets s in the namespace of the calling thread and reads it back.
func (s Sysctl) write() error {
	f, err := os.OpenFile(sysctlPath(s.Key), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", s.Key, err)
	}
	defer f.Close()
	if _, err := f.WriteString(s.Value + "\n"); err != nil {
		return fmt.Errorf("%s=%s: %w: %w", s.Key, s.Value, ErrValue, errnoOf(err))
	}
	kept, err := readSysctlFile(s.Key, f)
	if err != nil {
		return err
	}
	if !sameValue(s.Value, kept) {
		return fmt.Errorf("%s=%s: %w: it made %q of it", s.Key, s.Value, ErrValue, kept)
	}
	return nil
}

// errnoOf takes the path out of a file error: the message has the key.
func errnoOf(err error) error {
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return errno
	}
	return err
}

// setSysctls sets every one of set inside, or reports all that is wrong with
// them. Nothing is written if any is refused beforehand.
func setSysctls(host, inside *Namespace, set []Sysctl) error {
	if len(set) == 0 {
		return nil
	}
	before := make([]hostSetting, 0, len(set))
	defer func() {
		for _, h := range before {
			if h.file != nil {
				h.file.Close()
			}
		}
	}()
	err := host.Do(func() error {
		for _, s := range set {
			h, err := lookUp(s.Key)
			before = append(before, h)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = inside.Do(func() error {
		var problems []error
		for i, s := range set {
			problems = append(problems, before[i].refuse(s.Value))
		}
		if err := errors.Join(problems...); err != nil {
			return err
		}
		for _, s := range set {
			problems = append(problems, s.write())
		}
		return errors.Join(problems...)
	})
	return errors.Join(err, host.Do(func() error { return putBack(before, set) }))
}

// putBack checks that the host has the values it had, and gives it back any that
// now is the one written inside; another change is somebody else's.
func putBack(before []hostSetting, set []Sysctl) error {
	var problems []error
	for i, h := range before {
		if h.file == nil {
			continue
		}
		now, err := readSysctlFile(h.key, h.file)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		if now == h.value || !sameValue(set[i].Value, now) {
			continue
		}
		err = Sysctl{Key: h.key, Value: h.value}.write()
		problems = append(problems, fmt.Errorf("%s: is not per namespace on this kernel: the host's value changed from %q and was put back (%w): %w", h.key, h.value, err, ErrHostSetting))
	}
	return errors.Join(problems...)
}
