package loadgen_test

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/testenv"
	"github.com/twtrace/twtrace/loadgen"
)

// The tests of this file have a few ports for many connections, each of which leaves
// a TIME_WAIT that lasts longer than the test.
const (
	lowPort, highPort = 40000, 40299
	ports             = highPort - lowPort + 1
)

// sourceLab is a network with those ports, and a server in it.
type sourceLab struct {
	*netlab.Lab
	server *loadgen.Server
	before [2]netlab.Counters // of the client's and the server's namespace
}

func newSourceLab(t *testing.T, o netlab.Options, port uint16, sysctls ...string) *sourceLab {
	t.Helper()
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.Veth)
	for _, text := range append([]string{"net.ipv4.tcp_tw_reuse=0", "net.ipv4.ip_local_port_range=40000 40299"}, sysctls...) {
		s, err := netlab.ParseSysctl(text)
		if err != nil {
			t.Fatal(err)
		}
		o.Sysctls = append(o.Sysctls, s)
	}
	lab, err := netlab.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	plan := loadgen.NewServerPlan(netip.AddrPortFrom(lab.ServerAddr(), port))
	plan.Enter = lab.Server().Enter
	l := &sourceLab{Lab: lab, server: startServer(t, plan)}
	l.before = l.counters(t)
	return l
}

func (l *sourceLab) counters(t *testing.T) (both [2]netlab.Counters) {
	t.Helper()
	for i, ns := range []*netlab.Namespace{l.Client(), l.Server()} {
		c, err := ns.Counters()
		if err != nil {
			t.Fatal(err)
		}
		both[i] = c
	}
	return both
}

// counted is how much a counter of the client's namespace has moved.
func (l *sourceLab) counted(t *testing.T, counter string) int {
	t.Helper()
	return int(l.counters(t)[0].Sub(l.before[0])[counter])
}

// killed is how many TIME_WAITs an RST may have ended, which gives their ports back: an
// ACK that comes late, on another CPU or sent again, finds the other end gone, and the
// listener answers it by RST (RFC 1337).
func (l *sourceLab) killed(t *testing.T) int {
	t.Helper()
	now := l.counters(t)
	return int(max(now[0].Sub(l.before[0])["Tcp.OutRsts"], now[1].Sub(l.before[1])["Tcp.OutRsts"]))
}

// timeWaits are the local ends of the client's TIME_WAITs towards port 7, as
// /proc/net/tcp has them once the other end has closed everything too.
func (l *sourceLab) timeWaits(t *testing.T) map[netip.AddrPort]bool {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		byState, err := l.list()
		if err != nil {
			t.Fatal(err)
		}
		const timeWait = "06"
		if len(byState) <= 1 || time.Now().After(end) {
			return byState[timeWait]
		}
	}
}

// list returns the local ends of the client's connections to port 7, by their state.
func (l *sourceLab) list() (map[string]map[netip.AddrPort]bool, error) {
	byState := make(map[string]map[netip.AddrPort]bool)
	return byState, l.Client().Do(func() error {
		for _, name := range []string{"tcp", "tcp6"} {
			text, err := os.ReadFile("/proc/thread-self/net/" + name)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(text)) {
				f := strings.Fields(line)
				if len(f) < 4 || !strings.HasSuffix(f[2], ":0007") {
					continue
				}
				end, err := procEnd(f[1])
				if err != nil {
					return err
				}
				if byState[f[3]] == nil {
					byState[f[3]] = make(map[netip.AddrPort]bool)
				}
				byState[f[3]][end] = true
			}
		}
		return nil
	})
}

