package timeline

import (
	"net/netip"
	"slices"
	"sync"

	"github.com/twtrace/twtrace/internal/tcp"
)

// notTried are the errors of a segment that TCP did not hand down: __tcp_retransmit_skb comes to them before it counts
// (TCPSynRetrans). What the host's packet filter (EPERM) or the link (tcp.LinkDropped) dropped is counted.
var notTried = []tcp.Errno{tcp.EAGAIN, tcp.ENOMEM, tcp.EBUSY, tcp.EINVAL, tcp.EHOSTUNREACH}

// Totals is what the kernel's events of one network namespace add up to.
type Totals struct {
	ActiveOpens   uint64 // CLOSE > SYN_SENT
	ConnectFailed uint64 // of these, those that failed before a segment was sent
	PassiveOpens  uint64 // LISTEN > SYN_RECV
	FinSent       uint64 // to FIN_WAIT1 or LAST_ACK (tcp_close_state), each FIN once
	EstabResets   uint64 // ESTABLISHED or CLOSE_WAIT > CLOSE
	Linger0       uint64 // closed with SO_LINGER {1,0}
	// DataAfterClose: data came for a socket that its program had closed
	// (tcp_rcv_state_process), which an RST answers. Where the kernel gives no
	// reason for an RST, only those are counted whose data came with the ACK
	// of the FIN: that makes it FIN_WAIT2, and the data ends it there.
	DataAfterClose uint64
	RstSent        uint64
	RstReceived    uint64

	// Segments that were sent again: SYNs, SYN+ACKs of a listener, all others.
	SynRetransmits    uint64
	SynAckRetransmits uint64
	Retransmits       uint64

	TWEnter    uint64 // TIME_WAIT minisocks made
	TWFinWait2 uint64 // of these, those made to wait for the peer's FIN
	TWShort    uint64 // of these, those armed for at most 4 s (TcpExt.TWKilled)
	TWEnd      [tcp.NumCauses]uint64
	TWOverflow uint64
	// TWConverted is how many FIN_WAIT2 minisocks received the peer's FIN.
	TWConverted uint64

	ListenDrops     uint64 // segments that a listener dropped
	ListenOverflows uint64 // of these, those for which its accept queue had no room
}

// Lifetime is how long one TIME_WAIT lasted.
type Lifetime struct {
	NetNS tcp.NetNS
	NS    int64
	Cause tcp.Cause
}

// Mark is the state of things at a moment in the stream of events.
type Mark struct {
	Loop     int
	MonoNS   int64
	TimeWait int // TIME_WAIT minisocks alive, all namespaces
	Ports    int // source ports taken, by open connections and TIME_WAIT
}

// Options say what a Joiner reports, and to whom. The functions are called
// with the Joiner locked and must not call it.
type Options struct {
	// OnTimeline is given every attempt once, joined where its events were
	// found. The pointer is valid during the call.
	OnTimeline func(*Timeline)
	// OnLifetime is given the end of each TIME_WAIT whose beginning was seen.
	OnLifetime func(Lifetime)
	// OnMark is given each mark that was set, when the stream has passed it.
	OnMark func(Mark)
	// OnBindFailed is given each bind() that failed, with the process that has the port which it wanted; the zero value:
	// not known.
	OnBindFailed func(*tcp.Event, tcp.Owner)
	// ShortTicks is the number of jiffies up to which the kernel counts a
	// TIME_WAIT as TWKilled: four seconds' (__inet_twsk_schedule).
	ShortTicks uint32
	// AbortOnData is this kernel's number for the reason of an RST that
	// answers data after close() (TCP_ABORT_ON_DATA, Linux 6.10 and later); 0:
	// it gives no reasons.
	AbortOnData uint32
	Forecast    ForecastOptions
}

// Joiner joins attempts and events. Its methods may be called from several
// goroutines.
type Joiner struct {
	mu   sync.Mutex
	opts Options

	open  map[tcp.Cookie]*conn // active opens, and attempts whose events are still to come
	free  []*conn
	tw    map[twKey]timeWait
	paths map[path]*pathState
	peers peers
	dests map[netip.AddrPort]int // of the paths: nobody asks for other ends' events
	// listeners are those that were seen to begin, by address and port.
	listeners map[netip.AddrPort]Listener
	idle      []*search
	// searching are the connect() calls that look for a port, as far as known.
	searching []*conn
	total     map[tcp.NetNS]*Totals
	marks     []Mark   // still ahead of the stream, in order of time
	now       int64    // the latest event's time
	taken     Ports    // of all paths
	forecast  Forecast // to keep, of the paths that are forgotten
	nextLook  int64    // when forecasts are made next
	// held[heldFrom:] are attempts that failed and are over; they are handed out a little later.
	held     []waiting
	heldFrom int
	// waiting[waited:] has the connections that closed and whose attempt is
	// to come, in the order in which they closed.
	waiting []waiting
	waited  int
	// finished: the stream has ended, and nothing will be joined any more.
	finished bool
}

