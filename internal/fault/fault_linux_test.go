package fault

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/testenv"
)

// connection is one in a network of its own, over IPv4 or IPv6.
type connection struct {
	*testing.T
	lab            *netlab.Lab
	client, server int
}

const port = 7

func connect(t *testing.T, ipv6 bool) *connection {
	t.Helper()
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.Veth, testenv.BPF)
	lab, err := netlab.New(netlab.Options{Kind: netlab.Pair, IPv6: ipv6})
	if err != nil {
		t.Fatal(err)
	}
	c := &connection{T: t, lab: lab}
	t.Cleanup(func() { c.must(lab.Close()) })
	family, at := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: port, Addr: [4]byte(lab.ServerAddr().AsSlice())})
	if ipv6 {
		family, at = unix.AF_INET6, &unix.SockaddrInet6{Port: port, Addr: lab.ServerAddr().As16()}
	}
	socket := func(ns *netlab.Namespace) (fd int) {
		c.must(ns.Do(func() (err error) {
			fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			return err
		}))
		c.must(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}))
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	listener := socket(lab.Server())
	c.must(unix.Bind(listener, at))
	c.must(unix.Listen(listener, 8))
	c.client = socket(lab.Client())
	c.must(unix.Connect(c.client, at))
	c.server, _, err = unix.Accept(listener)
	c.must(err)
	c.must(unix.SetsockoptTimeval(c.server, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}))
	t.Cleanup(func() { _ = unix.Close(c.server) })
	return c
}

func (c *connection) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

func (c *connection) open(rules ...Rule) *Fault {
	c.Helper()
	f, err := Open(c.lab.Server(), c.lab.Client(), rules...)
	c.must(err)
	c.Cleanup(func() { c.must(f.Close()) })
	return f
}

// send has the client send a byte, and returns when it is acknowledged.
func (c *connection) send(b byte) {
	c.Helper()
	_, err := unix.Write(c.client, []byte{b})
	c.must(err)
	c.await("an ACK", func() bool {
		info, err := unix.GetsockoptTCPInfo(c.client, unix.IPPROTO_TCP, unix.TCP_INFO)
		return err == nil && info.Unacked == 0
	})
}

func (c *connection) await(what string, ready func() bool) {
	c.Helper()
	for start := time.Now(); !ready(); time.Sleep(time.Millisecond) {
		if time.Since(start) > 20*time.Second {
			c.Fatalf("%s: never", what)
		}
	}
}

func (c *connection) wantCounts(f *Fault, rule int, matched, acted uint64) {
	c.Helper()
	m, err := f.Matched(rule)
	c.must(err)
	a, err := f.Acted(rule)
	c.must(err)
	if m != matched || a != acted {
		c.Errorf("rule %d fitted %d segments and acted upon %d, want %d and %d", rule, m, a, matched, acted)
	}
}

// counted is a counter of the kernel's, which knows nothing of faults.
func (c *connection) counted(ns *netlab.Namespace, name string) uint64 {
	c.Helper()
	n, err := ns.Counters()
	c.must(err)
	return n[name]
}

func families(t *testing.T, f func(*testing.T, bool)) {
	t.Run("IPv4", func(t *testing.T) { f(t, false) })
	t.Run("IPv6", func(t *testing.T) { f(t, true) })
}

// TestDrop drops the second and third segment with data: the second byte and its first repetition.
func TestDrop(t *testing.T) {
	families(t, func(t *testing.T, ipv6 bool) {
		c := connect(t, ipv6)
		f := c.open(
			Rule{Payload: Some, First: 2, Last: 3, Action: Drop},
			Rule{Payload: Some},
			Rule{Payload: None, Flags: FIN, Mask: FIN},
			Rule{To: port + 1, Action: Drop},
		)
		before := c.counted(c.lab.Client(), "Tcp.RetransSegs")
		c.send('a')
		c.send('b')
		again := c.counted(c.lab.Client(), "Tcp.RetransSegs") - before
		if again < 2 {
			t.Errorf("the client sent %d segments again, want two at least", again)
		}
		c.must(unix.Shutdown(c.client, unix.SHUT_WR))
		got := make([]byte, 3)
		n, err := unix.Read(c.server, got)
		c.must(err)
		if string(got[:n]) != "ab" {
			t.Errorf("read %q", got[:n])
		}
		c.await("the FIN", func() bool { n, err := f.Matched(2); return err == nil && n == 1 })
		c.wantCounts(f, 0, 2+again, 2)
		c.wantCounts(f, 1, 2+again, 0)
		c.wantCounts(f, 2, 1, 0)
		c.wantCounts(f, 3, 0, 0)
	})
}

// TestHold holds the FIN back; the end of the stream comes with its release.
func TestHold(t *testing.T) {
	families(t, func(t *testing.T, ipv6 bool) { testHold(t, ipv6, (*Fault).Release) })
	t.Run("a rule", func(t *testing.T) {
		testHold(t, false, func(f *Fault) error { return f.ReleaseRule(0) })
	})
}

func testHold(t *testing.T, ipv6 bool, release func(*Fault) error) {
	c := connect(t, ipv6)
	c.send('a') // no data is under way
	f := c.open(Rule{Flags: FIN, Mask: FIN, Action: Hold})
	c.must(unix.Shutdown(c.client, unix.SHUT_WR))
	c.await("the FIN", func() bool { n, err := f.Acted(0); return err == nil && n > 0 })
	held, err := f.Held()
	c.must(err)
	if len(held) == 0 || held[0].Flags != FIN|ACK || held[0].To.Port() != port || held[0].Len != 0 {
		t.Fatalf("held %v", held)
	}
	one := make([]byte, 1)
	if n, err := unix.Read(c.server, one); n != 1 || err != nil {
		t.Fatalf("read %d, %v", n, err)
	}
	if n, _, err := unix.Recvfrom(c.server, one, unix.MSG_DONTWAIT); n >= 0 || err != unix.EAGAIN {
		t.Errorf("the stream ended while its FIN was held: %d, %v", n, err)
	}
	c.must(release(f))
	if n, err := unix.Read(c.server, one); n != 0 || err != nil {
		t.Errorf("read %d, %v; want the end of the stream", n, err)
	}
	if n := c.counted(c.lab.Server(), "Tcp.InCsumErrors"); n != 0 {
		t.Errorf("%d segments had a wrong checksum", n)
	}
}

// TestSend makes up a SYN: the kernel's listener answers.
func TestSend(t *testing.T) {
	families(t, func(t *testing.T, ipv6 bool) {
		c := connect(t, ipv6)
		before := c.counted(c.lab.Server(), "Tcp.OutRsts")
		c.must(Send(c.lab.Client(), &Segment{
			From: netip.AddrPortFrom(c.lab.ClientAddrs()[0], 40000), To: netip.AddrPortFrom(c.lab.ServerAddr(), port+1),
			Flags: SYN, Seq: 1, Window: 1000,
		}))
		c.await("RST", func() bool { return c.counted(c.lab.Server(), "Tcp.OutRsts") == before+1 })
	})
}

// TestClose: nothing stays with the link.
func TestClose(t *testing.T) {
	c := connect(t, false)
	for range 2 {
		f := c.open(Rule{Action: Drop})
		_, err := unix.Write(c.client, []byte{1})
		c.must(err)
		c.await("a drop", func() bool { n, err := f.Acted(0); return err == nil && n > 0 })
		c.must(f.Close())
		c.send(2)
	}
}
