package lab

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/tcp"
)

// selfConnect is a connect() whose SYN comes back to its own socket: nobody listens, and the source port is
// the destination port.
func selfConnect(s *Session) error {
	const port = 40000
	net, err := s.Network(netlab.Loopback, fmt.Sprintf("ip_local_port_range=%d %d", port, port+1))
	if err != nil {
		return err
	}
	self := netip.AddrPortFrom(net.ServerAddr(), port)
	before, err := s.counted(net.Client(), "Tcp.ActiveOpens", "Tcp.PassiveOpens")
	if err != nil {
		return err
	}
	// Two ports: the kernel prefers those of the first one's parity, and goes on to the other.
	client, attempts, err := s.connectToSelf(net, self)
	if err != nil {
		return err
	}
	s.Claim(Claim{
		Key: "refused", Text: "connect() to a port of this machine that nobody listens on always fails with ECONNREFUSED.",
		Holds: holdsOf(client == nil), Expected: No,
		Evidence: Evidence{"ports in the range": 2, "connect()s": attempts, "connected to itself": client != nil},
		History:  "If the port is in ip_local_port_range the kernel may choose it as the source: a simultaneous open of one socket with itself (RFC 9293, 3.5).",
	})
	if client == nil {
		s.Answerf("%d connect()s to a port in the range were refused; none met itself.", attempts)
		return nil
	}
	if err := s.selfConnected(net, client, self, before); err != nil {
		return err
	}
	return s.reservedPort(port)
}

// connectToSelf connects to a port that nobody listens on until a connect() succeeds, or the kernel has had the chance
// to choose every port.
func (s *Session) connectToSelf(net *netlab.Lab, to netip.AddrPort) (*Socket, int, error) {
	const most = 64
	for n := 1; n <= most; n++ {
		k, err := s.Socket(net.Client(), false)
		if err != nil {
			return nil, n, err
		}
		switch err := k.Connect(to, patience); {
		case err == nil:
			return k, n, nil
		case !errors.Is(err, unix.ECONNREFUSED):
			return nil, n, fmt.Errorf("connect: %w", err)
		}
		if err := k.Close(); err != nil {
			return nil, n, err
		}
	}
	return nil, most, nil
}

// selfConnected looks at what such a connection does.
func (s *Session) selfConnected(net *netlab.Lab, client *Socket, self netip.AddrPort, before Evidence) error {
	local, err := client.Local()
	if err != nil {
		return err
	}
	after, err := s.counted(net.Client(), "Tcp.ActiveOpens", "Tcp.PassiveOpens")
	if err != nil {
		return err
	}
	accepted := after["Tcp.PassiveOpens"].(uint64) - before["Tcp.PassiveOpens"].(uint64)
	echo := sendAcross(client, client, "hello")
	s.Claim(Claim{
		Key: "echo", Text: "Such a connection is one socket: what it sends it receives.",
		Holds: holdsOf(local == self && echo == nil && accepted == 0), Expected: Yes,
		Evidence: Evidence{"local": local.String(), "peer": self.String(), "echo": Errno(echo), "passive opens": accepted},
	})
	bind := func() (string, error) {
		k, err := s.Socket(net.Server(), false, ReuseAddr)
		if err != nil {
			return "", err
		}
		return Errno(k.Bind(self)), k.Close()
	}
	meanwhile, err := bind()
	if err != nil {
		return err
	}
	if err := client.Close(); err != nil {
		return err
	}
	if err := s.TimeWaits(net.Client(), 1); err != nil {
		return err
	}
	list, err := s.Minisocks(net.Client())
	if err != nil {
		return err
	}
	then, err := bind()
	if err != nil {
		return err
	}
	s.Claim(Claim{
		Key: "server-locked-out", Text: "It keeps the server from binding its port while it is there, and for the 60 s of its TIME_WAIT, even with SO_REUSEADDR.",
		Holds: holdsOf(meanwhile == "EADDRINUSE" && then == "EADDRINUSE" && list[0].State == tcp.TimeWait), Expected: Yes,
		Evidence: Evidence{"bind() meanwhile": meanwhile, "bind() in TIME_WAIT": then, "left of TIME_WAIT, s": list[0].Left.Seconds()},
		History:  "The client's socket had no SO_REUSEADDR, and bind() asks for it on both (see rebind).",
	})
	s.Answerf("connect() number %d met itself: a port in ip_local_port_range that nobody listens on can answer, and its server is then locked out for 60 s; ip_local_reserved_ports prevents it.", after["Tcp.ActiveOpens"])
	return nil
}

// reservedPort has the kernel never choose the port.
func (s *Session) reservedPort(port uint16) error {
	net, err := s.Network(netlab.Loopback,
		fmt.Sprintf("ip_local_port_range=%d %d", port, port+1), fmt.Sprintf("ip_local_reserved_ports=%d", port))
	if err != nil {
		return err
	}
	client, attempts, err := s.connectToSelf(net, netip.AddrPortFrom(net.ServerAddr(), port))
	if err != nil {
		return err
	}
	s.Claim(Claim{
		Key: "reserved", Text: "ip_local_reserved_ports (or a server's port outside the range) prevents it.",
		Holds: holdsOf(client == nil), Expected: Yes,
		Evidence: Evidence{"connect()s": attempts, "connected to itself": client != nil},
	})
	return nil
}
