package tracer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/testenv"
)

// TestMain has the kernel count how often each program runs, for the log of a test
// that failed.
func TestMain(m *testing.M) {
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	code := m.Run()
	if err == nil {
		_ = stats.Close()
	}
	os.Exit(code)
}

// limit names what never came; nothing waits for it otherwise.
const limit = 20 * time.Second

// serverPort is where a scene's server listens: outside every range of
// ephemeral ports that a scene sets.
const serverPort = 8080

// scene is a fresh network, a server that listens in it, and a trace of it.
type scene struct {
	*trial
	lab      *netlab.Lab
	trace    *Tracer
	traced   []*netlab.Namespace
	before   map[*netlab.Namespace]netlab.Counters
	counted  map[*netlab.Namespace]netlab.Counters // since before; complete once finish has returned
	server   netip.AddrPort
	listener int
	open     map[int]bool // sockets
	conns    []conn
	// stillOpen is how many sockets, apart from listeners, the scenario leaves
	// open on purpose.
	stillOpen int
	// noPort are the sockets whose connect() failed with EADDRNOTAVAIL.
	noPort []tcp.Cookie
	// own is a socket that is nobody's client.
	own tcp.Cookie
	// mapped: clients are IPv6 sockets that speak IPv4.
	mapped bool
	// busy: a loss is no failure, if the account explains what is missing.
	busy bool

	events []Event // what Read has handed over
	stats  Stats   // complete once finish has returned

	witness *evidence           // nil where the kernel allows none
	atOnce  map[tcp.Cookie]bool // see madeAtOnce
}

// conn is a connection, with the names that user space knows it by.
type conn struct {
	client, server             int // sockets
	clientCookie, serverCookie tcp.Cookie
	tuple                      tcp.FourTuple // of the client
}

// setup says what scene to make.
type setup struct {
	netlab.Options
	traced func(*netlab.Lab) []*netlab.Namespace // nil: all of the lab's
	opts   Options                               // but for NetNS
	port   uint16                                // of the server; 0: serverPort
}

// trial is a test, or a first try at it, whose failures are kept and not yet the test's.
type trial struct {
	*testing.T
	first bool
	kept  []string
	// hidden: the kernel counted more than the trace, whose account explains nothing of it.
	hidden bool
}

func (r *trial) Errorf(format string, args ...any) {
	r.Helper()
	if !r.first {
		r.T.Errorf(format, args...)
		return
	}
	r.kept = append(r.kept, fmt.Sprintf(format, args...))
}

func (r *trial) Error(args ...any) {
	r.Helper()
	r.Errorf("%s", fmt.Sprintln(args...))
}

func (r *trial) Fatalf(format string, args ...any) {
	r.Helper()
	r.Errorf(format, args...)
	if !r.first {
		r.FailNow()
	}
	runtime.Goexit()
}

func (r *trial) Fatal(args ...any) {
	r.Helper()
	r.Fatalf("%s", fmt.Sprintln(args...))
}

// twice does a test, and does it once more if the trace lacked what the kernel counted: where the kernel runs no program in softirqs on
// top of some process (KNOWN_ISSUES.md) a scene in a thousand is hit. What fails always still does.
func twice(t *testing.T, do func(*trial)) {
	t.Helper()
	try, done := &trial{T: t, first: true}, make(chan struct{})
	go func() { // Fatalf ends it, and not the test
		defer close(done)
		do(try)
	}()
	<-done
	if t.Failed() || t.Skipped() || len(try.kept) == 0 {
		return
	}
	if !try.hidden {
		t.Fatal(strings.Join(try.kept, "; "))
	}
	t.Logf("once more: %s", strings.Join(try.kept, "; "))
	do(&trial{T: t})
}

// newScene makes the network, starts to listen, and then to trace.
func newScene(t *testing.T, o setup) *scene {
	t.Helper()
	return sceneOf(&trial{T: t}, o)
}

