package netlab

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Lab is a network for one experiment: a client's and a server's namespace with
// addresses, ready for the first connection.
type Lab struct {
	client, server *Namespace
	clientAddrs    []netip.Addr
	serverAddr     netip.Addr

	once     sync.Once
	closeErr error
}

// New makes the network that o describes. When it returns, links are up and
// carry packets, addresses are usable, and no address resolution is needed.
// On error nothing is left. Errors to test for: those of o.Validate,
// ErrNotPermitted, ErrNoVeth, ErrNoIPv6, ErrNoSetting, ErrHostSetting, and
// EINVAL for a value that a setting does not take.
func New(o Options) (*Lab, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	lab := &Lab{clientAddrs: o.clientAddrs(), serverAddr: o.addressing().server.Addr()}
	if err := lab.build(o); err != nil {
		return nil, errors.Join(fmt.Errorf("make the %v network: %w", o.Kind, err), lab.Close())
	}
	return lab, nil
}

// Client returns the namespace in which connections are made.
func (l *Lab) Client() *Namespace { return l.client }

// Server returns the namespace in which the server listens. It is the client's
// on Loopback and Host.
func (l *Lab) Server() *Namespace { return l.server }

// ServerAddr returns the address of the server.
func (l *Lab) ServerAddr() netip.Addr { return l.serverAddr }

// ClientAddrs returns the addresses of the client, as many as Options.Sources.
// A connection whose socket is not bound comes from the first, except from
// 127.0.0.1 and ::1 to themselves.
func (l *Lab) ClientAddrs() []netip.Addr { return append([]netip.Addr(nil), l.clientAddrs...) }

// Close lets go of the namespaces. The kernel takes each down, in the
// background, as soon as nothing else holds it: a socket made inside, a thread
// or a process that is inside, a Do under way. It may be called more than once
// and returns the same error each time.
func (l *Lab) Close() error {
	l.once.Do(func() {
		var problems []error
		if l.client != nil {
			problems = append(problems, l.client.close())
		}
		if l.server != nil && l.server != l.client {
			problems = append(problems, l.server.close())
		}
		l.closeErr = errors.Join(problems...)
	})
	return l.closeErr
}

func (l *Lab) build(o Options) (err error) {
	if o.IPv6 {
		if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
			return ErrNoIPv6
		}
	}
	if o.Kind == Host {
		l.client, err = hostNamespace()
		l.server = l.client
		return err
	}

	if l.client, err = newNamespace(); err != nil {
		return err
	}
	l.server = l.client
	if o.Kind == Pair {
		if l.server, err = newNamespace(); err != nil {
			return err
		}
	}

	host, err := hostNamespace()
	if err != nil {
		return err
	}
	defer host.close()
	early, late := splitSysctls(o.Sysctls)
	if err := l.setSysctls(host, early); err != nil {
		return err
	}
	if o.Kind == Pair {
		err = l.addPair(o)
	} else {
		err = l.addLoopback(o)
	}
	if err != nil {
		return err
	}
	return l.setSysctls(host, late)
}

// splitSysctls gives the keys their canonical form and separates those that can
// be set only once the links are there. The others come first, because new links
// copy net.ipv4.conf.default and its like.
func splitSysctls(set []Sysctl) (early, late []Sysctl) {
	for _, s := range set {
		s.Key, _ = canonicalKey(s.Key) // Validate has checked it
		if namesLink(s.Key) {
			late = append(late, s)
		} else {
			early = append(early, s)
		}
	}
	return early, late
}

func (l *Lab) setSysctls(host *Namespace, set []Sysctl) error {
	err := setSysctls(host, l.client, set)
	if err != nil || l.server == l.client {
		return err
	}
	return setSysctls(host, l.server, set)
}

// vethName is the name of the link in both namespaces.
const vethName = "veth0"

// end is one side of the network while it is being made. The netlink socket of
// the handle is inside the namespace, so that any thread may use it.
type end struct {
	*netlink.Handle
	addrs  []netip.Addr
	prefix int
	mac    net.HardwareAddr // of the veth link
}

func newEnd(ns *Namespace, addrs []netip.Addr, prefix netip.Prefix, mac net.HardwareAddr) (e end, err error) {
	err = ns.Do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		e = end{Handle: h, addrs: addrs, prefix: prefix.Bits(), mac: mac}
		return err
	})
	if err != nil {
		return e, fmt.Errorf("open netlink: %w", err)
	}
	return e, nil
}

