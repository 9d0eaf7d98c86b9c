package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twtrace/twtrace/internal/run"
)

// publicMaxRate is --max-rate towards an address of the public Internet, unless that or
// --rate is given: who allows such a target has not said that it and all between may be taken to their limits.
const publicMaxRate = 1000

// resolveTarget looks the target up, and asks for consent to load it unless it
// is this machine's loopback. Of several addresses of a name it is the first.
func (f *runFlags) resolveTarget(ctx context.Context) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(f.target)
	if err != nil {
		return netip.AddrPort{}, usagef("--target %s: want HOST:PORT", f.target)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 {
		return netip.AddrPort{}, usagef("--target %s: want a port from 1 to 65535", f.target)
	}
	addr, err := f.lookUp(ctx, host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if !addr.IsLoopback() && !sameHost(f.allow, host) {
		return netip.AddrPort{}, usagef("--target %s is neither loopback nor in a namespace of the run's own: if you may load it, say so with `--yes-i-may-load %s`", f.target, host)
	}
	return netip.AddrPortFrom(addr, uint16(number)), nil
}

// lookUp returns the address of a host, an IPv4 one also where it is written as IPv6
// (::ffff:127.0.0.1), with the number of the link for a zone.
func (f *runFlags) lookUp(ctx context.Context, host string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(host)
	if err != nil {
		network := "ip4"
		if f.ipv6 {
			network = "ip6"
		}
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, network, host)
		if err != nil {
			return netip.Addr{}, fmt.Errorf("--target %s: %w: check the name, or give an address", f.target, err)
		}
		addr = addrs[0]
	}
	addr = addr.Unmap()
	if f.ipv6 && addr.Is4() {
		return netip.Addr{}, usagef("--target %s is IPv4: leave -6 out", f.target)
	}
	return f.numberZone(addr)
}

// numberZone replaces the name of a link by its number in this namespace, which is the run's.
func (f *runFlags) numberZone(addr netip.Addr) (netip.Addr, error) {
	if _, err := strconv.ParseUint(addr.Zone(), 10, 32); addr.Zone() == "" || err == nil {
		return addr, nil
	}
	link, err := net.InterfaceByName(addr.Zone())
	if err != nil {
		return netip.Addr{}, usagef("--target %s: there is no link %s: see `ip link`", f.target, addr.Zone())
	}
	return addr.WithZone(strconv.Itoa(link.Index)), nil
}

// sameHost reports whether two spellings are of the same name or address.
func sameHost(a, b string) bool {
	clean := func(s string) string {
		s = strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
		if addr, err := netip.ParseAddr(s); err == nil {
			return addr.Unmap().String()
		}
		return strings.ToLower(strings.TrimSuffix(s, "."))
	}
	return a != "" && clean(a) == clean(b)
}

// notPublic are addresses that netip knows no word for and that are of nobody's
// Internet: shared by carriers (RFC 6598), and for benchmarks (RFC 2544, RFC 5180).
var notPublic = []netip.Prefix{
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("2001:2::/48"),
}

// isPublic reports whether an address is one of the public Internet, and not this host's own.
func isPublic(addr netip.Addr) bool {
	if !addr.IsGlobalUnicast() || addr.IsPrivate() {
		return false
	}
	if slices.ContainsFunc(notPublic, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return false
	}
	own, err := net.InterfaceAddrs()
	return err != nil || !slices.ContainsFunc(own, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		if !ok {
			return false
		}
		ip, ok := netip.AddrFromSlice(n.IP)
		return ok && ip.Unmap() == addr
	})
}

// announce says what is about to be sent to a host that is not loopback.
func (a *app) announce(opts *run.Options) {
	to := opts.Target.Addr()
	if !to.IsValid() || to.IsLoopback() {
		return
	}
	p := &opts.Plan
	rate := "no limit (set one with --max-rate)"
	switch {
	case p.MaxRate != 0:
		rate = fmt.Sprintf("%g at most (--max-rate)", p.MaxRate)
	case p.Rate != 0:
		rate = fmt.Sprintf("%g (--rate)", max(p.Rate, p.RateTo))
	}
	lasts := "until done (limit it with --max-duration)"
	if p.MaxDuration != 0 {
		lasts = p.MaxDuration.Round(time.Millisecond).String()
	}
	a.log.Info("loading a host that is not loopback", "address", to, "connections", int64(p.Loops)*int64(p.Connections),
		"at_once", p.AtOnce(), "a_second", rate, "for", lasts)
}
