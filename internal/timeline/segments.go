package timeline

import (
	"container/heap"
	"net/netip"

	"github.com/twtrace/twtrace/internal/tcp"
)

// Segments counts what the events of a recording say was on the wire, each segment once though both of its ends
// may have been traced. A capture by the rules of Segmenter has just these.
type Segments struct {
	// Conversations are connections of which a segment was seen: a four-tuple that is used again is another one.
	Conversations uint64 `json:"conversations"`
	Fins          uint64 `json:"fins"` // sent for the first time
	Rsts          uint64 `json:"rsts"`
	Retransmits   uint64 `json:"retransmits"` // SYN, SYN+ACK, and others of which nothing more is known
	// Unplaced are events of segments without addresses.
	Unplaced uint64 `json:"unplaced"`
}

// SegmentFlags are the flags of a TCP header, with their numbers.
type SegmentFlags uint8

// The flags that state changes tell of.
const (
	FIN SegmentFlags = 0x01
	SYN SegmentFlags = 0x02
	RST SegmentFlags = 0x04
	ACK SegmentFlags = 0x10
)

// Witness says which end's event a Segment is made from.
type Witness uint8

// The witnesses.
const (
	BySender   Witness = iota // the end that sent it
	ByReceiver                // the end that received it
	Implied                   // neither: an event that can't be without it
)

// Segment is a TCP segment that an event tells of. Its sequence numbers are made up, and agree with those of the
// conversation's others.
type Segment struct {
	MonoNS       int64
	Conversation uint64 // from 0, in the order of their first segments
	NetNS        tcp.NetNS
	From, To     netip.AddrPort
	Flags        SegmentFlags
	Seq, Ack     uint32
	// Retransmit says that it was sent before. If it is no SYN, what it holds is not known.
	Retransmit bool
	Witness    Witness
	Owner      tcp.Owner // of the end that sent it, as far as known
	// Of the event that it is made from.
	Event    uint64 // tcp.Event.Seq
	Kind     tcp.Kind
	Old, New tcp.State
	Errno    tcp.Errno
	Reason   uint32
	// WaitedNS is how long before MonoNS it was sent: of a SYN whose port was not known in time.
	WaitedNS int64
}

// Segmenter makes the segments that events tell of, in the order of their times, with bounded memory.
//
// A connection that was opened has SYN, SYN+ACK and ACK, by the client's events or, if there are none, the
// server's. A FIN is the change of state of the end that sends it (to FIN_WAIT1 or LAST_ACK), or of the end that
// receives it if the other end was not seen to. An RST is an rst-sent; an rst-received only if nobody was seen to
// send it. Data is not recorded, and has no segments.
//
// It is not safe for use by several goroutines.
type Segmenter struct {
	emit   func(*Segment) error
	limit  int
	counts Segments
	now    int64  // the latest time of an event
	order  uint64 // of those at the same time

	waiting queue
	free    []*segment
	segment Segment // that is handed out

	syns   map[tcp.Cookie]*segment  // sent by sockets that have no port yet
	live   map[uint64]*conversation // the latest of each pair, by its hash
	closed fifo[*conversation]
	halves fifo[*conversation] // closed, and their other ends may be heard of
	resets map[uint64]*reset   // by direction
	recent fifo[direction]     // of resets
	// tuples has every pair that had a segment: its generation and how far its numbers got. Without it a segment
	// that belongs to no connection would count as another conversation.
	tuples map[uint64]trail
	epoch  uint32 // of tuples
}

// The bounds of a Segmenter.
const (
	// reorder is how far events can be out of their order, ns.
	reorder = int64(50e6)
	// waitPort is how long a SYN waits for its port to be known: connect() chooses it after the
	// change to SYN_SENT, and the next event is the answer, or a retransmit after a second.
	waitPort = int64(2e9)
	// waitRst is how long an rst-received waits for the rst-sent: the kernel reports what close() sends when it has been
	// sent, and the task may have been preempted between.
	waitRst = int64(1e9)
	// rememberClosed is how long a conversation without open ends is remembered: RSTs follow.
	rememberClosed = int64(3e9)
	// rememberHalf is that of one with retransmits whose server's end was not heard of: a listener that has no room for it sends
	// its SYN+ACK again for a minute (net.ipv4.tcp_synack_retries), and may accept it in the end.
	rememberHalf = int64(70e9)
	maxWaiting   = 1 << 18
	maxTuples    = 1 << 22
	maxResets    = 1 << 18
	// MaxConversations is how many conversations a Segmenter follows at once if not told otherwise.
	MaxConversations = 1 << 19
)

