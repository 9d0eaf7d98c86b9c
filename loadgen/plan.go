package loadgen

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/twtrace/twtrace/internal/tcp"
)

// Closer says which end closes a connection first.
type Closer uint8

// The ends that can close first. The one that does gets the TIME_WAIT.
const (
	ClientCloses Closer = iota
	ServerCloses
	BothClose // each end closes as soon as it has sent what it had to
)

var closerNames = [...]string{"client", "server", "both"}

func (c Closer) String() string { return nameOf(closerNames[:], c, "closer") }

// ParseCloser reads client, server or both.
func ParseCloser(name string) (Closer, error) { return parseName[Closer](closerNames[:], name) }

// Record says what of an Attempt is recorded beside its times, its phase and its error.
type Record uint8

// What is recorded. Cookie and port take a system call each.
const (
	RecordAll    Record = iota
	RecordCookie        // not LocalPort, unless it was bound: the kernel's events of the cookie have it
	RecordTimes         // nor Cookie, where there are no events to join
)

// MaxBytes is the largest request and reply, and MaxShards the largest number of
// threads, that a plan may ask for.
const (
	MaxBytes  = 1 << 20
	MaxShards = 1 << tcp.ShardBits
)

// NoLinger is the value of Plan.Linger that leaves SO_LINGER off.
const NoLinger = time.Duration(-1)

// DefaultTimeout is more than the 127 s that the kernel spends on retrying a SYN
// (net.ipv4.tcp_syn_retries = 6), so that its own ETIMEDOUT is seen.
const DefaultTimeout = 3 * time.Minute

