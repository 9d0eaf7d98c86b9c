package netlab

import (
	"errors"
	"fmt"
	"net/netip"
)

// Kind says what network a [Lab] is.
type Kind uint8

const (
	// Pair is two fresh namespaces joined by a veth link: a remote peer. The
	// addresses are those set aside for benchmarks (RFC 2544, RFC 5180).
	Pair Kind = iota
	// Loopback is one fresh namespace with its loopback device.
	Loopback
	// Host is the namespace of this process. It is never changed.
	Host
)

var kindNames = [...]string{Pair: "pair", Loopback: "loopback", Host: "host"}

// String returns "pair", "loopback" or "host".
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// ParseKind returns the kind that has this name. Case matters.
func ParseKind(name string) (Kind, error) {
	for k, n := range kindNames {
		if n == name {
			return Kind(k), nil
		}
	}
	return 0, fmt.Errorf("network %q is none of pair, loopback, host", name)
}

// MaxSources is the largest [Options.Sources].
const MaxSources = 4096

// Options says what network to make. The zero value is a Pair on IPv4 with one
// address on the client's side and the kernel's settings.
type Options struct {
	Kind Kind
	// IPv6 gives the lab IPv6 addresses in place of IPv4 ones.
	IPv6 bool
	// Sources is the number of addresses on the client's side, at most
	// MaxSources; 0 means 1.
	Sources int
	// Sysctls are set in every namespace made, before its links are made,
	// except those that name a link (net.ipv4.conf.veth0.…), which are set
	// when the link is there. They are not allowed with Host.
	Sysctls []Sysctl
}

// Validate returns every problem of o at once, joined, or nil.
func (o Options) Validate() error {
	var problems []error
	if int(o.Kind) >= len(kindNames) {
		problems = append(problems, fmt.Errorf("%v is no kind of network", o.Kind))
	}
	if o.Sources < 0 || o.Sources > MaxSources {
		problems = append(problems, fmt.Errorf("%d source addresses: must be between 1 and %d", o.Sources, MaxSources))
	}
	if o.Kind == Host && o.IPv6 && o.Sources > 1 {
		problems = append(problems, fmt.Errorf("%d IPv6 source addresses on the host: it has one loopback address and is never changed; use pair or loopback", o.Sources))
	}
	if o.Kind == Host && len(o.Sysctls) > 0 {
		problems = append(problems, fmt.Errorf("%s: settings are changed only in namespaces made for the purpose, never on the host; use pair or loopback", o.Sysctls[0].Key))
	}
	seen := make(map[string]string)
	for _, s := range o.Sysctls {
		key, err := canonicalKey(s.Key)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		if err := admit(key); err != nil {
			problems = append(problems, err)
		}
		if v, ok := seen[key]; ok && v != s.Value {
			problems = append(problems, fmt.Errorf("%s is set twice, to %q and to %q", key, v, s.Value))
		}
		seen[key] = s.Value
	}
	return errors.Join(problems...)
}

// addressing is the addresses of one kind of lab in one family: the server's,
// and the client's first, from which the further ones count up.
type addressing struct {
	server, client netip.Prefix
	next           netip.Addr // the client's second address; zero: the one after the first
}

// The benchmark ranges are RFC 2544 (as assigned by RFC 6890: 198.18.0.0/15)
// and RFC 5180 (2001:2::/48). The whole range is on the link, so that no route
// is needed.
func (o Options) addressing() addressing {
	switch {
	case o.Kind == Pair && o.IPv6:
		return addressing{
			server: netip.MustParsePrefix("2001:2:0:1::1/48"),
			client: netip.MustParsePrefix("2001:2::1/48"),
		}
	case o.Kind == Pair:
		return addressing{
			server: netip.MustParsePrefix("198.19.0.1/15"),
			client: netip.MustParsePrefix("198.18.0.1/15"),
		}
	case o.IPv6: // ::1 is the only IPv6 address that a loopback device has by itself
		return addressing{
			server: netip.MustParsePrefix("::1/128"),
			client: netip.MustParsePrefix("::1/128"),
			next:   netip.MustParseAddr("2001:2::2"),
		}
	default: // all of 127.0.0.0/8 is local
		return addressing{
			server: netip.MustParsePrefix("127.0.0.1/8"),
			client: netip.MustParsePrefix("127.0.0.1/8"),
		}
	}
}

func (o Options) clientAddrs() []netip.Addr {
	a := o.addressing()
	addrs := []netip.Addr{a.client.Addr()}
	next := a.next
	if !next.IsValid() {
		next = addrs[0].Next()
	}
	for len(addrs) < o.Sources {
		addrs = append(addrs, next)
		next = next.Next()
	}
	return addrs
}