// pair is a four-tuple seen from neither end.
type pair struct{ low, high netip.AddrPort }

// direction names one of a pair's two, at a time.
type direction struct {
	key uint64
	at  int64
}

// directionOf is the key of what side sends.
func directionOf(hash uint64, side uint8) uint64 { return hash<<1 | uint64(side) }

// pairOf returns the pair, and which of its ends is the local one.
func pairOf(t tcp.FourTuple) (p pair, side uint8) {
	if t.Local.Compare(t.Peer) <= 0 {
		return pair{t.Local, t.Peer}, 0
	}
	return pair{t.Peer, t.Local}, 1
}

// other is the end that side speaks with: itself, of a socket that is connected to itself.
func (p *pair) other(side uint8) uint8 {
	if p.low == p.high {
		return side
	}
	return 1 - side
}

func (p *pair) end(side uint8) netip.AddrPort {
	if side == 0 {
		return p.low
	}
	return p.high
}

// hash mixes the words of a pair (splitmix64's finalizer).
func (p *pair) hash() uint64 {
	h := uint64(p.low.Port())<<16 | uint64(p.high.Port())
	for _, a := range [...]netip.AddrPort{p.low, p.high} {
		b := a.Addr().As16()
		for i := 0; i < 16; i += 8 {
			h = (h ^ uint64(b[i])<<56 ^ uint64(b[i+1])<<48 ^ uint64(b[i+2])<<40 ^ uint64(b[i+3])<<32 ^
				uint64(b[i+4])<<24 ^ uint64(b[i+5])<<16 ^ uint64(b[i+6])<<8 ^ uint64(b[i+7])) * 0x9e3779b97f4a7c15
			h ^= h >> 29
		}
	}
	h *= 0xbf58476d1ce4e5b9
	return h ^ h>>32
}

// conversation is one connection of a pair, or what is left of one.
type conversation struct {
	pair   pair
	hash   uint64
	stray  bool          // none: what has the pair when a segment's turn has come
	prev   *conversation // the pair's one before, until this one has begun
	netns  tcp.NetNS
	born   int64
	cookie [2]tcp.Cookie
	owner  [2]tcp.Owner

	syn, synAck, ack bool // are known to have been sent
	implied          bool // the SYN is, by the server
	again            bool // something was sent again
	fin, finAcked    [2]bool
	closed           [2]bool
	closedAt         int64

	// What follows is of the segments that were handed out.
	begun  bool
	number uint64
	isn    [2]uint32
	gen    uint32
	used   [2]uint8 // sequence numbers: SYN and FIN have one each
}

// trail is what is kept of a pair for ever.
type trail struct {
	number uint32 // of its last conversation, which a capture of 2^32 of them would get wrong
	// gen is how many SYNs there were, and in the lowest four bits used of that conversation.
	gen uint32
}

// segment is a Segment that waits for its turn.
type segment struct {
	at    int64
	order uint64
	state fate
	conv  *conversation
	side  uint8
	flags SegmentFlags
	again bool
	by    Witness
	sent  int64 // 0: at

	event    uint64
	cookie   tcp.Cookie
	owner    tcp.Owner
	kind     tcp.Kind
	old, new tcp.State
	errno    tcp.Errno
	reason   uint32
}

// fate is what will become of a segment.
type fate uint8

const (
	certain   fate = iota
	undecided      // a SYN that may not have been sent, or an RST that the other end may report
	dropped
)

