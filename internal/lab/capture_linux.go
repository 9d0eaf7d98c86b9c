package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/clock"
	"github.com/twtrace/twtrace/internal/fault"
	"github.com/twtrace/twtrace/internal/netlab"
)

// Flags of a TCP header (RFC 9293, section 3.1).
const (
	fin = fault.FIN
	syn = fault.SYN
	rst = fault.RST
	psh = fault.PSH
	ack = fault.ACK
)

// Segment is a TCP segment as it passed a namespace's devices.
type Segment struct {
	MonoNS int64 // when it was read, at most some milliseconds after it passed
	Sent   bool
	fault.Segment
}

// has reports whether all of the flags are set, and none of those that follow.
func (g *Segment) has(flags fault.Flags, not ...fault.Flags) bool {
	for _, n := range not {
		if g.Flags&n != 0 {
			return false
		}
	}
	return g.Flags&flags == flags
}

// String is the flags, as tcpdump names them, and the data's length.
func (g *Segment) String() string { return fmt.Sprintf("%s > %s %s %d", g.From, g.To, g.Flags, g.Len) }

// Capture is what a packet socket saw of a namespace: an account besides the trace and the kernel's counters.
type Capture struct {
	fd      int
	mu      sync.Mutex
	all     []Segment
	dropped uint32
	err     error
	end     chan struct{}
	ended   sync.WaitGroup
	closed  bool
}

// captureBuffer is how much the kernel keeps until it is read.
const captureBuffer = 64 << 20

// Capture begins to note every TCP segment that a namespace sends or receives, until the entry ends.
func (s *Session) Capture(ns *netlab.Namespace) (*Capture, error) {
	c := &Capture{fd: -1, end: make(chan struct{})}
	err := ns.Do(func() (err error) {
		const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in the network's order
		c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	s.Defer(c.Close)
	if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer); err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	c.ended.Add(1)
	go c.read()
	return c, nil
}

func (c *Capture) read() {
	defer c.ended.Done()
	for {
		select {
		case <-c.end:
			return
		default:
		}
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}, 20)
		c.mu.Lock()
		c.drain()
		c.mu.Unlock()
	}
}

// drain reads what there is. It is called with mu held.
func (c *Capture) drain() {
	var head [128]byte // of IP and TCP, and a little of the data; the rest is cut off
	for c.err == nil && !c.closed {
		n, from, err := unix.Recvfrom(c.fd, head[:], 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			c.err = fmt.Errorf("packet socket: %w", err)
			return
		}
		if segment, ok := fault.ParsePacket(head[:n]); ok {
			segment.Data = slices.Clone(segment.Data)
			g := Segment{Segment: segment}
			ll, _ := from.(*unix.SockaddrLinklayer)
			g.Sent = ll != nil && ll.Pkttype == unix.PACKET_OUTGOING
			g.MonoNS = clock.Mono()
			c.all = append(c.all, g)
		}
	}
}

// Segments are those so far, in order. The error says that it is not all of them.
func (c *Capture) Segments() ([]Segment, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drain()
	if !c.closed {
		stats, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err != nil {
			return nil, fmt.Errorf("packet socket: %w", err)
		}
		c.dropped += stats.Drops
	}
	if c.dropped > 0 {
		return nil, fmt.Errorf("the capture lost %d packets", c.dropped)
	}
	return slices.Clone(c.all), c.err
}

// Close ends it. It may be called again.
func (c *Capture) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.mu.Unlock()
	close(c.end)
	c.ended.Wait()
	return unix.Close(c.fd)
}

// count is how many segments fit.
func count(all []Segment, fits func(*Segment) bool) (n int) {
	for i := range all {
		if fits(&all[i]) {
			n++
		}
	}
	return n
}

// SendSyn sends a SYN that no socket has sent, from an address of a namespace. What answers it meets no
// connection.
func (s *Session) SendSyn(ns *netlab.Namespace, from, to netip.AddrPort, seq uint32) error {
	return fault.Send(ns, &fault.Segment{From: from, To: to, Flags: syn, Seq: seq, Window: 65535})
}
