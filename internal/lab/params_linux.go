package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/run"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/loadgen"
)

// params is experiment 2: what each setting does, on the side that connects and on the one that accepts.
func params(s *Session) error {
	parts := []func() ([]Claim, error){
		s.paramsReuse, s.paramsServerReuse, s.paramsRecycle,
		s.paramsFinTimeout, s.paramsLength, s.paramsReuseAddr, s.paramsReusePort,
		s.paramsBuckets, s.paramsSlab, s.paramsRFC1337, s.paramsRange, s.paramsReserved, s.paramsDefaults,
		s.paramsReuseAge, s.paramsReuseDelay, s.paramsWhoCloses, s.paramsRate,
	}
	const timed = 4 // the last of them need the processors' time
	claims := make([][]Claim, len(parts))
	together := make([]func() error, len(parts))
	for i, part := range parts {
		together[i] = func() (err error) {
			claims[i], err = part()
			return err
		}
	}
	if err := s.Together(together[:len(parts)-timed]...); err != nil {
		return err
	}
	for _, part := range together[len(parts)-timed:] {
		if err := part(); err != nil {
			return err
		}
	}
	for _, list := range claims {
		for _, c := range list {
			s.Claim(c)
		}
	}
	s.Answerf("Only who connects has a use for tcp_tw_reuse, and it needs timestamps on both ends; nothing shortens TIME_WAIT, which lasts 60 s: " +
		"tcp_fin_timeout is about FIN_WAIT2, tcp_max_tw_buckets skips TIME_WAITs, ip_local_port_range is how many there can be to one destination, and tcp_tw_recycle is gone.")
	return nil
}

// reuseAge is when tcp_tw_reuse allows a TIME_WAIT to be taken, whatever the kernel: a second, or that of the clock being another one.
const reuseAge = 1200 * time.Millisecond

// fill opens n connections one after the other and closes them, the client first.
func (q *Searcher) fill(n int, to netip.AddrPort) (ok int, err error) {
	err = q.Do(func() error {
		all, err := q.Lap(n, always(How{}), to, false)
		ok = okOf(all)
		return err
	})
	return ok, err
}

// stamped is a pair of hosts with n ports and timestamps as each side wants them.
func (s *Session) stamped(n, client, server int, sysctls ...string) (*netlab.Lab, error) {
	l, err := s.Network(netlab.Pair, append(sysctls, fmt.Sprintf("ip_local_port_range=%d %d", classicLow, classicLow+n-1))...)
	if err != nil {
		return nil, err
	}
	return l, errors.Join(
		s.Set(l, l.Client(), fmt.Sprintf("tcp_timestamps=%d", client)),
		s.Set(l, l.Server(), fmt.Sprintf("tcp_timestamps=%d", server)))
}

