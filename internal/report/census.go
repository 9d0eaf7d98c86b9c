package report

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/twtrace/twtrace/internal/timeline"
)

// Census is how the ports of a range stood for a connect() that found none: each port is counted once, so that Reserved,
// Bound, Open, the parts of TimeWait, and LeftOut are Ports if all is known.
type Census struct {
	Source      string  `json:"source"` // empty: not known
	Destination string  `json:"destination"`
	AtSeconds   float64 `json:"at_seconds"` // since the run began
	Range       []int   `json:"range"`
	Ports       int     `json:"ports"` // of the range
	Reserved    int     `json:"reserved"`
	// Bound are ports that somebody bound, on whatever address: connect() passes them over.
	Bound    int         `json:"bound"`
	Open     int         `json:"open"` // of connections to the destination
	TimeWait CensusWaits `json:"time_wait"`
	// LeftOut is 1 if all but one port are accounted for and the range has an odd number of them: each search leaves one out
	// (`remaining &= ~1U` in __inet_hash_connect), which depends on where it begins.
	LeftOut int  `json:"left_out"`
	Sum     int  `json:"sum"`
	Sums    bool `json:"sums"` // to Ports
	// Of the TIME_WAIT that was made first; null: there was none.
	OldestSeconds *float64 `json:"oldest_seconds"`
	// NextSeconds is when the next port comes back, from then on, if nothing closes meanwhile. A timer of this length ends up
	// to two seconds late (the kernel's timer wheel). Null: not known.
	NextSeconds *float64       `json:"next_seconds"`
	Owners      []CensusOwner  `json:"owners"`
	BoundBy     []BoundPort    `json:"bound_by"`
	Kernel      *KernelRefused `json:"kernel"` // null: this kernel does not let it be counted
}

// CensusWaits are TIME_WAITs by why connect() could not take their port (tcp_twsk_unique).
type CensusWaits struct {
	NoTimestamps int `json:"no_timestamps"` // of connections without: never, in any mode
	FinWait2     int `json:"fin_wait2"`     // waits for the peer's FIN: never
	ReuseOff     int `json:"reuse_off"`     // tcp_tw_reuse is 0
	NotLoopback  int `json:"not_loopback"`  // tcp_tw_reuse is 2
	TooYoung     int `json:"too_young"`
}

func (w *CensusWaits) total() int {
	return w.NoTimestamps + w.FinWait2 + w.ReuseOff + w.NotLoopback + w.TooYoung
}

// CensusOwner is what a process has of the ports.
type CensusOwner struct {
	PID      int    `json:"pid"` // 0: not known
	Comm     string `json:"comm"`
	Open     int    `json:"open"`
	TimeWait int    `json:"time_wait"`
}

// BoundPort is a port of the range that a socket was bound to as the run began.
type BoundPort struct {
	Port  int    `json:"port"`
	Addr  string `json:"addr"`
	State string `json:"state"`
	PID   int    `json:"pid"` // 0: not known
	Comm  string `json:"comm"`
}

// KernelRefused is what the kernel itself said to this connect(), port by port.
type KernelRefused struct {
	TooYoung     int `json:"too_young"`
	NotAllowed   int `json:"not_allowed"` // FIN_WAIT2, or as tcp_tw_reuse has it
	NoTimestamps int `json:"no_timestamps"`
	Taken        int `json:"taken"` // by a connection that is open
}

// census is of the attempt of a timeline, nil if nothing is known of its search.
func census(s *Summary, t *timeline.Timeline, started int64) *Census {
	lo, hi, _, ok := portRange(s)
	if t.Census == nil || !ok {
		return nil
	}
	c := &Census{
		Destination: s.Target, AtSeconds: float64(t.Census.At-started) / 1e9, Range: []int{lo, hi}, Ports: hi - lo + 1,
		Reserved: reserved(s.Sysctls[SysctlReserved], lo, hi), Open: t.AtConnect.Open, Owners: []CensusOwner{}, BoundBy: []BoundPort{},
	}
	if a := t.Tuple.Local.Addr(); a.IsValid() && !a.IsUnspecified() {
		c.Source = a.String()
	}
	for _, b := range s.BoundPorts {
		if reserved(s.Sysctls[SysctlReserved], b.Port, b.Port) == 0 && lo <= b.Port && b.Port <= hi {
			c.BoundBy = append(c.BoundBy, b)
		}
	}
	c.Bound = countPorts(c.BoundBy)
	finWait2 := 0
	for _, h := range t.Census.Holdings {
		finWait2 += h.FinWait2
		if h.Ports != (timeline.Ports{}) {
			c.Owners = append(c.Owners, CensusOwner{PID: int(h.Owner.PID), Comm: h.Owner.Comm.String(), Open: h.Open, TimeWait: h.TimeWait})
		}
	}
	slices.SortFunc(c.Owners, func(a, b CensusOwner) int {
		return cmp.Or(cmp.Compare(b.Open+b.TimeWait, a.Open+a.TimeWait), cmp.Compare(a.PID, b.PID))
	})
	c.TimeWait = waits(s, t.AtConnect.TimeWait, finWait2)
	c.Sum = c.Reserved + c.Bound + c.Open + c.TimeWait.total()
	if odd := c.Ports%2 == 1 && c.Ports > 1; odd && c.Sum == c.Ports-1 && s.Options.LocalPortRange == nil {
		c.LeftOut, c.Sum = 1, c.Ports
	}
	c.Sums = c.Sum == c.Ports
	c.next(s, t.Census)
	if r := &t.Census.Refusals; t.Census.Counted {
		c.Kernel = &KernelRefused{int(r.TooYoung), int(r.NotAllowed), int(r.NoTimestamps), int(r.Taken)}
	}
	return c
}

