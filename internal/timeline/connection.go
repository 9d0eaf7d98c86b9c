package timeline

import (
	"cmp"
	"slices"

	"github.com/twtrace/twtrace/internal/tcp"
)

// Role says how a socket came to be.
type Role uint8

// The roles. RoleUnknown is that of a connection whose beginning was not seen, and of a
// socket that came no further than bind().
const (
	RoleUnknown  Role = iota
	RoleActive        // connect()
	RolePassive       // accepted
	RoleListener      // listen()
)

var roleNames = [...]string{"unknown", "active", "passive", "listener"}

func (r Role) String() string {
	if int(r) < len(roleNames) {
		return roleNames[r]
	}
	return roleNames[RoleUnknown]
}

// Connection is one life of one socket and of its TIME_WAIT, as far as their events told. Times
// are CLOCK_MONOTONIC nanoseconds; 0: not seen.
type Connection struct {
	Cookie tcp.Cookie
	NetNS  tcp.NetNS
	// Tuple is the most that was known of it: the port is 0 where the kernel never chose one.
	Tuple tcp.FourTuple
	Owner tcp.Owner
	Role  Role
	// Snapshot: it was there when the trace began.
	Snapshot          bool
	FirstSeq, LastSeq uint64
	Events            int
	FirstNS, LastNS   int64
	// State is the full socket's last one; StateNone: none was seen.
	State tcp.State

	// OpenedNS is the change to SYN_SENT, or of an accepted socket from SYN_RECV: the kernel makes
	// it when the handshake is done.
	OpenedNS      int64
	EstablishedNS int64
	ClosedNS      int64 // the change to CLOSE
	// ClosedBy has the flags of that change: FlagLinger0, FlagNoSegment, FlagTWMade.
	ClosedBy tcp.Flags

	// FinSentNS is when the first FIN was queued (tcp_close_state), FinReceivedNS when the peer's
	// was taken (tcp_fin), which the changes of state and the TIME_WAIT show.
	FinSentNS, FinReceivedNS int64
	RstSent, RstReceived     int
	Reason                   uint32 // of the first RST that was sent
	Retransmits              int
	// Errno is the first error that ended it: of the change to CLOSE, of connect() or bind(), or one
	// that the socket was given before.
	Errno tcp.Errno
	Cause tcp.Cause // of connect-failed

	TimeWait TimeWait

	// Peer is the other end's socket: the reverse four-tuple, alive at the same time, in the same
	// namespace or else in the only other one that has it. 0: not seen.
	Peer tcp.Cookie
	// Successor is the connection that took the four-tuple from the TIME_WAIT. 0: none was seen.
	Successor tcp.Cookie
}

// TimeWait is the life of the minisock that a connection leaves.
type TimeWait struct {
	EnteredNS   int64 // 0, with Snapshot: before the trace
	ConvertedNS int64 // a FIN_WAIT2 minisock received the FIN
	EndedNS     int64
	// Substate is what the minisock stood for at last: FinWait2 or TimeWait; StateNone: there was none.
	Substate tcp.State
	Cause    tcp.Cause // of its end
	Ticks    uint32    // for how long its timer was set, or still ran at the snapshot, in jiffies
	// Overflowed: none was made, for lack of room (tcp_max_tw_buckets).
	Overflowed bool
}

// Made reports whether there was a minisock.
func (w *TimeWait) Made() bool { return w.Substate != tcp.StateNone }

// Complete reports whether the connection was seen from its beginning to its end.
func (c *Connection) Complete() bool {
	return c.Role != RoleUnknown && !c.Snapshot && c.ClosedNS != 0 && (!c.TimeWait.Made() || c.TimeWait.EndedNS != 0)
}

// DefaultConnections is how many connections are followed at once if not told otherwise: some 150 MB.
const DefaultConnections = 1 << 18

// successorWait is how long a four-tuple that was taken out of a TIME_WAIT is remembered: whose it is
// shows once the new connection's handshake is done. ns of the events' clock.
const successorWait = int64(10e9)