// NewSegmenter returns a Segmenter that follows at most limit conversations at once; 0: MaxConversations. emit is
// given each segment, valid during the call; nil: they are counted only.
func NewSegmenter(limit int, emit func(*Segment) error) *Segmenter {
	if limit <= 0 {
		limit = MaxConversations
	}
	return &Segmenter{
		emit: emit, limit: limit, syns: make(map[tcp.Cookie]*segment), live: make(map[uint64]*conversation),
		resets: make(map[uint64]*reset), tuples: make(map[uint64]trail),
	}
}

// Event takes the next event of the stream. Errors are those of emit.
func (s *Segmenter) Event(ev *tcp.Event) error {
	s.now = max(s.now, ev.MonoNS)
	switch ev.Kind {
	case tcp.KindState:
		s.state(ev)
	case tcp.KindRstSent:
		s.rstSent(ev)
	case tcp.KindRstReceived:
		s.rstReceived(ev)
	case tcp.KindRetransmit, tcp.KindSynAckRetransmit:
		s.retransmit(ev)
	case tcp.KindTWEnter, tcp.KindTWConvert:
		if ev.Substate == tcp.TimeWait {
			if c, side := s.conversation(ev); c != nil {
				s.finReceived(c, side, ev)
			}
		}
	}
	err := s.flush(s.now-reorder, maxWaiting)
	s.forget() // after that: what is forgotten has no segment that waits
	return err
}

// Finish hands out what is left, and returns the counts.
func (s *Segmenter) Finish() (Segments, error) {
	s.now = maxTime
	err := s.flush(maxTime, 0)
	return s.counts, err
}

const maxTime = int64(^uint64(0) >> 1)

// Counts are those of the segments that were handed out.
func (s *Segmenter) Counts() Segments { return s.counts }

func (s *Segmenter) state(ev *tcp.Event) {
	switch {
	case ev.Old == tcp.Close && ev.New == tcp.SynSent:
		s.connects(ev)
		return
	case ev.Old == tcp.Listen || ev.New == tcp.Listen || ev.New == tcp.SynRecv && ev.Old != tcp.SynSent:
		return // of a listener, or of its child, which may have no addresses yet
	case ev.Old == tcp.SynSent && ev.New == tcp.Close && ev.Flags&tcp.FlagNoSegment != 0:
		s.drop(s.syns[ev.Cookie])
		delete(s.syns, ev.Cookie)
		return
	}
	c, side := s.conversation(ev)
	if c == nil {
		return
	}
	if ev.Flags&tcp.FlagOwner != 0 {
		c.owner[side] = ev.Owner
	}
	peer := c.pair.other(side)
	switch ev.Old {
	case tcp.SynSent:
		if ev.New == tcp.Established {
			s.answered(c, peer, ByReceiver, ev)
		}
	case tcp.FinWait1:
		if ev.New == tcp.FinWait2 {
			s.acked(c, side, ev)
		}
	case tcp.Closing:
		if ev.Flags&tcp.FlagTWMade != 0 {
			s.acked(c, side, ev)
		}
	case tcp.LastAck:
		if ev.Errno == 0 {
			s.acked(c, side, ev)
		}
	}
	switch ev.New {
	case tcp.FinWait1, tcp.LastAck:
		s.finSent(c, side, BySender, ev)
	case tcp.CloseWait, tcp.Closing:
		s.finReceived(c, side, ev)
	case tcp.Close:
		c.closed[side] = true
		if c.over() {
			s.ended(c)
		}
	}
}

// connects takes a socket that is about to send a SYN: it has no port yet, and may get none.
func (s *Segmenter) connects(ev *tcp.Event) {
	if ev.Cookie == 0 {
		return
	}
	s.drop(s.syns[ev.Cookie]) // its end was not seen
	p := s.queue(nil, 0, SYN, BySender, ev)
	p.state, p.cookie = undecided, ev.Cookie
	if ev.Flags&tcp.FlagOwner != 0 {
		p.owner = ev.Owner
	}
	s.syns[ev.Cookie] = p
}

