package report

import (
	"fmt"
	"math"
	"slices"

	"github.com/twtrace/twtrace/internal/verdict"
)

// advice is what helps against a cause in this run, with its sysctls.
func advice(s *Summary, cause verdict.Cause, detail verdict.Detail) []string {
	switch cause {
	case verdict.PortExhausted:
		return portAdvice(s)
	case verdict.BindConflict:
		return []string{bindAdvice(s)}
	case verdict.AcceptQueueFull:
		return []string{queueAdvice(s)}
	case verdict.Refused, verdict.NeverAccepted:
		return shutOutAdvice(s, cause, detail)
	case verdict.Reset, verdict.AbortedByLinger:
		return []string{resetAdvice(detail, cause)}
	case verdict.SynUnanswered:
		if detail == verdict.NotSent {
			return []string{fmt.Sprintf("look at this end's own packet filter, in the client's network namespace: `nft list ruleset`, `iptables-save`, and programs of its cgroup; no segment came as far as the way to %s", s.Target)}
		}
		return []string{fmt.Sprintf("look for a filter on the way to %s, a peer that is gone, or no route back; tcp_syn_retries (%s here) is how often a SYN is sent again", s.Target, setting(s, SysctlRetries))}
	case verdict.Unreachable:
		if detail == verdict.ICMPError {
			return []string{fmt.Sprintf("`ip neigh` says whether the next hop to %s answers (FAILED: it does not); if it does, a router or a packet filter beyond it refused: `tcpdump 'icmp or icmp6'` shows which", s.Target)}
		}
		return []string{fmt.Sprintf("there is no route to %s from the client's namespace, or none beyond: see `ip route get` there (EINVAL: a route of type blackhole)", s.Target)}
	}
	if text := plainAdvice[cause]; text != "" {
		return []string{text}
	}
	return []string{}
}

// plainAdvice is what does not depend on the run.
var plainAdvice = map[verdict.Cause]string{
	verdict.TupleBusy:        "the address and port that the program bound are in use towards this destination: bind another port, or none",
	verdict.SynQueueFull:     "set tcp_syncookies=1 on the server, or raise tcp_max_syn_backlog, somaxconn and the backlog of listen() there",
	verdict.TimedOutTimeWait: "set tcp_rfc1337=0 on the server: an RST then ends the TIME_WAIT and the next SYN gets through; or do not use the same source port again within a minute",
	verdict.TimedOut:         "the connection stood, and the other end's program or host did not answer: look there",
	verdict.Destroyed:        "look for what ends sockets on this host: `ss -K`, a network manager after an address went, or a load balancer's agent whose backend is gone (SOCK_DESTROY, bpf_sock_destroy)",
	verdict.FDLimit:          "raise RLIMIT_NOFILE (ulimit -n) or lower --concurrency",
	verdict.NoMemory:         "the kernel had no memory for it: see `dmesg` and net.ipv4.tcp_mem",
	verdict.Forbidden:        "a packet filter, a security module or a cgroup program refused it",
	verdict.Local:            "the error says what of socket(), setsockopt() or bind() this kernel refused",
	verdict.ClosedEarly:      "the server closed before it had sent the whole reply: both ends need the same --bytes",
	verdict.SelfConnect:      "keep the destination port out of ip_local_port_range",
	verdict.Unexplained:      "please report this with the output of `twtrace run -o json`: a failure without a cause is a bug of twtrace",
}

func setting(s *Summary, key string) string {
	if v := s.Sysctls[key]; v != "" {
		return v
	}
	return "not known"
}

// need is how many ports of one source the attempts of this run keep from connect() at its pace, if each is away for hold seconds
// after its close. The pace is that of the begin, where ports were not scarce yet.
func need(s *Summary, hold float64) int {
	sources := float64(max(1, s.Options.Sources))
	pace := 0.0
	if s.Totals.Seconds > 0 {
		pace = float64(s.Totals.Attempts) / s.Totals.Seconds
	}
	if s.Forecast != nil {
		pace = max(pace, s.Forecast.PerSecond*sources)
	}
	attempts := float64(s.Totals.Attempts)
	if pace > 0 {
		attempts = min(attempts, pace*hold)
	}
	return int(math.Ceil((attempts + float64(s.Totals.MostOpen)) / sources))
}