// Plan is a storm of short connections: Loops times, Connections connections at
// once; each sends Bytes, receives the same Bytes back, and is closed.
type Plan struct {
	Target      netip.AddrPort
	Loops       int // at least 1
	Connections int // per loop, at least 1
	// Concurrency is how many connections of a loop may be open at once; 0: all.
	Concurrency int
	Bytes       int // request and reply, 0 to 1 MiB; 0: connect and close
	// ServerFirst is how many bytes, 0 to 1 MiB, the server sends unasked once it has
	// accepted (ServerPlan.First). The client sends its request at once all the same,
	// and an attempt is complete when ServerFirst + Bytes bytes have come in: the
	// stream has the server's own first. FirstByte is the first of either.
	ServerFirst int
	// Linger is SO_LINGER on the client's socket: NoLinger (the default of
	// NewPlan) leaves it off; 0 is {1,0}, close by RST; whole seconds else, for
	// which close() blocks its shard until the peer has acknowledged everything
	// (sock_close ignores O_NONBLOCK here). It is not set where the server closes first.
	Linger    time.Duration
	ReusePort bool // SO_REUSEPORT before connect
	ReuseAddr bool // SO_REUSEADDR before connect
	// Sources are the addresses that the connections come from, in turn; each socket
	// is bound to its own. Empty: nothing is bound, and the kernel chooses.
	Sources []netip.Addr
	// Bind says who chooses the source port. Anything but BindNone needs Sources.
	Bind   Binding
	NoPort bool // IP_BIND_ADDRESS_NO_PORT before bind, with BindAddr
	// LocalPorts is IP_LOCAL_PORT_RANGE: what of ip_local_port_range the kernel (and
	// BindPort) chooses from; the zero value: all. See ErrNoPortRange.
	LocalPorts PortRange
	Close      Closer
	// Rate, if not 0, makes it an open loop: attempts are due at this rate, per second, whether or not
	// those before are done, and Attempt.Intended says when. RateTo, if not 0, is the rate at the end of each
	// loop, which the rate rises or falls to linearly. Concurrency is a limit all
	// the same: what is due then waits, and nothing is left out.
	Rate, RateTo float64
	// MaxRate, if not 0, is a limit: of the attempts of all loops and shards, never more than this many
	// begin in any second, spaced evenly. It makes no open loop: what it holds back is counted
	// (Result.HeldBack) and its latencies count from when it began. An open loop at just this
	// rate can't make up for being late.
	MaxRate float64
	// MaxDuration, if not 0, is how long after its begin, pauses between loops included,
	// the storm is cancelled as by its context.
	MaxDuration time.Duration
	Interval    time.Duration // pause between loops
	Hold        time.Duration // how long a connection stays open after the reply
	// Timeout bounds an attempt's life from socket() to the reply (and the peer's
	// close, where that is waited for), without its Hold; 0: DefaultTimeout.
	Timeout time.Duration
	// Part and Parts: this storm is number Part, from 0, of Parts storms that run at the same time
	// from the same Sources; of the ports BindPort takes its part alone. 0 and 0: the only one.
	Part, Parts int
	// Begun, if set, counts the attempts that have begun, among them those that OnAttempts was not
	// given yet. It may be in memory that other processes see.
	Begun *atomic.Uint64 `json:"-"`
	// Shards is the number of client threads; 0: as many as the limit on open
	// files asks for, at least one. There are never more than Concurrency.
	Shards int
	// CPUs, if not empty, are the processors that the threads are bound to, in turn.
	CPUs []int
	// Host, if set, is a server that was started, on whose threads the storm runs: each is
	// both ends of its connections, which saves changing threads (a quarter of the
	// processors' time). It needs the server's CPUs, so that each accepts what it opened itself.
	// Shards, CPUs and Enter (ServerPlan.EnterGuests) are then the server's.
	Host   *Server `json:"-"`
	Record Record  // of each attempt
	// Enter, if set, is called on every thread of the storm before it opens its
	// first socket, for instance to join a network namespace. It runs on a
	// locked OS thread that is thrown away at the end, and still sees all of the
	// process's open files. Storms of several shards call it at the same time.
	Enter func() error `json:"-"`
	// OnReady, if set, is called once every thread of the storm has entered and is
	// ready, before the first socket is opened, from the goroutine that called
	// Storm.Run. Its error ends the run.
	OnReady func() error `json:"-"`
	// OnAttempts, if set, is given every attempt once, in batches, from one
	// goroutine. The slice is reused after it returns.
	OnAttempts func([]Attempt) `json:"-"`
	// OnLoop, if set, is called after each loop, when all its attempts have
	// been given to OnAttempts, from the goroutine that called Storm.Run. The
	// next loop starts when it returns.
	OnLoop func(LoopResult) `json:"-"`
	// Progress, if set, tells how far the storm is while it runs.
	Progress *Progress `json:"-"`
}

// LoopResult is what one loop came to.
type LoopResult struct {
	Loop     int // from 1
	Attempts int // started
	Finished int
	Failed   int
	Duration time.Duration // from the first socket() to the last close()
}

// LoopCount adds up the attempts of a loop, whose number its user sets.
type LoopCount struct {
	LoopResult
	first, last int64 // CLOCK_MONOTONIC ns
	cancelled   bool  // an attempt was
}

// Add takes attempts, in any order.
func (c *LoopCount) Add(attempts []Attempt) {
	for i := range attempts {
		a := &attempts[i]
		if c.Attempts == 0 || a.Started < c.first {
			c.first = a.Started
		}
		c.last = max(c.last, a.Closed)
		c.Attempts++
		if a.Failed() {
			c.Failed++
		} else {
			c.Finished++
		}
		c.cancelled = c.cancelled || a.Flags&Cancelled != 0
	}
	c.Duration = time.Duration(c.last - c.first)
}

// Result is what a storm came to.
type Result struct {
	Loops []LoopResult
	// PortSkips is how often BindPort found a port in use by somebody else.
	PortSkips uint64
	Stalls    uint64 // times a shard had to wait because OnAttempts was slow; no attempt is ever lost
	HeldBack  uint64 // attempts that MaxRate alone kept from beginning earlier
	Canceled  bool   // the context or MaxDuration ended before the last loop did; Loops then ends with the one cut short, if any
	TimeIsUp  bool   // it was MaxDuration
}