// attemptDelay is how long after the kernel's last event an attempt may come
// before the connection is taken for another program's. Attempts come in
// batches, some ten milliseconds late.
const attemptDelay = int64(5e9)

type waiting struct {
	cookie tcp.Cookie
	closed int64
}

// conn is one active open that is not complete.
type conn struct {
	Timeline
	hasAttempt bool
	held       bool // see heldFor
	gone       bool // dropped while it looked for a port
	closed     bool // the kernel's last state change was seen
	closedAt   int64
	counted    bool       // its port is counted in Ports.Open
	path       *pathState // nil: it was not seen to begin
	holder     int        // among the path's
	cookie     tcp.Cookie
	search     *search
}

// twKey names a TIME_WAIT. The cookie is not enough: a socket that was shut down,
// not closed, is CLOSE as soon as its minisock is made, and may be connected again.
type twKey struct {
	cookie tcp.Cookie
	port   uint16
}

func twKeyOf(ev *tcp.Event) twKey { return twKey{ev.Cookie, ev.Tuple.Local.Port()} }

type timeWait struct {
	netns    tcp.NetNS
	start    int64
	path     *pathState // nil: its local port is none that connect() chose
	holder   uint8
	substate tcp.State
}

// NewJoiner returns a Joiner that has seen nothing.
func NewJoiner(opts Options) *Joiner {
	return &Joiner{
		opts:      opts,
		open:      make(map[tcp.Cookie]*conn),
		tw:        make(map[twKey]timeWait),
		dests:     make(map[netip.AddrPort]int),
		paths:     make(map[path]*pathState),
		listeners: make(map[netip.AddrPort]Listener),
		total:     make(map[tcp.NetNS]*Totals),
	}
}

// Events takes the next events of the stream.
func (j *Joiner) Events(events []tcp.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i := range events {
		ev := &events[i]
		// By events alone, not by Advance: from a recording it comes out the same.
		if j.opts.Forecast.Ports != 0 && j.nextLook <= ev.MonoNS {
			j.foretell(ev.MonoNS)
		}
		if ev.MonoNS > j.now {
			j.pass(ev.MonoNS)
		}
		j.event(ev)
	}
}

// Advance says that every event up to a time has been handed over, so that
// marks up to it can be set.
func (j *Joiner) Advance(monoNS int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if monoNS > j.now {
		j.pass(monoNS)
	}
}

// MarkAt asks for the state of things at a time, which must not go back from
// one call to the next. It is reported at once if the stream is past it.
func (j *Joiner) MarkAt(loop int, monoNS int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.marks = append(j.marks, Mark{Loop: loop, MonoNS: monoNS})
	j.pass(j.now)
}

// pass moves the stream's time and reports the marks that lie before it.
func (j *Joiner) pass(now int64) {
	for len(j.marks) > 0 && j.marks[0].MonoNS < now {
		m := j.marks[0]
		m.TimeWait = len(j.tw)
		m.Ports = j.taken.TimeWait + j.taken.Open + len(j.searching)
		j.marks = j.marks[1:]
		if j.opts.OnMark != nil {
			j.opts.OnMark(m)
		}
	}
	j.now = now
	j.giveUpSearches()
	j.release(now - heldFor)

	for j.waited < len(j.waiting) && now-j.waiting[j.waited].closed > attemptDelay {
		w := j.waiting[j.waited]
		j.waited++
		// Unless it was connected again meanwhile.
		if c := j.open[w.cookie]; c != nil && c.closed && c.closedAt == w.closed && !c.hasAttempt {
			j.drop(c)
		}
	}
	if j.waited > 1024 && j.waited > len(j.waiting)/2 {
		n := copy(j.waiting, j.waiting[j.waited:])
		j.waiting, j.waited = j.waiting[:n], 0
	}
}

