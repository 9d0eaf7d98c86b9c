package report

import (
	"fmt"
	"net/netip"

	"github.com/twtrace/twtrace/internal/verdict"
)

// advice is what helps against a cause in this run, with its sysctls.
func advice(s *Summary, cause verdict.Cause) []string {
	advice := []string{}
	say := func(format string, args ...any) { advice = append(advice, fmt.Sprintf(format, args...)) }

	switch cause {
	case verdict.PortExhausted:
		target, err := netip.ParseAddrPort(s.Target)
		loopback := err == nil && target.Addr().IsLoopback()
		reuse := s.Sysctls[SysctlReuse]
		switch {
		case s.Sysctls[SysctlStamps] == "0":
			say("set tcp_timestamps=1: without timestamps no TIME_WAIT is ever reused by connect()")
		case reuse == "0", reuse == "2" && !loopback:
			say("set tcp_tw_reuse=1 on the client (it is %s%s): connect() then takes the port of a TIME_WAIT that is older than a second", reuse, reuseMeans(reuse))
		default:
			say("tcp_tw_reuse is on: a port comes back %s after its connection closed; open fewer connections in that time, or lower tcp_tw_reuse_delay where the kernel has it", reuseDelay(s))
		}
		if lo, hi, ports, ok := portRange(s); ok && hi-lo+1 < 64512 {
			say("widen ip_local_port_range (%d ports now; 1024 65535 has 64512)", ports)
		}
		say("use more source addresses, or more destination addresses or ports: the range counts for each pair")
		say("let the server close first: the TIME_WAIT is then on its side, where it holds no port of the client")
		if s.Options.Linger == nil {
			say("SO_LINGER {1,0} closes by RST and leaves no TIME_WAIT, but data that is still on its way is lost")
		}
		say("SO_REUSEPORT and SO_REUSEADDR do not help: the search for a port ignores them")
	case verdict.TupleBusy:
		say("the address and port that the program bound are in use towards this destination: bind another port, or none")
	case verdict.BindConflict:
		switch s.Options.Bind {
		case "addr":
			say("bind() of an address alone looks for a port that nothing holds, to whatever destination: set IP_BIND_ADDRESS_NO_PORT (`--no-port`), which leaves the port to connect(), for each destination anew")
		case "port":
			say("all ports of a source were open at once, or held by others: open fewer at once (`--concurrency`), widen ip_local_port_range, or use more source addresses")
		default:
			say("see who holds the port with `ss -tanp`; SO_REUSEADDR on both the old and the new socket lets a TIME_WAIT be bound over")
		}
	case verdict.Refused:
		say("nothing listens at %s: start the server, or correct the port", s.Target)
	case verdict.Reset:
		say("the other end, or something between, sent an RST: see there why (unread data at close, SO_LINGER 0, a process that died)")
	case verdict.TimedOut:
		say("segments were not answered: look for a full accept queue (ListenOverflows, --backlog), a filter, or a peer that is gone")
	case verdict.Unreachable:
		say("there is no route to %s from the client's namespace", s.Target)
	case verdict.FDLimit:
		say("raise RLIMIT_NOFILE (ulimit -n) or lower --concurrency")
	case verdict.NoMemory:
		say("the kernel had no memory for it: see `dmesg` and net.ipv4.tcp_mem")
	case verdict.Forbidden:
		say("a packet filter, a security module or a cgroup program refused it")
	case verdict.ClosedEarly:
		say("the server closed before it had sent the whole reply: both ends need the same --bytes")
	case verdict.SelfConnect:
		say("keep the destination port out of ip_local_port_range")
	case verdict.Unexplained:
		say("please report this with the output of `twtrace run -o json`: a failure without a cause is a bug of twtrace")
	}
	return advice
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
