package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
)

// setting is a row of what a sysctl's value means for the end of connections.
type setting struct {
	key   string
	means func(m *Machine, value string) (status Status, means, fix string)
	// absent is what it means that this kernel has no such setting.
	absent string
}

// timeWaitLen is TCP_TIMEWAIT_LEN of include/net/tcp.h, in seconds. It can't be set.
const timeWaitLen = 60

var settings = []setting{
	{
		key: "net.ipv4.tcp_tw_reuse",
		means: oneOf(map[string]Finding{
			"0": {Limited, "", "connect() never takes the port of a TIME_WAIT: ports come back after 60 s",
				"sudo sysctl -w net.ipv4.tcp_tw_reuse=1"},
			"1": {OK, "", "connect() may take the port of a TIME_WAIT that is older than tcp_tw_reuse_delay, where both ends use " +
				"timestamps; it does nothing for a server", ""},
			"2": {OK, "", "the default: as 1, but between loopback addresses only; towards other hosts ports come back after 60 s",
				"where ports run out: sudo sysctl -w net.ipv4.tcp_tw_reuse=1"},
		}),
	},
	{
		key: "net.ipv4.tcp_tw_reuse_delay",
		means: func(_ *Machine, v string) (Status, string, string) {
			return OK, "milliseconds that a TIME_WAIT has to be old before tcp_tw_reuse lets its port go", ""
		},
		absent: "added in 6.14: before, a port was let go when the clock's next second began, after 0 to 1 s",
	},
	{
		key: "net.ipv4.tcp_timestamps",
		means: oneOf(map[string]Finding{
			"0": {Limited, "", "no TIME_WAIT of a connection without timestamps is ever reused, whatever tcp_tw_reuse says, and old " +
				"segments are told from new by sequence number alone", "sudo sysctl -w net.ipv4.tcp_timestamps=1"},
			"1": {OK, "", "TIME_WAITs can be reused, and old segments are told from new", ""},
			"2": {OK, "", "as 1, without a random offset for each connection", ""},
		}),
	},
	{
		key:    "net.ipv4.tcp_tw_recycle",
		absent: "gone since 4.12, where it broke clients behind NAT: advice to set it is out of date; see tcp_tw_reuse",
		means: func(*Machine, string) (Status, string, string) {
			return Limited, "a kernel before 4.12: it breaks clients behind NAT", "sudo sysctl -w net.ipv4.tcp_tw_recycle=0"
		},
	},
	{
		key: "net.ipv4.tcp_max_tw_buckets",
		means: func(m *Machine, v string) (Status, string, string) {
			const means = "TIME_WAITs and orphans in FIN_WAIT2 beyond that are skipped: the connection ends without one, and " +
				"TcpExt.TCPTimeWaitOverflow counts it"
			n, err := strconv.Atoi(v)
			if free, _, rangeErr := portRange(m); err == nil && rangeErr == nil && n < free {
				return Limited, fmt.Sprintf("%s; it is less than the %d ports of one destination", means, free), ""
			}
			return OK, means, ""
		},
	},
	{
		key: "net.ipv4.tcp_fin_timeout",
		means: func(_ *Machine, v string) (Status, string, string) {
			return OK, "seconds that a closed connection waits in FIN_WAIT2 for the peer's FIN; not the length of TIME_WAIT, " +
				"which is 60 s by TCP_TIMEWAIT_LEN and can't be set", ""
		},
	},
	{
		key: "net.ipv4.tcp_rfc1337",
		means: oneOf(map[string]Finding{
			"0": {OK, "", "an RST ends a TIME_WAIT early: a connect() that meets one of the peer's gets through on its second SYN", ""},
			"1": {OK, "", "an RST in TIME_WAIT is ignored: a connect() that meets one of the peer's which does not take its SYN " +
				"ends in ETIMEDOUT", ""},
		}),
	},
	{
		key: "net.ipv4.tcp_syncookies",
		means: oneOf(map[string]Finding{
			"0": {OK, "", "a full SYN queue drops SYNs, which are sent again after 1, 3, 7 s", ""},
			"1": {OK, "", "a full SYN queue answers with cookies; a full accept queue drops SYNs all the same", ""},
			"2": {Limited, "", "cookies always, for tests: no SYN is ever kept", "sudo sysctl -w net.ipv4.tcp_syncookies=1"},
		}),
		absent: "this kernel has no CONFIG_SYN_COOKIES: a full SYN queue drops SYNs",
	},
	{
		key: "net.core.somaxconn",
		means: func(_ *Machine, v string) (Status, string, string) {
			const means = "the most that listen() gets for its backlog; one more connection than that waits for accept()"
			if n, err := strconv.Atoi(v); err == nil && n < 4096 {
				return Limited, means + "; twtrace's own server asks for 4096", "sudo sysctl -w net.core.somaxconn=4096"
			}
			return OK, means, ""
		},
	},
	{
		key: "net.ipv4.tcp_abort_on_overflow",
		means: oneOf(map[string]Finding{
			"0": {OK, "", "a full accept queue ignores the handshake's last ACK: connect() has returned, and accept() may never " +
				"return it", ""},
			"1": {OK, "", "a full accept queue answers the handshake's last ACK by RST: ECONNRESET on a connection that was made; " +
				"SYNs are still dropped silently", ""},
		}),
	},
	{
		key: "net.ipv4.tcp_max_syn_backlog",
		means: func(_ *Machine, v string) (Status, string, string) {
			return OK, "without syncookies a listener keeps back the last quarter of it for destinations that it knows; the SYN queue itself ends " +
				"at the backlog", ""
		},
	},
}