// Attempts takes attempts that have ended.
func (j *Joiner) Attempts(attempts []tcp.Attempt) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i := range attempts {
		a := &attempts[i]
		if !a.ReachedConnect() || a.Cookie == 0 || j.finished {
			// The kernel never heard of it, or nobody listens to the kernel any more.
			t := Timeline{Attempt: *a}
			j.report(&t)
			continue
		}
		c := j.conn(a.Cookie)
		c.Attempt = *a
		c.hasAttempt = true
		j.complete(c)
	}
}

// Finish reports every attempt whose events did not come, and every mark. The
// stream must have ended. Attempts that come later are reported as they are.
func (j *Joiner) Finish() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.release(1<<63 - 1)
	for _, c := range j.open {
		if c.hasAttempt {
			j.lookAround(c)
			j.report(&c.Timeline)
		}
	}
	clear(j.open)
	j.searching = nil
	j.finished = true
	j.pass(1<<63 - 1)
}

// Totals returns the sums of one namespace so far.
func (j *Joiner) Totals(ns tcp.NetNS) Totals {
	j.mu.Lock()
	defer j.mu.Unlock()
	if t := j.total[ns]; t != nil {
		return *t
	}
	return Totals{}
}

// TimeWaits returns the number of TIME_WAIT minisocks of a namespace that were
// seen to begin and not to end.
func (j *Joiner) TimeWaits(ns tcp.NetNS) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := 0
	for _, t := range j.tw {
		if t.netns == ns {
			n++
		}
	}
	return n
}

// AllTimeWaits is TimeWaits of all namespaces together.
func (j *Joiner) AllTimeWaits() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.tw)
}

func (j *Joiner) report(t *Timeline) {
	if j.opts.OnTimeline != nil {
		j.opts.OnTimeline(t)
	}
}

// conn returns the open connection with a cookie, a new one if there is none.
func (j *Joiner) conn(cookie tcp.Cookie) *conn {
	c := j.open[cookie]
	switch {
	case c == nil:
	case c.held: // it is over
		j.handOut(c)
	default:
		return c
	}
	if n := len(j.free); n > 0 {
		c = j.free[n-1]
		j.free = j.free[:n-1]
		*c = conn{}
	} else {
		c = new(conn)
	}
	c.cookie = cookie
	j.open[cookie] = c
	return c
}

// heldFor is how long an attempt that failed is held back: the RST that ended it comes before the event that says who sent
// it, and why.
const heldFor = int64(20e6)

// complete hands a connection out once both of its sides have ended.
func (j *Joiner) complete(c *conn) {
	if !c.closed || !c.hasAttempt || c.waits() || c.held {
		return
	}
	if c.Attempt.Failed() && c.Census == nil && c.FailedInKernel() == nil && c.closedAt > j.now-heldFor && !j.finished {
		c.held = true
		j.held = append(j.held, waiting{c.cookie, c.closedAt})
		return
	}
	j.handOut(c)
}

func (j *Joiner) handOut(c *conn) {
	j.lookAround(c)
	j.report(&c.Timeline)
	j.drop(c)
}

// release hands out the attempts that ended until then.
func (j *Joiner) release(until int64) {
	for j.heldFrom < len(j.held) && j.held[j.heldFrom].closed <= until {
		w := j.held[j.heldFrom]
		j.heldFrom++
		if c := j.open[w.cookie]; c != nil && c.held && c.closedAt == w.closed {
			j.handOut(c)
		}
	}
	if j.heldFrom == len(j.held) {
		j.held, j.heldFrom = j.held[:0], 0
	}
}

func (j *Joiner) drop(c *conn) {
	delete(j.open, c.cookie)
	if c.looks() {
		c.gone = true
		return // endSearch has the rest
	}
	if c.path != nil {
		j.leavePath(c.path)
		c.path = nil
	}
	if !c.waits() { // else others still refer to it
		j.forgetSearch(c)
		j.free = append(j.free, c)
	}
}

// event takes one event.
func (j *Joiner) event(ev *tcp.Event) {
	total := j.total[ev.NetNS]
	if total == nil {
		total = new(Totals)
		j.total[ev.NetNS] = total
	}
	total.Add(ev, &j.opts)

	switch ev.Kind {
	case tcp.KindState:
		j.state(ev)
	case tcp.KindTWEnter:
		j.twEnter(ev)
	case tcp.KindTWEnd:
		j.twEnd(ev)
	case tcp.KindListenDrop: // of the listener, whose cookie it has: no step of a connection
		j.addPeer(ev)
	case tcp.KindTWConvert:
		j.twConvert(ev)
	case tcp.KindBindFailed:
		if j.opts.OnBindFailed != nil {
			j.opts.OnBindFailed(ev, j.holderOf(ev))
		}
	default:
		c := j.open[ev.Cookie]
		switch {
		case c != nil && ev.Cookie != 0:
			c.step(ev)
			if ev.Kind == tcp.KindConnectFailed {
				c.refused(ev)
			}
		case explains(ev):
			j.addPeer(ev)
		}
	}
}

