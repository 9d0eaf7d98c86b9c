package lab

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
)

// searchPorts is the range of the measurements. The scaled one is large enough that a walk over half of it costs many times what
// everything else in connect() does.
func searchPorts(s *Session) int {
	if s.Full() {
		return classicPorts
	}
	return 4000
}

// samples is how many connections a cost is the median of.
const samples = 60

// searchRow is the median cost of bind() and connect(), by how much of the range is taken.
type searchRow struct {
	Percent int                `json:"percent_taken"`
	US      map[string]float64 `json:"us"`
	Errors  map[string]string  `json:"errors,omitempty"`
}

// searchWay is a way to get a port.
type searchWay struct {
	name string
	how  How
	to   netip.AddrPort
}

// portSearch is what connect() costs, and who gets which port.
func portSearch(s *Session) error {
	hasRange, stepsByOne, err := s.portRangeOption()
	if err != nil {
		return err
	}
	if err := s.searchCosts(hasRange, stepsByOne); err != nil {
		return err
	}
	for _, part := range []func() error{
		s.searchBound, s.searchOwn, s.searchOpen,
		func() error { return s.searchOrder(hasRange, stepsByOne) },
		s.searchRoom, s.searchOdd,
	} {
		if err := part(); err != nil {
			return err
		}
	}
	s.Answerf("connect() tries the ports of one parity first: past half of the range it looks at each taken one on every call, and one that fails has looked at all. " +
		"Another destination or source has the whole range again; IP_LOCAL_PORT_RANGE and ports that the program binds itself keep the search short.")
	return nil
}

// portRangeOption reports whether the kernel has IP_LOCAL_PORT_RANGE, and whether a socket with it tries ports of both parities in
// turn: where inet_sk_get_local_port_range returns whether it is set, those who search use that as the step.
func (s *Session) portRangeOption() (has, stepsByOne bool, err error) {
	l, err := s.Network(netlab.Loopback)
	if err != nil {
		return false, false, err
	}
	k, err := s.Socket(l.Client(), false)
	if err != nil {
		return false, false, err
	}
	switch err := unix.SetsockoptInt(k.FD, unix.IPPROTO_IP, unix.IP_LOCAL_PORT_RANGE, 0); {
	case errors.Is(err, unix.ENOPROTOOPT):
		return false, false, nil
	case err != nil:
		return false, false, fmt.Errorf("IP_LOCAL_PORT_RANGE: %w", err)
	}
	proto, err := function("inet_sk_get_local_port_range")
	if err != nil || proto == nil {
		return true, false, err
	}
	_, isVoid := proto.Return.(*btf.Void)
	return true, !isVoid, nil
}

// searchNet is a loopback with n ports.
func (s *Session) searchNet(n int, sysctls ...string) (*netlab.Lab, [2]uint16, error) {
	low := uint16(classicLow)
	high := low + uint16(n) - 1
	l, err := s.Network(netlab.Loopback, append(sysctls, fmt.Sprintf("ip_local_port_range=%d %d", low, high))...)
	return l, [2]uint16{low, high}, err
}

// searchCosts measures each way at rising shares of ports in TIME_WAIT.
func (s *Session) searchCosts(hasRange, stepsByOne bool) error {
	n := searchPorts(s)
	span := [2]uint16{classicLow, classicLow + uint16(n) - 1}
	table, err := s.costs(n, How{}, []int{0, 14, 42, 57, 71, 85, 99, 100}, func(ip netip.Addr, to, other netip.AddrPort) []searchWay {
		ways := []searchWay{
			{"auto", How{}, to},
			{"other destination", How{}, other},
			{"NO_PORT", How{Bind: true, From: ip, NoPort: true}, to},
			{"bind(ip,0)", How{Bind: true, From: ip}, to},
		}
		if hasRange {
			ways = append(ways, searchWay{"PORT_RANGE", How{Range: span}, to})
		}
		return ways
	})
	if err != nil {
		return err
	}
	s.Note("costs", table)
	s.Note("ports", n)
	s.claimCosts(table, hasRange, stepsByOne)
	return nil
}

