package story

import (
	"cmp"
	"math/bits"
	"slices"

	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
)

// pick is a connection that may be one of those asked for: an attempt, or a socket that events are of.
type pick struct {
	cookie  tcp.Cookie
	attempt tcp.Attempt
	known   bool       // the attempt is
	alone   *tcp.Event // all that there is, and of no cookie; nil: it is not
	order   int64      // the lowest comes first
	seq     uint64     // of its first event
	place   *place     // of a socket; nil: anywhere, or as its attempt says
}

// maxPicks is how many connections are kept that may be asked for: some 200 MB. It takes a query that asks
// for nearly everything to come to it.
const maxPicks = 1 << 20

// picks keeps those that come first.
type picks struct {
	list []pick
	keep int // 0: maxPicks
	full bool
}

func (p *picks) add(k pick) {
	keep := maxPicks
	if p.keep > 0 && p.keep < maxPicks {
		keep = p.keep
	}
	p.list = append(p.list, k)
	if len(p.list) >= 2*keep+1024 {
		p.sort()
		p.full = p.full || p.keep == 0
		p.list = p.list[:keep]
	}
}

func (p *picks) sort() {
	slices.SortStableFunc(p.list, func(a, b pick) int { return cmp.Or(cmp.Compare(a.order, b.order), cmp.Compare(a.seq, b.seq)) })
}

// Conditions that events decide.
const (
	onPort = 1 << iota
	onPID
	onCause
	onFailed
	onErrno
)

// conditions are those of the query that events decide; with attempts, those about failures are theirs.
func (q *Query) conditions(attempts bool) (on uint8) {
	if len(q.Ports) > 0 {
		on |= onPort
	}
	if len(q.PIDs) > 0 {
		on |= onPID
	}
	if len(q.kernelCauses()) > 0 && len(q.verdictCauses()) == 0 {
		on |= onCause
	}
	if attempts {
		return on
	}
	if q.Failed || len(q.verdictCauses()) > 0 && len(q.kernelCauses()) == 0 {
		on |= onFailed
	}
	if len(q.Errnos) > 0 {
		on |= onErrno
	}
	return on
}

func (q *Query) kernelCauses() (causes []tcp.Cause) {
	for _, c := range q.Causes {
		if c.Kernel != 0 {
			causes = append(causes, c.Kernel)
		}
	}
	return causes
}

func (q *Query) verdictCauses() (causes []Cause) {
	for _, c := range q.Causes {
		if c.Verdict != "" {
			causes = append(causes, c)
		}
	}
	return causes
}

// choose finds the connections that may be asked for, in their order. It may name too many, and with a
// budget not all: more says so then.
func (s *source) choose(q *Query, budget int, result *Result) (list []pick, more bool, err error) {
	if len(q.Cookies) > 0 {
		for _, c := range q.Cookies {
			list = append(list, pick{cookie: c})
		}
		return list, false, nil
	}
	attempts := result.Attempts > 0
	on := q.conditions(attempts)
	about := q.Failed || q.Slowest || len(q.Errnos) > 0 || len(q.verdictCauses()) > 0
	if !attempts || on != 0 && !about {
		return s.chooseByEvents(q, on, budget, result)
	}
	return s.chooseByAttempts(q, on, budget, result)
}

func placed(p place) *place { return &p }

// where is where the socket's events are; all: nothing is known, and all lives of the cookie are asked for.
func (k *pick) where() (p place, all bool) {
	switch {
	case k.known:
		return placeOfAttempt(&k.attempt), false
	case k.place != nil:
		return *k.place, false
	}
	return place{}, true
}

