package timeline

import (
	"net/netip"
	"slices"

	"github.com/twtrace/twtrace/internal/tcp"
)

// Ports is how the source's ports stood at a moment: what a connect() without a
// port of its own has to choose from.
type Ports struct {
	TimeWait int // in TIME_WAIT, counted in FIN_WAIT2 minisocks too
	Open     int // of connections that are not closed
}

// Holding is what one process has of a path's ports.
type Holding struct {
	Owner tcp.Owner // the zero value: not known, or of more processes than are told apart
	Ports
	FinWait2 int // of TimeWait: minisocks that wait for the peer's FIN
}

// Census is how the ports stood for a connect() that found none.
type Census struct {
	At       int64     // CLOCK_MONOTONIC ns: when it gave up
	Holdings []Holding // whose they were, as Timeline.AtConnect counts them
	// Of the oldest TIME_WAIT: how old it was, and what was left of its timer,
	// nanoseconds; both 0: there was none.
	OldestNS, LeftNS int64
	// Refusals is why each port was refused, where the kernel lets that be counted.
	Refusals tcp.Refusals
	Counted  bool
}

// path is what competes for ports: one source address and one destination.
type path struct {
	source netip.Addr
	dest   netip.AddrPort
}

// pathState is how the ports of a path stand. It is kept while a connection or a
// TIME_WAIT refers to it: a long trace sees any number of paths.
type pathState struct {
	key      path
	refs     int
	all      Ports
	holdings []Holding
	// queue[first:] has the path's TIME_WAITs in the order in which they were made, and some
	// that are over.
	queue    []queued
	first    int
	forecast forecaster
}

type queued struct {
	key   twKey
	start int64
	ticks uint32
}

// maxHoldings is how many processes of a path are told apart; the last stands for all others.
const maxHoldings = 64

// enterPath returns the state of a path, and refers to it.
func (j *Joiner) enterPath(key path) *pathState {
	p := j.paths[key]
	if p == nil {
		p = &pathState{key: key}
		j.paths[key] = p
		j.dests[key.dest]++
	}
	p.refs++
	return p
}

func (j *Joiner) leavePath(p *pathState) {
	if p.refs--; p.refs == 0 {
		j.keepForecast(p)
		delete(j.paths, p.key)
		if j.dests[p.key.dest]--; j.dests[p.key.dest] == 0 {
			delete(j.dests, p.key.dest)
		}
	}
}

// holder is where the holdings of a process are among those of the path.
func (p *pathState) holder(ev *tcp.Event) int {
	var owner tcp.Owner
	if ev.Flags&tcp.FlagOwner != 0 {
		owner = ev.Owner
	}
	for i := range p.holdings {
		if p.holdings[i].Owner.PID == owner.PID {
			return i
		}
	}
	if len(p.holdings) == maxHoldings-1 {
		owner = tcp.Owner{}
	}
	if len(p.holdings) < maxHoldings {
		p.holdings = append(p.holdings, Holding{Owner: owner})
	}
	return len(p.holdings) - 1
}

// take changes the number of ports that a process has of a path.
func (j *Joiner) take(p *pathState, holder int, change Ports) {
	j.taken.add(change)
	p.all.add(change)
	p.holdings[holder].add(change)
}

func (p *Ports) add(change Ports) {
	p.TimeWait += change.TimeWait
	p.Open += change.Open
}

// enqueue notes a TIME_WAIT of the path.
func (p *pathState) enqueue(q queued, alive map[twKey]timeWait) {
	if p.first > 1024 && p.first > len(p.queue)/2 {
		p.queue = p.queue[:copy(p.queue, p.queue[p.first:])]
		p.first = 0
	}
	if len(p.queue)-p.first > 2*p.all.TimeWait+1024 { // they end in another order
		p.queue = slices.DeleteFunc(p.queue[p.first:], func(q queued) bool { return !q.lasts(alive) })
		p.first = 0
	}
	p.queue = append(p.queue, q)
}

func (q *queued) lasts(alive map[twKey]timeWait) bool {
	t, ok := alive[q.key]
	return ok && t.start == q.start
}

// dequeue notes the end of a TIME_WAIT. Most are the oldest.
func (p *pathState) dequeue(key twKey) {
	if p.first < len(p.queue) && p.queue[p.first].key == key {
		p.first++
	}
}

// oldest is the TIME_WAIT of the path that was made first, nil if there is none.
func (p *pathState) oldest(alive map[twKey]timeWait) *queued {
	for ; p.first < len(p.queue); p.first++ {
		if q := &p.queue[p.first]; q.lasts(alive) {
			return q
		}
	}
	return nil
}

// census completes what is known of the ports for a search that found none.
func (j *Joiner) census(c *conn, ev *tcp.Event) {
	s := c.search
	s.census.At, s.census.OldestNS, s.census.LeftNS = ev.MonoNS, 0, 0
	s.census.Refusals, s.census.Counted = tcp.Refusals{}, false
	if q := c.path.oldest(j.tw); q != nil {
		s.census.OldestNS = ev.MonoNS - q.start
		if j.opts.ShortTicks > 0 { // four seconds' worth
			s.census.LeftNS = max(0, int64(q.ticks)*4e9/int64(j.opts.ShortTicks)-s.census.OldestNS)
		}
	}
	c.Census = &s.census
}

// refused notes why a connect() found no port: the kernel's own count, port by port.
func (c *conn) refused(ev *tcp.Event) {
	if c.Census != nil && ev.Flags&tcp.FlagRefusals != 0 {
		c.Census.Refusals, c.Census.Counted = ev.Refusals, true
	}
}
