package netlab

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestKind(t *testing.T) {
	for _, k := range []Kind{Pair, Loopback, Host} {
		got, err := ParseKind(k.String())
		if err != nil || got != k {
			t.Errorf("ParseKind(%q) = %v, %v", k.String(), got, err)
		}
	}
	for _, name := range []string{"", "Pair", "veth", "Kind(9)"} {
		if k, err := ParseKind(name); err == nil {
			t.Errorf("ParseKind(%q) = %v, want an error", name, k)
		}
	}
	if got := Kind(9).String(); got != "Kind(9)" {
		t.Errorf("Kind(9).String() = %q", got)
	}
}

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		name string
		o    Options
		says []string // none: valid
	}{
		{"zero", Options{}, nil},
		{"many sources", Options{Sources: MaxSources, IPv6: true}, nil},
		{"same setting twice", Options{Sysctls: []Sysctl{{"net.ipv4.tcp_tw_reuse", "1"}, {"net.ipv4.tcp_tw_reuse", "1"}}}, nil},
		{"kind", Options{Kind: 9}, []string{"Kind(9)"}},
		{"sources", Options{Sources: -1}, []string{"-1 source"}},
		{"too many sources", Options{Sources: MaxSources + 1}, []string{"4097 source"}},
		{"host settings", Options{Kind: Host, Sysctls: []Sysctl{{"net.ipv4.tcp_tw_reuse", "1"}}}, []string{"never on the host"}},
		{"host addresses", Options{Kind: Host, IPv6: true, Sources: 2}, []string{"one loopback address"}},
		{"conflict", Options{Sysctls: []Sysctl{{"net.ipv4.tcp_tw_reuse", "1"}, {"net/ipv4/tcp_tw_reuse", "2"}}}, []string{"set twice"}},
		{"all at once", Options{Kind: 9, Sources: -1, Sysctls: []Sysctl{{"kernel.panic", "1"}, {"net.bridge.x", "1"}}},
			[]string{"Kind(9)", "-1 source", "kernel.panic", "net.bridge.x"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.o.Validate()
			if (err == nil) != (len(tt.says) == 0) {
				t.Fatalf("Validate: %v", err)
			}
			for _, s := range tt.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("error %q does not say %q", err, s)
				}
			}
		})
	}
}

func TestAddresses(t *testing.T) {
	for _, tt := range []struct {
		o      Options
		server string
		client []string
	}{
		{Options{}, "198.19.0.1", []string{"198.18.0.1"}},
		{Options{Sources: 3}, "198.19.0.1", []string{"198.18.0.1", "198.18.0.2", "198.18.0.3"}},
		{Options{IPv6: true, Sources: 2}, "2001:2:0:1::1", []string{"2001:2::1", "2001:2::2"}},
		{Options{Kind: Loopback, Sources: 2}, "127.0.0.1", []string{"127.0.0.1", "127.0.0.2"}},
		{Options{Kind: Loopback, IPv6: true, Sources: 3}, "::1", []string{"::1", "2001:2::2", "2001:2::3"}},
		{Options{Kind: Host, Sources: 2}, "127.0.0.1", []string{"127.0.0.1", "127.0.0.2"}},
		{Options{Kind: Host, IPv6: true}, "::1", []string{"::1"}},
	} {
		var client []string
		for _, a := range tt.o.clientAddrs() {
			client = append(client, a.String())
		}
		server := tt.o.addressing().server.Addr().String()
		if server != tt.server || !slices.Equal(client, tt.client) {
			t.Errorf("%+v: server %s, client %v; want %s, %v", tt.o, server, client, tt.server, tt.client)
		}
	}
	// The last source must not be the server, nor leave the link's prefix.
	for _, o := range []Options{{Sources: MaxSources}, {Sources: MaxSources, IPv6: true}} {
		a, addrs := o.addressing(), o.clientAddrs()
		if !a.client.Contains(addrs[len(addrs)-1]) || slices.Contains(addrs, a.server.Addr()) {
			t.Errorf("%+v: sources up to %v", o, addrs[len(addrs)-1])
		}
	}
}

func ExampleParseSysctl() {
	s, err := ParseSysctl("net/ipv4/tcp_tw_reuse=1")
	fmt.Println(s, err)
	_, err = ParseSysctl("kernel.panic=1")
	fmt.Println(err)
	// Output:
	// net.ipv4.tcp_tw_reuse=1 <nil>
	// setting "kernel.panic": only settings below net. can differ between network namespaces
}
