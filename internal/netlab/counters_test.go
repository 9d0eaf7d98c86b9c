package netlab

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestParseCounters(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       Counters
		err        string
	}{
		{name: "empty", text: "", want: Counters{}},
		{name: "pair", text: "Tcp: ActiveOpens PassiveOpens\nTcp: 3 4\n",
			want: Counters{"Tcp.ActiveOpens": 3, "Tcp.PassiveOpens": 4}},
		{name: "two groups", text: "Tcp: InErrs\nTcp: 1\nTcpExt: TW NewIn2031\nTcpExt: 2 5\n",
			want: Counters{"Tcp.InErrs": 1, "TcpExt.TW": 2, "TcpExt.NewIn2031": 5}},
		{name: "group of nothing", text: "IcmpMsg:\nIcmpMsg:\nUdp: NoPorts\nUdp: 7\n", want: Counters{"Udp.NoPorts": 7}},
		{name: "no last newline", text: "Tcp: InErrs\nTcp: 1", want: Counters{"Tcp.InErrs": 1}},
		{name: "blank lines", text: "Tcp: InErrs\nTcp: 1\n\nUdp: NoPorts\nUdp: 7\n\n", want: Counters{"Tcp.InErrs": 1, "Udp.NoPorts": 7}},
		{name: "negative", text: "Tcp: MaxConn\nTcp: -1\n", want: Counters{"Tcp.MaxConn": 1<<64 - 1}},
		{name: "largest", text: "IpExt: InOctets\nIpExt: 18446744073709551615\n", want: Counters{"IpExt.InOctets": 1<<64 - 1}},

		{name: "too large", text: "Tcp: InErrs\nTcp: 18446744073709551616\n", err: "Tcp.InErrs"},
		{name: "no number", text: "Tcp: InErrs\nTcp: x\n", err: "Tcp.InErrs"},
		{name: "values cut off", text: "Tcp: InErrs OutRsts\nTcp: 1", err: "2 names and 1 values"},
		{name: "more values than names", text: "Tcp: InErrs\nTcp: 1 2\n", err: "1 names and 2 values"},
		{name: "no values", text: "Tcp: InErrs\n", err: "not followed"},
		{name: "values of another group", text: "Tcp: InErrs\nTcpExt: 1\n", err: "not followed"},
		{name: "no group", text: "InErrs\n1\n", err: "no group"},
		{name: "empty group", text: ": InErrs\n: 1\n", err: "no group"},
		{name: "which line", text: "Tcp: InErrs\nTcp: 1\nUdp: NoPorts\nUdp: y\n", err: "line 3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := Counters{}
			err := c.parse(tt.text)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want one about %q", err, tt.err)
				}
				return
			}
			if err != nil || !maps.Equal(c, tt.want) {
				t.Fatalf("got %v, %v; want %v", c, err, tt.want)
			}
		})
	}
}

func TestSub(t *testing.T) {
	after := Counters{"Tcp.ActiveOpens": 9, "Tcp.CurrEstab": 1, "TcpExt.TW": 4, "Udp.Wraps": 1}
	before := Counters{"Tcp.ActiveOpens": 5, "Tcp.CurrEstab": 3, "Gone.Now": 8, "Udp.Wraps": 1<<64 - 1}
	d := after.Sub(before)
	for name, want := range map[string]int64{"Tcp.ActiveOpens": 4, "Tcp.CurrEstab": -2, "TcpExt.TW": 4, "Udp.Wraps": 2} {
		if int64(d[name]) != want {
			t.Errorf("%s: %d, want %d", name, int64(d[name]), want)
		}
	}
	if len(d) != len(after) {
		t.Errorf("%v has other names than %v", d, after)
	}
}

// format writes counters as the kernel does, one group a pair of lines.
func (c Counters) format() string {
	groups := map[string][]string{}
	for key := range c {
		group, name, _ := strings.Cut(key, ".")
		groups[group] = append(groups[group], name)
	}
	var b strings.Builder
	for _, group := range slices.Sorted(maps.Keys(groups)) {
		names, values := group+":", group+":"
		for _, name := range groups[group] {
			names += " " + name
			values += " " + strconv.FormatUint(c[group+"."+name], 10)
		}
		b.WriteString(names + "\n" + values + "\n")
	}
	return b.String()
}

func FuzzParseCounters(f *testing.F) {
	f.Add("Tcp: ActiveOpens PassiveOpens\nTcp: 3 4\nTcpExt: TW\nTcpExt: 2\n")
	f.Add("Tcp: MaxConn\nTcp: -1\n\nIcmpMsg:\nIcmpMsg:\n")
	f.Add("Tcp: A\nTcp: 1 2\n")
	f.Fuzz(func(t *testing.T, text string) {
		c := Counters{}
		if c.parse(text) != nil {
			return
		}
		again := Counters{}
		if err := again.parse(c.format()); err != nil || !maps.Equal(c, again) {
			t.Errorf("%q: %v; written and read again: %v, %v", text, c, again, err)
		}
	})
}

func TestParseSockstat(t *testing.T) {
	c := Counters{}
	text := "sockets: used 162\nTCP: inuse 5 orphan 0 tw 42 alloc 9 mem 1\nFRAG: inuse 0 memory 0\n"
	if err := c.parseSockstat(text); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]uint64{"sockstat.sockets.used": 162, "sockstat.TCP.tw": 42, "sockstat.FRAG.memory": 0} {
		if got, ok := c[name]; !ok || got != want {
			t.Errorf("%s = %d, %t, want %d", name, got, ok, want)
		}
	}
	for _, bad := range []string{"TCP inuse 5\n", "TCP: inuse\n", "TCP: inuse five\n"} {
		if err := c.parseSockstat(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