// addPair joins the two namespaces.
//
// Permanent neighbour entries spare the first SYN an ARP or neighbour discovery
// exchange, and no link-local addresses means no router solicitations: the only
// packets are the experiment's, and on IPv6 a few multicast listener reports
// (MLDv2, two in the first seconds on 6.18).
func (l *Lab) addPair(o Options) error {
	a := o.addressing()
	// Locally administered addresses (IEEE 802), fixed so that each side knows
	// the other's beforehand.
	client, err := newEnd(l.client, l.clientAddrs, a.client, net.HardwareAddr{2, 0, 0, 198, 18, 1})
	if err != nil {
		return err
	}
	defer client.Close()
	server, err := newEnd(l.server, []netip.Addr{l.serverAddr}, a.server, net.HardwareAddr{2, 0, 0, 198, 19, 1})
	if err != nil {
		return err
	}
	defer server.Close()

	if err := client.addVeth(server, l.server.self); err != nil {
		return err
	}
	for _, e := range []end{client, server} {
		for _, name := range []string{"lo", vethName} {
			if err := e.up(name); err != nil {
				return err
			}
		}
	}
	for _, side := range []struct{ here, there end }{{client, server}, {server, client}} {
		veth, err := side.here.ready(vethName)
		if err != nil {
			return err
		}
		if err := side.here.addAddrs(veth, side.here.addrs); err != nil {
			return err
		}
		if err := side.here.addNeighbours(veth, side.there); err != nil {
			return err
		}
	}
	return nil
}

// addVeth makes the link, with the far end in the namespace peer from the start.
func (e end) addVeth(far end, peer *os.File) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = vethName
	attrs.HardwareAddr = e.mac
	err := e.LinkAdd(&netlink.Veth{
		LinkAttrs:        attrs,
		PeerName:         vethName,
		PeerHardwareAddr: far.mac,
		PeerNamespace:    netlink.NsFd(peer.Fd()),
	})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w: %w", ErrNoVeth, err)
	}
	if err != nil {
		return fmt.Errorf("make a veth link: %w", permission(err))
	}
	return nil
}

// addLoopback sets up the loopback device. 127.0.0.0/8 and ::1 come with it;
// further IPv6 sources are added.
func (l *Lab) addLoopback(o Options) error {
	a := o.addressing()
	e, err := newEnd(l.client, l.clientAddrs, a.client, nil)
	if err != nil {
		return err
	}
	defer e.Close()
	if err := e.up("lo"); err != nil {
		return err
	}
	if !o.IPv6 {
		return nil
	}
	lo, err := e.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find link lo: %w", err)
	}
	return e.addAddrs(lo, e.addrs[1:])
}

func (e end) up(name string) error {
	link, err := e.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if name == vethName {
		err := e.LinkSetIP6AddrGenMode(link, addrGenModeNone)
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) { // no IPv6 in this kernel
			return fmt.Errorf("keep link-local addresses off link %s: %w", name, err)
		}
	}
	if err := e.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link %s up: %w", name, permission(err))
	}
	return nil
}

// addrGenModeNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const addrGenModeNone = 1

// ready waits until the link sends what it is given. Until the kernel's
// linkwatch worker has seen the carrier, its queue discipline is the one that
// drops everything (net/core/link_watch.c, linkwatch_do_dev: it sets the
// operational state and the queue discipline under one lock).
func (e end) ready(name string) (netlink.Link, error) {
	var link netlink.Link
	err := await("link "+name, func() (ok bool, err error) {
		link, err = e.LinkByName(name)
		return err == nil && link.Attrs().OperState == netlink.OperUp, err
	})
	return link, err
}

// addAddrs adds addresses and waits until the kernel delivers to all of them. An
// IPv6 address is usable as a source at once (IFA_F_NODAD), but the route that
// delivers to it is added by a worker (net/ipv6/addrconf.c, addrconf_dad_work).
func (e end) addAddrs(link netlink.Link, addrs []netip.Addr) error {
	for i, addr := range addrs {
		a := &netlink.Addr{IPNet: ipNet(addr, e.prefix)}
		if addr.Is6() {
			a.Flags = unix.IFA_F_NODAD
			if i > 0 {
				// Deprecated (RFC 4862, 5.5.4): usable by whoever binds to
				// it, but the kernel chooses the first for the others.
				a.ValidLft, a.PreferedLft = math.MaxUint32, 0
			}
		}
		if err := e.AddrAdd(link, a); err != nil {
			return fmt.Errorf("add address %v: %w", addr, permission(err))
		}
	}
	for _, addr := range addrs {
		err := await("address "+addr.String(), func() (bool, error) {
			routes, err := e.RouteGet(addr.AsSlice())
			return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (e end) addNeighbours(link netlink.Link, far end) error {
	for _, addr := range far.addrs {
		family := netlink.FAMILY_V4
		if addr.Is6() {
			family = netlink.FAMILY_V6
		}
		err := e.NeighSet(&netlink.Neigh{
			LinkIndex:    link.Attrs().Index,
			Family:       family,
			State:        netlink.NUD_PERMANENT,
			IP:           addr.AsSlice(),
			HardwareAddr: far.mac,
		})
		if err != nil {
			return fmt.Errorf("add neighbour %v: %w", addr, permission(err))
		}
	}
	return nil
}

func ipNet(addr netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, addr.BitLen())}
}

// await asks until the answer is yes. What it waits for takes the kernel well
// under a millisecond on an idle machine; the limit is there to name what never
// came.
func await(what string, ready func() (bool, error)) error {
	const limit = 10 * time.Second
	for start := time.Now(); ; time.Sleep(200 * time.Microsecond) {
		ok, err := ready()
		if ok {
			return nil
		}
		if time.Since(start) > limit {
			return errors.Join(fmt.Errorf("%s is not ready after %v", what, limit), err)
		}
	}
}