func sceneOf(try *trial, o setup) *scene {
	t := try.T
	t.Helper()
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.BPF)
	if o.Kind == netlab.Pair {
		testenv.Require(t, testenv.Veth)
	}
	lab, err := newLab(o.Options)
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{
		trial: try, lab: lab, open: make(map[int]bool), before: make(map[*netlab.Namespace]netlab.Counters),
		counted: make(map[*netlab.Namespace]netlab.Counters),
	}
	t.Cleanup(func() {
		for fd := range s.open {
			_ = unix.Close(fd)
		}
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	s.server = netip.AddrPortFrom(lab.ServerAddr(), cmp.Or(o.port, serverPort))
	s.listener = s.listen(s.server)

	s.traced = s.namespaces()
	if o.traced != nil {
		s.traced = o.traced(lab)
	}
	opts := o.opts
	for _, ns := range s.traced {
		opts.NetNS = append(opts.NetNS, NetNS(ns.Cookie()))
		s.before[ns] = s.counters(ns)
	}
	s.trace = open(t, opts)
	s.summon()
	if err := s.trace.Start(); err != nil {
		t.Fatal(err)
	}
	for _, ns := range s.traced {
		s.must("take the snapshot", ns.Do(s.trace.Snapshot))
	}
	return s
}

// newLab leaves out the settings that this kernel does not have: it is then as if
// they had been set (tcp_tw_reuse_delay came with 6.14).
func newLab(o netlab.Options) (*netlab.Lab, error) {
	lab, err := netlab.New(o)
	if errors.Is(err, netlab.ErrNoSetting) {
		o.Sysctls = slices.DeleteFunc(slices.Clone(o.Sysctls), func(s netlab.Sysctl) bool {
			return s.Key == "net.ipv4.tcp_tw_reuse_delay"
		})
		return netlab.New(o)
	}
	return lab, err
}

// open loads a trace that ends with the test.
func open(t testing.TB, opts Options) *Tracer {
	t.Helper()
	testenv.Require(t, testenv.Root, testenv.BPF)
	trace, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := trace.Close(); err != nil {
			t.Error(err)
		}
	})
	return trace
}

func (s *scene) counters(ns *netlab.Namespace) netlab.Counters {
	s.Helper()
	c, err := ns.Counters()
	if err != nil {
		s.Fatal(err)
	}
	return c
}

// must ends the test for an error of the scenery.
func (s *scene) must(what string, err error) {
	s.Helper()
	if err != nil {
		s.Fatalf("%s: %v", what, err)
	}
}

// Sockets. They are made inside the namespace and can be used from outside.

func (s *scene) socket(ns *netlab.Namespace) (fd int) {
	s.Helper()
	family := unix.AF_INET
	if s.server.Addr().Is6() || s.mapped {
		family = unix.AF_INET6
	}
	s.must("socket", ns.Do(func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		return err
	}))
	s.open[fd] = true
	for _, opt := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		s.must("setsockopt", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, opt, &unix.Timeval{Sec: int64(limit / time.Second)}))
	}
	return fd
}

func (s *scene) listen(at netip.AddrPort) int {
	s.Helper()
	fd := s.socket(s.lab.Server())
	s.bind(fd, at)
	s.must("listen", unix.Listen(fd, 128))
	return fd
}