// procEnd reads an end of /proc/net/tcp: the address in words of the machine's order.
func procEnd(text string) (netip.AddrPort, error) {
	addr, port, _ := strings.Cut(text, ":")
	words, err := hex.DecodeString(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for i := 0; i < len(words); i += 4 {
		binary.NativeEndian.PutUint32(words[i:], binary.BigEndian.Uint32(words[i:]))
	}
	a, _ := netip.AddrFromSlice(words)
	var n uint16
	_, err = fmt.Sscanf(port, "%x", &n)
	return netip.AddrPortFrom(a, n), err
}

// plan is a storm of 200 connections at a time that come from the lab's sources.
func (l *sourceLab) plan(loops int, bind loadgen.Binding) loadgen.Plan {
	p := loadgen.NewPlan(l.server.Addr())
	p.Loops, p.Connections, p.Bind, p.Sources = loops, 200, bind, l.ClientAddrs()
	p.Enter = l.Client().Enter
	// The other end closes too before a port is taken again.
	p.Interval = 100 * time.Millisecond
	return p
}

// ends counts attempts by phase and errno.
func ends(attempts []loadgen.Attempt) map[[2]string]int {
	n := make(map[[2]string]int)
	for i := range attempts {
		n[[2]string{attempts[i].Phase.String(), attempts[i].Errno.String()}]++
	}
	return n
}

// wantEnds checks that done finished, and all others failed alike; killed more may
// have found a port.
func wantEnds(t *testing.T, attempts []loadgen.Attempt, done, killed int, phase, errno string) {
	t.Helper()
	got := ends(attempts)
	failed := got[[2]string{phase, errno}]
	if finished := len(attempts) - failed; len(got) != 2 || failed == 0 || finished < done || finished > done+killed {
		t.Errorf("%v, want %d (and %d) done and the others %s in phase %s", got, done, killed, errno, phase)
	}
}

var families = []struct {
	name string
	net  netlab.Options
}{
	{"pair", netlab.Options{}},
	{"pair, IPv6", netlab.Options{IPv6: true}},
	{"loopback", netlab.Options{Kind: netlab.Loopback}},
	{"loopback, IPv6", netlab.Options{Kind: netlab.Loopback, IPv6: true}},
}

// TestBindPort has three times as many connections as ports, all of which finish and
// leave a TIME_WAIT by the kernel's own count, though tcp_tw_reuse is 0.
func TestBindPort(t *testing.T) {
	const loops = 5
	for _, f := range families {
		for _, shards := range []int{1, 3} {
			t.Run(f.name+"/"+[]string{1: "one shard", 3: "three shards"}[shards], func(t *testing.T) {
				l := newSourceLab(t, f.net, 7)
				p := l.plan(loops, loadgen.BindPort)
				p.Shards = shards
				result, attempts := storm(t.Context(), t, p)
				all(t, attempts, loadgen.PhaseDone, 0, 0)
				if result.PortSkips != 0 {
					t.Errorf("%d ports were skipped, and nobody else was there", result.PortSkips)
				}
				used := make(map[uint16]int)
				owner := make(map[uint16]uint16)
				for i := range attempts {
					a := &attempts[i]
					used[a.LocalPort]++
					if a.LocalPort < lowPort || a.LocalPort > highPort {
						t.Fatalf("port %d is not of the range", a.LocalPort)
					}
					if shard, ok := owner[a.LocalPort]; ok && shard != a.Shard {
						t.Errorf("port %d was used by shards %d and %d", a.LocalPort, shard, a.Shard)
					}
					owner[a.LocalPort] = a.Shard
				}
				for port, n := range used {
					// In turn: none rests while another is used twice more.
					if least := len(attempts) / ports; n < least || n > least+1 {
						t.Errorf("port %d was used %d times", port, n)
					}
				}
				// The kernel's own list: a TIME_WAIT for each port, all towards the server.
				if left := len(l.timeWaits(t)); len(used) != ports || left > ports || left < ports-l.killed(t) {
					t.Errorf("%d ports were used, and %d are in TIME_WAIT, want %d", len(used), left, ports)
				}
				made, reused := l.counted(t, "TcpExt.TW"), l.counted(t, "TcpExt.TWRecycled")
				if made != len(attempts) || reused == 0 {
					t.Errorf("the kernel made %d TIME_WAITs and reused %d, want %d and more than none", made, reused, len(attempts))
				}
			})
		}
	}
}

// TestBindNone is what TestBindPort differs from: the same connections run out of ports.
func TestBindNone(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			l := newSourceLab(t, f.net, 7)
			p := l.plan(3, loadgen.BindNone)
			p.Sources = nil
			_, attempts := storm(t.Context(), t, p)
			wantEnds(t, attempts, ports, l.killed(t), "connect", "EADDRNOTAVAIL")
		})
	}
}

// TestBindAddr: an address that is bound without IP_BIND_ADDRESS_NO_PORT takes its
// port in bind(), whatever the destination; with it in connect(), for each destination.
func TestBindAddr(t *testing.T) {
	for _, f := range families {
		for _, noPort := range []bool{false, true} {
			t.Run(f.name+map[bool]string{false: "/port", true: "/no port"}[noPort], func(t *testing.T) {
				l := newSourceLab(t, f.net, 7)
				second := loadgen.NewServerPlan(netip.AddrPortFrom(l.ServerAddr(), 8))
				second.Enter = l.Server().Enter
				other := startServer(t, second)

				p := l.plan(1, loadgen.BindAddr)
				p.NoPort = noPort
				_, first := storm(t.Context(), t, p)
				all(t, first, loadgen.PhaseDone, 0, 0)
				p.Target = other.Addr()
				_, attempts := storm(t.Context(), t, p)
				if noPort {
					all(t, attempts, loadgen.PhaseDone, 0, 0)
					return
				}
				wantEnds(t, attempts, ports-len(first), l.killed(t), "bind", "EADDRINUSE")
			})
		}
	}
}