// Add counts an event. Of the options ShortTicks and AbortOnData are looked at.
func (t *Totals) Add(ev *tcp.Event, opts *Options) {
	byReason := opts.AbortOnData != 0
	switch ev.Kind {
	case tcp.KindState:
		switch {
		case ev.Old == tcp.Close && ev.New == tcp.SynSent:
			t.ActiveOpens++
		case ev.Old == tcp.Listen && ev.New == tcp.SynRecv:
			t.PassiveOpens++
		case ev.New == tcp.FinWait1, ev.New == tcp.LastAck:
			t.FinSent++
		}
		if ev.New != tcp.Close {
			return
		}
		// tcp_set_state() counts EstabResets by the state it leaves.
		if ev.Old == tcp.Established || ev.Old == tcp.CloseWait {
			t.EstabResets++
		}
		noSegment := ev.Flags&tcp.FlagNoSegment != 0
		if noSegment {
			t.ConnectFailed++
		}
		// __tcp_close() comes here by tcp_disconnect(), before sk_err is set;
		// a socket that was reset or failed has its error already, and one
		// whose connect() failed was not closed by its program yet.
		if ev.Flags&tcp.FlagLinger0 != 0 && ev.Errno == 0 && !noSegment &&
			ev.Old != tcp.Listen && ev.Flags&tcp.FlagTWMade == 0 {
			t.Linger0++
		}
		if !byReason && ev.Old == tcp.FinWait2 && ev.Errno == 0 && ev.Flags&(tcp.FlagTWMade|tcp.FlagLinger0) == 0 {
			t.DataAfterClose++
		}
	case tcp.KindRstSent:
		t.RstSent++
		if byReason && ev.Reason == opts.AbortOnData {
			t.DataAfterClose++
		}
	case tcp.KindRstReceived:
		t.RstReceived++
	case tcp.KindRetransmit:
		switch {
		case slices.Contains(notTried, ev.Errno):
		case ev.Old == tcp.SynSent, ev.Old == tcp.SynRecv:
			t.SynRetransmits++
		default:
			t.Retransmits++
		}
	case tcp.KindSynAckRetransmit:
		t.SynAckRetransmits++
	case tcp.KindTWConvert:
		t.TWConverted++
	case tcp.KindListenDrop:
		t.ListenDrops++
		if ev.Cause == tcp.CauseAcceptQueue {
			t.ListenOverflows++
		}
	case tcp.KindTWEnter:
		t.TWEnter++
		if ev.Substate == tcp.FinWait2 {
			t.TWFinWait2++
		}
		if ev.Ticks <= opts.ShortTicks {
			t.TWShort++
		}
	case tcp.KindTWEnd:
		t.TWEnd[min(ev.Cause, tcp.CauseUnknown)]++
	case tcp.KindTWOverflow:
		t.TWOverflow++
		if !byReason && ev.Old == tcp.FinWait2 && ev.Errno == 0 && ev.Flags&tcp.FlagLinger0 == 0 {
			t.DataAfterClose-- // it follows the state change that looked like it
		}
	}
}

func (j *Joiner) state(ev *tcp.Event) {
	var c *conn
	if ev.Old == tcp.Close && ev.New == tcp.SynSent {
		c = j.conn(ev.Cookie)
		j.begin(c, ev)
	} else if c = j.open[ev.Cookie]; c == nil || ev.Cookie == 0 {
		j.peerState(ev) // not an active open, or one that began before the trace
		return
	}
	c.Joined = true
	c.step(ev)
	if c.looks() && ev.New != tcp.SynSent {
		failed := searchFailed(ev)
		if failed {
			j.census(c, ev)
			if f := &c.path.forecast; f.failed == 0 {
				f.failed = ev.MonoNS
			}
		}
		j.endSearch(c, !failed)
	}
	if ev.New != tcp.Close {
		return
	}
	c.closed, c.closedAt = true, ev.MonoNS
	if c.counted {
		c.counted = false
		j.take(c.path, c.holder, Ports{Open: -1})
		j.gaveBack(c.path, ev.Tuple.Local.Port())
	}
	if c.hasAttempt {
		j.complete(c)
		return
	}
	j.waiting = append(j.waiting, waiting{ev.Cookie, ev.MonoNS})
}