// paramsReuse has the ports of a client in TIME_WAIT, and asks for them again a second later.
func (s *Session) paramsReuse() ([]Claim, error) {
	const n = 4
	type row struct {
		Reuse  int `json:"tcp_tw_reuse"`
		Client int `json:"client_timestamps"`
		Server int `json:"server_timestamps"`
		Again  int `json:"connected_again"`
	}
	var table []row
	var each []*Searcher
	var to netip.AddrPort
	for _, reuse := range []int{0, 1, 2} {
		for _, stamps := range [][2]int{{1, 1}, {1, 0}, {0, 1}, {0, 0}} {
			l, err := s.stamped(n, stamps[0], stamps[1], "tcp_tw_reuse="+strconv.Itoa(reuse))
			if err != nil {
				return nil, err
			}
			to = netip.AddrPortFrom(l.ServerAddr(), serverPort)
			q, err := s.NewSearcher(l, to)
			if err != nil {
				return nil, err
			}
			if ok, err := q.fill(n, to); err != nil || ok != n {
				return nil, errors.Join(fmt.Errorf("%d of %d connected", ok, n), err)
			}
			each, table = append(each, q), append(table, row{reuse, stamps[0], stamps[1], 0})
		}
	}
	if err := s.Sleep(reuseAge); err != nil {
		return nil, err
	}
	both, one, off := 0, 0, 0
	for i, q := range each {
		again, err := q.fill(n, to)
		if err != nil {
			return nil, err
		}
		r := &table[i]
		r.Again = again
		switch {
		case r.Reuse != 1:
			off += again // 2 is for loopback alone: classic has it
		case r.Client+r.Server == 2:
			both += again
		default:
			one += again
		}
	}
	return []Claim{
		{
			Key: "reuse-timestamps", Text: "tcp_tw_reuse needs tcp_timestamps on both ends.",
			Holds: holdsOf(both == n && one == 0 && off == 0), Expected: Yes,
			Evidence: Evidence{"ports in TIME_WAIT": n, "reused with timestamps on both ends": both, "with one end's off, or both": one, "with tcp_tw_reuse 0 or 2": off, "table": table},
			History:  "tcp_twsk_unique: tw_ts_recent_stamp is 0 unless segments had timestamps.",
		},
		{
			Key: "stripped-timestamps", Text: "A load balancer that strips timestamps disables it.",
			Holds: holdsOf(one == 0), Expected: Yes,
			Evidence: Evidence{"reused where one end sent none": one},
			History:  "Stripped from SYNs is as good as the peer's tcp_timestamps=0, which is what was tried.",
		},
	}, nil
}

// paramsServerReuse closes connections on the server's side with tcp_tw_reuse there.
func (s *Session) paramsServerReuse() ([]Claim, error) {
	const n = 20
	evidence := Evidence{"connections": n}
	same := true
	for _, reuse := range []int{0, 1} {
		l, err := s.Network(netlab.Pair)
		if err != nil {
			return nil, err
		}
		if err := s.Set(l, l.Server(), "tcp_tw_reuse="+strconv.Itoa(reuse)); err != nil {
			return nil, err
		}
		at := netip.AddrPortFrom(l.ServerAddr(), serverPort)
		listener, err := s.Listener(l.Server(), at, n)
		if err != nil {
			return nil, err
		}
		if err := s.closeMany(l, listener, at, n/2); err != nil {
			return nil, err
		}
		if err := s.Sleep(reuseAge); err != nil {
			return nil, err
		}
		if err := s.closeMany(l, listener, at, n/2); err != nil {
			return nil, err
		}
		if err := s.TimeWaits(l.Server(), n); err != nil {
			return nil, err
		}
		c, err := l.Server().Counters()
		if err != nil {
			return nil, err
		}
		if err := listener.Close(); err != nil {
			return nil, err
		}
		again, err := s.Socket(l.Server(), false)
		if err != nil {
			return nil, err
		}
		bind := Errno(again.Bind(at))
		evidence[fmt.Sprintf("with %d: TIME_WAITs", reuse)] = c["sockstat.TCP.tw"]
		evidence[fmt.Sprintf("with %d: TWRecycled", reuse)] = c["TcpExt.TWRecycled"]
		evidence[fmt.Sprintf("with %d: bind() of the port", reuse)] = bind
		same = same && c["sockstat.TCP.tw"] == n && c["TcpExt.TWRecycled"] == 0 && bind == "EADDRINUSE"
	}
	return []Claim{{
		Key: "reuse-server", Text: "tcp_tw_reuse works only for the side that connects: on a server it has no effect.",
		Holds: holdsOf(same), Expected: Yes, Evidence: evidence,
		History: "tcp_twsk_unique is called from connect() alone.",
	}}, nil
}

// closeMany opens connections and has the server close first.
func (s *Session) closeMany(l *netlab.Lab, listener *Socket, at netip.AddrPort, n int) error {
	for range n {
		client, server, err := s.PairTo(l.Client(), listener, at, netip.AddrPort{})
		if err != nil {
			return err
		}
		if err := s.CloseFirst(server, client); err != nil {
			return err
		}
	}
	return nil
}

