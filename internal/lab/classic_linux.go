package lab

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/report"
	"github.com/twtrace/twtrace/internal/run"
	"github.com/twtrace/twtrace/loadgen"
)

// What the storms of experiment 1 were, and how many times smaller the scaled ones are.
const (
	classicLoops       = 10
	classicConnections = 10_000
	classicPorts       = 28_232 // of the default range
	classicLow         = 32_768
	classicScale       = 40
)

// classicSize is the connections of a loop and the ports that they have.
func classicSize(s *Session) (connections, ports int) {
	if s.Full() {
		return classicConnections, classicPorts
	}
	return classicConnections / classicScale, (classicPorts + classicScale - 1) / classicScale
}

// A scaled storm is over long before the first TIME_WAIT is: pauses between its loops make up for that, so that
// the last begins once those of the first loop have expired (60 s, and up to 4.1 s more with HZ=1000: the timer wheel).
const classicPause = 7200 * time.Millisecond

// With tcp_tw_reuse a port comes back after a second. The originals took that long for two loops; what takes less gets the rest as
// a pause.
const reusePause = 650 * time.Millisecond

// classicRow is a storm.
type classicRow struct {
	Reuse     int           `json:"tcp_tw_reuse"`
	Net       string        `json:"net"`
	ReusePort int           `json:"reuseport"`
	Linger    int           `json:"linger"`
	Pause     float64       `json:"pause_seconds"` // between its loops
	Loops     []classicLoop `json:"loops"`
	Expired   int           `json:"time_waits_expired"`
	Killed    int           `json:"time_waits_killed_by_rst"`
	Reused    int           `json:"time_waits_reused"`
	Errors    string        `json:"errors"`

	kind    netlab.Kind
	summary *report.Summary
	before  *report.Summary // of the storm that this one was made in place of; nil: of none
}

type classicLoop struct {
	Finished int     `json:"finished"`
	Failed   int     `json:"failed"`
	Seconds  float64 `json:"seconds"`
	At       float64 `json:"at_seconds"` // since before the first
	TimeWait int     `json:"time_waits"` // as it ended
}

// starves reports whether the storm is expected to run out of ports: mode 2 is for loopback addresses alone.
func (r *classicRow) starves() bool {
	return r.Linger == 0 && (r.Reuse == 0 || r.Reuse == 2 && r.kind == netlab.Pair)
}

func (r *classicRow) failed() (n int) {
	for _, l := range r.Loops {
		n += l.Failed
	}
	return n
}

// unaged is for how long no TIME_WAIT expires.
const unaged = 59 * time.Second

// fresh is how many of the loops were over before any TIME_WAIT can have expired.
func (r *classicRow) fresh() (loops int) {
	for loops < len(r.Loops) && r.Loops[loops].At < unaged.Seconds() {
		loops++
	}
	return loops
}

// first adds up the first loops.
func (r *classicRow) first(loops int) (finished, failed int) {
	for _, l := range r.Loops[:loops] {
		finished += l.Finished
		failed += l.Failed
	}
	return finished, failed
}

// classic is experiment 1: ten loops of short connections that the client closes.
func classic(s *Session) error {
	rows := classicTable()
	if err := s.classicStorms(rows); err != nil {
		return err
	}
	s.Note("table", rows)
	connections, ports := classicSize(s)
	s.Note("connections", connections)
	s.Note("ports", ports)
	s.classicConclusions(rows)
	s.classicLoops(rows, connections, ports)
	s.classicAccount(rows)
	if err := s.classicSlow(ports); err != nil {
		return err
	}
	s.Answerf("A destination can be connected to as often as the range has ports, %d times; then connect() fails with EADDRNOTAVAIL until TIME_WAITs expire, 60 s after the first. "+
		"tcp_tw_reuse=1 helps (2 on loopback alone), SO_LINGER {1,0} helps, SO_REUSEPORT does not.", ports)
	return nil
}

func classicTable() (rows []*classicRow) {
	for _, reuse := range []int{0, 1, 2} {
		for _, kind := range []netlab.Kind{netlab.Pair, netlab.Loopback} {
			for _, port := range []int{1, 0} {
				for _, linger := range []int{0, 1} {
					rows = append(rows, &classicRow{Reuse: reuse, Net: kind.String(), ReusePort: port, Linger: linger, kind: kind})
				}
			}
		}
	}
	return rows
}

