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

// ServerPlan describes the other end of a storm. It reads Bytes bytes from each
// connection, writes as many back, and closes as Close says.
type ServerPlan struct {
	Listen netip.AddrPort // port 0: the kernel chooses, see Server.Addr
	// Bytes of the request and of the reply, 0 to 1 MiB. 0: nothing is exchanged.
	// What the reply contains is not promised, only how much.
	Bytes int
	Close Closer
	// Linger is SO_LINGER of the accepted sockets where the server closes first:
	// NoLinger (the default of NewServerPlan) leaves it off; 0 is {1,0}, close by
	// RST; whole seconds else, for which close() then blocks its shard.
	Linger  time.Duration
	Backlog int // 0: DefaultBacklog
	// Shards is the number of threads, each with a listener of its own
	// (SO_REUSEPORT if there is more than one); 0: as many as Concurrency asks for.
	Shards int
	// Concurrency is how many connections may be open at once, as far as known. It
	// only serves to choose Shards, because the limit on open files counts for
	// each shard separately.
	Concurrency int
	// Enter, if set, is called on every thread of the server before it opens its
	// first socket. See Plan.Enter.
	Enter func() error
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
	if int(p.Close) >= len(closerNames) {
		bad("close must be client, server or both")
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
	Resets   uint64 // ended by the peer's RST: ECONNRESET or EPIPE
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
