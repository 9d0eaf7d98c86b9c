package loadgen

import (
	"fmt"
	"math"
	"net/netip"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/twtrace/twtrace/internal/clock"
	"golang.org/x/sys/unix"
)

const (
	// acceptBurst is how many connections are accepted before events are served.
	acceptBurst = 64
	// dropsEvery is how often a shard asks its listener what it dropped, and the
	// longest that it blocks: no event says that something was dropped.
	dropsEvery = 100 * time.Millisecond
	// certainSend is what an empty send buffer always takes at once
	// (net.ipv4.tcp_wmem[1] is 16 KiB by default). A longer reply is watched for
	// EPOLLOUT from the beginning.
	certainSend = 8 << 10
	// meminfoDrops is SK_MEMINFO_DROPS of enum sk_meminfo_vars, and meminfoVars
	// their number (include/uapi/linux/sock_diag.h).
	meminfoDrops = 8
	meminfoVars  = 9
)

// serverConn is an accepted connection. Its number is its descriptor's.
type serverConn struct {
	got, sent  int32
	generation int32
	open       bool
	watched    bool // epoll knows it
	watchedOut bool // for EPOLLOUT too
}

// counts are written by one shard's thread and read by anyone. The padding keeps
// two shards' counts out of one cache line.
type counts struct {
	_            [64]byte
	accepted     atomic.Uint64
	closed       atomic.Uint64
	resets       atomic.Uint64
	drops        atomic.Uint64
	acceptErrors atomic.Uint64
	_            [64]byte
}

// serverShard is one thread of a server, with a listener of its own.
type serverShard struct {
	id     int
	server *Server
	counts counts
	thread atomic.Int32   // its number, by which Close interrupts it
	addr   netip.AddrPort // valid when run has said ready

	// guests are shards of storms that this thread is to run (Plan.Host).
	guests chan func()

	plan     *ServerPlan
	toSend   int  // bytes for each connection, the server's own and the reply
	mayBlock bool // close() may, because of SO_LINGER
	epfd     int
	listener int
	conns    []serverConn
	events   []unix.EpollEvent
	buffer   []byte
	scratch  struct {
		event unix.EpollEvent
		drops [meminfoVars]uint32
	}
	now       ServerStats // published in counts once per turn
	waiting   bool        // the accept queue is not known to be empty
	starved   bool        // accept() failed for want of a descriptor or memory
	readDrops int64       // when Drops was read, CLOCK_MONOTONIC ns
	// Of a slow acceptor alone:
	paused     bool // it accepts nothing until resume, CLOCK_MONOTONIC ns
	resume     int64
	untilPause int // accepts
}

// run is the life of the shard's thread. It says on ready, once, whether it
// listens.
func (s *serverShard) run(ready chan<- error) {
	if err := s.setUp(); err != nil {
		ready <- setupError("server shard", s.id, err)
		return
	}
	ready <- nil
	for !s.server.stop.Load() {
		select {
		case guest := <-s.guests:
			guest()
		default:
			s.turn(true)
		}
	}
	s.finish()
}

func (s *serverShard) setUp() error {
	s.thread.Store(int32(unix.Gettid()))
	s.plan = &s.server.plan
	s.toSend = s.plan.First + s.plan.Bytes
	if s.plan.Mode == NeverRead {
		s.toSend = s.plan.First
	}
	s.untilPause = s.plan.AcceptEvery
	s.mayBlock = s.plan.Linger > 0 && s.plan.Close != ClientCloses && s.plan.Mode != ResetOnClose
	if s.plan.Enter != nil {
		if err := s.plan.Enter(); err != nil {
			return err
		}
	}
	if err := bindToCPU(s.plan.CPUs, s.id); err != nil {
		return err
	}
	defer tableCopied()()
	if err := unshareFDs(); err != nil {
		return err
	}
	if err := s.listen(); err != nil {
		return err
	}
	if err := s.setUpTable(); err != nil {
		_ = sysClose(s.listener)
		return err
	}
	return nil
}

