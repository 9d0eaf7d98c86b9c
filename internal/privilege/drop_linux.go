package privilege

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// Later is something that a process will do after Drop, and the capability that
// some kernels ask of it then.
type Later struct {
	Capability Capability
	// Try does it now, on a thread without the capability. An error other than
	// EPERM and EACCES is not a matter of privilege: it will be met again.
	Try func() error
}

// ReadStats is the account of a trace, which is read once it has ended: until
// Linux 5.18 every command of bpf(2), on any descriptor, asks for CAP_BPF where
// kernel.unprivileged_bpf_disabled is set (c8644cd0efe7, "bpf: refine
// kernel.unprivileged_bpf_disabled behaviour").
func ReadStats(stats func() error) Later { return Later{cap.BPF, stats} }

// Attach is what a trace asks for that attaches programs later, when there is a
// listener to watch.
var Attach = []Later{
	{cap.BPF, func() error { return os.ErrPermission }},
	{cap.PERFMON, func() error { return os.ErrPermission }},
}

// MakeFiles is making files in a directory later, and giving them to another user with give: root without
// capabilities is kept out of other users' directories, and gives nothing away.
func MakeFiles(dir string, give func(*os.File) error) []Later {
	try := func(do func(*os.File) error) func() error {
		return func() error {
			f, err := os.CreateTemp(dir, ".twtrace-*")
			if err != nil {
				return err
			}
			return errors.Join(do(f), f.Close(), os.Remove(f.Name()))
		}
	}
	return []Later{
		{cap.DAC_OVERRIDE, try(func(*os.File) error { return nil })},
		{cap.CHOWN, try(give)},
	}
}

// Drop gives up every capability that later does not ask for, on every thread of
// the process, those locked to goroutines included, for good: from the effective,
// permitted, inheritable, ambient and bounding sets. No program that the process
// executes from then on gains any (no_new_privs), not even one that is set-uid.
//
// What needs a privilege comes before: entering namespaces, attaching, ports below
// 1024, files that only a privileged process may open (root without capabilities
// is kept out of other users' directories), and starting another program that is to
// have what the caller had.
//
// It must not run at the same time as Without, nor while another thread changes its own
// capabilities: the same call has to succeed on all threads, or the process ends.
func Drop(later ...Later) error {
	held, err := cap.GetPID(0)
	if err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	var keep []Capability
	for _, l := range later {
		if err := Without(l.Try); !errors.Is(err, os.ErrPermission) {
			continue
		}
		for _, c := range withIncluding(l.Capability) {
			if has, err := held.GetFlag(cap.Permitted, c); err == nil && has {
				keep = append(keep, c)
				break
			}
		}
	}

	if _, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := cap.ResetAmbient(); err != nil {
		return fmt.Errorf("drop ambient capabilities: %w", err)
	}
	if err := dropBounding(held, keep); err != nil {
		return err
	}
	rest := cap.NewSet()
	for _, flag := range []cap.Flag{cap.Permitted, cap.Effective} {
		if err := rest.SetFlag(flag, true, keep...); err != nil {
			return fmt.Errorf("keep %s: %w", Names(keep), err)
		}
	}
	if err := rest.SetProc(); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// dropBounding empties the bounding set where the process may (CAP_SETPCAP). A
// process that was given a few capabilities without that one keeps the set, which
// bounds only what execve() can add; no_new_privs lets it add nothing.
func dropBounding(held *cap.Set, keep []Capability) error {
	if may, err := held.GetFlag(cap.Effective, cap.SETPCAP); err != nil || !may {
		return err
	}
	for c := range cap.MaxBits() {
		if bound, err := cap.GetBound(c); err != nil || !bound || slices.Contains(keep, c) {
			continue
		}
		if err := cap.DropBound(c); err != nil {
			return fmt.Errorf("drop %s from the bounding set: %w", Names([]Capability{c}), err)
		}
	}
	return nil
}

// Without runs f on a thread that has no capability in effect, and returns its error.
// f must not leave the work to other goroutines, whose threads have them.
func Without(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err, again := withoutOnThread(f)
		if again != nil {
			// The thread is not as it was: it stays locked and ends.
			result <- errors.Join(err, again)
			return
		}
		runtime.UnlockOSThread()
		result <- err
	}()
	return <-result
}

// withoutOnThread changes the calling thread alone (capset(2) knows no others),
// and only its effective set, from which the permitted one brings all back.
func withoutOnThread(f func() error) (err, again error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had, none [2]unix.CapUserData // version 3 has two
	if err := unix.Capget(&header, &had[0]); err != nil {
		return fmt.Errorf("capget: %w", err), nil
	}
	none = had
	for i := range none {
		none[i].Effective = 0
	}
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("lower capabilities: %w", err), nil
	}
	err = f()
	if again = unix.Capset(&header, &had[0]); again != nil {
		again = fmt.Errorf("raise capabilities again: %w", again)
	}
	return err, again
}