// Connections folds events into Connections. A connection and its TIME_WAIT are one; two lives of one
// cookie, of a socket that is connected again, are two. It is not safe for use by several goroutines.
//
// Events of no cookie (an RST that answers for no socket, a SYN+ACK that is sent again) are of none.
type Connections struct {
	limit    int
	done     func(*Connection)
	sockets  map[tcp.Cookie]*life
	waits    map[twKey]*life
	tuples   map[tcp.FourTuple]*life // the latest of each namespace, linked by life.next
	ending   []ending                // [ended:] in the order of their times
	ended    int
	awaiting []ending // those whose successor is to come, likewise
	awaited  int
	free     []*life
	open     int
	overflow uint64
}

// life is a Connection that may not be over.
type life struct {
	Connection
	next    *life // of the same four-tuple, in another namespace
	peer    *life // whose Peer this is
	indexed bool  // in Connections.tuples
	waiting bool  // its TIME_WAIT lasts
	wait    twKey
	ended   int64 // when it was over; 0: it is not
}

type ending struct {
	life   *life
	cookie tcp.Cookie
	at     int64
}

// NewConnections returns a Connections that has seen nothing and follows at most limit connections at
// once; 0: DefaultConnections. done is given each connection when it is over, or by Finish; the pointer
// is valid during the call.
func NewConnections(limit int, done func(*Connection)) *Connections {
	if limit <= 0 {
		limit = DefaultConnections
	}
	return &Connections{
		limit: limit, done: done,
		sockets: make(map[tcp.Cookie]*life), waits: make(map[twKey]*life), tuples: make(map[tcp.FourTuple]*life),
	}
}

// Overflow is how many events were left out because more connections were open at once than are followed.
func (c *Connections) Overflow() uint64 { return c.overflow }

// Event takes the next event of the stream.
func (c *Connections) Event(ev *tcp.Event) {
	c.pass(ev.MonoNS)
	if ev.Cookie == 0 {
		return
	}
	l := c.of(ev)
	if l == nil {
		c.overflow++
		return
	}
	l.count(ev)
	switch ev.Kind {
	case tcp.KindState:
		l.state(ev)
	case tcp.KindTWEnter:
		c.enter(l, ev)
	case tcp.KindTWConvert:
		l.convert(ev)
	case tcp.KindTWEnd:
		c.leave(l, ev)
	case tcp.KindSnapshot:
		c.existing(l, ev)
	default:
		l.note(ev)
	}
	c.learn(l, ev)
	if l.ended == 0 && l.over(ev) {
		c.finished(l, ev)
	}
}

// Finish hands out what is left. The stream has ended.
func (c *Connections) Finish() {
	for _, e := range c.ending[c.ended:] {
		c.end(e)
	}
	for _, e := range c.awaiting[c.awaited:] {
		c.end(e)
	}
	// In the order of their beginning, so that the same stream has the same result.
	var left []*life
	for _, l := range c.sockets {
		left = append(left, l)
	}
	for _, l := range c.waits {
		if c.sockets[l.Cookie] != l {
			left = append(left, l)
		}
	}
	slices.SortFunc(left, func(a, b *life) int { return cmp.Compare(a.FirstSeq, b.FirstSeq) })
	for _, l := range left {
		c.handOut(l)
	}
	c.ending, c.ended, c.awaiting, c.awaited = nil, 0, nil, 0
}

// of returns the life that an event belongs to, nil if there is no room for a new one.
func (c *Connections) of(ev *tcp.Event) *life {
	if ofTimeWait(ev) {
		if l := c.waits[twKeyOf(ev)]; l != nil {
			return l
		}
	}
	l := c.sockets[ev.Cookie]
	if l == nil || !l.begunAgain(ev) {
		if l != nil {
			return l
		}
	} else if l.waiting {
		delete(c.sockets, ev.Cookie) // c.waits has it
	} else {
		c.handOut(l)
	}
	if c.open >= c.limit {
		return nil
	}
	if n := len(c.free); n > 0 {
		l = c.free[n-1]
		c.free = c.free[:n-1]
		*l = life{}
	} else {
		l = new(life)
	}
	l.Cookie, l.NetNS, l.FirstSeq, l.FirstNS = ev.Cookie, ev.NetNS, ev.Seq, ev.MonoNS
	c.sockets[ev.Cookie] = l
	c.open++
	return l
}