func (s *scene) bind(fd int, to netip.AddrPort) {
	s.Helper()
	s.must("SO_REUSEADDR", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	s.must("bind", unix.Bind(fd, s.sockaddr(to)))
}

func (s *scene) sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is6() || s.mapped {
		return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}

func addrPortOf(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// cookie is what user space calls the socket by.
func (s *scene) cookie(fd int) tcp.Cookie {
	s.Helper()
	c, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	s.must("SO_COOKIE", err)
	return tcp.Cookie(c)
}

// tryDial connects from the port, from one that the kernel chooses if it is 0.
func (s *scene) tryDial(port uint16) (fd int, err error) {
	s.Helper()
	fd = s.socket(s.lab.Client())
	if port != 0 {
		s.bind(fd, netip.AddrPortFrom(s.lab.ClientAddrs()[0], port))
	}
	err = connect(fd, s.sockaddr(s.server))
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		s.noPort = append(s.noPort, s.cookie(fd))
	}
	return fd, err
}

// dial makes a connection and accepts it.
func (s *scene) dial(port uint16) conn {
	s.Helper()
	fd, err := s.tryDial(port)
	s.must("connect", err)
	return s.accept(fd)
}

// accept takes the next connection from the queue, which is that of one of clients.
func (s *scene) accept(clients ...int) conn {
	s.Helper()
	server, err := accept(s.listener)
	s.must("accept", err)
	s.open[server] = true
	peer, err := unix.Getpeername(server)
	s.must("getpeername", err)
	i := slices.IndexFunc(clients, func(fd int) bool {
		local, err := unix.Getsockname(fd)
		s.must("getsockname", err)
		return addrPortOf(local) == addrPortOf(peer)
	})
	if i < 0 {
		s.Fatalf("accepted %v, which is no client's", addrPortOf(peer))
	}
	client, local := clients[i], peer
	c := conn{
		client: client, server: server,
		clientCookie: s.cookie(client), serverCookie: s.cookie(server),
		tuple: tcp.FourTuple{Local: addrPortOf(local), Peer: s.server},
	}
	s.conns = append(s.conns, c)
	return c
}

func (s *scene) close(fd int) {
	s.Helper()
	delete(s.open, fd)
	s.must("close", unix.Close(fd))
}

func (s *scene) shutdown(fd int) {
	s.Helper()
	s.must("shutdown", unix.Shutdown(fd, unix.SHUT_WR))
}

// abort closes with SO_LINGER {1,0}.
func (s *scene) abort(fd int) {
	s.Helper()
	s.must("SO_LINGER", unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
	s.close(fd)
}

// vanish closes without a word to the peer (TCP_REPAIR).
func (s *scene) vanish(fd int) {
	s.Helper()
	s.must("TCP_REPAIR", unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1))
	s.close(fd)
}

func (s *scene) write(fd int) {
	s.Helper()
	_, err := unix.Write(fd, []byte{1})
	s.must("write", err)
}

// read waits for a byte, for the peer's FIN (0), or for an error.
func (s *scene) read(fd int) (int, error) {
	var n int
	err := uninterrupted(func() (err error) {
		n, err = unix.Read(fd, make([]byte, 1))
		return err
	})
	return max(n, 0), err
}

// uninterrupted repeats a call that a signal of the Go runtime broke off: one with
// a timeout of its own (SO_RCVTIMEO, SO_SNDTIMEO) is not restarted by the kernel.
func uninterrupted(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// connect waits for the end of the handshake: a second connect() on a socket that
// is connecting does that too (net/ipv4/af_inet.c, __inet_stream_connect).
func connect(fd int, to unix.Sockaddr) error {
	return uninterrupted(func() error { return unix.Connect(fd, to) })
}

func accept(listener int) (fd int, err error) {
	err = uninterrupted(func() (err error) {
		fd, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
		return err
	})
	return fd, err
}

func (s *scene) waitEOF(fd int) {
	s.Helper()
	n, err := s.read(fd)
	if n != 0 || err != nil {
		s.Fatalf("read %d bytes, %v; want the peer's FIN", n, err)
	}
}

// closeFirst closes one end, and the other when it has seen the FIN.
func (s *scene) closeFirst(first, second int) {
	s.Helper()
	s.close(first)
	s.waitEOF(second)
	s.close(second)
}

// deaf makes the kernel drop what arrives for the socket, until it is called again
// with false.
func (s *scene) deaf(fd int, on bool) {
	s.Helper()
	drop := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
	if on {
		s.must("attach a filter", unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop[0]}))
		return
	}
	s.must("detach the filter", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0))
}

// What the kernel says about sockets, through sock_diag.

// timerTimeWait is idiag_timer of a minisock (net/ipv4/inet_diag.c,
// inet_twsk_diag_fill).
const timerTimeWait = 3

func (s *scene) sockets(ns *netlab.Namespace) (all []*netlink.Socket) {
	s.Helper()
	s.must("sock_diag", ns.Do(func() error {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			socks, err := netlink.SocketDiagTCP(family)
			if err != nil {
				return err
			}
			all = append(all, socks...)
		}
		return nil
	}))
	return all
}

// minisocks are the TIME_WAITs and FIN_WAIT2s that have no full socket any more.
func (s *scene) minisocks(ns *netlab.Namespace) (m []*netlink.Socket) {
	s.Helper()
	for _, sock := range s.sockets(ns) {
		if sock.Timer == timerTimeWait {
			m = append(m, sock)
		}
	}
	return m
}

func (s *scene) minisocksIn(ns *netlab.Namespace, substate tcp.State) (n int) {
	s.Helper()
	for _, sock := range s.minisocks(ns) {
		if sock.State == uint8(substate) {
			n++
		}
	}
	return n
}

// await asks until the answer is yes.
func (s *scene) await(what string, ready func() bool) {
	s.Helper()
	for start := time.Now(); !ready(); time.Sleep(time.Millisecond) {
		if time.Since(start) > limit {
			s.Fatalf("%s: not after %v; events:\n%s", what, limit, s.list())
		}
	}
}