// conversation returns whose event it is, and at which end; nil: it has no addresses.
func (s *Segmenter) conversation(ev *tcp.Event) (c *conversation, side uint8) {
	t := ev.Tuple
	if !placed(t) {
		s.counts.Unplaced++
		return nil, 0
	}
	p, side := pairOf(t)
	hash := p.hash()
	c = s.of(hash, p)
	switch ev.Old {
	case tcp.SynSent:
		c = s.opened(c, p, hash, side, ev)
	case tcp.SynRecv, tcp.NewSynRecv:
		c = s.accepted(c, p, hash, side, ev)
	}
	if c == nil {
		c = s.begin(p, hash, ev.NetNS, ev.MonoNS)
	}
	if ev.Cookie != 0 && c.cookie[side] != ev.Cookie {
		c.cookie[side], c.closed[side] = ev.Cookie, false
	}
	return c, side
}

// placed reports whether a packet can have these addresses.
func placed(t tcp.FourTuple) bool {
	l, p := t.Local.Addr(), t.Peer.Addr()
	return l.IsValid() && p.IsValid() && l.Is4() == p.Is4() && t.Local.Port() != 0 && t.Peer.Port() != 0
}

// of is the latest conversation of a pair; nil: none is known.
func (s *Segmenter) of(hash uint64, p pair) *conversation {
	if c := s.live[hash]; c != nil && c.pair == p {
		return c
	}
	return nil
}

// begin makes a pair's next conversation.
func (s *Segmenter) begin(p pair, hash uint64, netns tcp.NetNS, at int64) *conversation {
	c := &conversation{pair: p, hash: hash, netns: netns, born: at}
	if prev := s.live[hash]; prev != nil {
		s.remember(prev)
		c.prev = prev
	} else if len(s.live) >= s.limit {
		for h, any := range s.live { // its numbers are remembered, and that its ends have sent a FIN is not
			s.remember(any)
			delete(s.live, h)
			break
		}
	}
	s.live[hash] = c
	return c
}

// ended notes a conversation without open ends, to be forgotten.
func (s *Segmenter) ended(c *conversation) {
	c.closedAt = s.now
	if s.closed.len() < 2*s.limit {
		s.closed.push(c)
	}
}

// opened returns the conversation of a socket that connects, and gives its SYN the port.
func (s *Segmenter) opened(c *conversation, p pair, hash uint64, side uint8, ev *tcp.Event) *conversation {
	syn := s.syns[ev.Cookie]
	if syn == nil {
		if c != nil && c.syn && (c.cookie[side] == ev.Cookie || c.cookie[side] == 0 && c.implied) {
			return c
		}
		c = s.begin(p, hash, ev.NetNS, ev.MonoNS) // the begin was not seen, or is too long ago
		s.queue(c, side, SYN, Implied, ev)
		c.syn = true
		return c
	}
	delete(s.syns, ev.Cookie)
	if c != nil && c.cookie[side] == 0 && c.implied && c.born >= syn.sent {
		s.drop(syn) // the server's events had come first
		return c
	}
	c = s.begin(p, hash, ev.NetNS, ev.MonoNS)
	c.syn, c.owner[side] = true, syn.owner
	if syn.state != undecided {
		// It could wait no longer, and is sent now.
		late := s.queue(c, side, SYN, BySender, ev)
		late.event, late.kind, late.old, late.new, late.sent = syn.event, syn.kind, syn.old, syn.new, syn.sent
		return c
	}
	syn.conv, syn.side, syn.state = c, side, certain
	return c
}

// accepted returns the conversation of a socket that was connected to.
func (s *Segmenter) accepted(c *conversation, p pair, hash uint64, side uint8, ev *tcp.Event) *conversation {
	if p.low == p.high {
		return c // connected to itself
	}
	if c == nil || !c.syn || c.cookie[side] != 0 && c.cookie[side] != ev.Cookie {
		c = s.begin(p, hash, ev.NetNS, ev.MonoNS)
		c.syn, c.implied = true, true
		s.queue(c, p.other(side), SYN, Implied, ev)
	}
	if ev.Kind == tcp.KindState {
		s.answered(c, side, BySender, ev)
	}
	return c
}

