package loadgen

import (
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Server is the other end of a Storm, as its ServerPlan describes it.
type Server struct {
	plan   ServerPlan
	shards []*serverShard
	wake   wakeUp
	stop   atomic.Bool
	addr   netip.AddrPort

	mu      sync.Mutex // serialises Start and Close
	started bool
	closed  bool
	running sync.WaitGroup
}

var (
	errStarted = errors.New("the server was started before")
	errClosed  = errors.New("the server is closed")
)

// NewServer returns the server of p, or every problem of p at once. It does
// nothing before Start.
func NewServer(p ServerPlan) (*Server, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if p.Backlog == 0 {
		p.Backlog = DefaultBacklog
	}
	if p.AcceptEvery == 0 {
		p.AcceptEvery = 1
	}
	n := p.Shards
	if n == 0 && (p.AcceptDelay != 0 || p.Mode == NeverAccept) {
		n = 1
	}
	if n == 0 {
		limit, err := fdLimit()
		if err != nil {
			return nil, err
		}
		// The kernel spreads connections over listeners by hash, not evenly.
		n = min(shardsFor(p.Concurrency, limit, 0.9), MaxShards)
	}
	s := &Server{plan: p, addr: p.Listen}
	for i := range n {
		s.shards = append(s.shards, &serverShard{id: i, server: s, guests: make(chan func(), 1)})
	}
	return s, nil
}

// Shards returns the number of threads that the server runs on: what is worth
// adding to GOMAXPROCS.
func (s *Server) Shards() int { return len(s.shards) }

// Start returns when the server listens, or with the reason why it can't:
// EADDRINUSE, EADDRNOTAVAIL, EACCES and the like (errors.Is finds the Errno), or
// what ServerPlan.Enter returned. A server is started once.
func (s *Server) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return errClosed
	case s.started:
		return errStarted
	}
	s.started = true
	startPoller()
	var err error
	if s.wake, err = newWakeUp(); err != nil {
		s.closed = true
		return err
	}
	// One after the other: the first one's port is the others' too.
	for _, sh := range s.shards {
		ready := make(chan error, 1)
		s.running.Add(1)
		go onDisposableThread(func() {
			defer s.running.Done()
			sh.run(ready)
		})
		if err := <-ready; err != nil {
			s.end()
			return err
		}
		s.addr = sh.addr
	}
	return nil
}

// Addr returns the address that the server listens on, with the port that the
// kernel chose if the plan asked for port 0. Before Start it is the plan's.
func (s *Server) Addr() netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addr
}

// Stats returns what was counted so far. It may be called at any time, also
// after Close, and from any goroutine.
func (s *Server) Stats() ServerStats {
	var sum ServerStats
	for _, sh := range s.shards {
		sum.Accepted += sh.counts.accepted.Load()
		sum.Closed += sh.counts.closed.Load()
		sum.Resets += sh.counts.resets.Load()
		sum.Drops += sh.counts.drops.Load()
		sum.AcceptErrors += sh.counts.acceptErrors.Load()
	}
	return sum
}

// Close stops the server and waits for its threads. It first takes what the
// kernel has ready at that moment, so that Accepted has every connection whose
// handshake was done before, and closes them with all others; a slow acceptor takes
// no more than it would have until its next delay, and one that never accepts,
// nothing: the kernel resets what is left in the accept queue. A storm on the
// server's threads (Plan.Host) has to have ended. Closing a server
// again, or one that was never started, does nothing. The error is nil.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started && !s.closed {
		s.end()
	}
	s.closed = true
	return nil
}

// end is called once, with mu held.
func (s *Server) end() {
	s.closed = true
	s.stop.Store(true)
	s.wake.wake()
	s.wait()
	s.wake.close()
}

// wait waits for the threads, and interrupts those that may be in a close() that waits
// for SO_LINGER's time.
func (s *Server) wait() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.running.Wait()
	}()
	for {
		select {
		case <-done:
			return
		case <-time.After(interruptEvery):
		}
		for _, sh := range s.shards {
			if sh.mayBlock {
				interrupt(int(sh.thread.Load()))
			}
		}
	}
}