// classicStorms does those that wait for TIME_WAITs side by side, and the others, two at a time, meanwhile. At full size
// all take the processors' time, and go one after the other: side by side TIME_WAITs would expire before the ports are used up.
func (s *Session) classicStorms(rows []*classicRow) error {
	var wg sync.WaitGroup
	errs := make([]error, len(rows))
	room := make(chan struct{}, 2) // a token for a storm that fills a processor or two
	if s.Full() {
		room = make(chan struct{}, 1)
	}
	for i, r := range rows {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if s.Full() || !r.starves() {
				room <- struct{}{}
				defer func() { <-room }()
			}
			errs[i] = s.classicStorm(r)
			if errs[i] == nil && unseen(r.summary) {
				*r = classicRow{Reuse: r.Reuse, Net: r.Net, ReusePort: r.ReusePort, Linger: r.Linger, kind: r.kind, before: r.summary}
				errs[i] = s.classicStorm(r)
			}
		}()
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			return fmt.Errorf("tcp_tw_reuse %d, %s, reuseport %d, linger %d: %w", rows[i].Reuse, rows[i].Net, rows[i].ReusePort, rows[i].Linger, err)
		}
	}
	return nil
}

func (s *Session) classicStorm(r *classicRow) error {
	connections, ports := classicSize(s)
	set, err := Sysctls(
		"tcp_tw_reuse="+strconv.Itoa(r.Reuse),
		fmt.Sprintf("ip_local_port_range=%d %d", classicLow, classicLow+ports-1),
		"net.core.somaxconn=16384",
	)
	if err != nil {
		return err
	}
	plan := loadgen.NewPlan(netip.AddrPort{})
	plan.Loops, plan.Connections = classicLoops, connections
	plan.ReusePort = r.ReusePort == 1
	if r.Linger == 1 {
		plan.Linger = 0
	}
	switch {
	case r.starves() && !s.Full():
		plan.Interval = classicPause
	case r.Linger == 0 && !r.starves():
		plan.Interval = reusePause
	}
	r.Pause = plan.Interval.Seconds()
	var begun time.Time
	var ends []time.Duration
	r.summary, err = s.Storm(run.Options{
		Plan: plan, Net: netlab.Options{Kind: r.kind, Sysctls: set}, Backlog: 16384,
		OnStart: func(*report.Summary) { begun = time.Now() },
		OnLoop:  func(report.Loop) { ends = append(ends, time.Since(begun)) },
	})
	if err != nil {
		return err
	}
	if r.summary.Interrupted {
		return s.ctx.Err()
	}
	if len(ends) != len(r.summary.Loops) {
		return fmt.Errorf("%d loops were told of, and %d are in the summary", len(ends), len(r.summary.Loops))
	}
	for i, l := range r.summary.Loops {
		one := classicLoop{Finished: l.Finished, Failed: l.Failed, Seconds: l.Seconds, At: ends[i].Seconds()}
		if l.TimeWaitNow != nil {
			one.TimeWait = *l.TimeWaitNow
		}
		r.Loops = append(r.Loops, one)
	}
	tw := &r.summary.TimeWait
	r.Expired, r.Killed, r.Reused = tw.Expired, tw.KilledByRst, tw.ReusedByConnect
	r.Errors = fmt.Sprint(r.summary.Totals.Errors)
	return nil
}

// unseen reports whether a trace that lost nothing has less than the kernel counted, by more than one in 1,000.
func unseen(s *report.Summary) bool {
	return s.Events.Lost() == 0 && slices.ContainsFunc(s.CrossCheck, func(c report.CrossCheck) bool { return c.Twtrace < c.Kernel && apart(&c) })
}

// apart reports whether the two differ by more than one in 1,000.
func apart(c *report.CrossCheck) bool {
	most := max(c.Kernel, c.Twtrace)
	return 1000*(most-min(c.Kernel, c.Twtrace)) > most
}

// failedOf adds up the failures of the storms that f is true of.
func failedOf(rows []*classicRow, f func(*classicRow) bool) (storms, failed int) {
	for _, r := range rows {
		if f(r) {
			storms++
			failed += r.failed()
		}
	}
	return storms, failed
}