// portAdvice is what would have helped against exhausted ports, in this run's numbers.
func portAdvice(s *Summary) (advice []string) {
	say := func(format string, args ...any) { advice = append(advice, fmt.Sprintf(format, args...)) }
	lo, hi, ports, ok := portRange(s)
	reuse := s.Sysctls[SysctlReuse]
	all := need(s, timeWaitSeconds)
	switch {
	case s.Sysctls[SysctlStamps] == "0":
		say("set tcp_timestamps=1 on both ends: without timestamps no TIME_WAIT is ever reused by connect(), whatever tcp_tw_reuse is")
	case !reuses(s):
		say("set tcp_tw_reuse=1 on the client (it is %s%s): connect() then takes the port of a TIME_WAIT that is older than %s; this run would have needed about %d ports of a source at once%s",
			setting(s, SysctlReuse), reuseMeans(reuse), reuseDelay(s), need(s, 1), enough(need(s, 1), ports, ok))
	default:
		say("tcp_tw_reuse is on: a port comes back %s after its connection closed, and this run needed about %d ports of a source at once; open fewer connections in that time%s",
			reuseDelay(s), need(s, holdSeconds(s)), lowerDelay(s))
	}
	if s.Options.Linger == nil {
		say("SO_LINGER {1,0} closes by RST and leaves no TIME_WAIT: as many ports as connections are open at once (%d of all sources) would have done; but data that is still on its way is lost", s.Totals.MostOpen)
	}
	if ok && hi-lo+1 < 64512 {
		say("widen ip_local_port_range (%d ports now; 1024 65535 has 64512, %s)", ports, compared(all, 64512))
	}
	if ok && ports > 0 && !reuses(s) {
		sources := max(2, (all+ports-1)/ports)
		say("use %d times the source addresses, or destination addresses or ports: the range counts for each pair, and at this run's pace each port is away for a minute, which takes about %d ports", sources, all)
	} else {
		say("use more source addresses, or more destination addresses or ports: the range counts for each pair")
	}
	say("let the server close first: the TIME_WAIT is then on its side, where it holds no port of the client")
	say("SO_REUSEPORT and SO_REUSEADDR do not help: the search for a port ignores them; tcp_tw_recycle is gone since Linux 4.12 (4396e46187ca), and broke clients behind NAT")
	return advice
}

func enough(n, ports int, ok bool) string {
	switch {
	case !ok:
		return ""
	case n <= ports:
		return fmt.Sprintf(" of %d", ports)
	}
	return fmt.Sprintf(", more than the %d there are", ports)
}

func compared(n, ports int) string {
	if n <= ports {
		return fmt.Sprintf("enough for the %d or so that this run needed", n)
	}
	return fmt.Sprintf("still fewer than the %d or so that this run needed", n)
}

// lowerDelay is about tcp_tw_reuse_delay, which 6.14 brought.
func lowerDelay(s *Summary) string {
	if s.Sysctls[SysctlReuseWait] == "" {
		return ""
	}
	return ", or lower tcp_tw_reuse_delay (milliseconds)"
}

func bindAdvice(s *Summary) string {
	switch s.Options.Bind {
	case "addr":
		return "bind() of an address alone looks for a port that nothing holds, to whatever destination: set IP_BIND_ADDRESS_NO_PORT (`--no-port`), which leaves the port to connect(), for each destination anew"
	case "port":
		if slices.ContainsFunc(s.Failures, func(f Failure) bool { return len(f.Holders) > 0 }) {
			return "end what holds the ports, or choose others: `--local-port-range`, ip_local_port_range (and ip_local_reserved_ports, which `--bind port` passes over), or more source addresses"
		}
		return "all ports of a source were open at once, or held by others: open fewer at once (`--concurrency`), widen ip_local_port_range, or use more source addresses"
	}
	return "see who holds the port with `ss -tanp`; SO_REUSEADDR on both the old and the new socket lets a TIME_WAIT be bound over"
}

// queueAdvice is about an accept queue that was full.
func queueAdvice(s *Summary) string {
	text := "call accept() sooner, or raise the backlog of listen() and net.core.somaxconn, the lesser of which counts"
	if n := queueRoom(s); n > 0 {
		text += fmt.Sprintf(": %d connections fit (--backlog %d, somaxconn %s), and %d were open at once", n, s.Options.Backlog, s.Sysctls[SysctlSomaxconn], s.Totals.MostOpen)
	}
	return text + "; tcp_syncookies and tcp_abort_on_overflow change nothing about a SYN that meets a full accept queue"
}

