package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf/btf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/tcp"
)

// Set sets sysctls, as Network takes them, in one namespace of a network.
func (s *Session) Set(l *netlab.Lab, ns *netlab.Namespace, sysctls ...string) error {
	set, err := Sysctls(sysctls...)
	if err != nil {
		return err
	}
	return l.Set(ns, set...)
}

// HasSysctl reports whether the kernel has a setting, named below net.ipv4, in a namespace.
func HasSysctl(ns *netlab.Namespace, name string) (bool, error) {
	_, err := ns.Sysctl("net.ipv4." + name)
	if errors.Is(err, netlab.ErrNoSetting) {
		return false, nil
	}
	return err == nil, err
}

// function is the prototype of one of the kernel's functions, by its BTF; nil: it has none of that name.
func function(name string) (*btf.FuncProto, error) {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, fmt.Errorf("read the kernel's BTF: %w", err)
	}
	var f *btf.Func
	if err := kernel.TypeByName(name, &f); errors.Is(err, btf.ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("read the kernel's BTF: %w", err)
	}
	proto, _ := f.Type.(*btf.FuncProto)
	return proto, nil
}

// Minisock is a socket in TIME_WAIT, or in FIN_WAIT2 without a full socket, as sock_diag lists it.
type Minisock struct {
	tcp.FourTuple
	State  tcp.State
	Cookie tcp.Cookie
	Left   time.Duration // until its timer expires
}

// timerTimeWait is idiag_timer of a minisock (net/ipv4/inet_diag.c, inet_twsk_diag_fill).
const timerTimeWait = 3

// Minisocks lists those of a namespace.
func (s *Session) Minisocks(ns *netlab.Namespace) (list []Minisock, err error) {
	var all []*netlink.Socket
	err = ns.Do(func() error {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			socks, err := netlink.SocketDiagTCP(family)
			if err != nil {
				return fmt.Errorf("sock_diag: %w", err)
			}
			all = append(all, socks...)
		}
		return nil
	})
	for _, k := range all {
		if k.Timer != timerTimeWait {
			continue
		}
		local, _ := netip.AddrFromSlice(k.ID.Source)
		remote, _ := netip.AddrFromSlice(k.ID.Destination)
		list = append(list, Minisock{
			FourTuple: tcp.FourTuple{
				Local: netip.AddrPortFrom(local.Unmap(), k.ID.SourcePort),
				Peer:  netip.AddrPortFrom(remote.Unmap(), k.ID.DestinationPort),
			},
			State:  tcp.State(k.State),
			Cookie: tcp.Cookie(uint64(k.ID.Cookie[1])<<32 | uint64(k.ID.Cookie[0])),
			Left:   time.Duration(k.Expires) * time.Millisecond,
		})
	}
	return list, err
}

// Closed waits until no connection of a namespace is waiting for the acknowledgement of its FIN: which end has the TIME_WAIT says
// nothing about whether the last ACK has reached the other, and until then that one holds its port.
func (s *Session) Closed(ns *netlab.Namespace) error {
	return s.Wait("the last ACK", patience, func() (closed bool, err error) {
		err = ns.Do(func() error {
			for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
				socks, err := netlink.SocketDiagTCP(family)
				if err != nil {
					return fmt.Errorf("sock_diag: %w", err)
				}
				for _, k := range socks {
					if st := tcp.State(k.State); st == tcp.LastAck || st == tcp.Closing || st == tcp.FinWait1 {
						return nil
					}
				}
			}
			closed = true
			return nil
		})
		return closed, err
	})
}

// Slab is a cache of the kernel's allocator.
type Slab struct{ Objects, Size int }

// slabs reads /proc/slabinfo (since 2.2; for root alone). A cache that is merged with another has no line.
func slabs() (map[string]Slab, error) {
	text, err := os.ReadFile("/proc/slabinfo")
	if err != nil {
		return nil, err
	}
	all := make(map[string]Slab)
	for line := range strings.Lines(string(text)) {
		// name <active_objs> <num_objs> <objsize> ...
		f := strings.Fields(line)
		if len(f) < 4 {
			continue
		}
		active, err1 := strconv.Atoi(f[1])
		size, err2 := strconv.Atoi(f[3])
		if err1 == nil && err2 == nil {
			all[f[0]] = Slab{active, size}
		}
	}
	return all, nil
}
