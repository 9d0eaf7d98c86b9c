package netlab

import (
	"errors"
	"path"
	"strings"
	"testing"
)

func TestParseSysctl(t *testing.T) {
	for _, tt := range []struct {
		text       string
		key, value string // no key: an error
		path       string
	}{
		{"net.ipv4.tcp_tw_reuse=1", "net.ipv4.tcp_tw_reuse", "1", "/proc/sys/net/ipv4/tcp_tw_reuse"},
		{"net/ipv4/tcp_tw_reuse=1", "net.ipv4.tcp_tw_reuse", "1", "/proc/sys/net/ipv4/tcp_tw_reuse"},
		{" net.ipv4.ip_local_port_range = 1024 2048 ", "net.ipv4.ip_local_port_range", "1024 2048", "/proc/sys/net/ipv4/ip_local_port_range"},
		{"net.ipv4.ip_local_reserved_ports=", "net.ipv4.ip_local_reserved_ports", "", "/proc/sys/net/ipv4/ip_local_reserved_ports"},
		{"net.ipv4.conf.eth0/7.rp_filter=0", "net.ipv4.conf.eth0/7.rp_filter", "0", "/proc/sys/net/ipv4/conf/eth0.7/rp_filter"},
		{"net/ipv4/conf/eth0.7/rp_filter=0", "net.ipv4.conf.eth0/7.rp_filter", "0", "/proc/sys/net/ipv4/conf/eth0.7/rp_filter"},
		{text: ""},
		{text: "net.ipv4.tcp_tw_reuse"},
		{text: "=1"},
		{text: "net=1"},
		{text: "net.=1"},
		{text: "net..ipv4=1"},
		{text: "/net/ipv4/tcp_tw_reuse=1"},
		{text: "kernel.panic=1"},
		{text: "network.x=1"},
		{text: "net.ipv4.tcp tw=1"},
		{text: "net/../kernel/panic=1"},
		{text: "net.//.kernel.panic=1"},
		{text: "net./.ipv4=1"},
	} {
		s, err := ParseSysctl(tt.text)
		if tt.key == "" {
			if err == nil {
				t.Errorf("ParseSysctl(%q) = %v, want an error", tt.text, s)
			}
			continue
		}
		if err != nil || s.Key != tt.key || s.Value != tt.value || sysctlPath(s.Key) != tt.path {
			t.Errorf("ParseSysctl(%q) = %+v (%s), %v", tt.text, s, sysctlPath(s.Key), err)
		}
		if again, err := ParseSysctl(s.String()); err != nil || again != s {
			t.Errorf("ParseSysctl(%q) = %+v, %v; want what it was printed from", s, again, err)
		}
	}
}

func FuzzParseSysctl(f *testing.F) {
	f.Add("net.ipv4.tcp_tw_reuse=1")
	f.Add("net/ipv4/conf/eth0.7/rp_filter=0")
	f.Add("net.//.kernel.panic=1")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSysctl(text)
		if err != nil {
			return
		}
		if again, err := ParseSysctl(s.String()); err != nil || again != s {
			t.Errorf("%q: %+v, again %+v, %v", text, s, again, err)
		}
		if p := sysctlPath(s.Key); path.Clean(p) != p || !strings.HasPrefix(p, "/proc/sys/net/") {
			t.Errorf("%q leads to %q", text, p)
		}
	})
}

func TestAdmit(t *testing.T) {
	for key, want := range map[string]bool{
		"net.ipv4.tcp_tw_reuse":                        true,
		"net.ipv6.conf.all.forwarding":                 true,
		"net.core.somaxconn":                           true,
		"net.unix.max_dgram_qlen":                      true,
		"net.netfilter.nf_conntrack_tcp_timeout_close": true,
		"net.netfilter.nf_conntrack_max":               false,
		"net.netfilter.nf_hooks_lwtunnel":              false,
		"net.nf_conntrack_max":                         false,
		"net.ipv4.tcp_allowed_congestion_control":      false,
		"net.made_up_tomorrow.and_shared_by_all":       false,
		"net.ipv4":                                     false,
	} {
		err := admit(key)
		if (err == nil) != want || (err != nil && !errors.Is(err, ErrHostSetting)) {
			t.Errorf("admit(%s) = %v", key, err)
		}
	}
}

func TestNamesLink(t *testing.T) {
	for key, want := range map[string]bool{
		"net.ipv4.conf.veth0.rp_filter":    true,
		"net.ipv6.neigh.veth0.app_solicit": true,
		"net.ipv4.conf.all.rp_filter":      false,
		"net.ipv4.conf.default.rp_filter":  false,
		"net.ipv4.tcp_tw_reuse":            false,
	} {
		if got := namesLink(key); got != want {
			t.Errorf("namesLink(%s) = %v", key, got)
		}
	}
}

func TestSameValue(t *testing.T) {
	for _, tt := range []struct {
		wrote, kept string
		want        bool
	}{
		{"1", "1", true},
		{"0x10", "16", true},
		{"1024 2048", "1024\t2048", true},
		{"9001-9002,8080,9000", "8080,9000-9002", true},
		{"", "", true},
		{"cubic", "cubic", true},
		{"1", "2", false},
		{"1 2", "1", false},
		{"cubic", "reno", false},
		{"8080", "8080-8081", false},
		{"9-8", "9-8", true},
		{"99999999,1", "1", false},
	} {
		if got := sameValue(tt.wrote, tt.kept); got != tt.want {
			t.Errorf("sameValue(%q, %q) = %v", tt.wrote, tt.kept, got)
		}
	}
}