// shutOutAdvice is about connections that came to nothing at the listener.
func shutOutAdvice(s *Summary, cause verdict.Cause, detail verdict.Detail) []string {
	switch {
	case cause == verdict.NeverAccepted && detail == verdict.ListenerClosed:
		return []string{"the listener was closed with connections in its accept queue: accept() until that is empty before close()"}
	case cause == verdict.NeverAccepted && detail == verdict.InAcceptQueue:
		return []string{"a connection is the kernel's until accept() returns it, and connect() does not wait for that: have the server accept sooner"}
	case cause == verdict.NeverAccepted, detail == verdict.AbortOnOverflow:
		return []string{
			queueAdvice(s),
			"tcp_abort_on_overflow decides what the client hears: 1, an RST at once; 0, nothing until the SYN+ACK was repeated in vain",
		}
	case detail == verdict.ICMPError:
		return []string{fmt.Sprintf("a packet filter at %s, or on the way there, rejects the SYN (`-j REJECT` of iptables and `reject` of nft send this error unless told otherwise): look there, and not for the listener; `tcpdump 'icmp or icmp6'` shows which", s.Target)}
	case detail == verdict.InTimeWait:
		return []string{fmt.Sprintf("nothing listens at %s any more: start the server again", s.Target)}
	}
	return []string{fmt.Sprintf("nothing listens at %s: start the server, or correct the port", s.Target)}
}

func resetAdvice(detail verdict.Detail, cause verdict.Cause) string {
	switch {
	case cause == verdict.AbortedByLinger:
		return "the peer's program sets SO_LINGER {1,0}, or a close() of its runtime does: take that off there"
	case detail == verdict.UnreadData:
		return "have the peer read until the end of the stream before it closes, or shutdown(SHUT_WR) first and read on"
	case detail == verdict.DataAfterClose, detail == verdict.NoSocket:
		return "the peer closed while this end still sent: agree on who closes first"
	}
	return "the other end, or something between, sent an RST: see there why (a process that died, a time limit, a load balancer)"
}

func reuseMeans(value string) string {
	if value == "2" {
		return ", the default: loopback addresses only"
	}
	return ""
}

func reuseDelay(s *Summary) string {
	if ms := s.Sysctls[SysctlReuseWait]; ms != "" {
		return ms + " ms"
	}
	return "up to a second"
}

// Explain adds the notes that the numbers of a finished summary ask for.
func Explain(s *Summary) {
	say := func(format string, args ...any) { s.Notes = append(s.Notes, fmt.Sprintf(format, args...)) }
	if s.Notes == nil {
		s.Notes = []string{}
	}
	tw := &s.TimeWait
	if tw.ReusedByConnect > 0 && s.Options.Bind == "port" {
		say("connect() took over the ports of %d TIME_WAITs: a socket that has bound its address and port itself may do so at once where there are timestamps, whatever tcp_tw_reuse says (it is %s).",
			tw.ReusedByConnect, s.Sysctls[SysctlReuse])
	} else if tw.ReusedByConnect > 0 {
		why := "tcp_tw_reuse is 1"
		if s.Sysctls[SysctlReuse] == "2" {
			why = "tcp_tw_reuse is 2, the kernel's default, and both ends are loopback addresses"
		}
		end := ", so the ports did not run out"
		if hasCause(s, verdict.PortExhausted) {
			end = "; that was not soon enough for every connect()"
		}
		say("connect() took over the ports of %d TIME_WAITs: %s, and a TIME_WAIT with timestamps may be reused %s after it began%s.",
			tw.ReusedByConnect, why, reuseDelay(s), end)
	}
	if tw.Overflowed > 0 {
		say("%d TIME_WAITs were skipped because tcp_max_tw_buckets=%s was reached: these connections ended without the protection that TIME_WAIT gives.",
			tw.Overflowed, s.Sysctls[SysctlBuckets])
	}
	if s.Options.Linger != nil && *s.Options.Linger == 0 && tw.Entered == 0 && s.Resets.Sent > 0 {
		say("SO_LINGER {1,0} closed every connection by RST, so that no TIME_WAIT was made.")
	}
	if n := s.Totals.PortsSkipped; n > 0 {
		say("%d times a port was passed over, because bind() said that another socket held it.", n)
	}
	if s.Options.ReusePort && hasCause(s, verdict.PortExhausted) {
		say("SO_REUSEPORT was set and changed nothing: a connection's four-tuple must be unique, and connect() ignores the flag.")
	}
}

func hasCause(s *Summary, cause verdict.Cause) bool {
	for _, f := range s.Failures {
		if f.Cause == cause {
			return true
		}
	}
	return false
}