// setUpTable leaves what is the process's, but for the network namespace of guests, and
// makes what the descriptors up to the limit need.
func (s *serverShard) setUpTable() error {
	if s.plan.EnterGuests != nil {
		if err := s.plan.EnterGuests(); err != nil {
			return err
		}
	}
	highest, err := dropFDs(s.server.wake.fd, s.listener)
	if err != nil {
		return err
	}
	limit, err := fdLimit()
	if err != nil {
		return err
	}
	s.conns = make([]serverConn, limit)
	s.events = make([]unix.EpollEvent, 256)
	s.buffer = make([]byte, min(max(s.plan.Bytes, 1), recvBuffer))
	if s.epfd, err = newEpoll(s.server.wake.fd); err != nil {
		return err
	}
	expected := limit // memory for a large limit is only spent where it is known to be of use
	if n := s.plan.Concurrency; n != 0 || limit > 1<<16 {
		expected = min(limit, highest+1+fdReserve+n)
	}
	err = expandFDs(s.epfd, expected-1)
	if err == nil && s.plan.Mode != NeverAccept {
		if e := sysEpollAdd(s.epfd, s.listener, unix.EPOLLIN|unix.EPOLLET, 0, &s.scratch.event); e != 0 {
			err = fmt.Errorf("watch the listener: %w", e)
		}
	}
	if err != nil {
		_ = sysClose(s.epfd)
	}
	return err
}

