package netlab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Find returns a namespace that exists already, by a file that stands for it:
// /proc/PID/ns/net, or what `ip netns` makes in /run/netns. It is held, like
// those of a lab, until Close. The errors are ErrNoNamespace and ErrNotPermitted.
func Find(path string) (*Namespace, error) {
	// O_NONBLOCK: a path of anybody's choice can be a FIFO.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("open network namespace %s: %w: %w", path, ErrNotPermitted, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrNoNamespace, path, err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	// Since Linux 4.11; ENOTTY: not of a namespace.
	if kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		return nil, fmt.Errorf("%w: %s: want a file such as /proc/PID/ns/net or /run/netns/NAME", ErrNoNamespace, path)
	}
	ns := &Namespace{}
	err = inOwnNamespace(func() error {
		if err := enter(file); err != nil {
			return err
		}
		return ns.open()
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), ns.close())
	}
	return ns, nil
}

// Own returns the namespace of this process, which needs no privilege.
func Own() (*Namespace, error) { return hostNamespace() }

// FindAll returns the namespaces of all processes that this one may look at, this
// process's own first. One that only a descriptor or a mount holds is not among
// them.
func FindAll() ([]*Namespace, error) {
	own, err := Own()
	if err != nil {
		return nil, err
	}
	found := []*Namespace{own}
	// Inode numbers are given again, but not while a namespace is held.
	held := map[uint64]bool{inode(own.self): true}
	paths, _ := filepath.Glob("/proc/[0-9]*/ns/net") // fails on a wrong pattern only
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil || held[inodeOf(info)] {
			continue // ended meanwhile, or not ours to see
		}
		ns, err := Find(path)
		if err != nil {
			continue
		}
		held[inode(ns.self)] = true
		found = append(found, ns)
	}
	return found, nil
}

func inode(f *os.File) uint64 {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	return inodeOf(info)
}

func inodeOf(info fs.FileInfo) uint64 {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return st.Ino
}

// Close lets go of a namespace that Find, FindAll or Own returned. Those of a lab
// are closed with it.
func (ns *Namespace) Close() error { return ns.close() }