// untilReused is how long after its close the only port of a client can be connected again, tried every few milliseconds for at
// most limit; negative: it could not.
func (q *Searcher) untilReused(to netip.AddrPort, limit time.Duration) (age time.Duration, err error) {
	begun := time.Now()
	for {
		ok, err := q.fill(1, to)
		if err != nil || ok == 1 {
			return time.Since(begun), err
		}
		if time.Since(begun) > limit {
			return -1, nil
		}
		if err := q.s.Sleep(3 * time.Millisecond); err != nil {
			return 0, err
		}
	}
}

// ages measures untilReused a few times on a client with tcp_tw_reuse=1.
func (s *Session) ages(times int, limit time.Duration, sysctls ...string) (ms []int64, err error) {
	l, err := s.stamped(1, 1, 1, append(sysctls, "tcp_tw_reuse=1")...)
	if err != nil {
		return nil, err
	}
	to := netip.AddrPortFrom(l.ServerAddr(), serverPort)
	q, err := s.NewSearcher(l, to)
	if err != nil {
		return nil, err
	}
	if ok, err := q.fill(1, to); err != nil || ok != 1 {
		return nil, errors.Join(errors.New("the first connection failed"), err)
	}
	for range times {
		age, err := q.untilReused(to, limit)
		if err != nil {
			return nil, err
		}
		ms = append(ms, age.Milliseconds())
		if age < 0 {
			break
		}
	}
	return ms, nil
}

func (s *Session) paramsReuseAge() ([]Claim, error) {
	// What a scheduler adds is no age: the least counts.
	const slack = 500
	ms, err := s.ages(3, 5*time.Second)
	if err != nil {
		return nil, err
	}
	least := slices.Min(ms)
	return []Claim{{
		Key: "reuse-age", Text: "With tcp_tw_reuse a port comes back within 1 s.",
		Holds: holdsOf(least >= 0 && least <= 1000+slack), Expected: Yes, Evidence: Evidence{"ms until it came back": ms, "the least of them": least},
		History: "Until 6.13 as soon as the clock shows another second than that of the last segment, so after 0 to 1 s; since 6.14 after tcp_tw_reuse_delay, 1 s by default, to the millisecond (19ce8cd30465, ca6a6f93867a).",
	}}, nil
}

func (s *Session) paramsReuseDelay() ([]Claim, error) {
	claim := Claim{
		Key: "reuse-delay", Text: "tcp_tw_reuse_delay is after how many milliseconds that is.",
		Expected: Yes, History: "Since 6.14 (ca6a6f93867a); 1 to 60000, as far as read.",
	}
	l, err := s.Network(netlab.Loopback)
	if err != nil {
		return nil, err
	}
	if has, err := HasSysctl(l.Client(), "tcp_tw_reuse_delay"); err != nil || !has {
		claim.Expected = No
		claim.Evidence = Evidence{"tcp_tw_reuse_delay": "this kernel has none"}
		return []Claim{claim}, err
	}
	short, err := s.ages(3, 5*time.Second, "tcp_tw_reuse_delay=200")
	if err != nil {
		return nil, err
	}
	long, err := s.ages(1, 5*time.Second, "tcp_tw_reuse_delay=2000")
	if err != nil {
		return nil, err
	}
	const early = 100 // at most: how much older a TIME_WAIT is than the return of who made it
	holds := len(long) == 1 && long[0] >= 2000-early && long[0] < 2900
	for _, age := range short {
		holds = holds && age >= 200-early && age < 900
	}
	claim.Holds = holdsOf(holds)
	claim.Evidence = Evidence{"ms with 200": short, "last ms with 200": short[len(short)-1], "ms with 2000": long[0]}
	return []Claim{claim}, nil
}