// settle waits until the kernel is done with every connection: no full sockets but
// listeners, and those that the scenario keeps.
//
// A socket leaves the tables before it reports CLOSE (net/ipv4/tcp.c,
// tcp_set_state), in a section with bottom halves disabled, for the end of which
// MEMBARRIER_CMD_GLOBAL waits.
func (s *scene) settle() {
	s.Helper()
	s.await("the end of all connections", func() bool {
		n := 0
		for _, ns := range s.namespaces() {
			for _, sock := range s.sockets(ns) {
				if sock.Timer != timerTimeWait && tcp.State(sock.State) != tcp.Listen {
					n++
				}
			}
		}
		return n == s.stillOpen
	})
	s.afterSoftirqs()
}

// afterSoftirqs waits until what is under way in softirqs is done.
func (s *scene) afterSoftirqs() {
	s.Helper()
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, 1, 0, 0); errno != 0 {
		s.Fatalf("membarrier: %v", errno)
	}
}

// awaitDrop waits until the server's counter of drops has risen, and the trace has had
// its look at the listener's queues, which is a moment later.
func (s *scene) awaitDrop(counter string) {
	s.Helper()
	server := s.lab.Server()
	s.await("a drop", func() bool { return s.counters(server).Sub(s.before[server])[counter] > 0 })
	s.afterSoftirqs()
}

func (s *scene) namespaces() []*netlab.Namespace {
	if s.lab.Client() == s.lab.Server() {
		return []*netlab.Namespace{s.lab.Client()}
	}
	return []*netlab.Namespace{s.lab.Client(), s.lab.Server()}
}

// Events.

// drain reads what has happened so far.
func (s *scene) drain() {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), limit)
	defer cancel()
	buf := make([]Event, 256)
	for {
		n, err := s.trace.Read(ctx, buf)
		s.events = append(s.events, buf[:n]...)
		if errors.Is(err, io.EOF) || (err == nil && n < len(buf)) {
			return
		}
		s.must("read the trace", err)
	}
}

// stop ends the trace and reads the rest of it.
func (s *scene) stop() {
	s.Helper()
	s.must("stop", s.trace.Stop())
	s.events = append(s.events, readAll(s.T, s.trace)...)
	var err error
	s.stats, err = s.trace.Stats()
	s.must("stats", err)
}

// readAll reads a stopped trace until io.EOF.
func readAll(t testing.TB, trace *Tracer) (events []Event) {
	t.Helper()
	buf := make([]Event, 1000)
	for {
		n, err := trace.Read(t.Context(), buf)
		events = append(events, buf[:n]...)
		if errors.Is(err, io.EOF) {
			return events
		}
		if err != nil {
			t.Fatalf("read the trace: %v", err)
		}
	}
}

func (s *scene) list() string {
	var b []byte
	for _, ev := range s.events {
		side := "other "
		switch {
		case ev.NetNS == NetNS(s.lab.Client().Cookie()):
			side = "client"
		case ev.NetNS == NetNS(s.lab.Server().Cookie()):
			side = "server"
		}
		b = fmt.Appendf(b, "%4d %.6f %s %-12v %6d %v %v>%v sub %v cause %q flags %05b errno %v reason %q ticks %d\n", ev.Seq, float64(ev.MonoNS)/1e9, side, ev.Kind,
			ev.Cookie, ev.Tuple, ev.Old, ev.New, ev.Substate, ev.Cause, ev.Flags, ev.Errno, s.trace.RstReasons()[ev.Reason], ev.Ticks)
	}
	return string(b)
}

// filter returns the events that match.
func (s *scene) filter(match func(*Event) bool) (found []Event) {
	for i := range s.events {
		if match(&s.events[i]) {
			found = append(found, s.events[i])
		}
	}
	return found
}

func (s *scene) ofKind(k Kind) []Event {
	return s.filter(func(ev *Event) bool { return ev.Kind == k })
}

func (s *scene) ended(c tcp.Cause) []Event {
	return s.filter(func(ev *Event) bool { return ev.Kind == tcp.KindTWEnd && ev.Cause == c })
}

// states are the changes of one socket, in order. LISTEN > SYN_RECV is left out:
// until 6.12 it comes before the socket has a cookie.
func (s *scene) states(cookie tcp.Cookie) (changes []string) {
	for _, ev := range s.events {
		if ev.Kind == tcp.KindState && ev.Cookie == cookie && ev.Old != tcp.Listen {
			changes = append(changes, ev.Old.String()+">"+ev.New.String())
		}
	}
	return changes
}