// TestSources: the ports count for each source, and the connections take them in turn.
func TestSources(t *testing.T) {
	const sources = 3
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			f.net.Sources = sources
			for _, c := range []struct {
				bind         loadgen.Binding
				noPort       bool
				phase, errno string
			}{
				{loadgen.BindNone, false, "connect", "EADDRNOTAVAIL"},
				{loadgen.BindAddr, true, "connect", "EADDRNOTAVAIL"},
				{loadgen.BindAddr, false, "bind", "EADDRINUSE"},
				{loadgen.BindPort, false, "", ""},
			} {
				l := newSourceLab(t, f.net, 7)
				p := l.plan(6, c.bind)
				p.NoPort = c.noPort
				_, attempts := storm(t.Context(), t, p)
				if c.phase == "" {
					all(t, attempts, loadgen.PhaseDone, 0, 0)
				} else {
					wantEnds(t, attempts, sources*ports, l.killed(t), c.phase, c.errno)
				}
				from, left := make(map[netip.Addr]int), make(map[netip.Addr]int)
				for i := range attempts {
					from[p.Source(&attempts[i])]++
				}
				for end := range l.timeWaits(t) {
					left[end.Addr()]++
				}
				for _, a := range l.ClientAddrs() {
					if from[a] != len(attempts)/sources || left[a] > ports || left[a] < ports-l.killed(t) {
						t.Errorf("bind %s: %d of %d attempts came from %s, and by the kernel it has %d TIME_WAITs",
							c.bind, from[a], len(attempts), a, left[a])
					}
				}
			}
		})
	}
}

// TestBindPortLeavesOut: ports that are reserved, the server's own, and those that
// somebody else holds, are not used; only the last are tried.
func TestBindPortLeavesOut(t *testing.T) {
	const server, taken = 40250, 40260
	l := newSourceLab(t, netlab.Options{Kind: netlab.Loopback}, server,
		"net.ipv4.ip_local_reserved_ports=40000-40009,40100")
	var holder net.Listener
	err := l.Client().Do(func() (err error) {
		holder, err = net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", taken))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	result, attempts := storm(t.Context(), t, l.plan(6, loadgen.BindPort))
	all(t, attempts, loadgen.PhaseDone, 0, 0)
	used := make(map[uint16]bool)
	for i := range attempts {
		used[attempts[i].LocalPort] = true
	}
	for port := uint16(lowPort); port <= highPort; port++ {
		want := port > 40009 && port != 40100 && port != server && port != taken
		if used[port] != want {
			t.Errorf("port %d was used: %t, want %t", port, used[port], want)
		}
	}
	// 1,200 connections go around 287 ports a little more than four times, and meet the
	// one that is held each time.
	if result.PortSkips != 4 && result.PortSkips != 5 {
		t.Errorf("%d times a port was skipped", result.PortSkips)
	}
}

// TestBindPortExhausted opens more connections at once than there are ports.
func TestBindPortExhausted(t *testing.T) {
	l := newSourceLab(t, netlab.Options{}, 7)
	p := l.plan(1, loadgen.BindPort)
	// Longer than a slow machine takes to open them.
	p.Connections, p.Hold = ports+50, 5*time.Second
	_, attempts := storm(t.Context(), t, p)
	wantEnds(t, attempts, ports, 0, "bind", "EADDRINUSE")
}

// TestLocalPorts: IP_LOCAL_PORT_RANGE is obeyed however the port is chosen.
func TestLocalPorts(t *testing.T) {
	const low, high = 40100, 40139
	for _, f := range families {
		for _, bind := range []loadgen.Binding{loadgen.BindNone, loadgen.BindAddr, loadgen.BindPort} {
			t.Run(f.name+"/bind "+bind.String(), func(t *testing.T) {
				l := newSourceLab(t, f.net, 7)
				p := l.plan(1, bind)
				p.LocalPorts = loadgen.PortRange{Low: low, High: high}
				if err := p.CheckKernel(); errors.Is(err, loadgen.ErrNoPortRange) {
					t.Skip(err)
				}
				if bind == loadgen.BindNone {
					p.Sources = nil
				}
				p.Concurrency = 1
				_, attempts := storm(t.Context(), t, p)
				switch bind {
				case loadgen.BindNone:
					wantEnds(t, attempts, high-low+1, l.killed(t), "connect", "EADDRNOTAVAIL")
				case loadgen.BindAddr:
					wantEnds(t, attempts, high-low+1, l.killed(t), "bind", "EADDRINUSE")
				case loadgen.BindPort: // with as many connections as it likes
				}
				left := l.timeWaits(t)
				for end := range left {
					if end.Port() < low || end.Port() > high {
						t.Errorf("%s is outside of %d-%d", end, low, high)
					}
				}
				if n := high - low + 1; len(left) > n || len(left) < n-l.killed(t) {
					t.Errorf("%d ports are in TIME_WAIT, want %d", len(left), high-low+1)
				}
			})
		}
	}
}