// paramsRecycle settles what was said of a setting that is gone.
func (s *Session) paramsRecycle() ([]Claim, error) {
	l, err := s.Network(netlab.Loopback)
	if err != nil {
		return nil, err
	}
	has, err := HasSysctl(l.Client(), "tcp_tw_recycle")
	if err != nil {
		return nil, err
	}
	const gone = "Held once: removed in 4.12 (4396e46187ca), after timestamps began at another number in each connection (4.10), which left nothing for it to compare. tcp_tw_reuse is what remains, for who connects."
	list := []Claim{
		{Key: "recycle", Text: "tcp_tw_recycle works on both sides within 3.5 RTO.", History: gone},
		{Key: "recycle-timestamps", Text: "tcp_tw_recycle needs tcp_timestamps on both ends.", History: gone},
		{Key: "recycle-nat", Text: "tcp_tw_recycle breaks clients behind NAT, because their timestamps are not monotonic together.", History: gone},
		{Key: "recycle-stripped", Text: "Load balancers that strip timestamps disable tcp_tw_recycle.", History: gone},
	}
	for i := range list {
		list[i].Expected = No
		list[i].Evidence = Evidence{"the kernel has net.ipv4.tcp_tw_recycle": has}
		if !has {
			list[i].Holds = No
		}
	}
	return list, nil
}

// paramsRate runs open loops of connections below and above as many a second as there are ports.
func (s *Session) paramsRate() ([]Claim, error) {
	ports, seconds := 60, 4
	if s.Full() {
		ports = 1000
	}
	type result struct {
		rate, sources                 int
		failed, finished, unexplained int
		perSecond, begunPerSecond     float64
	}
	results := []result{{rate: ports * 3 / 4, sources: 1}, {rate: ports * 13 / 10, sources: 1}, {rate: ports * 13 / 10, sources: 2}}
	for i := range results {
		r := &results[i]
		set, err := Sysctls("tcp_tw_reuse=1", fmt.Sprintf("ip_local_port_range=%d %d", classicLow, classicLow+ports-1))
		if err != nil {
			return nil, err
		}
		plan := loadgen.NewPlan(netip.AddrPort{})
		plan.Loops, plan.Connections, plan.Rate = 1, r.rate*seconds, float64(r.rate)
		// After a stall of the machine an open loop makes up for it: for a second it needs more ports.
		plan.MaxRate = plan.Rate * 1.05
		if r.sources > 1 {
			plan.Bind, plan.NoPort = loadgen.BindAddr, true
		}
		summary, err := s.Storm(run.Options{Plan: plan, Net: netlab.Options{Kind: netlab.Pair, Sources: r.sources, Sysctls: set}})
		if err != nil {
			return nil, err
		}
		if summary.Interrupted {
			return nil, s.ctx.Err()
		}
		t := &summary.Totals
		r.failed, r.finished, r.perSecond, r.unexplained = t.Failed, t.Finished, t.PerSecond, summary.Unexplained
		r.begunPerSecond = float64(t.Attempts) / t.Seconds
	}
	below, above, more := results[0], results[1], results[2]
	// A machine too slow for the rate shows nothing.
	reached := func(r *result, found bool) Holds {
		if r.begunPerSecond < 1.05*float64(ports) {
			return NotObservable
		}
		return holdsOf(found)
	}
	explained := below.unexplained+above.unexplained+more.unexplained == 0
	other, last, err := s.countRoom(10, searchPart{-1, false, 0}, searchPart{-1, false, 1})
	if err != nil {
		return nil, err
	}
	return []Claim{
		{
			Key: "per-second", Text: "That allows about 60,000 short connections a second per client address: as many a second as there are ports.",
			Holds: reached(&above, below.failed == 0 && above.failed > 0 && explained), Expected: Yes,
			Evidence: Evidence{
				"ports": ports, "fewer a second": below.rate, "failed of those": below.failed, "finished a second of those": below.perSecond,
				"more a second": above.rate, "failed of them": above.failed, "finished a second of them": above.perSecond, "begun a second of them": above.begunPerSecond,
			},
			History: "64,512 ports above 1023, each of them again after a second. Since 6.14 a shorter tcp_tw_reuse_delay allows more, and a client that binds its own ports does not wait at all (bound-port).",
		},
		{
			Key: "more-addresses", Text: "More needs more client addresses.",
			Holds: reached(&more, more.failed == 0 && explained), Expected: Yes,
			Evidence: Evidence{"a second from two addresses": more.rate, "failed": more.failed, "failed from one": above.failed},
		},
		{
			Key: "addresses-only", Text: "Nothing but more client addresses allows more.",
			Holds: holdsOf(other[1] == 0), Expected: No,
			Evidence: Evidence{"connections to a destination": other[0], "and to another port of it": other[1], "then": last.Why()},
			History:  "Another destination, if only another port, has all ports again: the four-tuple is what has to be free.",
		},
	}, nil
}