// wantStates compares the changes of a socket.
func (s *scene) wantStates(cookie tcp.Cookie, want ...string) {
	s.Helper()
	if got := s.states(cookie); !slices.Equal(got, want) {
		s.Errorf("socket %d went %v, want %v", cookie, got, want)
	}
}

// one returns the only one of events.
func (s *scene) one(what string, events []Event) Event {
	s.Helper()
	if len(events) != 1 {
		s.Fatalf("%d events for %s, want 1", len(events), what)
	}
	return events[0]
}

// diagCookie is idiag_cookie.
func diagCookie(sock *netlink.Socket) tcp.Cookie {
	return tcp.Cookie(uint64(sock.ID.Cookie[1])<<32 | uint64(sock.ID.Cookie[0]))
}

// finish waits for the end of all connections, stops the trace, and compares it
// with what the kernel counted itself.
func (s *scene) finish() {
	s.Helper()
	s.settle()
	left := make(map[*netlab.Namespace][]*netlink.Socket)
	for _, ns := range s.traced {
		left[ns] = s.minisocks(ns)
		s.counted[ns] = s.counters(ns).Sub(s.before[ns])
	}
	s.testify()
	s.stop()
	for _, ns := range s.traced {
		s.compareCounters(ns)
		s.compareMinisocks(ns, left[ns])
	}
	s.compareOracle()
	s.checkStream()
	s.checkTuples()
	s.checkAccount()
}

// is matches the state changes from one of the old states to new.
func is(new tcp.State, old ...tcp.State) func(*Event) bool {
	return func(ev *Event) bool {
		return ev.Kind == tcp.KindState && ev.New == new && slices.Contains(old, ev.Old)
	}
}

func kind(k Kind) func(*Event) bool {
	return func(ev *Event) bool { return ev.Kind == k }
}

// accounts is how the kernel's own counters of a namespace name the events of the
// trace (net/ipv4/proc.c; where each is added is said in the row).
var accounts = []struct {
	counters []string // their sum
	fact     tcp.Fact // compared only where the trace says that it is exact
	match    func(*Event) bool
}{
	// __inet_twsk_schedule: TWKilled for at most four seconds.
	{[]string{"TcpExt.TW", "TcpExt.TWKilled"}, tcp.FactTWEnter, kind(tcp.KindTWEnter)},
	// __inet_check_established, __inet_hash_connect.
	{[]string{"TcpExt.TWRecycled"}, tcp.FactTWEnd, func(ev *Event) bool {
		return ev.Kind == tcp.KindTWEnd && ev.Cause == tcp.CauseReusedByConnect
	}},
	// tcp_time_wait, when inet_twsk_alloc gave none. Inferred without the enrichment, and right in
	// every scene but one, which does not compare.
	{[]string{"TcpExt.TCPTimeWaitOverflow"}, tcp.FactTWEnter, kind(tcp.KindTWOverflow)},
	// tcp_v4_send_reset, tcp_send_active_reset and their like.
	{[]string{"Tcp.OutRsts"}, tcp.FactRstReason, kind(tcp.KindRstSent)},
	// __tcp_retransmit_skb, tcp_rtx_synack; no segment of a scene is split.
	{[]string{"Tcp.RetransSegs"}, tcp.FactRetransmit, func(ev *Event) bool {
		return ev.Kind == tcp.KindRetransmit && ev.Errno == 0 || ev.Kind == tcp.KindSynAckRetransmit
	}},
	// tcp_conn_request, tcp_v4_syn_recv_sock.
	{[]string{"TcpExt.ListenDrops"}, tcp.FactListenDrop, kind(tcp.KindListenDrop)},
	{[]string{"TcpExt.ListenOverflows"}, tcp.FactListenDrop, func(ev *Event) bool {
		return ev.Kind == tcp.KindListenDrop && ev.Cause == tcp.CauseAcceptQueue
	}},
	{[]string{"TcpExt.TCPSynRetrans"}, tcp.FactRetransmit, func(ev *Event) bool {
		return ev.Kind == tcp.KindRetransmit && ev.Errno == 0 && (ev.Old == tcp.SynSent || ev.Old == tcp.SynRecv) ||
			ev.Kind == tcp.KindSynAckRetransmit
	}},
	// tcp_set_state.
	{[]string{"Tcp.EstabResets"}, tcp.FactState, is(tcp.Close, tcp.Established, tcp.CloseWait)},
	// tcp_connect, which comes after the search for a port.
	{[]string{"Tcp.ActiveOpens"}, tcp.FactState, is(tcp.SynSent, tcp.Close)},
	// tcp_create_openreq_child.
	{[]string{"Tcp.PassiveOpens"}, tcp.FactState, is(tcp.SynRecv, tcp.Listen)},
	// tcp_done; a connect that failed inside the kernel does not get there, nor does the
	// second child of a handshake whose ACK and data two CPUs have at once
	// (inet_ehash_nolisten; once in TestStress on 6.1).
	{[]string{"Tcp.AttemptFails"}, tcp.FactState, is(tcp.Close, tcp.SynSent, tcp.SynRecv)},
}