// answered completes a handshake that side accepted.
func (s *Segmenter) answered(c *conversation, side uint8, by Witness, ev *tcp.Event) {
	if !c.synAck {
		if by == BySender {
			by = Implied // it went out before
		}
		s.queue(c, side, SYN|ACK, by, ev)
		c.synAck = true
	}
	if !c.ack {
		by = BySender
		if ev.Old == tcp.SynRecv {
			by = ByReceiver
		}
		s.queue(c, c.pair.other(side), ACK, by, ev)
		c.ack = true
	}
}

func (s *Segmenter) finSent(c *conversation, side uint8, by Witness, ev *tcp.Event) {
	if !c.fin[side] {
		c.fin[side] = true
		s.queue(c, side, FIN|ACK, by, ev)
	}
}

// finReceived is a FIN that side received and acknowledges.
func (s *Segmenter) finReceived(c *conversation, side uint8, ev *tcp.Event) {
	peer := c.pair.other(side)
	s.finSent(c, peer, ByReceiver, ev)
	if !c.finAcked[peer] && peer != side {
		c.finAcked[peer] = true
		s.queue(c, side, ACK, BySender, ev)
	}
}

// acked is the acknowledgement of side's FIN, unless the other end has told.
func (s *Segmenter) acked(c *conversation, side uint8, ev *tcp.Event) {
	peer := c.pair.other(side)
	if c.fin[side] && !c.finAcked[side] && peer != side {
		c.finAcked[side] = true
		s.queue(c, peer, ACK, ByReceiver, ev)
	}
}

func (s *Segmenter) retransmit(ev *tcp.Event) {
	c, side := s.conversation(ev)
	if c == nil || ev.Errno != 0 && ev.Errno != tcp.LinkDropped { // it did not come to the link
		return
	}
	flags := ACK
	c.again = true
	switch ev.Old {
	case tcp.SynSent:
		flags = SYN
	case tcp.SynRecv, tcp.NewSynRecv:
		flags, c.synAck = SYN|ACK, true
	}
	s.queue(c, side, flags, BySender, ev).again = true
}

// reset is what is known of RSTs in one direction of a pair.
type reset struct {
	sent    int      // that were not received yet
	waiting *segment // received, and perhaps sent by an event that is to come
	last    int64
}

func (s *Segmenter) resetOf(key uint64) *reset {
	r := s.resets[key]
	if r == nil {
		for len(s.resets) >= maxResets {
			s.forgetReset(s.recent.pop())
		}
		r = new(reset)
		s.resets[key] = r
	}
	if r.last != s.now {
		r.last = s.now
		s.recent.push(direction{key, s.now})
	}
	return r
}

// rstSent takes an RST of any socket, or of none. It belongs to the conversation that its pair has when its turn has
// come: a SYN that it answers may have no port yet.
func (s *Segmenter) rstSent(ev *tcp.Event) {
	if !placed(ev.Tuple) {
		s.counts.Unplaced++
		return
	}
	p, side := pairOf(ev.Tuple)
	hash := p.hash()
	switch r := s.resetOf(directionOf(hash, side)); {
	case r.sent < 0:
		r.sent++
		return // it was handed out as received
	case r.waiting != nil:
		s.drop(r.waiting)
		r.waiting = nil
	default:
		r.sent++
	}
	// A socket that gets data after close() resets itself, as if by an RST, and answers with one
	// (net/ipv4/tcp_input.c, tcp_rcv_state_process).
	if own := s.resets[directionOf(hash, p.other(side))]; own != nil && own.waiting != nil &&
		ev.Flags&tcp.FlagActive == 0 && ev.Cookie != 0 && own.waiting.cookie == ev.Cookie {
		s.drop(own.waiting)
		own.waiting = nil
	}
	s.queue(&conversation{pair: p, hash: hash, netns: ev.NetNS, stray: true}, side, RST, BySender, ev)
}

func (s *Segmenter) rstReceived(ev *tcp.Event) {
	c, side := s.conversation(ev)
	if c == nil {
		return
	}
	peer := c.pair.other(side)
	r := s.resetOf(directionOf(c.hash, peer))
	if r.sent > 0 {
		r.sent--
		return
	}
	if r.waiting != nil {
		r.waiting.state = certain
	}
	r.waiting = s.queue(c, peer, RST, ByReceiver, ev)
	r.waiting.state, r.waiting.cookie = undecided, ev.Cookie
}