// begin takes the event of a connect().
func (j *Joiner) begin(c *conn, ev *tcp.Event) {
	if c.looks() { // its end was lost
		j.endSearch(c, false)
	}
	if c.path != nil { // it is connected once more
		j.leavePath(c.path)
	}
	// The port is taken within this call of connect(), or the call fails.
	c.path = j.enterPath(path{ev.Tuple.Local.Addr(), ev.Tuple.Peer})
	c.holder = c.path.holder(ev)
	c.closed, c.Census = false, nil
	c.path.forecast.opened(ev.MonoNS)
	if ev.Tuple.Local.Port() == 0 && len(j.searching) < maxSearching {
		j.beginSearch(c)
		return
	}
	c.AtConnect = c.path.all
	c.counted = true
	j.take(c.path, c.holder, Ports{Open: 1})
}

// roomForEnd is how many steps are not for segments that are sent again, of which there may be
// any number: what ended the connection comes after them.
const roomForEnd = 4

// step adds an event to a timeline.
func (c *conn) step(ev *tcp.Event) {
	if ev.Tuple.Local.Port() != 0 && ev.Tuple.Peer.Port() != 0 || !c.Tuple.Peer.IsValid() {
		c.Tuple = ev.Tuple
	}
	room := MaxSteps
	switch ev.Kind {
	case tcp.KindRetransmit, tcp.KindSynAckRetransmit:
		room -= roomForEnd
		if ev.Old == tcp.SynSent && c.SynRetransmits < 255 {
			c.SynRetransmits++
		}
	}
	if c.NumSteps >= room {
		c.More++
		return
	}
	c.Steps[c.NumSteps] = Step{
		Seq: ev.Seq, MonoNS: ev.MonoNS, Kind: ev.Kind, Old: ev.Old, New: ev.New, Flags: ev.Flags, Errno: ev.Errno,
	}
	c.NumSteps++
}

func (j *Joiner) twEnter(ev *tcp.Event) {
	if ev.Cookie == 0 {
		return // made of a socket older than the trace that nobody asked for its cookie
	}
	key := twKeyOf(ev)
	t := timeWait{netns: ev.NetNS, start: ev.MonoNS, substate: ev.Substate}
	if c := j.open[ev.Cookie]; c != nil && c.path != nil {
		// Its port is one that connect() chose, and is now held by the minisock.
		t.path, t.holder = c.path, uint8(c.holder)
		t.path.refs++
		j.take(t.path, c.holder, Ports{TimeWait: 1})
		if t.substate == tcp.FinWait2 {
			t.path.holdings[t.holder].FinWait2++
		}
		t.path.enqueue(queued{key, ev.MonoNS, ev.Ticks}, j.tw)
		if c.counted {
			c.counted = false
			j.take(c.path, c.holder, Ports{Open: -1})
		}
	}
	j.tw[key] = t
}

// twConvert takes the peer's FIN for a FIN_WAIT2 minisock.
func (j *Joiner) twConvert(ev *tcp.Event) {
	if c := j.open[ev.Cookie]; c != nil && ev.Cookie != 0 {
		c.step(ev)
	}
	key := twKeyOf(ev)
	if t, ok := j.tw[key]; ok && t.path != nil && t.substate == tcp.FinWait2 {
		t.path.holdings[t.holder].FinWait2--
		t.substate = tcp.TimeWait
		j.tw[key] = t
	}
}

func (j *Joiner) twEnd(ev *tcp.Event) {
	key := twKeyOf(ev)
	t, ok := j.tw[key]
	if !ok {
		return
	}
	delete(j.tw, key)
	if t.path != nil {
		j.take(t.path, int(t.holder), Ports{TimeWait: -1})
		if t.substate == tcp.FinWait2 {
			t.path.holdings[t.holder].FinWait2--
		}
		t.path.dequeue(key)
		j.gaveBack(t.path, key.port)
		j.leavePath(t.path)
	}
	if j.opts.OnLifetime != nil {
		j.opts.OnLifetime(Lifetime{NetNS: t.netns, NS: ev.MonoNS - t.start, Cause: ev.Cause})
	}
}
