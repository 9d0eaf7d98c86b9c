package netlab

import (
	"fmt"
	"strconv"
	"strings"
)

// Counters are the SNMP counters of one network namespace, keyed by group and
// name as the kernel spells them: "Tcp.ActiveOpens", "TcpExt.TW". IPv4 and IPv6
// connections are counted together in Tcp and TcpExt. Which names exist depends
// on the kernel; one that it does not have is absent, which is not the same as
// zero.
//
// A few are gauges or constants: Tcp.CurrEstab and sockstat.TCP.tw (the
// TIME_WAITs that exist) can fall, and Tcp.MaxConn is -1.
// Negative numbers are held in two's complement, so that int64(c[name]) gives
// them back.
type Counters map[string]uint64

// Sub returns c - before for each counter in c; one that before does not have
// counts as 0 there. Counters wrap as the kernel's do, and a gauge that fell
// comes back negative from int64.
func (c Counters) Sub(before Counters) Counters {
	d := make(Counters, len(c))
	for name, v := range c {
		d[name] = v - before[name]
	}
	return d
}

// parse adds the counters in text, which is in the format of /proc/net/snmp and
// /proc/net/netstat (net/ipv4/proc.c, snmp_seq_show and netstat_seq_show): pairs
// of lines, "Tcp: Name Name …" and then "Tcp: value value …". Nothing is assumed
// about which groups and names there are.
func (c Counters) parse(text string) error {
	for line := 1; text != ""; line += 2 {
		var names, values string
		names, text, _ = strings.Cut(text, "\n")
		if strings.TrimSpace(names) == "" {
			line-- // a blank line between two pairs
			continue
		}
		values, text, _ = strings.Cut(text, "\n")
		if err := c.parsePair(names, values); err != nil {
			return fmt.Errorf("line %d: %w", line, err)
		}
	}
	return nil
}

// parseSockstat adds the numbers in text, which is in the format of
// /proc/net/sockstat (net/ipv4/proc.c, sockstat_seq_show): "TCP: inuse 5 orphan 0
// tw 2 alloc 7 mem 1", as "sockstat.TCP.tw". They are gauges, and some are of the
// whole host.
func (c Counters) parseSockstat(text string) error {
	for line := range strings.Lines(text) {
		group, rest, ok := strings.Cut(line, ":")
		fields := strings.Fields(rest)
		if !ok || len(fields)%2 != 0 {
			return fmt.Errorf("%.40q is no group of names and numbers", line)
		}
		for i := 0; i < len(fields); i += 2 {
			v, err := parseCounter(fields[i+1])
			if err != nil {
				return fmt.Errorf("%s %s: %w", group, fields[i], err)
			}
			c["sockstat."+group+"."+fields[i]] = v
		}
	}
	return nil
}

func (c Counters) parsePair(names, values string) error {
	group, names, ok := strings.Cut(names, ":")
	if !ok || group == "" || strings.ContainsAny(group, ". \t") {
		return fmt.Errorf("no group name before a colon in %.40q", group)
	}
	values, ok = strings.CutPrefix(values, group+":")
	if !ok {
		return fmt.Errorf("the names of group %q are not followed by its values", group)
	}
	name, value := strings.Fields(names), strings.Fields(values)
	if len(name) != len(value) {
		return fmt.Errorf("group %q has %d names and %d values", group, len(name), len(value))
	}
	for i := range name {
		v, err := parseCounter(value[i])
		if err != nil {
			return fmt.Errorf("%s.%s: %w", group, name[i], err)
		}
		c[group+"."+name[i]] = v
	}
	return nil
}

// parseCounter reads "%lu", and also "%ld", which the kernel prints for
// Tcp.MaxConn alone.
func parseCounter(s string) (uint64, error) {
	if strings.HasPrefix(s, "-") {
		v, err := strconv.ParseInt(s, 10, 64)
		return uint64(v), err
	}
	return strconv.ParseUint(s, 10, 64)
}