// chooseByAttempts finds the attempts that may be asked for: in the order in which they were begun, or the
// slowest first.
func (s *source) chooseByAttempts(q *Query, on uint8, budget int, result *Result) ([]pick, bool, error) {
	p := picks{keep: budget}
	if on != 0 || len(q.verdictCauses()) > 0 {
		p.keep = 0 // what becomes of them is not known before their stories are
	}
	narrow := len(q.Errnos) > 0
	failed := 0
	want := func(seg *recording.Segment) bool {
		switch {
		case narrow:
			return slices.ContainsFunc(q.Errnos, seg.MayHaveErrno)
		case q.Failed || len(q.verdictCauses()) > 0:
			return seg.MayFail()
		}
		return true
	}
	seen := uint64(0)
	err := s.scan(want, nil, func(a *tcp.Attempt) error {
		seen++
		if a.Failed() {
			failed++
		} else if q.Failed || len(q.verdictCauses()) > 0 {
			return nil
		}
		if narrow && !slices.Contains(q.Errnos, a.Errno) {
			return nil
		}
		k := pick{cookie: a.Cookie, attempt: *a, known: true, order: a.Started}
		if q.Slowest {
			if !a.ReachedConnect() {
				return nil
			}
			k.order = -connectTime(a)
		}
		p.add(k)
		return nil
	})
	if !narrow {
		result.Failed = failed
	}
	p.sort()
	result.Unfollowed = result.Unfollowed || p.full
	if budget > 0 && p.keep > 0 && len(p.list) > budget {
		return p.list[:budget], true, err
	}
	return p.list, false, err
}

// connectTime is how long connect() took, or tried, from when it was due.
func connectTime(a *tcp.Attempt) int64 {
	if a.Connected != 0 {
		return a.Connected - a.Intended
	}
	return a.Closed - a.Intended
}

// candidate is a socket of which some events fit.
type candidate struct {
	seq    uint64
	place  place
	took   int64 // from SYN_SENT to ESTABLISHED, or to the end; 0: not known
	fits   uint8
	picked bool
}

// byEvents is a scan for sockets whose events fit.
type byEvents struct {
	q       *Query
	on      uint8
	causes  []tcp.Cause
	found   map[tcp.Cookie]candidate
	calling map[tcp.Cookie]int64 // in SYN_SENT, since when
	dropped map[tcp.FourTuple]struct{}
	slowest picks
	alone   []pick
	whole   int // that fit in everything
	full    bool
}

// chooseByEvents finds the sockets that may be asked for, in the order of their events, or the slowest first.
func (s *source) chooseByEvents(q *Query, on uint8, budget int, result *Result) ([]pick, bool, error) {
	b := &byEvents{
		q: q, on: on, causes: q.kernelCauses(), found: make(map[tcp.Cookie]candidate),
		calling: make(map[tcp.Cookie]int64), dropped: make(map[tcp.FourTuple]struct{}), slowest: picks{keep: budget},
	}
	enough := false
	err := s.scan(b.mayFit, func(ev *tcp.Event) error {
		b.event(ev)
		if enough = budget > 0 && b.whole >= budget && !q.Slowest && bits.OnesCount8(on) <= 1; enough {
			return errEnough
		}
		return nil
	}, nil)
	result.Unfollowed = result.Unfollowed || b.full
	if q.Slowest && on == 0 {
		b.slowest.sort()
		if budget > 0 && len(b.slowest.list) > budget {
			return b.slowest.list[:budget], true, err
		}
		return b.slowest.list, false, err
	}
	var p picks
	for _, k := range b.alone {
		p.add(k)
	}
	for c, k := range b.found {
		if k.fits != on || q.Slowest && k.took == 0 {
			continue
		}
		next := pick{cookie: c, seq: k.seq, place: placed(k.place)}
		if q.Slowest {
			next.order = -k.took
		}
		p.add(next)
	}
	p.sort()
	return p.list, enough, err
}

// mayFit reports whether an event of a segment can be asked for.
func (b *byEvents) mayFit(seg *recording.Segment) bool {
	if b.on == 0 || b.on&(onPID|onCause|onFailed) != 0 || b.q.Slowest {
		return true
	}
	return b.on&onPort != 0 && slices.ContainsFunc(b.q.Ports, seg.MayHavePort) ||
		b.on&onErrno != 0 && slices.ContainsFunc(b.q.Errnos, seg.MayHaveErrno)
}