// costs measures ways to get a port of n, at rising shares of them in TIME_WAIT, on a loopback of its own. Those taken got their ports
// as fill says.
func (s *Session) costs(n int, fill How, percents []int, ways func(ip netip.Addr, to, other netip.AddrPort) []searchWay) (table []searchRow, err error) {
	l, _, err := s.searchNet(n, "tcp_tw_reuse=0")
	if err != nil {
		return nil, err
	}
	to := netip.AddrPortFrom(l.ServerAddr(), serverPort)
	other := netip.AddrPortFrom(l.ServerAddr(), serverPort+1)
	q, err := s.NewSearcher(l, to, other)
	if err != nil {
		return nil, err
	}
	if fill.Bind {
		fill.From = l.ServerAddr()
	}
	all := ways(l.ServerAddr(), to, other)
	err = q.Do(func() error {
		taken := 0
		for _, percent := range percents {
			want := n * percent / 100
			if err := q.Take(l, n, taken, want, fill, to); err != nil {
				return err
			}
			taken = want
			row, err := q.measure(percent, all)
			if err != nil {
				return err
			}
			table = append(table, row)
			s.Logf("%d%% taken: %v", percent, row.US)
		}
		return nil
	})
	return table, err
}

// measure takes the ways in turn, so that what else goes on meets all alike. They close by RST: what is taken stays the same.
func (q *Searcher) measure(percent int, ways []searchWay) (searchRow, error) {
	got := make([][]Opened, len(ways))
	row := searchRow{Percent: percent, US: make(map[string]float64), Errors: make(map[string]string)}
	for range samples {
		for w := range ways {
			o, err := q.Open(ways[w].how, ways[w].to)
			if err != nil {
				return row, err
			}
			if err := q.Close(&o, true); err != nil {
				return row, err
			}
			got[w] = append(got[w], o)
			if !o.OK() {
				row.Errors[ways[w].name] = o.Phase + " " + unix.ErrnoName(o.Errno)
			}
		}
	}
	for w := range ways {
		row.US[ways[w].name] = medianCPU(got[w])
	}
	return row, nil
}

// claimCosts settles what the table of costs says. All are ratios, with wide margins: walks over half of the ports cost ten times what
// all the rest does.
func (s *Session) claimCosts(table []searchRow, hasRange, stepsByOne bool) {
	us := func(percent int, way string) float64 {
		for i := range table {
			if table[i].Percent == percent {
				return table[i].US[way]
			}
		}
		return 0
	}
	failed := func(percent int, way string) string {
		for i := range table {
			if table[i].Percent == percent {
				return table[i].Errors[way]
			}
		}
		return ""
	}
	ratio := func(way string, a, b int) float64 { return us(a, way) / us(b, way) }
	s.Claim(Claim{
		Key: "half", Text: "connect() costs the same until half of the ports to a destination are taken, and many times as much from then on.",
		Holds: holdsOf(ratio("auto", 42, 14) < 2 && ratio("auto", 57, 42) > 3), Expected: Yes,
		Evidence: Evidence{"us at 14 %": us(14, "auto"), "us at 42 %": us(42, "auto"), "us at 57 %": us(57, "auto"), "us at 85 %": us(85, "auto")},
		History:  "Since 4.2, as far as read (07f4c90062f8: one parity first); __inet_hash_connect.",
	})
	s.Claim(Claim{
		Key: "failing", Text: "A connect() that fails for want of a port has looked at all of them.",
		Holds:    holdsOf(ratio("auto", 100, 42) > 6 && failed(100, "auto") == "connect EADDRNOTAVAIL"),
		Expected: Yes, Evidence: Evidence{"us": us(100, "auto"), "us at 42 %": us(42, "auto"), "error": failed(100, "auto")},
	})
	s.Claim(Claim{
		Key: "other-destination-cost", Text: "What is taken to one destination does not slow connections to another down.",
		Holds:    holdsOf(ratio("other destination", 99, 0) < 3),
		Expected: Yes, Evidence: Evidence{"us at 0 %": us(0, "other destination"), "us at 99 %": us(99, "other destination")},
	})
	s.Claim(Claim{
		Key: "no-port-cost", Text: "A bound address with IP_BIND_ADDRESS_NO_PORT is searched for as an unbound one is.",
		Holds:    holdsOf(ratio("NO_PORT", 57, 42) > 3),
		Expected: Yes, Evidence: Evidence{"us at 42 %": us(42, "NO_PORT"), "us at 57 %": us(57, "NO_PORT"), "unbound us at 57 %": us(57, "auto")},
	})
	s.Claim(Claim{
		Key: "bind0-other-parity", Text: "bind() to port 0 is not slowed down by what connect() has taken of its own half.",
		Holds:    holdsOf(ratio("bind(ip,0)", 85, 42) < 3),
		Expected: Yes, Evidence: Evidence{"us at 42 %": us(42, "bind(ip,0)"), "us at 85 %": us(85, "bind(ip,0)"), "us at 100 %": us(100, "bind(ip,0)"), "then": failed(100, "bind(ip,0)")},
		History: "Since 4.2, as far as read (07f4c90062f8): it begins with the other parity (inet_csk_find_open_port).",
	})
	claim := Claim{
		Key: "port-range-cost", Text: "IP_LOCAL_PORT_RANGE, even if it is the same range, has no such step at half of the ports.",
		Expected: holdsOf(stepsByOne),
		History:  "As far as read since 6.8, where inet_sk_get_local_port_range says whether it is set and the search then goes by one (207184853dbd); before, the option only narrowed the range.",
	}
	if hasRange {
		claim.Holds = holdsOf(ratio("PORT_RANGE", 57, 42) < 3)
		claim.Evidence = Evidence{"us at 42 %": us(42, "PORT_RANGE"), "us at 57 %": us(57, "PORT_RANGE"), "us at 99 %": us(99, "PORT_RANGE"), "us at 100 %, failing": us(100, "PORT_RANGE")}
	}
	s.Claim(claim)
}

