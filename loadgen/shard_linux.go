package loadgen

import (
	"cmp"
	"fmt"
	"math"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/twtrace/twtrace/internal/clock"
	"golang.org/x/sys/unix"
)

const (
	// burst is how many connections a shard opens before it serves events again.
	burst = 8
	// burstTime bounds a burst whose connects are slow: with few ports left each
	// one can search for milliseconds (inet_hash_connect).
	burstTime = 2 * time.Millisecond
	// flushAfter bounds the age of attempts that the collector has not yet.
	flushAfter = 10 * time.Millisecond
	// recvBuffer is what one recv asks for at most.
	recvBuffer = 64 << 10
)

// pattern is what requests and replies consist of. It is never written.
var pattern = func() []byte {
	p := make([]byte, MaxBytes)
	for i := range p {
		p[i] = 'a' + byte(i%26)
	}
	return p
}()

type connState uint8

const (
	stateFree       connState = iota
	stateNew                  // connect() was not yet called
	stateConnecting           // connect() was called, the handshake is not known to be done
	stateSending
	stateReceiving // the reply, then the peer's FIN where the server closes first
	stateHolding   // Plan.Hold
)

// phases says in which Phase a connection fails in each state.
var phases = [...]Phase{
	stateNew:        PhaseSocket,
	stateConnecting: PhaseConnect,
	stateSending:    PhaseSend,
	stateReceiving:  PhaseReceive,
	stateHolding:    PhaseClose,
}

// conn is a connection of a shard. Its number is its descriptor's.
type conn struct {
	attempt    Attempt
	deadline   int64 // CLOCK_MONOTONIC ns: of Timeout, or of Hold in stateHolding
	sent, got  int32
	prev, next int32 // in one of the shard's queues
	generation int32 // tells an event of an earlier connection of this descriptor
	state      connState
}

// queue is a list of connections in the order of their deadlines: all of a queue
// have the same time to live, so that the newest is the last.
type queue struct{ head, tail int32 }

const none = -1

// shard is one thread of a storm. Everything but start, thread, counts and what outlet shares is
// used by that thread alone.
type shard struct {
	id    int
	plan  *Plan
	storm *stormRun
	host  *serverShard   // whose thread it is, and whose other end; nil: its own
	start chan loopStart // the loop to run next; has room for one
	// thread is its number, by which others interrupt it.
	thread atomic.Int32
	out    outlet

	firstIndex, count, window int // this shard's part of a loop, and of Concurrency

	target    sockaddr
	source    source
	options   []sockopt
	expected  int  // bytes from the server, its own and the reply
	waitEOF   bool // the server closes first
	mayBlock  bool // close() may, because of SO_LINGER
	checkSelf bool

	epfd    int
	conns   []conn
	events  []unix.EpollEvent
	buffer  []byte
	scratch struct { // what calls write to or read from, kept off the stack
		cookie uint64
		event  unix.EpollEvent
		name   sockaddr
	}

	limit    *limiter     // nil: none
	held     bool         // nothing but limit keeps the next attempt from beginning
	counts   *shardCounts // nil: nobody asks
	pace     *pacer       // nil: a closed loop
	every    int          // of the attempts that are due this shard has each so-manieth
	loop     int
	begun    int64 // CLOCK_MONOTONIC ns
	opened   int   // of count, in this loop
	started  int64 // in all loops
	heldBack uint64
	open     int   // now
	living   queue // until Timeout
	holding  queue // until Hold is over
}