// paramsFinTimeout has one FIN_WAIT2 and one TIME_WAIT with a short tcp_fin_timeout.
func (s *Session) paramsFinTimeout() ([]Claim, error) {
	const timeout = 3
	l, err := s.Network(netlab.Pair, "tcp_fin_timeout="+strconv.Itoa(timeout))
	if err != nil {
		return nil, err
	}
	at := netip.AddrPortFrom(l.ServerAddr(), serverPort)
	listener, err := s.Listener(l.Server(), at, 16)
	if err != nil {
		return nil, err
	}
	// The one whose server does not close.
	half, _, err := s.PairTo(l.Client(), listener, at, netip.AddrPort{})
	if err != nil {
		return nil, err
	}
	whole, server, err := s.PairTo(l.Client(), listener, at, netip.AddrPort{})
	if err != nil {
		return nil, err
	}
	if err := s.CloseFirst(whole, server); err != nil {
		return nil, err
	}
	if err := half.Close(); err != nil {
		return nil, err
	}
	begun := time.Now()
	in := func(state tcp.State) (left []time.Duration, err error) {
		list, err := s.Minisocks(l.Client())
		for _, m := range list {
			if m.State == state {
				left = append(left, m.Left)
			}
		}
		return left, err
	}
	var finWait2 time.Duration
	err = s.Wait("FIN_WAIT2", patience, func() (bool, error) {
		left, err := in(tcp.FinWait2)
		if len(left) == 1 {
			finWait2 = left[0]
		}
		return len(left) == 1, err
	})
	if err != nil {
		return nil, err
	}
	err = s.Wait("the end of FIN_WAIT2", 60*time.Second, func() (bool, error) {
		left, err := in(tcp.FinWait2)
		return len(left) == 0, err
	})
	if err != nil {
		return nil, err
	}
	lasted := time.Since(begun)
	left, err := in(tcp.TimeWait)
	if err != nil {
		return nil, err
	}
	var timeWait time.Duration
	if len(left) == 1 {
		timeWait = left[0]
	}
	return []Claim{{
		Key: "fin-timeout", Text: "tcp_fin_timeout is the FIN_WAIT2 timeout, not 2 MSL.",
		Holds: holdsOf(lasted < 20*time.Second && timeWait > 60*time.Second-lasted-2*time.Second), Expected: Yes,
		Evidence: Evidence{
			"tcp_fin_timeout": timeout, "s that FIN_WAIT2 had left at first": finWait2.Seconds(), "s until it was gone": lasted.Seconds(),
			"s that a TIME_WAIT of the same age has left then": timeWait.Seconds(),
		},
		History: "tcp_time_wait: TIME_WAIT takes TCP_TIMEWAIT_LEN; tcp_fin_time() is for FIN_WAIT2 whose socket is closed. (One that was only shut down waits for ever.)",
	}}, nil
}