// searchBound has bind() choose every port of a range.
func (s *Session) searchBound() error {
	n := searchPorts(s)
	const way = "bind(ip,0)"
	table, err := s.costs(n, How{Bind: true}, []int{40, 60, 100}, func(ip netip.Addr, to, _ netip.AddrPort) []searchWay {
		return []searchWay{{way, How{Bind: true, From: ip}, to}}
	})
	if err != nil {
		return err
	}
	early, late := table[0].US[way], table[1].US[way]
	s.Claim(Claim{
		Key: "bind0-cost", Text: "Where all sockets bind port 0, bind() is what walks over the taken half.",
		Holds: holdsOf(late > 3*early && table[2].Errors[way] == "bind EADDRINUSE"), Expected: Yes,
		Evidence: Evidence{"us at 40 %": early, "us at 60 %": late, "us at 100 %": table[2].US[way], "then": table[2].Errors[way], "ports": n},
		History:  "inet_csk_find_open_port; it calls a port taken that has any connection, to whatever destination.",
	})
	return nil
}

// lapOf opens and closes connections on a loopback of its own with n ports.
func (s *Session) lapOf(n, connections int, how func(l *netlab.Lab, i int) How) (all []Opened, err error) {
	l, _, err := s.searchNet(n, "tcp_tw_reuse=0")
	if err != nil {
		return nil, err
	}
	to := netip.AddrPortFrom(l.ServerAddr(), serverPort)
	q, err := s.NewSearcher(l, to)
	if err != nil {
		return nil, err
	}
	err = q.Do(func() (err error) {
		all, err = q.Lap(connections, func(i int) How { return how(l, i) }, to, false)
		return err
	})
	return all, err
}