// classicConclusions settles the three that the experiment came to, and what a mode that is newer than it does.
func (s *Session) classicConclusions(rows []*classicRow) {
	_, without := failedOf(rows, func(r *classicRow) bool { return r.Reuse == 0 && r.Linger == 0 })
	storms, failed := failedOf(rows, func(r *classicRow) bool { return r.Reuse == 1 && r.Linger == 0 })
	s.Claim(Claim{
		Key: "tw-reuse-helps", Text: "tcp_tw_reuse helps.",
		Holds: holdsOf(failed == 0 && without > 0), Expected: Yes,
		Evidence: Evidence{"storms": storms, "failed with tcp_tw_reuse=1": failed, "failed with 0": without},
		History:  "For who connects, with timestamps on both ends, and once the TIME_WAIT is a second old (tcp_twsk_unique).",
	})
	storms, failed = failedOf(rows, func(r *classicRow) bool { return r.Linger == 1 })
	s.Claim(Claim{
		Key: "linger-helps", Text: "SO_LINGER {1,0} helps.",
		Holds: holdsOf(failed == 0 && without > 0), Expected: Yes,
		Evidence: Evidence{"storms": storms, "failed with it": failed, "failed without": without},
		History:  "close() then sends an RST and leaves no TIME_WAIT (tcp_disconnect); what was not yet delivered is lost.",
	})
	differ, with, of := 0, 0, 0
	for _, a := range rows {
		for _, b := range rows {
			if a.starves() && a.ReusePort == 1 && b.starves() && b.ReusePort == 0 && a.Reuse == b.Reuse && a.kind == b.kind {
				loops := min(a.fresh(), b.fresh())
				fa, _ := a.first(loops)
				fb, _ := b.first(loops)
				of++
				with += fa
				// An RST that ends a TIME_WAIT early gives a port back.
				if max(fa-fb, fb-fa) > a.Killed+b.Killed {
					differ++
				}
			}
		}
	}
	s.Claim(Claim{
		Key: "reuseport-does-not", Text: "SO_REUSEPORT does not help.",
		Holds: holdsOf(differ == 0 && of > 0), Expected: Yes,
		Evidence: Evidence{"pairs of storms": of, "that differ": differ, "finished with it until TIME_WAITs expire": with},
		History:  "It is about bind(): an unbound socket's connect() asks for a four-tuple that is free, and no option of the socket changes that (__inet_check_established).",
	})
	loopback, onLoopback := failedOf(rows, func(r *classicRow) bool { return r.Reuse == 2 && r.Linger == 0 && r.kind == netlab.Loopback })
	_, elsewhere := failedOf(rows, func(r *classicRow) bool { return r.Reuse == 2 && r.Linger == 0 && r.kind == netlab.Pair })
	s.Claim(Claim{
		Key: "tw-reuse-2", Text: "tcp_tw_reuse=2 is 1 between loopback addresses, and 0 between all others.",
		Holds: holdsOf(onLoopback == 0 && elsewhere > 0), Expected: Yes,
		Evidence: Evidence{"storms of each": loopback, "failed on loopback": onLoopback, "failed on a pair of hosts": elsewhere},
		History:  "Since 4.19, where it became the default (tcp_twsk_unique).",
	})
}

// classicLoops settles what the loops' numbers say.
func (s *Session) classicLoops(rows []*classicRow, connections, ports int) {
	storms, seen, used, recovered, explained, fell := 0, 0, 0, 0, 0, 0
	var before []string
	for _, r := range rows {
		if !r.starves() {
			continue
		}
		storms++
		loops := r.fresh()
		finished, failed := r.first(loops)
		before = append(before, fmt.Sprintf("%d in %d loops", finished, loops))
		if failed > 0 { // else the machine was so slow that TIME_WAITs expired before the ports were used up
			seen++
			// Until TIME_WAITs expire only an RST gives a port back (TIME_WAIT assassination).
			if finished >= ports && finished <= ports+r.Killed {
				used++
			}
		}
		for i, l := range r.Loops {
			if i > 0 && r.Loops[i-1].Failed > 0 && l.Finished > r.Loops[i-1].Finished {
				fell++ // a loop after one with failures that came out better than it
			}
		}
		all, _ := r.first(len(r.Loops))
		if all > max(finished, ports) {
			recovered++
		}
		if again := all - ports; again <= r.Expired+r.Killed && r.Reused == 0 {
			explained++
		}
	}
	claim := Claim{
		Key: "range", Text: "10000 + 10000 + 8232 = 28,232: as many finish before the first failure as the default range has ports.",
		Expected: Yes,
		Evidence: Evidence{"ports": ports, "connections a loop": connections, "storms that ran out before a TIME_WAIT expired": seen, "of which it is so": used, "finished until a TIME_WAIT can expire": before},
	}
	if seen > 0 {
		claim.Holds = holdsOf(used == seen)
	}
	s.Claim(claim)
	s.Claim(Claim{
		Key: "partly-recover", Text: "Later loops partly recover because TIME_WAITs of 60 s expire in mid-run (left unexplained by the experiment).",
		Holds: holdsOf(recovered == storms && explained == storms && fell > 0), Expected: Yes,
		Evidence: Evidence{"storms": storms, "that recovered": recovered, "in which the ports that came back are those of TIME_WAITs that had expired": explained, "loops better than a failing one before": fell},
	})
}