// begunAgain reports whether an event is the first of another life of the socket.
func (l *life) begunAgain(ev *tcp.Event) bool {
	if ev.Kind != tcp.KindState || ev.Old != tcp.Close || ev.New != tcp.SynSent && ev.New != tcp.Listen {
		return false
	}
	return l.ended != 0 || l.State != tcp.StateNone
}

// ofTimeWait reports whether an event is of a minisock, not of the full socket.
func ofTimeWait(ev *tcp.Event) bool {
	switch ev.Kind {
	case tcp.KindTWConvert, tcp.KindTWEnd:
		return true
	case tcp.KindTWEnter:
		return false // it is made of the full socket
	}
	return ev.New == tcp.TimeWait
}

// count notes what every event has.
func (l *life) count(ev *tcp.Event) {
	l.LastSeq, l.LastNS = ev.Seq, max(l.LastNS, ev.MonoNS)
	l.Events++
	if ev.Flags&tcp.FlagOwner != 0 {
		l.Owner = ev.Owner
	}
}

// learn takes the four-tuple of an event if it says more than was known. A listener's drops have that
// of the segment.
func (c *Connections) learn(l *life, ev *tcp.Event) {
	if ev.Kind == tcp.KindListenDrop || known(l.Tuple) || saysLess(ev.Tuple, l.Tuple) {
		return
	}
	l.Tuple = ev.Tuple
	if known(l.Tuple) {
		c.index(l)
	}
}

func known(t tcp.FourTuple) bool {
	return t.Local.Port() != 0 && t.Peer.Port() != 0 && t.Local.Addr().IsValid() && t.Peer.Addr().IsValid()
}

func saysLess(t, than tcp.FourTuple) bool {
	if !than.Local.Addr().IsValid() || !t.Local.Addr().IsValid() {
		return than.Local.Addr().IsValid()
	}
	return t.Local.Port() == 0 && than.Local.Port() != 0 || t.Peer.Port() == 0 && than.Peer.Port() != 0
}

// index makes a life the one of its four-tuple, and tells those that it has to do with.
func (c *Connections) index(l *life) {
	for at := c.tuples[l.Tuple]; at != nil; {
		older := at
		at = at.next
		if older.NetNS != l.NetNS || older.waiting { // connect() can have been in vain
			continue
		}
		if older.taken() {
			older.Successor = l.Cookie
		}
		c.unindex(older)
	}
	l.next, l.indexed = c.tuples[l.Tuple], true
	c.tuples[l.Tuple] = l
	if p := c.otherEnd(l); p != nil {
		l.join(p)
	}
}

func (c *Connections) unindex(l *life) {
	if !l.indexed {
		return
	}
	l.indexed = false
	head := c.tuples[l.Tuple]
	if head == l {
		if l.next == nil {
			delete(c.tuples, l.Tuple)
		} else {
			c.tuples[l.Tuple] = l.next
		}
		l.next = nil
		return
	}
	for head.next != l {
		head = head.next
	}
	head.next, l.next = l.next, nil
}

// otherEnd finds the peer: in the same namespace, or else in the only other that has it.
func (c *Connections) otherEnd(l *life) *life {
	var other *life
	n := 0
	for at := c.tuples[l.Tuple.Reverse()]; at != nil; at = at.next {
		if at == l || !at.meets(l) { // a socket can be connected to itself
			continue
		}
		if at.NetNS == l.NetNS {
			return at
		}
		other = at
		n++
	}
	if n != 1 || l.Tuple.Local.Addr().IsLoopback() {
		return nil
	}
	return other
}