// paramsLength asks the kernel how long TIME_WAITs have left that were made under various settings.
func (s *Session) paramsLength() ([]Claim, error) {
	left := make(map[string]float64)
	holds := true
	for _, set := range []string{"tcp_fin_timeout=1", "tcp_tw_reuse=1", "tcp_timestamps=0", "tcp_rfc1337=1", "tcp_orphan_retries=1", "tcp_retries2=3", "tcp_max_tw_buckets=10", "tcp_sack=0"} {
		l, err := s.Network(netlab.Pair, set)
		if err != nil {
			return nil, err
		}
		at := netip.AddrPortFrom(l.ServerAddr(), serverPort)
		q, err := s.NewSearcher(l, at)
		if err != nil {
			return nil, err
		}
		begun := time.Now()
		if _, err := q.fill(1, at); err != nil {
			return nil, err
		}
		if err := s.TimeWaits(l.Client(), 1); err != nil {
			return nil, err
		}
		var m []Minisock
		err = s.Wait("TIME_WAIT", patience, func() (bool, error) {
			m, err = s.Minisocks(l.Client())
			return len(m) == 1 && m[0].State == tcp.TimeWait, err
		})
		if err != nil {
			return nil, err
		}
		age := time.Since(begun)
		left[set] = m[0].Left.Seconds()
		holds = holds && m[0].Left > 59*time.Second-age && m[0].Left <= 65*time.Second
	}
	return []Claim{{
		Key: "length-fixed", Text: "On Linux TIME_WAIT's length is compiled in: no setting changes it.",
		Holds: holdsOf(holds), Expected: Yes,
		Evidence: Evidence{"settings tried": len(left), "s left of a new TIME_WAIT": left},
		History:  "TCP_TIMEWAIT_LEN, 60 s (include/net/tcp.h), rounded up by the timer wheel.",
	}}, nil
}

// paramsReuseAddr compares what SO_REUSEADDR does with each tcp_tw_reuse.
func (s *Session) paramsReuseAddr() ([]Claim, error) {
	type row struct {
		Reuse   int    `json:"tcp_tw_reuse"`
		Without string `json:"bind_without"`
		With    string `json:"bind_with"`
	}
	var table []row
	holds := true
	for _, reuse := range []int{0, 1, 2} {
		r := row{Reuse: reuse}
		for _, options := range [][]Option{nil, {ReuseAddr}} {
			bind, err := s.serverAgain(reuse, options)
			if err != nil {
				return nil, err
			}
			if options == nil {
				r.Without = bind
			} else {
				r.With = bind
			}
		}
		holds = holds && r.Without == "EADDRINUSE" && r.With == "ok"
		table = append(table, r)
	}
	const n = 6
	all, err := s.lapOf(n, n+5, func(*netlab.Lab, int) How { return How{Reuse: true} })
	if err != nil {
		return nil, err
	}
	return []Claim{{
		Key: "reuseaddr", Text: "SO_REUSEADDR has nothing to do with tcp_tw_reuse.",
		Holds: holdsOf(holds && okOf(all) == n), Expected: Yes,
		Evidence: Evidence{"a server's bind()": table, "ports in TIME_WAIT": n, "connected once more with SO_REUSEADDR and tcp_tw_reuse=0": okOf(all) - n},
		History:  "The option is for bind(), which does not read the setting; connect() that chooses a port does not read the option. (Both meet in a client that binds its port: bound-port.)",
	}}, nil
}

// serverAgain is what bind() of a server's port says whose old connection the server closed first.
func (s *Session) serverAgain(reuse int, options []Option) (string, error) {
	l, err := s.Network(netlab.Pair, "tcp_tw_reuse="+strconv.Itoa(reuse))
	if err != nil {
		return "", err
	}
	at := netip.AddrPortFrom(l.ServerAddr(), serverPort)
	listener, err := s.Listener(l.Server(), at, 16, options...)
	if err != nil {
		return "", err
	}
	if err := s.closeMany(l, listener, at, 1); err != nil {
		return "", err
	}
	if err := s.TimeWaits(l.Server(), 1); err != nil {
		return "", err
	}
	if err := listener.Close(); err != nil {
		return "", err
	}
	again, err := s.Socket(l.Server(), false, options...)
	if err != nil {
		return "", err
	}
	return Errno(again.Bind(at)), nil
}

