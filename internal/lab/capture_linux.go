package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/clock"
	"github.com/twtrace/twtrace/internal/netlab"
)

// Flags of a TCP header (RFC 9293, section 3.1).
const (
	fin = 1 << iota
	syn
	rst
	psh
	ack
)

// Segment is a TCP segment as it passed a namespace's devices.
type Segment struct {
	MonoNS   int64 // when it was read, at most some milliseconds after it passed
	From, To netip.AddrPort
	Flags    uint8
	Seq, Ack uint32
	Len      int // of its data
	Sent     bool
}

// has reports whether all of the flags are set, and none of those that follow.
func (g *Segment) has(flags uint8, not ...uint8) bool {
	for _, n := range not {
		if g.Flags&n != 0 {
			return false
		}
	}
	return g.Flags&flags == flags
}

// String is the flags, as tcpdump names them, and the data's length.
func (g *Segment) String() string {
	var b strings.Builder
	for i, name := range []string{"FIN", "SYN", "RST", "PSH", "ACK"} {
		if g.Flags&(1<<i) != 0 {
			if b.Len() > 0 {
				b.WriteByte('+')
			}
			b.WriteString(name)
		}
	}
	return fmt.Sprintf("%s > %s %s %d", g.From, g.To, b.String(), g.Len)
}

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
	var head [128]byte // of IP and TCP; the rest is cut off
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
		if g, ok := parseSegment(head[:n]); ok {
			ll, _ := from.(*unix.SockaddrLinklayer)
			g.Sent = ll != nil && ll.Pkttype == unix.PACKET_OUTGOING
			g.MonoNS = clock.Mono()
			c.all = append(c.all, g)
		}
	}
}

// parseSegment reads an IP packet from its first bytes; false: it is not TCP, or has IPv6 extension headers.
func parseSegment(b []byte) (g Segment, ok bool) {
	if len(b) < 20 {
		return g, false
	}
	var from, to netip.Addr
	var header, total int
	switch b[0] >> 4 {
	case 4:
		header, total = int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
		fragment := binary.BigEndian.Uint16(b[6:]) & 0x1fff
		if b[9] != unix.IPPROTO_TCP || fragment != 0 || header < 20 {
			return g, false
		}
		from, to = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	case 6:
		header = 40
		if len(b) < header || b[6] != unix.IPPROTO_TCP {
			return g, false
		}
		total = header + int(binary.BigEndian.Uint16(b[4:]))
		from, to = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	default:
		return g, false
	}
	if len(b) < header+20 {
		return g, false
	}
	t := b[header:]
	g.From = netip.AddrPortFrom(from, binary.BigEndian.Uint16(t))
	g.To = netip.AddrPortFrom(to, binary.BigEndian.Uint16(t[2:]))
	g.Seq, g.Ack = binary.BigEndian.Uint32(t[4:]), binary.BigEndian.Uint32(t[8:])
	g.Flags = t[13]
	g.Len = total - header - int(t[12]>>4)*4
	return g, g.Len >= 0
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
	segment := make([]byte, 20) // RFC 9293, section 3.1
	binary.BigEndian.PutUint16(segment, from.Port())
	binary.BigEndian.PutUint16(segment[2:], to.Port())
	binary.BigEndian.PutUint32(segment[4:], seq)
	segment[12], segment[13] = 5<<4, syn
	binary.BigEndian.PutUint16(segment[14:], 65535) // the window
	pseudo := slices.Concat(from.Addr().AsSlice(), to.Addr().AsSlice(), []byte{0, unix.IPPROTO_TCP, 0, 20}, segment)
	var sum uint32
	for word := range slices.Chunk(pseudo, 2) {
		sum += uint32(binary.BigEndian.Uint16(word))
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(segment[16:], ^uint16(sum))
	return ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			return fmt.Errorf("raw socket: %w", err)
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(from.Addr(), 0))); err != nil {
			return fmt.Errorf("raw socket: bind: %w", err)
		}
		return unix.Sendto(fd, segment, 0, sockaddr(netip.AddrPortFrom(to.Addr(), 0)))
	})
}
