package run

import (
	"fmt"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/report"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
)

// side is a namespace of the run and what it is called.
type side struct {
	name  string
	netns tcp.NetNS
	ns    *netlab.Namespace
}

func (r *session) findSides() []side {
	client, server := r.lab.Client(), r.lab.Server()
	if client.Cookie() == server.Cookie() {
		name := "both"
		if r.opts.Target.IsValid() {
			name = "client"
		}
		return []side{{name, tcp.NetNS(client.Cookie()), client}}
	}
	return []side{
		{"client", tcp.NetNS(client.Cookie()), client},
		{"server", tcp.NetNS(server.Cookie()), server},
	}
}

// check is a row of the comparison with the kernel's own counters: where the
// same fact is counted by someone else. It is left out where this kernel does not
// show all of the fact.
type check struct {
	counter string
	fact    tcp.Fact
	// inferred: compared also where the fact is inferred, which shows how well.
	inferred bool
	twtrace  func(t *timeline.Totals) uint64
}

var checks = []check{
	{counter: "Tcp.ActiveOpens", fact: tcp.FactState, twtrace: func(t *timeline.Totals) uint64 { return t.ActiveOpens - t.ConnectFailed }},
	{counter: "Tcp.PassiveOpens", fact: tcp.FactState, twtrace: func(t *timeline.Totals) uint64 { return t.PassiveOpens }},
	{counter: "Tcp.EstabResets", fact: tcp.FactState, twtrace: func(t *timeline.Totals) uint64 { return t.EstabResets }},
	{counter: "Tcp.OutRsts", fact: tcp.FactRstSent, twtrace: func(t *timeline.Totals) uint64 { return t.RstSent }},
	// Since 5.17 both count when the minisock's timer is set; a short one is TWKilled.
	{counter: "TcpExt.TW", fact: tcp.FactTWEnter, twtrace: func(t *timeline.Totals) uint64 { return t.TWEnter - t.TWShort }},
	{counter: "TcpExt.TWKilled", fact: tcp.FactTWEnter, twtrace: func(t *timeline.Totals) uint64 { return t.TWShort }},
	{counter: "TcpExt.TWRecycled", fact: tcp.FactTWEnd, twtrace: func(t *timeline.Totals) uint64 { return t.TWEnd[tcp.CauseReusedByConnect] }},
	{counter: "TcpExt.TCPTimeWaitOverflow", fact: tcp.FactTWOverflow, inferred: true, twtrace: func(t *timeline.Totals) uint64 { return t.TWOverflow }},
	{counter: "TcpExt.TCPAbortOnData", fact: tcp.FactState, twtrace: func(t *timeline.Totals) uint64 { return t.Linger0 + t.DataAfterClose }},
	{counter: "TcpExt.TCPSynRetrans", fact: tcp.FactRetransmit, twtrace: func(t *timeline.Totals) uint64 { return t.SynRetransmits + t.SynAckRetransmits }},
	{counter: "TcpExt.ListenOverflows", fact: tcp.FactListenDrop, twtrace: func(t *timeline.Totals) uint64 { return t.ListenOverflows }},
	{counter: "TcpExt.ListenDrops", fact: tcp.FactListenDrop, twtrace: func(t *timeline.Totals) uint64 { return t.ListenDrops }},
}

// timeWaitsNow is the kernel's own number of TIME_WAIT minisocks that exist in a
// namespace (/proc/net/sockstat).
const timeWaitsNow = "sockstat.TCP.tw"

// readings are the kernel's counters at three moments, each of all sides: the
// trace was running at the first two, and had stopped at the third.
type readings struct{ before, after, stopped []netlab.Counters }

// counters reads the counters of every namespace of the run.
func (r *session) counters() ([]netlab.Counters, error) {
	all := make([]netlab.Counters, len(r.sides))
	for i, s := range r.sides {
		c, err := s.ns.Counters()
		if err != nil {
			return nil, err
		}
		all[i] = c
	}
	return all, nil
}