func newShard(id, of int, r *stormRun) *shard {
	p := r.plan
	s := &shard{
		id: id, plan: p, storm: r,
		start:    make(chan loopStart, 1),
		out:      newOutlet(r.collector),
		target:   newSockaddr(p.Target),
		source:   newSource(p, id, of),
		options:  sourceOptions(p),
		expected: p.ServerFirst + p.Bytes,
		host:     r.hostOf(id),
		waitEOF:  p.Close == ServerCloses,
		mayBlock: p.Linger > 0 && p.Close != ServerCloses,
		events:   make([]unix.EpollEvent, 256),
		buffer:   make([]byte, min(max(p.ServerFirst+p.Bytes, 1), recvBuffer)),
		living:   queue{none, none},
		holding:  queue{none, none},
	}
	if p.Rate != 0 {
		s.pace = &pacer{from: p.Rate, to: cmp.Or(p.RateTo, p.Rate), n: p.Connections}
		s.every = of
	}
	s.limit, s.counts = newLimiter(p, id, of), p.Progress.shard()
	s.firstIndex, s.count = split(p.Connections, id, of)
	_, s.window = split(p.Concurrency, id, of)
	if p.ReusePort {
		s.options = append(s.options, intOption(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	}
	if p.Linger != NoLinger && !s.waitEOF {
		s.options = append(s.options, lingerOption(1, int(p.Linger/time.Second)))
	}
	return s
}

// run is the life of the shard's thread. It says on ready, once, whether it
// could be set up, and then runs the loops that come in on start until that is
// closed.
func (s *shard) run(ready chan<- error) {
	err := s.setUp()
	ready <- err
	if err != nil {
		return
	}
	for {
		begin, ok := s.next()
		if !ok {
			break
		}
		s.runLoop(begin)
		s.publish()
		s.out.flush(begin.loop)
	}
	if s.host == nil {
		// The thread's table goes with the thread, some time after this goroutine.
		_ = sysClose(s.epfd)
	}
}

// next waits for the next loop, and reports whether there is one.
func (s *shard) next() (begin loopStart, ok bool) {
	if s.host == nil {
		begin, ok = <-s.start
		return begin, ok
	}
	for {
		select {
		case begin, ok = <-s.start:
			return begin, ok
		default:
			s.host.turn(true)
		}
	}
}

func (s *shard) setUp() error {
	s.thread.Store(int32(unix.Gettid()))
	if s.plan.Enter != nil && s.host == nil {
		if err := s.plan.Enter(); err != nil {
			return setupError("client shard", s.id, err)
		}
	}
	highest, err := s.setUpThread()
	if err != nil {
		return setupError("client shard", s.id, err)
	}
	if s.pace != nil || s.limit != nil {
		// Timers of this thread may be late by this many ns; the default is 50,000.
		if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
			return setupError("client shard", s.id, fmt.Errorf("set the timer slack: %w", err))
		}
	}
	limit, err := fdLimit()
	if err == nil {
		// Descriptors are given out lowest first, so that the highest one there can
		// be is known, and an array will do to find a connection.
		most := highest + 1 + fdReserve + s.window
		if s.host != nil {
			most += s.window + s.plan.Host.plan.Backlog // the other ends
		}
		s.conns = make([]conn, min(limit, most))
		err = expandFDs(s.epfd, len(s.conns)-1)
	}
	if err == nil {
		err = s.source.setUp()
	}
	if err == nil && s.plan.Bind != BindPort { // which never takes the target's port
		s.checkSelf, err = canSelfConnect(s.plan.Target)
	}
	if err != nil {
		if s.host == nil {
			_ = sysClose(s.epfd)
		}
		return setupError("client shard", s.id, err)
	}
	return nil
}

// setUpThread makes the epoll instance, and returns the highest descriptor in use. A
// host's thread has done it all before.
func (s *shard) setUpThread() (highest int, err error) {
	if s.host != nil {
		s.epfd = s.host.epfd
		return s.host.listener, nil
	}
	if err := bindToCPU(s.plan.CPUs, s.id); err != nil {
		return 0, err
	}
	if highest, err = privateFDs(s.storm.wake.fd); err != nil {
		return 0, err
	}
	s.epfd, err = newEpoll(s.storm.wake.fd)
	return highest, err
}

// runLoop opens the shard's part of a loop, keeping up to window connections
// open, and returns when all are closed.
func (s *shard) runLoop(begin loopStart) {
	s.loop, s.begun, s.opened = begin.loop, begin.at, 0
	for {
		if s.storm.cancel.Load() {
			s.cancelAll()
			return
		}
		s.openSome()
		if s.open == 0 && s.opened == s.count {
			return
		}
		if s.host != nil {
			s.host.acceptWaiting()
		}
		s.publish()
		n := s.wait()
		for i := range s.events[:n] {
			s.handle(&s.events[i])
		}
		if s.host != nil {
			s.host.endTurn(n)
		}
		s.tick()
	}
}

// handle is for an event of the shard's epoll instance.
func (s *shard) handle(ev *unix.EpollEvent) {
	if int(ev.Fd) < len(s.conns) {
		if c := &s.conns[ev.Fd]; c.state != stateFree && c.generation == ev.Pad {
			s.serve(int(ev.Fd), ev.Events)
			return
		}
	}
	if s.host != nil {
		s.host.handle(ev)
	}
}

// wait returns how many events there are, at once if connections can be opened.
func (s *shard) wait() int {
	var n int
	var e unix.Errno
	switch {
	case s.canOpen() || s.host != nil && s.host.canAccept():
		n, e = sysEpollPoll(s.epfd, s.events)
	case s.pace == nil && s.limit == nil:
		n, e = sysEpollWait(s.epfd, s.events, s.untilNext())
	default:
		n, e = sysEpollWait2(s.epfd, s.events, s.untilDue())
	}
	if e != 0 { // EINTR: a signal, the runtime's own above all
		return 0
	}
	// The eventfd's place in conns is always free: the loop passes it over, and
	// looks at cancel next.
	return n
}

// untilNext returns the milliseconds, rounded up, until something is due; -1 if
// nothing is.
func (s *shard) untilNext() int {
	due := int64(-1)
	earlier := func(t int64) {
		if due < 0 || t < due {
			due = t
		}
	}
	if s.living.head != none {
		earlier(s.conns[s.living.head].deadline)
	}
	if s.holding.head != none {
		earlier(s.conns[s.holding.head].deadline)
	}
	if len(s.out.current) != 0 {
		earlier(s.out.oldest + int64(flushAfter))
	}
	ms := -1
	if due >= 0 {
		ms = int(min(max((due-clock.Mono()+999_999)/1_000_000, 0), 1<<30))
	}
	if s.host == nil {
		return ms
	}
	if host := s.host.longestWait(); ms < 0 || host < ms {
		return host
	}
	return ms
}

// tick does what is due.
func (s *shard) tick() {
	now := clock.Mono()
	for s.holding.head != none && s.conns[s.holding.head].deadline <= now {
		s.end(int(s.holding.head), PhaseDone, 0, 0)
	}
	for s.living.head != none && s.conns[s.living.head].deadline <= now {
		fd := s.living.head
		s.end(int(fd), phases[s.conns[fd].state], unix.ETIMEDOUT, OwnTimeout)
	}
	if len(s.out.current) != 0 && now-s.out.oldest >= int64(flushAfter) {
		s.out.flush(0)
	}
}

// cancelAll ends every connection that is under way.
func (s *shard) cancelAll() {
	for _, q := range []*queue{&s.living, &s.holding} {
		for q.head != none {
			fd := int(q.head)
			s.end(fd, phases[s.conns[fd].state], unix.ECANCELED, Cancelled)
		}
	}
}

func (s *shard) hasRoom() bool { return s.opened < s.count && s.open < s.window }

func (s *shard) canOpen() bool {
	if !s.hasRoom() {
		return false
	}
	if s.pace == nil && s.limit == nil {
		return true
	}
	now := clock.Mono()
	if s.pace != nil && s.intended() > now {
		return false
	}
	s.held = s.held || s.limit != nil && !s.limit.ready(now-s.storm.begun)
	return s.due() <= now
}

// intended is when the shard's next attempt of an open loop is to begin, CLOCK_MONOTONIC ns.
func (s *shard) intended() int64 { return s.begun + s.pace.due(s.opened*s.every+s.id) }

// due is when the shard's next attempt may begin, CLOCK_MONOTONIC ns.
func (s *shard) due() (at int64) {
	if s.pace != nil {
		at = s.intended()
	}
	if s.limit != nil {
		at = max(at, s.storm.begun+s.limit.due())
	}
	return at
}

// publish makes the counts visible to who asks for progress.
func (s *shard) publish() {
	if c := s.counts; c != nil {
		c.started.Store(s.started)
		c.failed.Store(s.out.failed)
		c.open.Store(int64(s.open))
	}
}

// untilDue is the time to wait for events where attempts have times, -1 if there is no end to it.
func (s *shard) untilDue() time.Duration {
	wait := time.Duration(-1)
	if ms := s.untilNext(); ms >= 0 {
		wait = time.Duration(ms) * time.Millisecond
	}
	if s.hasRoom() {
		due := max(time.Duration(s.due()-clock.Mono()), 0)
		if wait < 0 || due < wait {
			wait = due
		}
	}
	return wait
}

// openSome opens a burst.
func (s *shard) openSome() {
	var until int64
	for range burst {
		if !s.canOpen() {
			return
		}
		started := s.openOne()
		if until == 0 {
			until = started + int64(burstTime)
		} else if started > until {
			return
		}
	}
}

// openOne begins one attempt, gets as far with it as the kernel allows without
// waiting, and returns when it began.
func (s *shard) openOne() int64 {
	a := Attempt{
		Started: clock.Mono(),
		Loop:    uint32(s.loop),
		Index:   uint32(s.firstIndex + s.opened),
		Shard:   uint16(s.id),
	}
	a.Intended = a.Started
	if s.pace != nil {
		a.Intended = s.intended()
	}
	if s.limit != nil {
		s.limit.begin()
		if s.held {
			s.heldBack++
			s.held = false
		}
	}
	s.opened++
	if s.plan.Begun != nil {
		s.plan.Begun.Add(1)
	}
	s.started++
	fd, e := sysSocket(s.target.family())
	if e == 0 && fd >= len(s.conns) {
		_ = sysClose(fd)
		e = unix.EMFILE
	}
	if e != 0 {
		a.Phase, a.Errno, a.Closed = PhaseSocket, Errno(e), clock.Mono()
		s.out.put(&a, a.Closed)
		return a.Started
	}
	c := &s.conns[fd]
	c.attempt = a
	c.sent, c.got = 0, 0
	c.generation = (c.generation + 1) & math.MaxInt32
	c.state = stateNew
	c.deadline = a.Started + int64(s.plan.Timeout)
	s.push(&s.living, fd)
	s.open++

	if s.plan.Record != RecordTimes {
		// The question is what makes the kernel name the socket, so that its very
		// first event has the name, even if connect() fails.
		if _, e := sysGetsockopt(fd, unix.SOL_SOCKET, unix.SO_COOKIE, unsafe.Pointer(&s.scratch.cookie), 8); e != 0 {
			s.end(fd, PhaseSocket, e, 0)
			return a.Started
		}
		c.attempt.Cookie = Cookie(s.scratch.cookie)
	}
	for i := range s.options {
		if e := sysSetsockopt(fd, &s.options[i]); e != 0 {
			s.end(fd, PhaseSocket, e, 0)
			return a.Started
		}
	}
	if len(s.source.addrs) != 0 {
		port, e := s.source.bind(fd, s.plan.sourceIndex(&c.attempt))
		if e != 0 {
			s.end(fd, PhaseBind, e, 0)
			return a.Started
		}
		c.attempt.LocalPort = port
	}
	c.state = stateConnecting
	// EINTR of a connect() means what EINPROGRESS does.
	if e := sysConnect(fd, &s.target); e != 0 && e != unix.EINPROGRESS && e != unix.EINTR {
		s.end(fd, PhaseConnect, e, 0)
		return a.Started
	}
	if c.attempt.LocalPort == 0 && (s.plan.Record == RecordAll || s.checkSelf) {
		if e := sysGetsockname(fd, &s.scratch.name); e != 0 {
			s.end(fd, PhaseConnect, e, 0)
			return a.Started
		}
		c.attempt.LocalPort = s.scratch.name.port()
	}
	if !s.established(fd) {
		return a.Started
	}
	// Whatever the socket is ready for by now is reported too (ep_insert polls it).
	events := uint32(unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET)
	switch c.state {
	case stateConnecting, stateSending:
		events |= unix.EPOLLOUT
	case stateHolding, stateReceiving:
	}
	if e := sysEpollAdd(s.epfd, fd, events, c.generation, &s.scratch.event); e != 0 {
		s.end(fd, phases[c.state], e, 0)
	}
	return a.Started
}

// established tries to send, which tells whether the handshake is done: if it is
// not, the kernel says EAGAIN; if it failed, why. It moves the connection on as
// far as it can, and reports whether it is still open.
func (s *shard) established(fd int) bool {
	c := &s.conns[fd]
	now := clock.Mono()
	n, e := sysSend(fd, &pattern[0], s.plan.Bytes)
	switch e {
	case 0:
	case unix.EAGAIN, unix.ENOTCONN:
		return true
	case unix.ECONNRESET, unix.EPIPE:
		// An RST in answer to the SYN is ECONNREFUSED (tcp_reset): these two come
		// after the handshake.
		c.attempt.Connected = now
		s.end(fd, PhaseSend, e, 0)
		return false
	default:
		s.end(fd, PhaseConnect, e, 0)
		return false
	}
	c.attempt.Connected = now
	if s.checkSelf && s.isSelfConnected(fd) {
		s.end(fd, PhaseConnect, unix.EADDRINUSE, SelfConnected)
		return false
	}
	c.state = stateSending
	return s.sent(fd, n)
}

// sent takes account of n bytes more of the request, and reports whether the
// connection is still open.
func (s *shard) sent(fd, n int) bool {
	c := &s.conns[fd]
	c.sent += int32(n)
	if int(c.sent) < s.plan.Bytes {
		return true
	}
	c.state = stateReceiving
	if s.expected == 0 && !s.waitEOF {
		return s.complete(fd, c.attempt.Connected)
	}
	return true
}

// serve handles the events of a connection.
func (s *shard) serve(fd int, events uint32) {
	c := &s.conns[fd]
	if c.state == stateConnecting && !s.established(fd) {
		return
	}
	for c.state == stateSending {
		asked := s.plan.Bytes - int(c.sent)
		n, e := sysSend(fd, &pattern[c.sent], asked)
		if e == unix.EAGAIN {
			break
		}
		if e != 0 {
			s.end(fd, PhaseSend, e, 0)
			return
		}
		if !s.sent(fd, n) {
			return
		}
		if n < asked {
			break // the buffer is full; an edge comes when it is not (SOCK_NOSPACE is set)
		}
	}
	switch c.state {
	case stateReceiving:
		s.receive(fd, events)
	case stateHolding:
		if events&unix.EPOLLERR != 0 {
			s.end(fd, PhaseClose, s.socketError(fd), 0)
		}
	}
}

// hangup are the events after which another recv() has something to say: FIN or
// an error.
const hangup = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR

// receive reads the reply, and the peer's FIN if the server closes first.
func (s *shard) receive(fd int, events uint32) {
	c := &s.conns[fd]
	for {
		missing := s.expected - int(c.got)
		if missing == 0 && events&(unix.EPOLLHUP|unix.EPOLLERR) == 0 {
			// Everything is read, and this end has shut nothing down: RDHUP alone
			// is the peer's FIN (tcp_poll), and needs no recv() to confirm it.
			if events&unix.EPOLLRDHUP != 0 {
				s.complete(fd, clock.Mono())
			}
			return
		}
		// Never 0 bytes: that would not tell FIN from nothing.
		asked := min(max(missing, 1), len(s.buffer))
		n, e := sysRecv(fd, &s.buffer[0], asked)
		if e == unix.EAGAIN {
			return
		}
		now := clock.Mono()
		switch {
		case e != 0:
			s.end(fd, PhaseReceive, e, 0)
			return
		case n == 0 && missing == 0:
			s.complete(fd, now)
			return
		case n == 0:
			s.end(fd, PhaseReceive, unix.EPROTO, ShortReply)
			return
		}
		if c.attempt.FirstByte == 0 {
			c.attempt.FirstByte = now
		}
		c.got += int32(min(n, missing))
		if int(c.got) == s.expected && !s.waitEOF {
			s.complete(fd, now)
			return
		}
		if n < asked && events&hangup == 0 {
			return // the queue is empty; an edge comes when it is not
		}
	}
}

// complete is for a connection that has done what it had to: it is held or
// closed. It reports whether it is still open.
func (s *shard) complete(fd int, now int64) bool {
	if s.plan.Hold == 0 {
		s.end(fd, PhaseDone, 0, 0)
		return false
	}
	c := &s.conns[fd]
	s.remove(&s.living, fd)
	c.state = stateHolding
	c.deadline = now + int64(s.plan.Hold)
	s.push(&s.holding, fd)
	return true
}

// end closes the connection and hands its attempt over.
func (s *shard) end(fd int, phase Phase, e unix.Errno, flags AttemptFlags) {
	c := &s.conns[fd]
	if c.state == stateHolding {
		s.remove(&s.holding, fd)
	} else {
		s.remove(&s.living, fd)
	}
	var errno unix.Errno
	if s.mayBlock {
		if s.storm.cancel.Load() {
			// Else each close() could wait for SO_LINGER's time. If this fails, it does.
			off := lingerOption(0, 0)
			_ = sysSetsockopt(fd, &off)
		}
		errno = sysCloseBlocking(fd)
	} else {
		errno = sysClose(fd)
	}
	if errno != 0 && phase == PhaseDone {
		phase, e = PhaseClose, errno
	}
	c.state = stateFree
	s.open--
	a := &c.attempt
	a.Closed = clock.Mono()
	if s.source.rings != nil && a.LocalPort != 0 {
		s.source.rings[s.plan.sourceIndex(a)].put(a.LocalPort)
	}
	a.Phase, a.Errno = phase, Errno(e)
	a.Flags |= flags
	s.out.put(a, a.Closed)
}

// socketError takes the socket's pending error.
func (s *shard) socketError(fd int) unix.Errno {
	var value uint32
	if _, e := sysGetsockopt(fd, unix.SOL_SOCKET, unix.SO_ERROR, unsafe.Pointer(&value), 4); e != 0 {
		return e
	}
	return unix.Errno(value)
}

// isSelfConnected reports whether the socket's own address is its peer's.
func (s *shard) isSelfConnected(fd int) bool {
	if s.conns[fd].attempt.LocalPort != s.target.port() {
		return false
	}
	name := &s.scratch.name
	return sysGetsockname(fd, name) == 0 && name.addr() == s.target.addr()
}

func (s *shard) push(q *queue, fd int) {
	c := &s.conns[fd]
	c.prev, c.next = q.tail, none
	if q.tail == none {
		q.head = int32(fd)
	} else {
		s.conns[q.tail].next = int32(fd)
	}
	q.tail = int32(fd)
}

func (s *shard) remove(q *queue, fd int) {
	c := &s.conns[fd]
	if c.prev == none {
		q.head = c.next
	} else {
		s.conns[c.prev].next = c.next
	}
	if c.next == none {
		q.tail = c.prev
	} else {
		s.conns[c.next].prev = c.prev
	}
}