func (b *byEvents) event(ev *tcp.Event) {
	if ev.Kind == tcp.KindListenDrop { // the listener's, and about the one that connects
		if slices.Contains(b.causes, ev.Cause) && len(b.dropped) < maxPicks/16 {
			b.dropped[ev.Tuple.Reverse()] = struct{}{}
		}
		return
	}
	if ev.Kind == tcp.KindBindFailed && ev.Cookie == 0 && !b.q.Slowest && b.fits(ev) == b.on && len(b.alone) < maxPicks/16 {
		one := *ev
		b.alone = append(b.alone, pick{seq: ev.Seq, alone: &one})
		b.whole++
		return
	}
	if ev.Cookie == 0 || ev.New == tcp.Listen || ev.Old == tcp.Listen {
		return
	}
	took := b.took(ev)
	if b.q.Slowest && b.on == 0 {
		if took != 0 {
			b.slowest.add(pick{cookie: ev.Cookie, seq: ev.Seq, order: -took, place: placed(placeOf(ev))})
		}
		return
	}
	fits := b.fits(ev)
	if fits == 0 && took == 0 && (b.on != 0 || ev.Kind == tcp.KindSnapshot) {
		return
	}
	k, known := b.found[ev.Cookie]
	if !known {
		if len(b.found) >= maxPicks {
			b.full = true
			return
		}
		k.seq, k.place = ev.Seq, placeOf(ev)
	}
	k.fits |= fits
	k.took = max(k.took, took)
	if !k.picked && k.fits == b.on {
		k.picked = true
		b.whole++
	}
	b.found[ev.Cookie] = k
}

// took is, for the event that ends a connect(), how long that was under way; else 0.
func (b *byEvents) took(ev *tcp.Event) int64 {
	if !b.q.Slowest || ev.Kind != tcp.KindState {
		return 0
	}
	if ev.New == tcp.SynSent {
		if len(b.calling) < maxPicks {
			b.calling[ev.Cookie] = ev.MonoNS
		}
		return 0
	}
	since, ok := b.calling[ev.Cookie]
	if !ok {
		return 0
	}
	delete(b.calling, ev.Cookie)
	return max(1, ev.MonoNS-since)
}

// fits says which conditions of the query an event meets.
func (b *byEvents) fits(ev *tcp.Event) (fits uint8) {
	if slices.Contains(b.q.Ports, ev.Tuple.Local.Port()) || slices.Contains(b.q.Ports, ev.Tuple.Peer.Port()) {
		fits |= onPort
	}
	if ev.Flags&tcp.FlagOwner != 0 && slices.Contains(b.q.PIDs, ev.Owner.PID) {
		fits |= onPID
	}
	if ev.Cause != 0 && slices.Contains(b.causes, ev.Cause) {
		fits |= onCause
	} else if _, ok := b.dropped[ev.Tuple]; ok && len(b.dropped) > 0 {
		fits |= onCause
	}
	if failure(ev) {
		fits |= onFailed
	}
	if ev.Errno != 0 && ev.Kind != tcp.KindRetransmit && slices.Contains(b.q.Errnos, ev.Errno) {
		fits |= onErrno
	}
	return fits & b.on
}

// failure reports whether an event is of a connection that failed: connect() or bind() did, the kernel
// closed it with an error, or an RST was received, or sent not by closing it.
func failure(ev *tcp.Event) bool {
	switch ev.Kind {
	case tcp.KindConnectFailed, tcp.KindBindFailed, tcp.KindRstReceived:
		return true
	case tcp.KindState:
		return ev.New == tcp.Close && ev.Errno != 0
	case tcp.KindRstSent:
		return ev.Flags&tcp.FlagActive == 0
	}
	return false
}
