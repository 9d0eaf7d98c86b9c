package netlab

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Sysctl is one kernel setting below net., and its value as it is written.
type Sysctl struct {
	// Key is the name with dots, as sysctl(8) prints it
	// ("net.ipv4.tcp_tw_reuse"). A dot inside a part, as in the name of a
	// VLAN link, is written as a slash.
	Key   string
	Value string
}

// String returns "key=value", which [ParseSysctl] reads back.
func (s Sysctl) String() string { return s.Key + "=" + s.Value }

// ParseSysctl reads "net.ipv4.tcp_tw_reuse=1". As with sysctl(8), the first
// separator of the key decides: net/ipv4/conf/eth0.7/forwarding and
// net.ipv4.conf.eth0/7.forwarding are the same. The error says what is wrong
// with text; whether a kernel has the setting shows only in [New].
func ParseSysctl(text string) (Sysctl, error) {
	key, value, ok := strings.Cut(text, "=")
	if !ok {
		return Sysctl{}, fmt.Errorf("setting %q: write KEY=VALUE, for example net.ipv4.tcp_tw_reuse=1", text)
	}
	key, err := canonicalKey(strings.TrimSpace(key))
	if err != nil {
		return Sysctl{}, err
	}
	return Sysctl{Key: key, Value: strings.TrimSpace(value)}, nil
}

var swapSeparators = strings.NewReplacer(".", "/", "/", ".")

// canonicalKey returns key with dots as separators, or says why it can't be a
// setting below net.
func canonicalKey(key string) (string, error) {
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '/' {
		key = swapSeparators.Replace(key)
	}
	parts := strings.Split(key, ".")
	for _, p := range parts {
		// A part is a file name in the path below.
		if p == "" || p == "/" || p == "//" || strings.ContainsFunc(p, func(r rune) bool { return r <= ' ' || r == '=' }) {
			return "", fmt.Errorf("setting %q: not the name of a setting, such as net.ipv4.tcp_tw_reuse", key)
		}
	}
	if parts[0] != "net" || len(parts) < 2 {
		return "", fmt.Errorf("setting %q: only settings below net. can differ between network namespaces", key)
	}
	return key, nil
}

// sysctlPath returns the file of a canonical key.
func sysctlPath(key string) string { return "/proc/sys/" + swapSeparators.Replace(key) }

// perNamespace is the settings that may be written in a namespace: the families
// known to be per namespace, less the members that are not, on some kernel.
// It is a list of what is allowed because nothing that the kernel tells can
// replace it: net.netfilter.nf_hooks_lwtunnel (net/netfilter/nf_hooks_lwtunnel.c,
// 6.18) is writable in a fresh namespace, flips one static key of the whole
// machine, and refuses to flip it back.
//
// Since 5.13 the kernel itself makes entries read-only whose data is not the
// namespace's own (net/sysctl_net.c, ensure_safe_net_sysctl); the members named
// here are those that were shared and writable before, or that escape it.
var perNamespace = []struct {
	prefix string
	except []string
}{
	{prefix: "net.core."},
	{prefix: "net.ipv4.", except: []string{"net.ipv4.tcp_allowed_congestion_control"}},
	{prefix: "net.ipv6."},
	{prefix: "net.mptcp."},
	{prefix: "net.netfilter.nf_conntrack_", except: []string{
		"net.netfilter.nf_conntrack_buckets",
		"net.netfilter.nf_conntrack_expect_max",
		"net.netfilter.nf_conntrack_max",
	}},
	{prefix: "net.unix."},
}

// admit refuses a canonical key that is not known to be per namespace.
func admit(key string) error {
	for _, family := range perNamespace {
		if strings.HasPrefix(key, family.prefix) && !slices.Contains(family.except, key) {
			return nil
		}
	}
	return fmt.Errorf("%s: not known to be per namespace: %w", key, ErrHostSetting)
}

var linkSetting = regexp.MustCompile(`^net\.ipv[46]\.(conf|neigh)\.([^.]+)\.`)

// namesLink reports whether key is the setting of one link, which exists only
// while the link does.
func namesLink(key string) bool {
	m := linkSetting.FindStringSubmatch(key)
	return m != nil && m[2] != "all" && m[2] != "default"
}

// sameValue reports whether the kernel kept what was written: it prints numbers
// in its own way, separates them with tabs, and sorts and merges lists of ports.
func sameValue(wrote, kept string) bool {
	a, b := strings.Fields(wrote), strings.Fields(kept)
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] == b[i] {
			continue
		}
		na, errA := strconv.ParseInt(a[i], 0, 64)
		nb, errB := strconv.ParseInt(b[i], 0, 64)
		if errA == nil && errB == nil && na == nb {
			continue
		}
		pa, errA := portSet(a[i])
		pb, errB := portSet(b[i])
		if errA == nil && errB == nil && slices.Equal(pa, pb) {
			continue
		}
		return false
	}
	return true
}

// portSet reads a list such as "8080,9000-9002" into the bits it sets.
func portSet(list string) ([]bool, error) {
	set := make([]bool, 1<<16)
	for item := range strings.SplitSeq(list, ",") {
		lo, hi, isRange := strings.Cut(item, "-")
		if !isRange {
			hi = lo
		}
		first, errFirst := strconv.ParseUint(lo, 10, 16)
		last, errLast := strconv.ParseUint(hi, 10, 16)
		if err := errors.Join(errFirst, errLast); err != nil {
			return nil, err
		}
		for p := first; p <= last; p++ {
			set[p] = true
		}
	}
	return set, nil
}