func (s *scene) compareCounters(ns *netlab.Namespace) {
	s.Helper()
	counted := s.counted[ns]
	noSegment := s.filter(func(ev *Event) bool {
		return ev.NetNS == NetNS(ns.Cookie()) && ev.Kind == tcp.KindConnectFailed
	})
	for _, row := range accounts {
		if s.trace.Coverage()[row.fact] != tcp.Exact {
			s.Logf("%v: %s is %s here", row.counters, row.fact, s.trace.Coverage()[row.fact])
			continue
		}
		var want uint64
		for _, name := range row.counters {
			want += counted[name]
		}
		got := s.filter(func(ev *Event) bool { return ev.NetNS == NetNS(ns.Cookie()) && row.match(ev) })
		n := uint64(len(got))
		if row.counters[0] == "Tcp.ActiveOpens" || row.counters[0] == "Tcp.AttemptFails" {
			n -= uint64(len(noSegment))
		}
		if row.counters[0] == "Tcp.AttemptFails" && s.busy {
			n = max(min(n, want), n-s.numberOf(ns, change(move{tcp.SynRecv, tcp.Close})))
		}
		if !s.same(n, want) {
			s.hidden = s.hidden || n < want
			s.Errorf("%v is %d, the trace has %d", row.counters, want, n)
		}
		if s.busy {
			s.Logf("%v is %d, the trace has %d", row.counters, want, n)
		}
	}
	if ns == s.lab.Client() && !s.same(uint64(len(noSegment)), uint64(len(s.noPort))) {
		s.Errorf("%d connects failed inside the kernel, the trace has %d", len(s.noPort), len(noSegment))
	}
}

// same compares a count of events with one of the kernel's. Only in a busy scene
// may events be missing, and only as many as the account says.
func (s *scene) same(events, kernel uint64) bool {
	if s.busy {
		return events <= kernel && kernel <= events+s.stats.Lost()
	}
	return events == kernel
}

// compareMinisocks compares the minisocks that sock_diag shows at the end with
// those that the trace saw come and not go.
func (s *scene) compareMinisocks(ns *netlab.Namespace, left []*netlink.Socket) {
	s.Helper()
	alive := make(map[tcp.Cookie]int)
	for _, ev := range s.events {
		if ev.NetNS != NetNS(ns.Cookie()) {
			continue
		}
		switch ev.Kind {
		case tcp.KindTWEnter:
			alive[ev.Cookie]++
		case tcp.KindTWEnd:
			alive[ev.Cookie]--
		}
	}
	for _, sock := range left {
		alive[diagCookie(sock)]--
	}
	for cookie, n := range alive {
		if n != 0 && (!s.busy || s.stats.Lost() == 0) {
			s.Errorf("minisock %d: entered minus ended minus left is %d", cookie, n)
		}
	}
}