// named is a counter of a storm.
type named struct {
	*report.CrossCheck
	name string
}

// disagreeing are the counters of one of the row's storms that the trace differs from.
func (r *classicRow) disagreeing(sum *report.Summary) (list []named) {
	for i := range sum.CrossCheck {
		if c := &sum.CrossCheck[i]; !c.Agrees {
			list = append(list, named{c, fmt.Sprintf("tcp_tw_reuse %d, %s, reuseport %d, linger %d: %s %s: kernel %d, twtrace %d",
				r.Reuse, r.Net, r.ReusePort, r.Linger, c.Side, c.Counter, c.Kernel, c.Twtrace)})
		}
	}
	return list
}

// classicAccount settles whether the storms' own account is complete.
func (s *Session) classicAccount(rows []*classicRow) {
	attempts, failed, unexplained, lost, others := 0, 0, 0, uint64(0), 0
	counters, far, differ, again := 0, 0, []string{}, []string{}
	// What failed in a storm that was made once more is to be explained too.
	account := func(sum *report.Summary) {
		attempts += sum.Totals.Attempts
		failed += sum.Totals.Failed
		unexplained += sum.Unexplained
		lost += sum.Events.Lost()
		for _, f := range sum.Failures {
			if f.Errno != unix.ErrnoName(unix.EADDRNOTAVAIL) {
				others += f.Count
			}
		}
	}
	for _, r := range rows {
		account(r.summary)
		counters += len(r.summary.CrossCheck)
		for _, c := range r.disagreeing(r.summary) {
			differ = append(differ, c.name)
			if apart(c.CrossCheck) {
				far++
			}
		}
		if r.before != nil {
			account(r.before)
			for _, c := range r.disagreeing(r.before) {
				again = append(again, c.name)
			}
		}
	}
	s.Claim(Claim{
		Key: "all-explained", Text: "Every failure is connect() without a port to choose.",
		Holds: holdsOf(unexplained == 0 && lost == 0 && others == 0), Expected: Yes,
		Evidence: Evidence{"attempts": attempts, "failed": failed, "unexplained": unexplained, "other errors": others, "events lost": lost},
	})
	s.Claim(Claim{
		Key: "counters-agree", Text: "The trace and the kernel's counters agree, to one in 1,000.",
		Holds: holdsOf(far == 0), Expected: Yes,
		Evidence: Evidence{"counters": counters, "that differ by more": far, "that differ at all": differ, "that differed in storms made once more": again},
		History:  "They agree exactly, but on a machine whose kernel runs no BPF program while it is on top of a supervisor's thread (KNOWN_ISSUES.md): a storm of which a trace that lost nothing has less than the kernel is made once more.",
	})
}

// classicSlow finds out why loops get slow before they fail: which ports connect() gives out, and what it costs when as many are taken as
// after the first loop and in the middle of the second.
func (s *Session) classicSlow(ports int) error {
	const n = 200
	order, err := s.lapOf(n, n+1, func(*netlab.Lab, int) How { return How{} })
	if err != nil {
		return err
	}
	first := ofParity(order[:n/2], classicLow)
	// A walk over the ports of a scaled storm is too short to be told from what else there is to do.
	ports = max(ports, searchPorts(s))
	table, err := s.costs(ports, How{}, []int{35, 60, 100}, func(_ netip.Addr, to, _ netip.AddrPort) []searchWay {
		return []searchWay{{"auto", How{}, to}}
	})
	if err != nil {
		return err
	}
	early, later, failing := table[0].US["auto"], table[1].US["auto"], table[2].US["auto"]
	s.Claim(Claim{
		Key: "slow-before-failing", Text: "Loops get slow long before they fail because connect() looks at every port of one parity before it tries the other: past half of the range each walks over all that are taken (left unexplained by the experiment).",
		Holds: holdsOf(okOf(order) == n && first == n/2 && later > 2*early && failing > later), Expected: Yes,
		Evidence: Evidence{
			"of the first half of the ports given out, with the parity of the range's first": fmt.Sprintf("%d of %d", first, n/2),
			"ports": ports, "us a connect() with 35 % taken": early, "us with 60 %": later, "us of one that fails": failing, "ratio": later / early,
		},
		History: "Since 4.2, as far as read (07f4c90062f8: connect() prefers the ports of the range's first parity, bind() the others); __inet_hash_connect.",
	})
	return nil
}
