package loadgen

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// source binds a shard's sockets to where they come from.
type source struct {
	plan        *Plan
	part, parts int        // which part of the ports is this shard's
	addrs       []sockaddr // those of Plan.Sources; empty: nothing is bound
	rings       []portRing // of each address; nil: the kernel chooses the ports
	skips       uint64     // ports that bind() refused
}

func newSource(p *Plan, part, parts int) source {
	s := source{plan: p, part: part, parts: parts, addrs: make([]sockaddr, len(p.Sources))}
	for i, a := range p.Sources {
		s.addrs[i] = newSockaddr(netip.AddrPortFrom(a, 0))
	}
	return s
}

// sourceOptions are those of the plan's options that decide about the source.
func sourceOptions(p *Plan) (options []sockopt) {
	if p.ReuseAddr || p.Bind == BindPort {
		options = append(options, intOption(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	}
	if len(p.Sources) != 0 && p.Bind == BindNone || p.NoPort {
		options = append(options, intOption(unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1))
	}
	if p.LocalPorts != (PortRange{}) {
		options = append(options, portRangeOption(p.LocalPorts))
	}
	return options
}

// portRangeOption is IP_LOCAL_PORT_RANGE, for IPv6 sockets too.
func portRangeOption(r PortRange) sockopt {
	return intOption(unix.IPPROTO_IP, unix.IP_LOCAL_PORT_RANGE, int(r.High)<<16|int(r.Low))
}

// CheckKernel returns ErrNoPortRange if the plan needs what this kernel has not.
func (p *Plan) CheckKernel() error {
	if p.LocalPorts == (PortRange{}) {
		return nil
	}
	fd, e := sysSocket(unix.AF_INET)
	if e != 0 {
		return fmt.Errorf("open a socket: %w", e)
	}
	defer func() { _ = sysClose(fd) }()
	option := portRangeOption(p.LocalPorts)
	switch e := sysSetsockopt(fd, &option); e {
	case 0:
		return nil
	case unix.ENOPROTOOPT:
		return ErrNoPortRange
	default:
		return fmt.Errorf("set IP_LOCAL_PORT_RANGE to %d-%d: %w", p.LocalPorts.Low, p.LocalPorts.High, e)
	}
}

// setUp runs on the shard's thread, in the network namespace that the ports are of.
func (s *source) setUp() error {
	if s.plan.Bind != BindPort {
		return nil
	}
	ports, err := usablePorts(s.plan)
	if err != nil {
		return err
	}
	from, count := split(len(ports), s.plan.Part, max(1, s.plan.Parts))
	ports = ports[from : from+count]
	from, count = split(len(ports), s.part, s.parts)
	s.rings = make([]portRing, len(s.addrs))
	for i := range s.rings {
		s.rings[i] = newPortRing(ports[from : from+count])
	}
	return nil
}

// bind binds fd to the source of number i, and returns the port if it chose one.
func (s *source) bind(fd, i int) (uint16, unix.Errno) {
	a := &s.addrs[i]
	if s.rings == nil {
		return 0, sysBind(fd, a)
	}
	r := &s.rings[i]
	for range r.free {
		port := r.take()
		a.setPort(port)
		e := sysBind(fd, a)
		if e == 0 {
			return port, 0
		}
		r.put(port)
		if e != unix.EADDRINUSE {
			return 0, e
		}
		s.skips++
	}
	return 0, unix.EADDRINUSE
}

// portRing has the free ports of one source and shard, 2 bytes each; the one that
// has been free for longest comes first, so that the connection that had it has
// had the most time to end.
type portRing struct {
	ports []uint16 // free of them from first on, around the end
	first int
	free  int
}

func newPortRing(ports []uint16) portRing {
	return portRing{ports: append([]uint16(nil), ports...), free: len(ports)}
}

// take must not be called if none is free.
func (r *portRing) take() uint16 {
	port := r.ports[r.first]
	r.first++
	if r.first == len(r.ports) {
		r.first = 0
	}
	r.free--
	return port
}

func (r *portRing) put(port uint16) {
	last := r.first + r.free
	if last >= len(r.ports) {
		last -= len(r.ports)
	}
	r.ports[last] = port
	r.free++
}

// usablePorts are those that connect() would choose from in the calling thread's
// network namespace, without the server's: nothing may be connected to itself.
func usablePorts(p *Plan) ([]uint16, error) {
	low, high, ok := localPortRange()
	if !ok {
		return nil, errors.New("can't read net.ipv4.ip_local_port_range")
	}
	all := PortRange{low, high}
	if p.LocalPorts != (PortRange{}) {
		all = p.LocalPorts.within(all)
	}
	reserved, err := reservedPorts()
	if err != nil {
		return nil, err
	}
	var ports []uint16
	for port := int(all.Low); port <= int(all.High); port++ {
		if !reserved[port] && port != int(p.Target.Port()) {
			ports = append(ports, uint16(port))
		}
	}
	return ports, nil
}

// reservedPorts reads ip_local_reserved_ports of the calling thread's network
// namespace: "8080,9148-9150".
func reservedPorts() (map[int]bool, error) {
	const name = "net.ipv4.ip_local_reserved_ports"
	// Not os.ReadFile: a shard's files must not meet the runtime's poller.
	fd, err := unix.Open("/proc/sys/net/ipv4/ip_local_reserved_ports", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	defer unix.Close(fd)
	// The kernel writes it in one piece or not at all (proc_do_large_bitmap); the longest
	// is every second port.
	buf := make([]byte, 1<<18)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	ports, err := parsePortList(string(buf[:n]))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return ports, nil
}

func parsePortList(text string) (map[int]bool, error) {
	ports := make(map[int]bool)
	text = strings.TrimSpace(text)
	if text == "" {
		return ports, nil
	}
	for item := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(item, "-")
		if !isRange {
			last = first
		}
		low, errLow := strconv.ParseUint(first, 10, 16)
		high, errHigh := strconv.ParseUint(last, 10, 16)
		if err := errors.Join(errLow, errHigh); err != nil {
			return nil, err
		}
		for port := low; port <= high; port++ {
			ports[int(port)] = true
		}
	}
	return ports, nil
}