// queue lets a segment wait for its turn.
func (s *Segmenter) queue(c *conversation, side uint8, flags SegmentFlags, by Witness, ev *tcp.Event) *segment {
	var q *segment
	if n := len(s.free); n > 0 {
		q, s.free = s.free[n-1], s.free[:n-1]
	} else {
		q = new(segment)
	}
	s.order++
	*q = segment{
		at: ev.MonoNS, order: s.order, conv: c, side: side, flags: flags, by: by, sent: ev.MonoNS,
		event: ev.Seq, kind: ev.Kind, old: ev.Old, new: ev.New, errno: ev.Errno, reason: ev.Reason,
	}
	heap.Push(&s.waiting, q)
	return q
}

func (s *Segmenter) drop(q *segment) {
	if q != nil && q.state == undecided {
		q.state = dropped
	}
}

// flush hands out what was sent by a time, and what is more than may wait.
func (s *Segmenter) flush(until int64, most int) error {
	for len(s.waiting) > 0 {
		q := s.waiting[0]
		full := len(s.waiting) > most
		if q.at > until && !full {
			return nil
		}
		if q.state == undecided {
			wait := waitRst
			if q.flags == SYN {
				wait = waitPort
			}
			if s.now-q.at < wait && !full {
				return nil
			}
			s.decide(q)
		}
		heap.Pop(&s.waiting)
		if q.state == certain {
			if err := s.hand(q); err != nil {
				return err
			}
		}
		if q.flags != SYN || s.syns[q.cookie] != q {
			q.conv = nil
			s.free = append(s.free, q)
		}
	}
	return nil
}

// decide ends the wait of a segment whose turn has come.
func (s *Segmenter) decide(q *segment) {
	if q.flags == SYN {
		q.state = dropped // opened makes another if it is heard of again
		if s.now == maxTime || len(s.syns) > maxWaiting {
			delete(s.syns, q.cookie)
		}
		return
	}
	q.state = certain
	if r := s.resets[directionOf(q.conv.hash, q.side)]; r != nil && r.waiting == q {
		r.waiting = nil
		r.sent-- // an event that comes after all is this one
	}
}

// hand gives a segment its numbers and hands it out.
func (s *Segmenter) hand(q *segment) error {
	c := q.conv
	switch {
	case c.stray:
		c = s.latest(c, q.at)
	case !c.begun && !c.syn: // its begin was not seen
		if next := s.of(c.hash, c.pair); next != nil && next.begun {
			c = next // which has sent something with an earlier time
		}
	}
	if !c.begun {
		s.start(c)
	}
	peer := c.pair.other(q.side)
	seq, flags := c.isn[q.side]+uint32(c.used[q.side]), q.flags
	switch {
	case flags&SYN != 0:
		seq, c.used[q.side] = c.isn[q.side], max(1, c.used[q.side])
	case flags&FIN != 0:
		c.used[q.side]++
		s.counts.Fins++
	case flags&RST != 0:
		s.counts.Rsts++
		flags |= ACK
		if c.used[q.side] == 0 {
			seq = 0 // of an end without a connection
		}
	case q.again:
		seq-- // as a keepalive probe has it: nothing new is in it
	}
	if q.again {
		s.counts.Retransmits++
	}
	if s.emit == nil {
		return nil
	}
	out := &s.segment
	*out = Segment{
		MonoNS: q.at, Conversation: c.number, NetNS: c.netns, From: c.pair.end(q.side), To: c.pair.end(peer),
		Flags: flags, Seq: seq, Retransmit: q.again, Witness: q.by, Owner: c.owner[q.side],
		Event: q.event, Kind: q.kind, Old: q.old, New: q.new, Errno: q.errno, Reason: q.reason, WaitedNS: q.at - q.sent,
	}
	if flags&ACK != 0 {
		out.Ack = c.isn[peer] + uint32(c.used[peer])
	}
	return s.emit(out)
}