// oneOf is the meaning of a setting that has few values.
func oneOf(values map[string]Finding) func(*Machine, string) (Status, string, string) {
	return func(_ *Machine, v string) (Status, string, string) {
		if f, ok := values[v]; ok {
			return f.Status, f.Means, f.Fix
		}
		return Limited, "not a value that twtrace knows", ""
	}
}

func (s setting) look(m *Machine) Finding {
	value, err := m.sysctl(s.key)
	if errors.Is(err, fs.ErrNotExist) {
		if s.absent == "" {
			return Finding{Limited, "no such setting", "this kernel does not have it", ""}
		}
		return ok("no such setting", s.absent)
	}
	if err != nil {
		return Finding{Limited, kernelSays(fileError(err)), "it can't be read", ""}
	}
	f := Finding{Found: value}
	f.Status, f.Means, f.Fix = s.means(m, value)
	return f
}

const (
	keyPortRange = "net.ipv4.ip_local_port_range"
	keyReserved  = "net.ipv4.ip_local_reserved_ports"
)

// portRange is how many ports connect() may choose from, without those reserved,
// and what the two settings say.
func portRange(m *Machine) (free int, text string, err error) {
	value, err := m.sysctl(keyPortRange)
	if err != nil {
		return 0, "", fmt.Errorf("%s: %w", keyPortRange, fileError(err))
	}
	var lo, hi int
	if n, err := fmt.Sscan(value, &lo, &hi); n != 2 {
		return 0, "", fmt.Errorf("%s is %q: %w", keyPortRange, value, err)
	}
	reserved, err := m.sysctl(keyReserved)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, "", fmt.Errorf("%s: %w", keyReserved, fileError(err))
	}
	free = hi - lo + 1
	inside := 0
	for item := range strings.SplitSeq(reserved, ",") {
		first, last, isRange := strings.Cut(item, "-")
		if !isRange {
			last = first
		}
		from, errFrom := strconv.Atoi(first)
		to, errTo := strconv.Atoi(last)
		if errFrom == nil && errTo == nil {
			inside += max(0, min(to, hi)-max(from, lo)+1)
		}
	}
	text = fmt.Sprintf("%s %d-%d", keyPortRange, lo, hi)
	if reserved != "" {
		text += fmt.Sprintf(", %d of them in %s", inside, keyReserved)
	}
	return free - inside, text, nil
}

func ports(m *Machine) Finding {
	free, text, err := portRange(m)
	if err != nil {
		return Finding{Limited, err.Error(), "how many ports connect() may choose from is not known", ""}
	}
	found := fmt.Sprintf("%d (%s)", free, text)
	means := fmt.Sprintf("of one source address towards one destination and port: %d connections at once, or %d a second for good "+
		"where this side closes first, since each TIME_WAIT holds its port for %d s", free, free/timeWaitLen, timeWaitLen)
	if reuse, _ := m.sysctl("net.ipv4.tcp_tw_reuse"); reuse == "1" {
		if delay, known := m.number("net.ipv4.tcp_tw_reuse_delay"); known && delay > 0 {
			means += fmt.Sprintf("; with tcp_tw_reuse %d a second", free*1000/delay)
		}
	}
	const fix = "sudo sysctl -w " + keyPortRange + `="1024 65535"`
	if free < classic {
		return Finding{Limited, found, means, fix}
	}
	f := ok(found, means)
	f.Fix = "where ports run out: " + fix + ", or more source addresses"
	return f
}

func conntrack(m *Machine) Finding {
	limit, there := m.number("net.netfilter.nf_conntrack_max")
	if !there {
		return ok("none", "no connection is tracked in this network namespace")
	}
	count, _ := m.number("net.netfilter.nf_conntrack_count")
	wait, known := m.number("net.netfilter.nf_conntrack_tcp_timeout_time_wait")
	f := ok(fmt.Sprintf("%d of %d entries", count, limit),
		"where rules use it, each connection takes an entry, and a full table drops SYNs: connects time out")
	if known && wait > 0 {
		f.Found += fmt.Sprintf(", kept %d s in TIME_WAIT", wait)
		f.Means += fmt.Sprintf("; it holds %d closed connections a second for good", limit/wait)
	}
	if count > limit/10*9 {
		f.Status = Limited
		f.Fix = fmt.Sprintf("sudo sysctl -w net.netfilter.nf_conntrack_max=%d", 4*limit)
	}
	return f
}