// checkStream checks what every trace promises about its events.
func (s *scene) checkStream() {
	s.Helper()
	last := make(map[tcp.Cookie]int64)
	made := 0
	for i, ev := range s.events {
		if ev.Seq != uint64(i)+1 {
			s.Fatalf("event %d has Seq %d", i+1, ev.Seq)
		}
		if !slices.ContainsFunc(s.traced, func(ns *netlab.Namespace) bool { return NetNS(ns.Cookie()) == ev.NetNS }) {
			s.Errorf("event %d is of namespace %d, which is not traced", ev.Seq, ev.NetNS)
		}
		// The clock of programs may go back a little between CPUs (ktime_get_mono_fast_ns).
		if ev.Cookie != 0 && ev.MonoNS < last[ev.Cookie] && !s.busy {
			s.Errorf("event %d of socket %d is older than the one before", ev.Seq, ev.Cookie)
		}
		last[ev.Cookie] = ev.MonoNS
		if ev.Kind == tcp.KindState && ev.Flags&tcp.FlagTWMade != 0 {
			made++
		}
	}
	if enters := len(s.ofKind(tcp.KindTWEnter)); made != enters && s.stats.Lost() == 0 {
		s.Errorf("%d sockets became a minisock, of which there were %d", made, enters)
	}
	if unknown := s.ended(tcp.CauseUnknown); len(unknown) > 0 {
		s.Errorf("%d minisocks ended for no known cause", len(unknown))
	}
}

// checkTuples compares addresses, ports and cookies with getsockname's and
// SO_COOKIE's.
func (s *scene) checkTuples() {
	s.Helper()
	want := make(map[tcp.Cookie]tcp.FourTuple)
	for _, c := range s.conns {
		want[c.clientCookie] = c.tuple
		want[c.serverCookie] = c.tuple.Reverse()
	}
	for _, ev := range s.events {
		tuple, ok := want[ev.Cookie]
		if !ok || ev.Old == tcp.Close { // before the search for a port
			continue
		}
		if ev.Tuple != tuple {
			s.Errorf("event %d (%v %v>%v) has %v, want %v", ev.Seq, ev.Kind, ev.Old, ev.New, ev.Tuple, tuple)
		}
	}
}

// checkAccount checks that the account adds up, and that a scene as quiet as this
// lost nothing.
func (s *scene) checkAccount() {
	s.Helper()
	checkAccount(s.T, s.stats, s.events)
	if s.stats.Lost() != 0 && !s.busy {
		s.Errorf("lost %d: %+v", s.stats.Lost(), s.stats)
	}
}

func checkAccount(t testing.TB, st Stats, events []Event) {
	t.Helper()
	var recorded, rescued, late uint64
	byKind := make(map[Kind]uint64)
	for _, ev := range events {
		switch {
		case ev.Kind == tcp.KindTWConvert && ev.Flags&tcp.FlagLate != 0:
			late++
		// These two come with the change of state that was rescued.
		case ev.Flags&tcp.FlagRescued != 0 && ev.Kind != tcp.KindTWOverflow && ev.Kind != tcp.KindConnectFailed:
			rescued++
		default:
			recorded++
		}
		byKind[ev.Kind]++
	}
	if st.Recorded != recorded || st.Rescued != rescued || st.Late != late {
		t.Errorf("Recorded %d, Rescued %d and Late %d, Read gave %d, %d and %d", st.Recorded, st.Rescued, st.Late, recorded, rescued, late)
	}
	if st.Emitted != st.Recorded+st.Rescued+st.Duplicates+st.LostRing {
		t.Errorf("the drain is not complete: %+v", st)
	}
	if st.Seen != recorded+st.LostRing+st.SkippedRecursion {
		t.Errorf("Seen is %d, not Recorded %d + LostRing %d + SkippedRecursion %d", st.Seen, recorded, st.LostRing, st.SkippedRecursion)
	}
	var lost uint64
	for _, n := range st.LostByKind {
		lost += n
	}
	if lost != st.LostRing {
		t.Errorf("LostByKind has %d, LostRing is %d", lost, st.LostRing)
	}
	for k := range Kind(tcp.NumKinds) {
		if st.ByKind[k] != byKind[k] {
			t.Errorf("ByKind[%v] is %d, Read gave %d", k, st.ByKind[k], byKind[k])
		}
	}
}

// writeSeq is the next sequence number that the socket will write (TCP_REPAIR).
func writeSeq(fd int) (uint32, error) {
	var seq uint32
	err := repaired(fd, func() error {
		n, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
		seq = uint32(n)
		return err
	})
	return seq, err
}

// repaired runs f on a socket whose sending half can be read and written, and
// which sends nothing meanwhile nor after (TCP_REPAIR_OFF_NO_WP).
func repaired(fd int, f func() error) error {
	const tcpSendQueue, offNoWindowProbe = 2, -1
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1); err != nil {
		return fmt.Errorf("TCP_REPAIR: %w", err)
	}
	err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, tcpSendQueue)
	return errors.Join(err, f(), unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, offNoWindowProbe))
}