// listen opens the listener on the server's address, which has the port of the
// first shard by the time the second one listens.
func (s *serverShard) listen() (err error) {
	a := newSockaddr(s.server.addr)
	fd, e := sysSocket(a.family())
	if e != 0 {
		return fmt.Errorf("open a socket: %w", e)
	}
	defer func() {
		if err != nil {
			_ = sysClose(fd)
		}
	}()
	// SO_REUSEADDR: a restart must not wait for the TIME_WAITs of the last run.
	options := []sockopt{intOption(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)}
	if len(s.server.shards) > 1 {
		options = append(options, intOption(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	}
	// Accepted sockets inherit SO_LINGER (sk_clone copies the flags and sk_lingertime).
	if s.plan.Mode == ResetOnClose {
		options = append(options, lingerOption(1, 0))
	} else if s.plan.Linger != NoLinger && s.plan.Close != ClientCloses {
		options = append(options, lingerOption(1, int(s.plan.Linger/time.Second)))
	}
	for i := range options {
		if e := sysSetsockopt(fd, &options[i]); e != 0 {
			return fmt.Errorf("set option %d of the listener: %w", options[i].name, e)
		}
	}
	if e := sysBind(fd, &a); e != 0 {
		return fmt.Errorf("bind %s: %w", s.server.addr, e)
	}
	if err := unix.Listen(fd, s.plan.Backlog); err != nil {
		return fmt.Errorf("listen on %s: %w", s.server.addr, err)
	}
	if e := sysGetsockname(fd, &a); e != 0 {
		return fmt.Errorf("getsockname: %w", e)
	}
	// The last one completes the group.
	if n := len(s.server.shards); len(s.plan.CPUs) > 1 && n >= len(s.plan.CPUs) && s.id == n-1 {
		if err := steerByCPU(fd, n, s.plan.CPUs); err != nil {
			return err
		}
	}
	s.listener = fd
	s.addr = netip.AddrPortFrom(a.addr(), a.port())
	return nil
}

// turn accepts, waits if it may and nothing is at hand, and serves what is
// ready. It reports whether there was anything.
func (s *serverShard) turn(wait bool) bool {
	accepted := s.now.Accepted
	s.acceptWaiting()
	var n int
	var e unix.Errno
	if !wait || s.canAccept() {
		n, e = sysEpollPoll(s.epfd, s.events)
	} else {
		s.publish()
		n, e = sysEpollWait(s.epfd, s.events, s.longestWait())
	}
	if e != 0 { // EINTR
		n = 0
	}
	for i := range s.events[:n] {
		s.handle(&s.events[i])
	}
	s.endTurn(n)
	return n != 0 || s.now.Accepted != accepted
}

// acceptWaiting accepts what may be accepted now.
func (s *serverShard) acceptWaiting() {
	switch {
	case !s.canAccept():
	case s.plan.AcceptDelay == 0:
		s.acceptSome(acceptBurst)
	default:
		s.acceptSlowly()
	}
}

// handle is for an event of the shard's epoll instance. Some are nobody's: the wake-up,
// and what was reported of a connection that is closed by now.
func (s *serverShard) handle(ev *unix.EpollEvent) {
	fd := int(ev.Fd)
	switch {
	case fd == s.listener:
		s.waiting = true
	case s.conns[fd].open && s.conns[fd].generation == ev.Pad:
		s.serve(fd, ev.Events)
	}
}

// endTurn is for the end of a turn in which there were n events.
func (s *serverShard) endTurn(n int) {
	s.starved = s.starved && n != 0 // else try again: others may have freed what was missing
	s.publish()
}

// publish makes the counts visible, and reads the listener's now and then.
func (s *serverShard) publish() {
	if now := clock.Mono(); now-s.readDrops >= int64(dropsEvery) {
		s.readDrops = now
		s.askDrops()
	}
	s.counts.accepted.Store(s.now.Accepted)
	s.counts.closed.Store(s.now.Closed)
	s.counts.resets.Store(s.now.Resets)
	s.counts.drops.Store(s.now.Drops)
	s.counts.acceptErrors.Store(s.now.AcceptErrors)
}

// askDrops reads sk_drops of the listener (SO_MEMINFO, since Linux 4.12).
func (s *serverShard) askDrops() {
	vars := &s.scratch.drops
	size := uint32(unsafe.Sizeof(*vars))
	if got, e := sysGetsockopt(s.listener, unix.SOL_SOCKET, unix.SO_MEMINFO, unsafe.Pointer(vars), size); e == 0 && got >= size {
		s.now.Drops = uint64(vars[meminfoDrops])
	}
}

// canAccept reports whether accept() may be called now, and is worth it.
func (s *serverShard) canAccept() bool { return s.waiting && !s.starved && !s.paused }

// finish takes what the kernel has ready and closes everything.
func (s *serverShard) finish() {
	s.waiting, s.starved = s.plan.Mode != NeverAccept, false
	// The bound is for a storm that goes on: it could fill the queue for ever.
	for range s.plan.Backlog/acceptBurst + 2 {
		if !s.turn(false) {
			break
		}
	}
	s.askDrops()
	_ = sysClose(s.listener)
	for fd := range s.conns {
		if s.conns[fd].open {
			s.close(fd, 0)
		}
	}
	_ = sysClose(s.epfd)
	s.publish()
}

// acceptSlowly accepts what a slow acceptor may until its next delay.
func (s *serverShard) acceptSlowly() {
	before := s.now.Accepted
	s.acceptSome(min(acceptBurst, s.untilPause))
	s.untilPause -= int(s.now.Accepted - before)
	if s.untilPause == 0 {
		s.untilPause = s.plan.AcceptEvery
		s.paused, s.resume = true, clock.Mono()+int64(s.plan.AcceptDelay)
	}
}

// longestWait returns for how many milliseconds the shard may block, and ends the
// delay of a slow acceptor when it is over. The delay's last part, which epoll can't
// measure, is slept: nothing has to wait for it for long.
func (s *serverShard) longestWait() int {
	if !s.paused {
		return int(dropsEvery / time.Millisecond)
	}
	left := time.Duration(s.resume - clock.Mono())
	if left >= time.Millisecond {
		return int(min(dropsEvery, left) / time.Millisecond)
	}
	if left > 0 {
		sleep := unix.NsecToTimespec(int64(left))
		_ = unix.Nanosleep(&sleep, nil) // EINTR: a little less
	}
	s.paused = false
	return 0
}

// acceptSome accepts up to most connections.
func (s *serverShard) acceptSome(most int) {
	for range most {
		fd, e := sysAccept(s.listener)
		switch e {
		case 0:
		case unix.EAGAIN:
			s.waiting = false
			return
		case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
			s.now.AcceptErrors++
			s.starved = true
			return
		default:
			// ECONNABORTED, or an error of the network that is pending on the new
			// socket (accept(2)): the connection is gone, the next may be good.
			continue
		}
		s.now.Accepted++
		if fd >= len(s.conns) {
			_ = sysClose(fd)
			s.now.Closed++
			s.now.AcceptErrors++
			continue
		}
		c := &s.conns[fd]
		// Below 0: those of a guest, whose events come in the same place, are above.
		*c = serverConn{generation: (c.generation + 1) | math.MinInt32, open: true}
		// The request is often there already: serving at once saves an event.
		s.serve(fd, 0)
	}
}

// serve gets as far with a connection as it can without waiting. events are
// those that epoll reported, 0 right after accept().
func (s *serverShard) serve(fd int, events uint32) {
	c := &s.conns[fd]
	// What is in the way of the server's own bytes is not in the way of the request:
	// the client may read nothing before it has sent that.
	if int(c.sent) < s.plan.First && !s.send(fd, s.plan.First) {
		return
	}
	if s.plan.Mode == NeverRead {
		s.waitForEnd(fd, events)
		return
	}
	for int(c.got) < s.plan.Bytes {
		asked := min(s.plan.Bytes-int(c.got), len(s.buffer))
		n, e := sysRecv(fd, &s.buffer[0], asked)
		if e == unix.EAGAIN {
			s.watch(fd)
			return
		}
		if e != 0 || n == 0 {
			s.close(fd, e)
			return
		}
		c.got += int32(n)
		if n < asked && events&hangup == 0 {
			s.watch(fd) // the queue is empty; an edge comes when it is not
			return
		}
	}
	if int(c.sent) < s.toSend {
		if !s.send(fd, s.toSend) {
			return
		}
		if int(c.sent) < s.toSend {
			s.watch(fd)
			return
		}
	}
	if s.plan.Close != ClientCloses {
		s.close(fd, 0)
		return
	}
	s.waitForEnd(fd, events)
}

// send sends as much as the kernel takes until upTo bytes are sent, and reports
// whether the connection is still open.
func (s *serverShard) send(fd, upTo int) bool {
	c := &s.conns[fd]
	for int(c.sent) < upTo {
		size := min(upTo-int(c.sent), len(pattern)) // what the bytes are is not promised
		n, e := sysSend(fd, &pattern[0], size)
		if e == unix.EAGAIN {
			return true
		}
		if e != 0 {
			s.close(fd, e)
			return false
		}
		c.sent += int32(n)
	}
	return true
}

// waitForEnd is for a connection with nothing left to do but be closed after the
// peer has.
func (s *serverShard) waitForEnd(fd int, events uint32) {
	switch {
	case events&unix.EPOLLERR != 0:
		// An RST, if it is not that the peer has not answered for a quarter of an hour.
		s.close(fd, unix.ECONNRESET)
	case events&hangup != 0: // FIN
		s.close(fd, 0)
	default:
		s.watch(fd)
	}
}

// watch makes sure that epoll reports what the connection waits for.
func (s *serverShard) watch(fd int) {
	c := &s.conns[fd]
	unsent := int(c.sent) < s.toSend
	canSend := int(c.sent) < s.plan.First || unsent && int(c.got) == s.plan.Bytes
	events := uint32(unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET)
	var op int
	switch {
	case !c.watched:
		op = unix.EPOLL_CTL_ADD
		// With less to send, EPOLLOUT would only be one event more.
		c.watchedOut = canSend || unsent && s.toSend > certainSend
	case canSend && !c.watchedOut:
		// Only where tcp_wmem is smaller than certainSend, or memory is short.
		op = unix.EPOLL_CTL_MOD
		c.watchedOut = true
	default:
		return
	}
	if c.watchedOut {
		events |= unix.EPOLLOUT
	}
	c.watched = true
	if e := sysEpollCtl(s.epfd, op, fd, events, c.generation, &s.scratch.event); e != 0 {
		s.now.AcceptErrors++
		s.close(fd, 0)
	}
}

// close closes a connection that ended with e.
func (s *serverShard) close(fd int, e unix.Errno) {
	c := &s.conns[fd]
	if e == unix.ECONNRESET || e == unix.EPIPE {
		s.now.Resets++
	}
	// The descriptor is gone whatever close() says.
	if s.mayBlock {
		if s.server.stop.Load() {
			// Else each close() could wait for SO_LINGER's time. If this fails, it does.
			off := lingerOption(0, 0)
			_ = sysSetsockopt(fd, &off)
		}
		_ = sysCloseBlocking(fd)
	} else {
		_ = sysClose(fd)
	}
	c.open = false
	s.starved = false
	s.now.Closed++
}