// sameChecked reports whether no counter that is checked has moved.
func sameChecked(a, b []netlab.Counters) bool {
	for i := range a {
		for _, c := range checks {
			if a[i][c.counter] != b[i][c.counter] {
				return false
			}
		}
	}
	return true
}

// sumUp completes the summary after the trace has been drained.
func (r *session) sumUp(k readings) error {
	s := r.summary
	s.TimeWait.Sides = make(map[string]report.SideTimeWait)
	s.Resets.Reasons = make(map[string]int)
	s.CrossCheck = []report.CrossCheck{}
	s.Events.ByKind, s.Events.LostByKind = make(map[string]uint64), make(map[string]uint64)
	s.Events.Programs = []report.Program{}
	if r.trace != nil {
		for i, side := range r.sides {
			r.addSide(side, k.after[i].Sub(k.before[i]))
			r.checkLeft(side, k.before[i][timeWaitsNow], k.after[i][timeWaitsNow], k.stopped[i][timeWaitsNow])
		}
		s.AddResets(r.reasons, r.trace.RstReasons())
		st, err := r.trace.Stats()
		if err != nil {
			return err
		}
		if drained := st.Recorded + st.Rescued + st.Duplicates + st.LostRing; drained != st.Emitted {
			return fmt.Errorf("the account of the trace does not add up: the kernel side emitted %d events, %d were drained or lost", st.Emitted, drained)
		}
		e := &s.Events
		e.Seen, e.Recorded, e.LostRing = st.Seen, st.Recorded, st.LostRing
		e.SkippedRecursion, e.Rescued = st.SkippedRecursion, st.Rescued
		for kind, n := range st.ByKind {
			e.ByKind[kind.String()] = n
		}
		for kind, n := range st.LostByKind {
			e.LostByKind[kind.String()] = n
		}
		for _, p := range st.Programs {
			e.Programs = append(e.Programs, report.Program{
				Name: p.Name, RecursionMisses: p.RecursionMisses, Runs: p.Runs, RunNS: p.RuntimeNS,
			})
		}
	}
	if r.clients != nil {
		r.sumUpClients()
	}
	if r.joiner != nil {
		r.builder.SetForecast(r.joiner.Forecast())
	}
	r.builder.Fill(s)
	if r.clients == nil {
		r.onlyClient()
	}
	s.Totals.PortsSkipped, s.Totals.HeldBack = int(r.result.PortSkips), int(r.result.HeldBack)
	report.Explain(s)
	for name, w := range r.opts.Latency {
		if err := r.builder.WriteLatency(name, w); err != nil {
			return err
		}
	}
	return nil
}

// addSide adds a namespace's share.
func (r *session) addSide(side side, kernel netlab.Counters) {
	s := r.summary
	t := r.joiner.Totals(side.netns)
	s.AddSide(side.name, &t)
	for _, c := range checks {
		if grade := s.Coverage[c.fact]; grade != tcp.Exact && (grade != tcp.Inferred || !c.inferred) {
			continue
		}
		row := report.CrossCheck{
			Side: side.name, Counter: c.counter, Kernel: kernel[c.counter], Twtrace: c.twtrace(&t),
		}
		row.Agrees = row.Kernel == row.Twtrace
		s.CrossCheck = append(s.CrossCheck, row)
	}
}

// checkLeft compares the TIME_WAITs that are left with the kernel's. They go on
// expiring while the trace is stopped, so that any number between the two
// readings is right. Those from before the trace are not ours to count.
func (r *session) checkLeft(side side, before, after, stopped uint64) {
	left := uint64(r.joiner.TimeWaits(side.netns))
	r.summary.TimeWait.Now += int(left)
	if before != 0 {
		return
	}
	row := report.CrossCheck{Side: side.name, Counter: timeWaitsNow, Kernel: stopped, Twtrace: left}
	row.Agrees = left >= min(after, stopped) && left <= max(after, stopped)
	r.summary.CrossCheck = append(r.summary.CrossCheck, row)
}