// meets reports whether two lives of opposite four-tuples are of one connection.
func (l *life) meets(younger *life) bool {
	if p := l.peer; p != nil && p.ClosedNS == 0 && p.NetNS != younger.NetNS {
		return false // a third namespace has the same addresses
	}
	if l.ClosedNS == 0 || l.ClosedNS >= younger.FirstNS {
		return true
	}
	// The handshake's last segment can be on its way still when the end that sent it has aborted.
	return l.Peer == 0 && l.EstablishedNS != 0 && !l.TimeWait.Made() && younger.Role == RolePassive &&
		younger.FirstNS-l.ClosedNS <= afterClose
}

// join notes that two lives are the ends of one connection, whatever was taken for it before.
func (l *life) join(p *life) {
	for _, end := range [2]*life{l, p} {
		if old := end.peer; old != nil {
			old.peer, old.Peer = nil, 0
		}
	}
	l.peer, p.peer = p, l
	l.Peer, p.Peer = p.Cookie, l.Cookie
}

// state takes a change of state.
func (l *life) state(ev *tcp.Event) {
	l.State = ev.New
	switch {
	case ev.New == tcp.SynSent:
		l.Role, l.OpenedNS = RoleActive, ev.MonoNS
	case ev.New == tcp.Listen:
		l.Role, l.OpenedNS = RoleListener, ev.MonoNS
	case ev.Old == tcp.SynRecv && l.Role == RoleUnknown:
		l.Role, l.OpenedNS = RolePassive, ev.MonoNS
	}
	switch {
	case ev.New == tcp.Established:
		l.EstablishedNS = ev.MonoNS
	case ev.New == tcp.FinWait1, ev.New == tcp.LastAck:
		first(&l.FinSentNS, ev)
	case ev.New == tcp.CloseWait, ev.Old == tcp.FinWait1 && ev.New == tcp.Closing:
		first(&l.FinReceivedNS, ev)
	case ev.New == tcp.Close:
		l.ClosedNS, l.ClosedBy = ev.MonoNS, ev.Flags
		l.fail(ev)
	}
}

func first(at *int64, ev *tcp.Event) {
	if *at == 0 {
		*at = ev.MonoNS
	}
}

func (l *life) fail(ev *tcp.Event) {
	if l.Errno == 0 {
		l.Errno = ev.Errno
	}
}

// note takes what is no change of state.
func (l *life) note(ev *tcp.Event) {
	switch ev.Kind {
	case tcp.KindRstSent:
		if l.RstSent == 0 {
			l.Reason = ev.Reason
		}
		l.RstSent++
	case tcp.KindRstReceived:
		l.RstReceived++
	case tcp.KindRetransmit:
		l.Retransmits++
	case tcp.KindTWOverflow:
		l.TimeWait.Overflowed = true
	case tcp.KindError:
		if l.ClosedNS == 0 { // SO_LINGER {1,0} gives its own socket an error when it has closed it
			l.fail(ev)
		}
	case tcp.KindConnectFailed:
		l.fail(ev)
		l.Cause = ev.Cause
	case tcp.KindBindFailed:
		l.fail(ev)
	}
}

// enter takes the making of a TIME_WAIT.
func (c *Connections) enter(l *life, ev *tcp.Event) {
	l.TimeWait.EnteredNS, l.TimeWait.Substate, l.TimeWait.Ticks = ev.MonoNS, ev.Substate, ev.Ticks
	if ev.Substate == tcp.TimeWait {
		first(&l.FinReceivedNS, ev)
	}
	c.wait(l, ev)
}

func (c *Connections) wait(l *life, ev *tcp.Event) {
	if l.waiting {
		delete(c.waits, l.wait)
	}
	key := twKeyOf(ev)
	if old := c.waits[key]; old != nil { // its end was lost
		old.waiting = false
		c.finished(old, ev)
	}
	l.waiting, l.wait, l.ended = true, key, 0
	c.waits[key] = l
}

// finished has a life handed out soon.
func (c *Connections) finished(l *life, ev *tcp.Event) {
	l.ended = ev.MonoNS
	c.ending = append(c.ending, ending{l, l.Cookie, l.ended})
}

