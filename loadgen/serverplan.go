package loadgen

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// DefaultBacklog is the listen backlog of a ServerPlan that names none. The
// kernel silently cuts a backlog to net.core.somaxconn.
const DefaultBacklog = 4096

// ServerMode is what a server does with connections.
type ServerMode uint8

// The modes of a server.
const (
	Echo ServerMode = iota
	// ResetOnClose is Echo with SO_LINGER {1,0} on every accepted socket: whenever
	// the server closes it sends an RST, and no end keeps a TIME_WAIT.
	ResetOnClose
	// NeverRead accepts and never calls recv(). It closes once the peer has, by RST
	// if the peer had sent anything (tcp_close: data was not read). It can't know while
	// the peer's FIN waits behind data that its receive buffer has no room for.
	NeverRead
	// NeverAccept listens and never calls accept(): the kernel does the handshakes
	// until the accept queue is full, and drops what comes then.
	NeverAccept
)

var modeNames = [...]string{"echo", "rst", "never-read", "never-accept"}

func (m ServerMode) String() string { return nameOf(modeNames[:], m, "server-mode") }

// ParseServerMode reads echo, rst, never-read or never-accept.
func ParseServerMode(name string) (ServerMode, error) {
	return parseName[ServerMode](modeNames[:], name)
}

// ServerPlan describes the other end of a storm. It writes First bytes to each
// connection as soon as it has accepted it, reads Bytes bytes, writes as many back,
// and closes as Close says; Mode has it do less.
type ServerPlan struct {
	Listen netip.AddrPort // port 0: the kernel chooses, see Server.Addr
	// Bytes of the request and of the reply, 0 to 1 MiB. 0: nothing is exchanged.
	// What the reply contains is not promised, only how much.
	Bytes int
	// First is how many bytes, 0 to 1 MiB, come before the reply, without waiting for
	// the request. See Plan.ServerFirst.
	First int
	Mode  ServerMode
	Close Closer
	// Linger is SO_LINGER of the accepted sockets where the server closes first:
	// NoLinger (the default of NewServerPlan) leaves it off; 0 is {1,0}, close by
	// RST; whole seconds else, for which close() then blocks its shard.
	Linger  time.Duration
	Backlog int // 0: DefaultBacklog
	// AcceptDelay makes a slow acceptor: after every AcceptEvery accepts (0: 1) a
	// thread accepts nothing for this long. Connections that it has accepted are
	// served meanwhile, as by a program whose accept loop has a thread of its own,
	// and Close does not wait for the delay to end.
	AcceptDelay time.Duration
	AcceptEvery int
	// Shards is the number of threads, each with a listener and an accept queue of its
	// own (SO_REUSEPORT if there is more than one); 0: as many as Concurrency asks for,
	// or one where there is an AcceptDelay or the Mode is NeverAccept: one queue of
	// Backlog connections is what those are about.
	Shards int
	// CPUs, if not empty, are the processors that the threads are bound to, in turn. If
	// none is left without a thread, a connection is accepted by one on the processor
	// that handled its SYN: over loopback and veth, the client's own.
	CPUs []int
	// Concurrency is how many connections may be open at once, as far as known. It
	// only serves to choose Shards, because the limit on open files counts for
	// each shard separately.
	Concurrency int
	// Enter, if set, is called on every thread of the server before it opens its
	// first socket. See Plan.Enter.
	Enter func() error
	// EnterGuests, if set, is called on every thread once it listens, for the sockets of a
	// storm on the server's threads (Plan.Host): a listener stays in its namespace.
	EnterGuests func() error
}

// NewServerPlan returns the server that fits NewPlan: 100 bytes each way, the
// client closes first.
func NewServerPlan(listen netip.AddrPort) ServerPlan {
	return ServerPlan{Listen: listen, Bytes: 100, Linger: NoLinger}
}

// Validate reports every problem of the plan at once.
func (p *ServerPlan) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !p.Listen.IsValid() {
		bad("listen %s is not an address and port", p.Listen)
	} else if err := validZone(p.Listen.Addr()); err != nil {
		errs = append(errs, err)
	}
	if p.Bytes < 0 || p.Bytes > MaxBytes {
		bad("bytes must be 0 to %d, not %d", MaxBytes, p.Bytes)
	}
	if p.First < 0 || p.First > MaxBytes {
		bad("server-first must be 0 to %d, not %d", MaxBytes, p.First)
	}
	if int(p.Close) >= len(closerNames) {
		bad("close must be client, server or both")
	}
	switch p.Mode {
	case Echo, ResetOnClose:
	case NeverRead, NeverAccept:
		if p.Close != ClientCloses {
			bad("a server that is %s waits for the client to close: close must be client, not %s", p.Mode, p.Close)
		}
	default:
		bad("server must be echo, rst, never-read or never-accept")
	}
	if p.AcceptDelay < 0 || p.AcceptEvery < 0 {
		bad("accept-delay and accept-every must not be negative")
	}
	if !validLinger(p.Linger) {
		bad("linger must be whole seconds from 0 to 65535, not %s", p.Linger)
	}
	if p.Backlog < 0 {
		bad("backlog must not be negative, but is %d", p.Backlog)
	}
	if p.Shards < 0 || p.Shards > MaxShards {
		bad("shards must be 0 to %d, not %d", MaxShards, p.Shards)
	}
	if p.Concurrency < 0 {
		bad("concurrency must not be negative, but is %d", p.Concurrency)
	}
	return errors.Join(errs...)
}

// ServerStats is what a server has counted since it started.
type ServerStats struct {
	Accepted uint64 // accept() returned them
	Closed   uint64 // close() returned on them
	Resets   uint64 // ended by an error: the peer's RST, or its silence for a quarter of an hour
	// Drops is the sum of the listeners' sk_drops (SO_MEMINFO): SYNs and ACKs
	// that the listeners dropped, for a full accept queue above all, which makes
	// it a little more than TcpExtListenDrops (29,451 against 29,438 in an overrun
	// listener). It is up to 100 ms old while the server runs, and exact after Close.
	Drops uint64
	// AcceptErrors counts the times accept() or epoll_ctl() failed for want of
	// descriptors or memory (EMFILE, ENFILE, ENOBUFS, ENOMEM). The connection
	// stays in the accept queue and is tried again.
	AcceptErrors uint64
}