// latest is the conversation that the pair of a stray one has by now.
func (s *Segmenter) latest(stray *conversation, at int64) *conversation {
	c := s.of(stray.hash, stray.pair)
	for c != nil && !c.begun && c.prev != nil {
		c = c.prev
	}
	if c == nil {
		c = s.begin(stray.pair, stray.hash, stray.netns, at)
		s.ended(c)
	}
	return c
}

// start gives a conversation its number, and its first sequence numbers: others than the pair's one before had, by
// which Wireshark tells the two apart.
func (s *Segmenter) start(c *conversation) {
	c.begun, c.prev = true, nil
	was, seen := s.tuples[c.hash]
	c.gen, c.number = was.gen>>4, uint64(was.number)
	switch {
	case c.syn:
		c.gen++
	case seen:
		c.used = [2]uint8{uint8(was.gen >> 2 & 3), uint8(was.gen & 3)}
	default:
		c.used = [2]uint8{1, 1} // a SYN each, before the trace
	}
	if c.syn || !seen {
		c.number = s.counts.Conversations
		s.counts.Conversations++
	}
	for side := range c.isn {
		c.isn[side] = uint32(c.hash>>(32*side)) + (c.gen+s.epoch)*0x9e3779b1
	}
	s.remember(c)
}

// remember notes how far a conversation's numbers got.
func (s *Segmenter) remember(c *conversation) {
	if !c.begun {
		return
	}
	if len(s.tuples) >= maxTuples {
		clear(s.tuples)
		s.epoch += 1 << 20
	}
	s.tuples[c.hash] = trail{
		number: uint32(c.number),
		gen:    c.gen<<4 | uint32(min(c.used[0], 3))<<2 | uint32(min(c.used[1], 3)),
	}
}

// forget drops what is over.
func (s *Segmenter) forget() {
	for s.closed.len() > 0 && s.now-s.closed.first().closedAt > rememberClosed {
		c := s.closed.pop()
		if c.half() && s.halves.len() < s.limit {
			s.halves.push(c)
		} else {
			s.drain(c)
		}
	}
	for s.halves.len() > 0 && s.now-s.halves.first().closedAt > rememberHalf {
		s.drain(s.halves.pop())
	}
	for s.recent.len() > 0 && s.now-s.recent.first().at > waitRst {
		s.forgetReset(s.recent.pop())
	}
}

// drain forgets a conversation, unless it has gone on.
func (s *Segmenter) drain(c *conversation) {
	if s.live[c.hash] == c && c.over() {
		s.remember(c)
		delete(s.live, c.hash)
	}
}

// half reports whether a closed conversation's other end may be heard of for long.
func (c *conversation) half() bool {
	return c.again && (c.cookie[0] == 0 || c.cookie[1] == 0)
}

func (s *Segmenter) forgetReset(old direction) {
	r := s.resets[old.key]
	if r == nil || r.last != old.at {
		return
	}
	if r.waiting != nil && r.waiting.state == undecided {
		r.waiting.state = certain
	}
	delete(s.resets, old.key)
}

// over reports whether no end is open that was heard of.
func (c *conversation) over() bool {
	return (c.cookie[0] == 0 || c.closed[0]) && (c.cookie[1] == 0 || c.closed[1])
}

// queue is a heap of segments by their times.
type queue []*segment

func (q queue) Len() int      { return len(q) }
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q queue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].order < q[j].order
}
func (q *queue) Push(x any) { *q = append(*q, x.(*segment)) }
func (q *queue) Pop() any {
	last := len(*q) - 1
	x := (*q)[last]
	(*q)[last], *q = nil, (*q)[:last]
	return x
}

// fifo is a queue that takes no more room than what is in it, and as much again.
type fifo[T any] struct {
	all  []T
	gone int // of all
}

func (f *fifo[T]) len() int { return len(f.all) - f.gone }
func (f *fifo[T]) first() T { return f.all[f.gone] }
func (f *fifo[T]) push(x T) { f.all = append(f.all, x) }

func (f *fifo[T]) pop() T {
	x := f.all[f.gone]
	var zero T
	f.all[f.gone] = zero
	f.gone++
	if f.gone > 1024 && f.gone > len(f.all)/2 {
		f.all, f.gone = f.all[:copy(f.all, f.all[f.gone:])], 0
	}
	return x
}
