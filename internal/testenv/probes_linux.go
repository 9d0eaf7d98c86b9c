package testenv

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// capability is a bit of linux/capability.h.
type capability struct {
	bit  int
	name string
}

var (
	capNetAdmin = capability{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}
	capSysAdmin = capability{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"}
	capPerfmon  = capability{unix.CAP_PERFMON, "CAP_PERFMON"}
	capBPF      = capability{unix.CAP_BPF, "CAP_BPF"}
)

// effective reports which capabilities the calling thread has in effect.
func effective() (has func(capability) bool, err error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // version 3 fills two
	if err := unix.Capget(&header, &data[0]); err != nil {
		return nil, fmt.Errorf("capget: %w", err)
	}
	return func(c capability) bool { return data[c.bit/32].Effective&(1<<(c.bit%32)) != 0 }, nil
}

func probeRoot() error {
	has, err := effective()
	if err != nil {
		return err
	}
	var missing []string
	for _, c := range []capability{capSysAdmin, capNetAdmin} {
		if !has(c) {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("no %s; run as root", strings.Join(missing, ", "))
	}
	return nil
}

func probeBPF() error {
	has, err := effective()
	if err != nil {
		return err
	}
	var missing []string
	for _, c := range []capability{capBPF, capPerfmon} {
		if !has(c) && !has(capSysAdmin) {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("no %s; run as root", strings.Join(missing, ", "))
	}
	f, err := os.Open("/sys/kernel/btf/vmlinux")
	if err != nil {
		return fmt.Errorf("no BTF of the kernel (CONFIG_DEBUG_INFO_BTF): %w", err)
	}
	return f.Close()
}

func probeFentry() error {
	const function = "inet_twsk_alloc"
	program, err := ebpf.NewProgramWithOptions(&ebpf.ProgramSpec{
		Name: "twtrace_test", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceFExit, AttachTo: function, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	}, ebpf.ProgramOptions{LogDisabled: true})
	if err != nil {
		return fmt.Errorf("can't load a program for the function %s: %w", function, err)
	}
	defer program.Close()
	l, err := link.AttachTracing(link.TracingOptions{Program: program})
	if err != nil {
		return fmt.Errorf("can't attach a program to the function %s: %w", function, err)
	}
	return l.Close()
}

func probeNetNS() error {
	return insideNetNS(func() error { return nil })
}

func probeVeth() error {
	return insideNetNS(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer h.Close()
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "probe0"
		if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "probe1"}); err != nil {
			return fmt.Errorf("can't make a veth link (CONFIG_VETH): %w", err)
		}
		return nil
	})
}

// insideNetNS runs f in a fresh network namespace, on a thread that is thrown
// away. The main thread can't be: Go parks it for good, with its namespace.
func insideNetNS(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			result <- insideNetNS(f)
			runtime.UnlockOSThread()
			return
		}
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			result <- err
			return
		}
		defer home.Close()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("can't make a network namespace: %w", err)
			return
		}
		err = f()
		// So that a test that looks for leaks does not see the dying thread.
		_ = unix.Setns(int(home.Fd()), unix.CLONE_NEWNET)
		result <- err
	}()
	return <-result
}