// searchOpen fills a range with open connections.
func (s *Session) searchOpen() error {
	const n = 3000 // with two descriptors each up to 57 %, within the usual hard limit of 4096
	claim := Claim{
		Key: "open-too", Text: "Connections that are open slow the search down as TIME_WAITs do, if less: the walk is what costs.",
		Expected: Yes,
		History:  "Where __inet_check_established looks without the bucket's lock first (rcu_lookup, in 6.18 and not in 6.12), an open connection is seen without it, a TIME_WAIT is not.",
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("RLIMIT_NOFILE: %w", err)
	}
	if limit.Cur < 4096 {
		claim.Evidence = Evidence{"limit of descriptors": limit.Cur}
		s.Claim(claim)
		return nil
	}
	l, _, err := s.searchNet(n)
	if err != nil {
		return err
	}
	to := netip.AddrPortFrom(l.ServerAddr(), serverPort)
	q, err := s.NewSearcher(l, to)
	if err != nil {
		return err
	}
	var all []Opened
	var rows [2]searchRow
	defer func() {
		for i := range all {
			_ = q.Close(&all[i], true)
		}
	}()
	err = q.Do(func() error {
		for i, percent := range []int{42, 57} {
			for len(all) < n*percent/100 {
				o, err := q.Open(How{}, to)
				if err != nil {
					return err
				}
				all = append(all, o)
			}
			if rows[i], err = q.measure(percent, []searchWay{{"auto", How{}, to}}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	before, after := rows[0].US["auto"], rows[1].US["auto"]
	claim.Holds = holdsOf(okOf(all) == len(all) && after > 2*before)
	claim.Evidence = Evidence{"ports": n, "open": len(all), "us at 42 %": before, "us at 57 %": after, "ns a port walked": (after - before) * 1000 / (n / 2)}
	s.Claim(claim)
	return nil
}

// searchOwn has the client bind the ports of a range one after the other, twice: in the second round every port is in TIME_WAIT.
func (s *Session) searchOwn() error {
	n := searchPorts(s)
	all, err := s.lapOf(n, 2*n, func(l *netlab.Lab, i int) How {
		return How{Bind: true, From: l.ServerAddr(), Port: classicLow + uint16(i%n), Reuse: true}
	})
	if err != nil {
		return err
	}
	early, late, again := medianCPU(all[:n/5]), medianCPU(all[n*4/5:n]), medianCPU(all[n:])
	s.Claim(Claim{
		Key: "own-port-cost", Text: "A client that binds ports of its own choice never searches: its connect() costs the same however much is taken.",
		Holds: holdsOf(okOf(all) == len(all) && late < 2*early && again < 3*early), Expected: Yes,
		Evidence: Evidence{"us below 20 %": early, "us above 80 %": late, "us with every port in TIME_WAIT": again, "connections": okOf(all), "ports": n},
	})
	return nil
}

// searchOrder settles who gets which parity, by the ports themselves.
func (s *Session) searchOrder(hasRange, stepsByOne bool) error {
	const n = 200
	opened := func(how How) ([]Opened, error) {
		return s.lapOf(n, n, func(l *netlab.Lab, _ int) How {
			how.From = l.ServerAddr()
			return how
		})
	}
	auto, err := opened(How{})
	if err != nil {
		return err
	}
	first, rest := ofParity(auto[:n/2], classicLow), ofParity(auto[n/2:], classicLow)
	s.Claim(Claim{
		Key: "connect-parity", Text: "connect() gives out the ports with the parity of the range's first, and the others only when those are used up.",
		Holds: holdsOf(okOf(auto) == n && first == n/2 && rest == 0), Expected: Yes,
		Evidence: Evidence{"ports": n, "of the first half, with that parity": first, "of the second": rest},
		History:  "Since 4.2, as far as read (07f4c90062f8); before, ports were taken in turn from a random one.",
	})
	bound, err := opened(How{Bind: true})
	if err != nil {
		return err
	}
	first, rest = ofParity(bound[:n/2], classicLow), ofParity(bound[n/2:], classicLow)
	s.Claim(Claim{
		Key: "bind-parity", Text: "bind() to port 0 gives out the others first, so as not to be in connect()'s way.",
		Holds: holdsOf(okOf(bound) == n && first == 0 && rest == n/2), Expected: Yes,
		Evidence: Evidence{"ports": n, "of the first half, with connect()'s parity": first, "of the second": rest},
		History:  "inet_csk_find_open_port.",
	})
	claim := Claim{
		Key: "port-range-parity", Text: "With IP_LOCAL_PORT_RANGE connect() takes ports of both parities alike.",
		Expected: holdsOf(stepsByOne),
		History:  "As far as read since 6.8 (207184853dbd).",
	}
	if hasRange {
		both, err := opened(How{Range: [2]uint16{classicLow, classicLow + n - 1}})
		if err != nil {
			return err
		}
		first = ofParity(both[:n/2], classicLow)
		claim.Holds = holdsOf(first < n/2)
		claim.Evidence = Evidence{"ports": n, "of the first half, with the range's parity": first}
	}
	s.Claim(claim)
	return nil
}

// searchPart is connections to one destination, of one kind.
type searchPart struct {
	source      int // number of the address that is bound; -1: none is
	noPort      bool
	destination int
}

// searchRoom counts how many connections a range of ten has room for.
func (s *Session) searchRoom() error {
	const n = 10
	counts := make(map[string][]int)
	defer s.Note("room", counts)
	auto, last, err := s.countRoom(n, searchPart{-1, false, 0}, searchPart{-1, false, 1})
	if err != nil {
		return err
	}
	counts["unbound, to two destinations"] = auto
	s.Claim(Claim{
		Key: "destinations", Text: "Each further destination, address or port, has the whole range again.",
		Holds: holdsOf(auto[0] == n && auto[1] == n && last.is("connect", unix.EADDRNOTAVAIL)), Expected: Yes,
		Evidence: Evidence{"ports": n, "to the first": auto[0], "to the second": auto[1], "then": last.Why()},
	})
	sources, last, err := s.countRoom(n, searchPart{0, true, 0}, searchPart{1, true, 0})
	if err != nil {
		return err
	}
	counts["IP_BIND_ADDRESS_NO_PORT, from two sources"] = sources
	s.Claim(Claim{
		Key: "sources", Text: "Each further source address has the whole range again.",
		Holds: holdsOf(sources[0] == n && sources[1] == n), Expected: Yes,
		Evidence: Evidence{"ports": n, "from the first": sources[0], "from the second": sources[1], "then": last.Why()},
	})
	plain, last, err := s.countRoom(n, searchPart{0, false, 0}, searchPart{0, false, 1})
	if err != nil {
		return err
	}
	counts["bind(ip,0), to two destinations"] = plain
	s.Claim(Claim{
		Key: "bind0-room", Text: "A socket that binds an address and port 0 shares one range among all destinations, and it is bind() that fails.",
		Holds: holdsOf(plain[0] == n && plain[1] == 0 && last.is("bind", unix.EADDRINUSE)), Expected: Yes,
		Evidence: Evidence{"ports": n, "to the first": plain[0], "to the second": plain[1], "then": last.Why()},
	})
	free, last, err := s.countRoom(n, searchPart{0, true, 0}, searchPart{0, true, 1})
	if err != nil {
		return err
	}
	counts["IP_BIND_ADDRESS_NO_PORT, to two destinations"] = free
	s.Claim(Claim{
		Key: "no-port-room", Text: "With IP_BIND_ADDRESS_NO_PORT it has a range for each destination again.",
		Holds: holdsOf(free[0] == n && free[1] == n && last.is("connect", unix.EADDRNOTAVAIL)), Expected: Yes,
		Evidence: Evidence{"ports": n, "to the first": free[0], "to the second": free[1], "then": last.Why()},
		History:  "Since 4.2 (90c337da1524): connect() chooses the port, when the destination is known.",
	})
	return nil
}

// countRoom opens more connections of each part than there are ports, and returns how many succeeded and the last that did not.
func (s *Session) countRoom(n int, parts ...searchPart) (opened []int, last Opened, err error) {
	set, err := Sysctls("tcp_tw_reuse=0", fmt.Sprintf("ip_local_port_range=%d %d", classicLow, classicLow+n-1))
	if err != nil {
		return nil, last, err
	}
	l, err := s.NetworkOf(netlab.Options{Kind: netlab.Pair, Sources: 2, Sysctls: set})
	if err != nil {
		return nil, last, err
	}
	to := []netip.AddrPort{netip.AddrPortFrom(l.ServerAddr(), serverPort), netip.AddrPortFrom(l.ServerAddr(), serverPort+1)}
	q, err := s.NewSearcher(l, to...)
	if err != nil {
		return nil, last, err
	}
	err = q.Do(func() error {
		for _, p := range parts {
			how := How{NoPort: p.noPort}
			if p.source >= 0 {
				how.Bind, how.From = true, l.ClientAddrs()[p.source]
			}
			ok := 0
			for range n + 3 {
				o, err := q.Open(how, to[p.destination])
				if err != nil {
					return err
				}
				q.Hold(&o)
				if o.OK() {
					ok++
				} else {
					last = o
				}
			}
			opened = append(opened, ok)
		}
		return nil
	})
	return opened, last, err
}

// searchOdd leaves the last port of a range of five free, and connects to many destinations, for each of which the search begins elsewhere.
func (s *Session) searchOdd() error {
	const n, destinations = 5, 24
	l, span, err := s.searchNet(n)
	if err != nil {
		return err
	}
	var to []netip.AddrPort
	for i := range destinations {
		to = append(to, netip.AddrPortFrom(l.ServerAddr(), serverPort+uint16(i)))
	}
	q, err := s.NewSearcher(l, to...)
	if err != nil {
		return err
	}
	for port := span[0]; port < span[1]; port++ {
		holder, err := s.Socket(l.Client(), false)
		if err != nil {
			return err
		}
		if err := holder.Bind(netip.AddrPortFrom(l.ServerAddr(), port)); err != nil {
			return fmt.Errorf("bind %d: %w", port, err)
		}
	}
	ok := 0
	var last Opened
	err = q.Do(func() error {
		for _, at := range to {
			o, err := q.Open(How{}, at)
			if err != nil {
				return err
			}
			if o.OK() {
				ok++
			} else {
				last = o
			}
			if err := q.Close(&o, true); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.Claim(Claim{
		Key: "odd-range", Text: "connect() finds every port of its range that is free.",
		Holds: holdsOf(ok == destinations), Expected: No,
		Evidence: Evidence{"ports": n, "free, the last": 1, "destinations": destinations, "connected": ok, "the others": last.Why()},
		History:  "In a range with an odd number of ports each search leaves out its first or its last, by chance (__inet_hash_connect: remaining &= ~1). The default range is even, and the kernel warns of others: prefer different parity for start/end values.",
	})
	return nil
}