// NewPlan returns the classic storm at target: 10 loops of 10,000 connections,
// 100 bytes each way, the client closes first.
func NewPlan(target netip.AddrPort) Plan {
	return Plan{Target: target, Loops: 10, Connections: 10000, Bytes: 100, Linger: NoLinger}
}

// AtOnce is how many connections of a loop may be open at once.
func (p *Plan) AtOnce() int {
	if p.Concurrency == 0 {
		return p.Connections
	}
	return min(p.Concurrency, p.Connections)
}

// Validate reports every problem of the plan at once.
func (p *Plan) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !p.Target.IsValid() || p.Target.Port() == 0 {
		bad("target %s is not an address and port", p.Target)
	} else if err := validZone(p.Target.Addr()); err != nil {
		errs = append(errs, err)
	}
	if p.Loops < 1 {
		bad("loops must be at least 1, not %d", p.Loops)
	}
	if p.Connections < 1 {
		bad("connections must be at least 1, not %d", p.Connections)
	}
	if p.Connections > 1<<31-1 || p.Loops > 1<<31-1 {
		bad("loops and connections must be less than 2^31")
	}
	if p.Concurrency < 0 {
		bad("concurrency must be at least 1 (or 0: all), not %d", p.Concurrency)
	}
	if p.Bytes < 0 || p.Bytes > MaxBytes {
		bad("bytes must be 0 to %d, not %d", MaxBytes, p.Bytes)
	}
	if p.ServerFirst < 0 || p.ServerFirst > MaxBytes {
		bad("server-first must be 0 to %d, not %d", MaxBytes, p.ServerFirst)
	}
	if !validLinger(p.Linger) {
		bad("linger must be whole seconds from 0 to 65535, not %s", p.Linger)
	}
	if !validRate(p.Rate) || !validRate(p.RateTo) || p.Rate == 0 && p.RateTo != 0 {
		bad("rates must be 0.001 to 10000000 connections a second, not %g to %g", p.Rate, p.RateTo)
	}
	if !validRate(p.MaxRate) {
		bad("max-rate must be 0.001 to 10000000 connections a second (or 0: no limit), not %g", p.MaxRate)
	}
	if fastest := max(p.Rate, p.RateTo); p.MaxRate != 0 && fastest > p.MaxRate {
		bad("a rate of %g is above the max-rate of %g", fastest, p.MaxRate)
	}
	if p.Interval < 0 || p.Hold < 0 || p.Timeout < 0 || p.MaxDuration < 0 {
		bad("interval, hold, timeout and max-duration must not be negative")
	}
	if p.Shards < 0 || p.Shards > MaxShards {
		bad("shards must be 0 to %d, not %d", MaxShards, p.Shards)
	}
	if p.Part < 0 || p.Part > max(0, p.Parts-1) {
		bad("part must be 0 to %d, not %d", max(0, p.Parts-1), p.Part)
	}
	if int(p.Close) >= len(closerNames) {
		bad("close must be client, server or both")
	}
	if p.Record > RecordTimes {
		bad("there is no record %d", p.Record)
	}
	errs = append(errs, p.validateSource()...)
	return errors.Join(errs...)
}

// validRate reports whether a rate is none, or one that can be computed with.
func validRate(r float64) bool { return r == 0 || r >= 0.001 && r <= 1e7 }

// validLinger reports whether SO_LINGER can carry d: int seconds, of which the
// kernel makes jiffies.
func validLinger(d time.Duration) bool {
	return d == NoLinger || d >= 0 && d%time.Second == 0 && d <= 65535*time.Second
}

// validZone accepts only numeric zones: a name would have to be looked up in
// the network namespace that Enter joins.
func validZone(a netip.Addr) error {
	if a.Zone() == "" {
		return nil
	}
	if _, err := strconv.ParseUint(a.Zone(), 10, 32); err != nil {
		return fmt.Errorf("zone %q of %s must be an interface's index (ip link shows it)", a.Zone(), a)
	}
	return nil
}