// convert takes the FIN that a FIN_WAIT2 minisock received. A FIN that is sent again looks the same.
func (l *life) convert(ev *tcp.Event) {
	if l.TimeWait.Substate == tcp.TimeWait {
		return
	}
	l.TimeWait.Substate = tcp.TimeWait
	first(&l.TimeWait.ConvertedNS, ev)
	first(&l.FinReceivedNS, ev)
}

// leave takes the end of a TIME_WAIT.
func (c *Connections) leave(l *life, ev *tcp.Event) {
	if l.waiting {
		l.waiting = false
		delete(c.waits, l.wait)
	}
	w := &l.TimeWait
	w.EndedNS, w.Cause = ev.MonoNS, ev.Cause
	if ev.Substate != tcp.StateNone {
		w.Substate = ev.Substate
	}
	if !l.taken() {
		return
	}
	// A socket that was bound to the port showed it before it had taken it.
	for at := c.tuples[l.Tuple]; at != nil; at = at.next {
		if at != l && at.NetNS == l.NetNS && at.ClosedNS == 0 {
			l.Successor = at.Cookie
		}
	}
}

// taken reports whether another connection took the four-tuple out of the TIME_WAIT, and is to be found.
func (l *life) taken() bool {
	w := &l.TimeWait
	return l.Successor == 0 && (w.Cause == tcp.CauseReusedByConnect || w.Cause == tcp.CauseReplacedBySyn)
}

// existing takes a socket that was there when the trace began.
func (c *Connections) existing(l *life, ev *tcp.Event) {
	l.Snapshot = true
	if ev.New != tcp.TimeWait {
		if l.State == tcp.StateNone {
			l.State = ev.New
		}
		if ev.New == tcp.Listen {
			l.Role = RoleListener
		}
		return
	}
	if l.TimeWait.EnteredNS == 0 {
		l.TimeWait.Substate, l.TimeWait.Ticks = ev.Substate, ev.Ticks
		c.wait(l, ev)
	}
}

// over reports whether nothing but stragglers can come after an event.
func (l *life) over(ev *tcp.Event) bool {
	if l.waiting {
		return false
	}
	return l.ClosedNS != 0 || l.TimeWait.EndedNS != 0 || ev.Kind == tcp.KindBindFailed && l.State == tcp.StateNone
}

// pass hands out what was over long enough before a time: an RST and an error are reported after the last
// change of state.
func (c *Connections) pass(now int64) {
	for ; c.ended < len(c.ending) && now-c.ending[c.ended].at > afterClose; c.ended++ {
		e := c.ending[c.ended]
		if e.current() && e.life.taken() {
			c.awaiting = append(c.awaiting, e)
			continue
		}
		c.end(e)
	}
	for ; c.awaited < len(c.awaiting); c.awaited++ {
		e := c.awaiting[c.awaited]
		if e.current() && e.life.taken() && now-e.at <= successorWait {
			break
		}
		c.end(e)
	}
	c.ending, c.ended = compact(c.ending, c.ended)
	c.awaiting, c.awaited = compact(c.awaiting, c.awaited)
}

func compact(list []ending, from int) ([]ending, int) {
	if from > 4096 && from > len(list)/2 {
		return list[:copy(list, list[from:])], 0
	}
	return list, from
}

// current: the life was not handed out, and its room used for another.
func (e *ending) current() bool { return e.life.Cookie == e.cookie && e.life.ended == e.at }

func (c *Connections) end(e ending) {
	if e.current() {
		c.handOut(e.life)
	}
}

func (c *Connections) handOut(l *life) {
	c.unindex(l)
	if c.sockets[l.Cookie] == l {
		delete(c.sockets, l.Cookie)
	}
	if l.waiting {
		delete(c.waits, l.wait)
	}
	if l.peer != nil {
		l.peer.peer = nil // it keeps the cookie
	}
	c.done(&l.Connection)
	l.Cookie, l.ended = 0, 0
	c.free = append(c.free, l)
	c.open--
}