// next is when a port comes back: when a TIME_WAIT is over, or old enough to be reused.
func (c *Census) next(s *Summary, t *timeline.Census) {
	if t.OldestNS == 0 {
		return
	}
	oldest, next := float64(t.OldestNS)/1e9, float64(t.LeftNS)/1e9
	if c.TimeWait.TooYoung > 0 {
		next = max(0, holdSeconds(s)-oldest)
	}
	c.OldestSeconds, c.NextSeconds = &oldest, &next
}

func countPorts(bound []BoundPort) int {
	ports := make(map[int]bool)
	for _, b := range bound {
		ports[b.Port] = true
	}
	return len(ports)
}

// waits sorts TIME_WAITs by what bars connect() from their ports; of several reasons the one that no sysctl lifts
// comes first.
func waits(s *Summary, n, finWait2 int) (w CensusWaits) {
	finWait2 = min(finWait2, n)
	switch reuse := s.Sysctls[SysctlReuse]; {
	case s.Sysctls[SysctlStamps] == "0":
		w.NoTimestamps = n
		return w
	case reuse == "0":
		w.ReuseOff = n - finWait2
	case reuse == "2" && !onLoopback(s):
		w.NotLoopback = n - finWait2
	default:
		w.TooYoung = n - finWait2
	}
	w.FinWait2 = finWait2
	return w
}

// onLoopback: both ends have addresses that tcp_tw_reuse = 2 is about.
func onLoopback(s *Summary) bool {
	target, err := netip.ParseAddrPort(s.Target)
	return err == nil && target.Addr().IsLoopback()
}

// reuses reports whether tcp_tw_reuse lets this run take the ports of TIME_WAITs.
func reuses(s *Summary) bool {
	reuse := s.Sysctls[SysctlReuse]
	return s.Sysctls[SysctlStamps] != "0" && (reuse == "1" || reuse == "2" && onLoopback(s))
}

// timeWaitSeconds is TCP_TIMEWAIT_LEN, which is compiled in.
const timeWaitSeconds = 60

// holdSeconds is how long a TIME_WAIT keeps its port from connect(). Kernels before 6.14 compare whole seconds: up to one.
func holdSeconds(s *Summary) float64 {
	if !reuses(s) {
		return timeWaitSeconds
	}
	var ms float64
	if n, err := fmt.Sscan(s.Sysctls[SysctlReuseWait], &ms); n == 1 && err == nil {
		return ms / 1000
	}
	return 1
}

// lines are the census for people.
func (c *Census) lines(name string) []string {
	var held, why []string
	add := func(to *[]string, n int, format string) {
		if n > 0 {
			*to = append(*to, fmt.Sprintf(format, n))
		}
	}
	add(&held, c.Reserved, "%d reserved")
	add(&held, c.Bound, "%d bound")
	add(&held, c.Open, "%d open")
	add(&held, c.TimeWait.total(), "%d in TIME_WAIT")
	add(&held, c.LeftOut, "%d that this search left out (of an odd number)")
	add(&why, c.TimeWait.NoTimestamps, "%d have no timestamps")
	add(&why, c.TimeWait.FinWait2, "%d wait for the peer's FIN")
	add(&why, c.TimeWait.ReuseOff, "%d because tcp_tw_reuse is 0")
	add(&why, c.TimeWait.NotLoopback, "%d because tcp_tw_reuse is 2 and this is not loopback")
	add(&why, c.TimeWait.TooYoung, "%d are too young")
	text := fmt.Sprintf("%s, at %.2f s: %d ports = %s", name, c.AtSeconds, c.Ports, strings.Join(held, " + "))
	if !c.Sums {
		text += fmt.Sprintf(" (these are %d: %d are not accounted for)", c.Sum, c.Ports-c.Sum)
	}
	lines := []string{text}
	if len(why) > 0 {
		lines = append(lines, "not reused: "+strings.Join(why, ", "))
	}
	if c.OldestSeconds != nil {
		lines = append(lines, fmt.Sprintf("the oldest TIME_WAIT was %.2f s old; the next port comes back in %.2f s", *c.OldestSeconds, *c.NextSeconds))
	}
	if whose := c.whose(); whose != "" {
		lines = append(lines, "held by "+whose)
	}
	return lines
}

// whose names the processes that have the most ports.
func (c *Census) whose() string {
	const most = 4
	var names []string
	for i, o := range c.Owners {
		if i == most {
			names = append(names, fmt.Sprintf("%d others", len(c.Owners)-most))
			break
		}
		names = append(names, fmt.Sprintf("%s %d (%d open, %d TIME_WAIT)", process(o.PID, o.Comm), o.Open+o.TimeWait, o.Open, o.TimeWait))
	}
	for i, b := range c.BoundBy {
		if i == most {
			names = append(names, fmt.Sprintf("%d more bound", len(c.BoundBy)-most))
			break
		}
		names = append(names, fmt.Sprintf("%s port %d (bound, %s)", process(b.PID, b.Comm), b.Port, b.State))
	}
	return strings.Join(names, ", ")
}

func process(pid int, comm string) string {
	if pid == 0 {
		return "a process not known"
	}
	return fmt.Sprintf("pid %d %s", pid, cmp.Or(comm, "?"))
}

// sumsCheck is the cross-check's row of a census: what the range has, and what was found of it.
func sumsCheck(which string, c *Census) CrossCheck {
	return CrossCheck{
		Side: "client", Counter: "ip_local_port_range, " + which + " port-exhausted",
		Kernel: uint64(c.Ports), Twtrace: uint64(c.Sum), Agrees: c.Sums,
	}
}
