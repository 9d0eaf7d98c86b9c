package report

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
	"github.com/twtrace/twtrace/internal/verdict"
)

// The sysctls that evidence, advice and notes are about.
const (
	SysctlPortRange = "net.ipv4.ip_local_port_range"
	SysctlReserved  = "net.ipv4.ip_local_reserved_ports"
	SysctlReuse     = "net.ipv4.tcp_tw_reuse"
	SysctlReuseWait = "net.ipv4.tcp_tw_reuse_delay"
	SysctlBuckets   = "net.ipv4.tcp_max_tw_buckets"
	SysctlFin       = "net.ipv4.tcp_fin_timeout"
	SysctlStamps    = "net.ipv4.tcp_timestamps"
	SysctlCookies   = "net.ipv4.tcp_syncookies"
	SysctlSomaxconn = "net.core.somaxconn"
	SysctlRFC1337   = "net.ipv4.tcp_rfc1337"
	SysctlOverflow  = "net.ipv4.tcp_abort_on_overflow"
	SysctlRetries   = "net.ipv4.tcp_syn_retries"
	SysctlSynQueue  = "net.ipv4.tcp_max_syn_backlog"
)

// Sysctls are read from the namespace of the client for every summary.
var Sysctls = []string{
	SysctlPortRange, SysctlReserved, SysctlReuse, SysctlReuseWait, SysctlBuckets,
	SysctlFin, SysctlStamps, SysctlCookies, SysctlSomaxconn, SysctlRFC1337, SysctlOverflow, SysctlRetries, SysctlSynQueue,
}

// portRange reads ip_local_port_range, narrowed as the kernel does by the option of the
// run (inet_sk_get_local_port_range: a bound outside is passed over); ok is false if it
// is not known.
func portRange(s *Summary) (lo, hi, ports int, ok bool) {
	if n, err := fmt.Sscan(s.Sysctls[SysctlPortRange], &lo, &hi); n != 2 || err != nil {
		return 0, 0, 0, false
	}
	if r := s.Options.LocalPortRange; len(r) == 2 {
		low, high := lo, hi
		if low <= r[0] && r[0] <= high {
			lo = r[0]
		}
		if low <= r[1] && r[1] <= high {
			hi = r[1]
		}
	}
	return lo, hi, hi - lo + 1 - reserved(s.Sysctls[SysctlReserved], lo, hi), true
}

// PortRange is what connect() chooses ports from in a run, ip_local_reserved_ports included; ok is false if that is not known.
func PortRange(s *Summary) (lo, hi int, ok bool) {
	lo, hi, _, ok = portRange(s)
	return lo, hi, ok
}

// reserved counts the ports of a range that ip_local_reserved_ports keeps from
// connect(): "8080,9000-9010".
func reserved(list string, lo, hi int) int {
	n := 0
	for item := range strings.SplitSeq(strings.TrimSpace(list), ",") {
		first, last, isRange := strings.Cut(item, "-")
		a, err := strconv.Atoi(first)
		if err != nil {
			continue
		}
		b := a
		if isRange {
			if b, err = strconv.Atoi(last); err != nil {
				continue
			}
		}
		n += max(0, min(b, hi)-max(a, lo)+1)
	}
	return n
}

// evidence is what a sceptic can check a failure's cause by.
func (f *failure) evidence(s *Summary, v verdict.Verdict, started int64) map[string]any {
	seconds := func(monoNS int64) float64 { return float64(monoNS-started) / 1e9 }
	e := map[string]any{
		"first_seconds": seconds(f.first.Attempt.Closed),
		"last_seconds":  seconds(f.last.Attempt.Closed),
		"first_loop":    f.first.Attempt.Loop,
		"last_loop":     f.last.Attempt.Loop,
		"with_events":   f.withEvents,
	}
	if v.Inferred {
		e["basis"] = "errno alone: the run was not traced"
		return e
	}
	if f.example.Joined {
		e["example_cookie"] = uint64(f.example.Attempt.Cookie)
		e["example_states"] = states(&f.example)
	}
	if step := f.example.ClosedWith(); step != nil {
		e["kernel_errno"] = step.Errno.String()
	}
	switch v.Cause {
	case verdict.TimedOut, verdict.SynUnanswered, verdict.AcceptQueueFull, verdict.SynQueueFull, verdict.NeverAccepted, verdict.TimedOutTimeWait:
		n := 0
		for _, step := range f.example.Events() {
			if step.Kind == tcp.KindRetransmit {
				n++
			}
		}
		e["example_retransmits"] = n
	}
	if v.Cause == verdict.PortExhausted {
		// As connect() began its search, for the same source and destination.
		e["time_wait"] = f.first.AtConnect.TimeWait
		e["open"] = f.first.AtConnect.Open
		e["last_time_wait"] = f.last.AtConnect.TimeWait
		e["last_open"] = f.last.AtConnect.Open
		if lo, hi, ports, ok := portRange(s); ok {
			e["port_range"] = []int{lo, hi}
			e["ports"] = ports
		}
	}
	return e
}

// states writes a timeline's state changes: CLOSE > SYN_SENT > CLOSE.
func states(t *timeline.Timeline) string {
	var b strings.Builder
	for _, step := range t.Events() {
		if step.Kind != tcp.KindState || step.Old == step.New {
			continue
		}
		if b.Len() == 0 {
			b.WriteString(step.Old.String())
		}
		b.WriteString(" > " + step.New.String())
	}
	return b.String()
}