// paramsReusePort has two listeners on one address and port.
func (s *Session) paramsReusePort() ([]Claim, error) {
	const n = 64
	l, err := s.Network(netlab.Pair)
	if err != nil {
		return nil, err
	}
	at := netip.AddrPortFrom(l.ServerAddr(), serverPort)
	var listeners [2]*Socket
	for i := range listeners {
		if listeners[i], err = s.Listener(l.Server(), at, n, ReusePort); err != nil {
			return nil, err
		}
	}
	for range n {
		client, err := s.Socket(l.Client(), false)
		if err != nil {
			return nil, err
		}
		if err := client.Connect(at, patience); err != nil {
			return nil, err
		}
	}
	var accepted [2]int
	for i, k := range listeners {
		for {
			// All are established, so all but the last ACK's work is done.
			_, _, err := s.Accept(k, 200*time.Millisecond)
			if errors.Is(err, unix.ETIMEDOUT) {
				break
			}
			if err != nil {
				return nil, err
			}
			accepted[i]++
		}
	}
	return []Claim{
		{
			Key: "reuseport", Text: "SO_REUSEPORT lets several sockets listen on one address and port.",
			Holds: holdsOf(accepted[0] > 0 && accepted[1] > 0 && accepted[0]+accepted[1] == n), Expected: Yes,
			Evidence: Evidence{"connections": n, "of the first": accepted[0], "of the second": accepted[1]},
		},
		{
			Key: "reuseport-3.7", Text: "It does so since Linux 3.7.", Expected: No,
			History: "Since 3.9, by da5e36308d9f; a kernel that has it does not say since when.",
		},
	}, nil
}

// paramsWhoCloses runs more connections than there are ports, with one end closing first and then the other.
func (s *Session) paramsWhoCloses() ([]Claim, error) {
	connections, ports := 400, 1000
	set, err := Sysctls("tcp_tw_reuse=0", fmt.Sprintf("ip_local_port_range=%d %d", classicLow, classicLow+ports-1))
	if err != nil {
		return nil, err
	}
	var claims []Claim
	for _, c := range []struct {
		closes loadgen.Closer
		claim  Claim
	}{
		{loadgen.ServerCloses, Claim{
			Key: "server-closes", Text: "Against pressure on the client let the server close: the TIME_WAITs are its own, and the client's ports are free at once.",
			History: "Its TIME_WAIT gives way to the SYN of a new connection from the same port (tcp_timewait_state_process: TCP_TW_SYN).",
		}},
		{loadgen.ClientCloses, Claim{
			Key: "client-closes", Text: "Against pressure on the server let the client close: the server keeps no TIME_WAIT.",
		}},
	} {
		plan := loadgen.NewPlan(netip.AddrPort{})
		plan.Loops, plan.Connections, plan.Close = 5, connections, c.closes
		summary, err := s.Storm(run.Options{Plan: plan, Net: netlab.Options{Kind: netlab.Pair, Sysctls: set}})
		if err != nil {
			return nil, err
		}
		if summary.Interrupted {
			return nil, s.ctx.Err()
		}
		client, server := summary.TimeWait.Sides["client"].Entered, summary.TimeWait.Sides["server"].Entered
		holds := client == 0 && server > 0 && summary.Totals.Failed == 0
		if c.closes == loadgen.ClientCloses {
			holds = server == 0 && client > 0 && summary.Totals.Failed > 0
		}
		c.claim.Holds, c.claim.Expected = holdsOf(holds && summary.Unexplained == 0), Yes
		c.claim.Evidence = Evidence{
			"connections": summary.Totals.Attempts, "ports": ports, "failed": summary.Totals.Failed,
			"TIME_WAITs made on the client": client, "on the server": server, "replaced by a SYN": summary.TimeWait.ReplacedBySyn,
		}
		claims = append(claims, c.claim)
	}
	return claims, nil
}
