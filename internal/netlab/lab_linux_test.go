package netlab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/testenv"
)

// childEnv makes the test binary act as a process that holds a lab, or one of the
// others named here.
const (
	childEnv     = "NETLAB_TEST_CHILD"
	mainThread   = "main thread"
	unprivileged = "unprivileged"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(childEnv); mode != "" {
		child(mode)
		return
	}
	os.Exit(m.Run())
}

// child makes a lab, or fails to, says so, and waits to be ended; or does what
// mode says.
func child(mode string) {
	if mode == mainThread {
		fmt.Println(callFromMainThread())
		return
	}
	lab, err := New(Options{})
	if mode == unprivileged {
		fmt.Println(errors.Is(err, ErrNotPermitted), err)
		return
	}
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	// Everything that can hold a namespace: a socket and a thread, too.
	ln, err := listen(lab)
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	inside := make(chan error)
	go func() {
		runtime.LockOSThread()
		inside <- lab.Client().Enter()
		select {}
	}()
	fmt.Println(<-inside == nil, lab.Client().Cookie(), lab.Server().Cookie(), ln.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
	panic("asked to panic")
}

func newLab(t testing.TB, o Options) *Lab {
	t.Helper()
	testenv.Require(t, testenv.Root, testenv.NetNS)
	if o.Kind == Pair {
		testenv.Require(t, testenv.Veth)
	}
	lab, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return lab
}

func listen(lab *Lab) (ln *net.TCPListener, err error) {
	err = lab.Server().Do(func() error {
		ln, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(lab.ServerAddr(), 0)))
		return err
	})
	return ln, err
}

// dial connects from the address, or from the kernel's choice, to the listener,
// and accepts.
func dial(lab *Lab, from netip.Addr, ln *net.TCPListener) (c *net.TCPConn, err error) {
	err = lab.Client().Do(func() error {
		var local *net.TCPAddr
		if from.IsValid() {
			local = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
		}
		c, err = net.DialTCP("tcp", local, ln.Addr().(*net.TCPAddr))
		return err
	})
	if err != nil {
		return nil, err
	}
	accepted, err := ln.Accept()
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, accepted.Close()
}

func counters(t testing.TB, ns *Namespace) Counters {
	t.Helper()
	c, err := ns.Counters()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestConnect makes connections from each source and from the kernel's choice,
// and compares the kernel's counters with what was done.
func TestConnect(t *testing.T) {
	const sources = 3
	for _, kind := range []Kind{Pair, Loopback} {
		for _, ipv6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v/ipv6=%v", kind, ipv6), func(t *testing.T) {
				lab := newLab(t, Options{Kind: kind, IPv6: ipv6, Sources: sources})
				ln, err := listen(lab)
				if err != nil {
					t.Fatal(err)
				}
				defer ln.Close()
				if n := len(lab.ClientAddrs()); n != sources {
					t.Fatalf("%d client addresses", n)
				}
				client, server := counters(t, lab.Client()), counters(t, lab.Server())
				for _, from := range append([]netip.Addr{{}}, lab.ClientAddrs()...) {
					c, err := dial(lab, from, ln)
					if err != nil {
						t.Fatalf("from %v: %v", from, err)
					}
					want := from
					if !from.IsValid() {
						want = lab.ClientAddrs()[0]
					}
					got, _ := netip.AddrFromSlice(c.LocalAddr().(*net.TCPAddr).IP)
					if got.Unmap() != want {
						t.Errorf("connection from %v, want %v", got.Unmap(), want)
					}
					c.Close()
				}
				client, server = counters(t, lab.Client()).Sub(client), counters(t, lab.Server()).Sub(server)
				if client["Tcp.ActiveOpens"] != sources+1 || server["Tcp.PassiveOpens"] != sources+1 {
					t.Errorf("%d active and %d passive opens, want %d each",
						client["Tcp.ActiveOpens"], server["Tcp.PassiveOpens"], sources+1)
				}
				if kind == Pair && (client["Tcp.PassiveOpens"] != 0 || server["Tcp.ActiveOpens"] != 0) {
					t.Errorf("opens counted on the wrong side: %d, %d", client["Tcp.PassiveOpens"], server["Tcp.ActiveOpens"])
				}
				if n := client["Tcp.RetransSegs"]; n != 0 {
					t.Errorf("%d segments sent again", n)
				}
			})
		}
	}
}

// TestFirstSYN connects as soon as each of many labs is made: a link that is not
// yet able, or a missing neighbour, would drop or delay the SYN.
func TestFirstSYN(t *testing.T) {
	for i := range 40 {
		lab := newLab(t, Options{IPv6: i%2 == 1})
		ln, err := listen(lab)
		if err != nil {
			t.Fatal(err)
		}
		c, err := dial(lab, netip.Addr{}, ln)
		if err != nil {
			t.Fatal(err)
		}
		now := counters(t, lab.Client())
		for _, name := range []string{"Tcp.RetransSegs", "TcpExt.TCPSynRetrans", "TcpExt.TCPTimeouts"} {
			if now[name] != 0 {
				t.Errorf("lab %d: %s = %d after the first connection", i, name, now[name])
			}
		}
		c.Close()
		ln.Close()
		lab.Close()
	}
}

// linkPackets returns how many packets the veth link of the namespace has sent.
func linkPackets(t testing.TB, ns *Namespace) (sent uint64) {
	t.Helper()
	err := ns.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		_, line, _ := strings.Cut(string(text), vethName+":")
		fields := strings.Fields(line)
		if len(fields) < 10 {
			return fmt.Errorf("no %s in %q", vethName, text)
		}
		sent, err = strconv.ParseUint(fields[9], 10, 64)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sent
}

// multicastReports returns how many MLDv2 reports the namespace has sent.
func multicastReports(t testing.TB, ns *Namespace) (sent uint64) {
	t.Helper()
	err := ns.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/snmp6")
		if errors.Is(err, os.ErrNotExist) {
			return nil // no IPv6
		}
		_, value, _ := strings.Cut(string(text), "Icmp6OutMLDv2Reports")
		if fields := strings.Fields(value); err == nil && len(fields) > 0 {
			sent, err = strconv.ParseUint(fields[0], 10, 64)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sent
}

// TestOnlyTCPOnTheLink compares the link's count of packets with TCP's count of
// segments: nothing else is sent, no ARP, no neighbour or router discovery, but
// the multicast listener reports of IPv6, which the kernel counts too.
func TestOnlyTCPOnTheLink(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("ipv6=%v", ipv6), func(t *testing.T) {
			lab := newLab(t, Options{IPv6: ipv6, Sources: 3})
			ln, err := listen(lab)
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			for _, from := range lab.ClientAddrs() {
				c, err := dial(lab, from, ln)
				if err != nil {
					t.Fatal(err)
				}
				// The server has closed: when its FIN is here, no segment of
				// either side is under way but the answer to it.
				if _, err := io.Copy(io.Discard, c); err != nil {
					t.Error(err)
				}
				c.Close()
			}
			for _, ns := range []*Namespace{lab.Client(), lab.Server()} {
				reports := multicastReports(t, ns)
				packets := linkPackets(t, ns)
				segments := counters(t, ns)["Tcp.OutSegs"]
				// A report may fall between the readings.
				if low, high := segments+reports, segments+multicastReports(t, ns); packets < low || packets > high || segments == 0 {
					t.Errorf("%d packets on the link, %d TCP segments, %d multicast reports", packets, segments, reports)
				}
			}
		})
	}
}

func TestManySources(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		lab := newLab(t, Options{Sources: 300, IPv6: ipv6})
		ln, err := listen(lab)
		if err != nil {
			t.Fatal(err)
		}
		addrs := lab.ClientAddrs()
		c, err := dial(lab, addrs[len(addrs)-1], ln)
		if err != nil {
			t.Fatalf("from the last of %d sources: %v", len(addrs), err)
		}
		c.Close()
		ln.Close()
	}
}

func TestCookies(t *testing.T) {
	pair, loopback, host := newLab(t, Options{}), newLab(t, Options{Kind: Loopback}), newLab(t, Options{Kind: Host})
	all := []uint64{pair.Client().Cookie(), pair.Server().Cookie(), loopback.Client().Cookie(), host.Client().Cookie()}
	if slices.Contains(all, 0) {
		t.Errorf("cookies %v: one is 0", all)
	}
	if len(slices.Compact(slices.Sorted(slices.Values(all)))) != len(all) {
		t.Errorf("cookies %v are not distinct", all)
	}
	if loopback.Client() != loopback.Server() || host.Client() != host.Server() {
		t.Error("loopback or host has two namespaces")
	}
	// The cookie that a TCP socket made inside has.
	err := pair.Server().Do(func() error {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		cookie, err := unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		if cookie != pair.Server().Cookie() {
			t.Errorf("a socket inside has cookie %d, want %d", cookie, pair.Server().Cookie())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestHost(t *testing.T) {
	lab := newLab(t, Options{Kind: Host, Sources: 2})
	ln, err := listen(lab)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := dial(lab, lab.ClientAddrs()[1], ln)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, ok := counters(t, lab.Client())["Tcp.ActiveOpens"]; !ok {
		t.Error("no Tcp.ActiveOpens on the host")
	}
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	err = lab.Client().Do(func() error {
		here, err := os.Readlink(currentNetNS)
		if here != home {
			t.Errorf("Do runs in %s, the process is in %s", here, home)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// hostSettings reads all settings below /proc/sys/net that can be written and
// read; the others are the kernel's own counts.
func hostSettings(t testing.TB) map[string]string {
	t.Helper()
	settings := map[string]string{}
	err := filepath.WalkDir("/proc/sys/net", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil || info.Mode()&0o222 == 0 || info.Mode()&0o444 == 0 {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil { // net.ipv6.conf.*.stable_secret can be read only once set: EIO
			text = []byte(err.Error())
		}
		settings[path] = string(text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return settings
}

func compareSettings(t testing.TB, before, after map[string]string) {
	t.Helper()
	if maps.Equal(before, after) {
		return
	}
	for path, v := range after {
		if before[path] != v {
			t.Errorf("the host's %s changed from %q to %q", path, before[path], v)
		}
	}
	for path := range before {
		if _, ok := after[path]; !ok {
			t.Errorf("the host's %s is gone", path)
		}
	}
}

func TestSysctls(t *testing.T) {
	before := hostSettings(t)
	for _, kind := range []Kind{Pair, Loopback} {
		t.Run(kind.String(), func(t *testing.T) {
			link := map[Kind]string{Pair: vethName, Loopback: "lo"}[kind]
			want := map[string]string{
				"net.ipv4.tcp_tw_reuse":                       "1",
				"net.ipv4.ip_local_port_range":                "20000 20009",
				"net.ipv4.ip_local_reserved_ports":            "20003,20001-20002",
				"net.ipv4.tcp_max_tw_buckets":                 "7",
				"net.core.somaxconn":                          "0x20",
				"net.ipv4.tcp_congestion_control":             "reno",
				"net.ipv4.conf.default.accept_local":          "1",
				"net.ipv4.conf." + link + ".accept_redirects": "0",
			}
			kept := maps.Clone(want)
			kept["net.ipv4.ip_local_reserved_ports"] = "20001-20003"
			kept["net.core.somaxconn"] = "32"
			if kind == Pair { // a new link copies the default
				kept["net.ipv4.conf."+link+".accept_local"] = "1"
			}
			var set []Sysctl
			for key, value := range want {
				set = append(set, Sysctl{key, value})
			}
			lab := newLab(t, Options{Kind: kind, Sysctls: set})
			for _, ns := range []*Namespace{lab.Client(), lab.Server()} {
				for key, want := range kept {
					if got, err := ns.Sysctl(key); err != nil || got != want {
						t.Errorf("%s = %q, %v; want %q", key, got, err, want)
					}
				}
			}
		})
	}
	compareSettings(t, before, hostSettings(t))
}

func TestSysctlErrors(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS)
	before := hostSettings(t)
	for _, tt := range []struct {
		set  Sysctl
		is   error // nil: any
		says string
	}{
		{Sysctl{"net.ipv4.foo", "1"}, ErrNoSetting, "net.ipv4.foo: this kernel has no such setting in a network namespace"},
		{Sysctl{"net.ipv4.tcp_tw_reuse", "7"}, ErrValue, `net.ipv4.tcp_tw_reuse=7: the kernel refuses the value: invalid argument`},
		{Sysctl{"net.ipv4.tcp_tw_reuse", "much"}, ErrValue, `tcp_tw_reuse=much: the kernel refuses the value: invalid argument`},
		{Sysctl{"net.ipv4.tcp_fin_timeout", "1 2"}, ErrValue, `tcp_fin_timeout=1 2: the kernel refuses the value: it made "1" of it`},
		{Sysctl{"net.ipv4.conf", "1"}, nil, "a group of settings"},
		{Sysctl{"net.ipv4.conf.nolink.rp_filter", "1"}, ErrNoSetting, "nolink"},
		{Sysctl{"net.ipv4.route.flush", "1"}, nil, "an action"},
		{Sysctl{"net.ipv4.tcp_available_congestion_control", "reno"}, unix.EACCES, "can't be written"},
		{Sysctl{"net.ipv4.tcp_congestion_control", "made_up"}, nil, "modprobe tcp_made_up"},
		// Those of the whole machine, each by another rule.
		{Sysctl{"net.ipv4.tcp_mem", "1 2 3"}, ErrHostSetting, "whole machine"},
		{Sysctl{"net.ipv4.tcp_max_orphans", "9"}, ErrHostSetting, "whole machine"},
		{Sysctl{"net.core.netdev_max_backlog", "9"}, ErrHostSetting, "whole machine"},
		{Sysctl{"net.core.rmem_max", "4096"}, ErrHostSetting, "net.core.rmem_max"},
		{Sysctl{"net.ipv4.tcp_allowed_congestion_control", "reno"}, ErrHostSetting, "not known"},
		{Sysctl{"net.netfilter.nf_hooks_lwtunnel", "1"}, ErrHostSetting, "not known"},
	} {
		t.Run(tt.set.String(), func(t *testing.T) {
			lab, err := New(Options{Kind: Loopback, Sysctls: []Sysctl{tt.set}})
			if err == nil {
				lab.Close()
				t.Fatal("no error")
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %q is not %q", err, tt.is)
			}
			if !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %q does not say %q", err, tt.says)
			}
		})
	}
	t.Run("all at once", func(t *testing.T) {
		_, err := New(Options{Kind: Loopback, Sysctls: []Sysctl{{"net.ipv4.foo", "1"}, {"net.ipv4.bar", "1"}}})
		if err == nil || !strings.Contains(err.Error(), "net.ipv4.foo") || !strings.Contains(err.Error(), "net.ipv4.bar") {
			t.Errorf("error %v does not name both settings", err)
		}
	})
	t.Run("read", func(t *testing.T) {
		lab := newLab(t, Options{Kind: Loopback})
		if v, err := lab.Client().Sysctl("net.ipv4.foo"); !errors.Is(err, ErrNoSetting) {
			t.Errorf("Sysctl = %q, %v", v, err)
		}
		if v, err := lab.Client().Sysctl("kernel.panic"); err == nil {
			t.Errorf("Sysctl = %q", v)
		}
	})
	compareSettings(t, before, hostSettings(t))
}

// TestSharedSetting tries the rule that tells a shared table by its inode on one
// that is certainly shared, and never writes to it.
func TestSharedSetting(t *testing.T) {
	lab := newLab(t, Options{Kind: Loopback})
	h, err := lookUp("kernel.hostname")
	if err != nil {
		t.Fatal(err)
	}
	defer h.file.Close()
	err = lab.Client().Do(func() error { return h.refuse("x") })
	if !errors.Is(err, ErrHostSetting) || !strings.Contains(err.Error(), "shared") {
		t.Errorf("refuse: %v", err)
	}
}

// TestPutBack lets one namespace be the host and the lab at once, as if the
// setting were not per namespace.
func TestPutBack(t *testing.T) {
	lab := newLab(t, Options{Kind: Loopback})
	const key = "net.ipv4.tcp_fin_timeout"
	ns := lab.Client()
	want, err := ns.Sysctl(key)
	if err != nil {
		t.Fatal(err)
	}
	err = ns.Do(func() error {
		h, err := lookUp(key)
		if err != nil {
			return err
		}
		defer h.file.Close()
		s := Sysctl{key, "33"}
		if err := s.write(); err != nil {
			return err
		}
		return putBack([]hostSetting{h}, []Sysctl{s})
	})
	if !errors.Is(err, ErrHostSetting) {
		t.Errorf("putBack: %v", err)
	}
	if got, err := ns.Sysctl(key); err != nil || got != want {
		t.Errorf("%s = %q, %v; want %q back", key, got, err, want)
	}
}

// TestNoSettingReachesTheHost changes every number that the rules admit, in a
// fresh namespace, and looks for a change on the host. Where it fails it has
// changed the host, perhaps for good, so it runs only on machines that are thrown
// away afterwards.
func TestNoSettingReachesTheHost(t *testing.T) {
	if os.Getenv("TWTRACE_DISPOSABLE") != "1" {
		t.Skip("this could change the host: set TWTRACE_DISPOSABLE=1 on a machine that is thrown away")
	}
	lab := newLab(t, Options{})
	host := newLab(t, Options{Kind: Host}).Client()
	before := hostSettings(t)
	changed := 0
	for path, value := range before {
		key, err := canonicalKey(strings.TrimPrefix(path, "/proc/sys/"))
		if err != nil || admit(key) != nil {
			continue
		}
		fields := strings.Fields(value)
		if len(fields) == 0 {
			continue
		}
		n, err := strconv.ParseInt(fields[len(fields)-1], 10, 64)
		if err != nil {
			continue
		}
		// One of the neighbours is in range, unless the kernel computes it.
		for _, other := range []int64{n + 1, n - 1} {
			fields[len(fields)-1] = strconv.FormatInt(other, 10)
			if setSysctls(host, lab.Client(), []Sysctl{{key, strings.Join(fields, " ")}}) == nil {
				changed++
				break
			}
		}
	}
	t.Logf("%d of %d settings changed inside", changed, len(before))
	if changed < 50 {
		t.Errorf("only %d settings could be changed", changed)
	}
	compareSettings(t, before, hostSettings(t))
}

func TestClosed(t *testing.T) {
	for _, kind := range []Kind{Pair, Host} {
		lab := newLab(t, Options{Kind: kind})
		for range 2 {
			if err := lab.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := lab.Client().Counters(); !errors.Is(err, ErrClosed) {
			t.Errorf("%v: Counters: %v", kind, err)
		}
		if kind == Host {
			continue
		}
		if err := lab.Client().Do(func() error { t.Error("Do ran"); return nil }); !errors.Is(err, ErrClosed) {
			t.Errorf("Do: %v", err)
		}
		if _, err := lab.Client().Sysctl("net.ipv4.tcp_tw_reuse"); !errors.Is(err, ErrClosed) {
			t.Errorf("Sysctl: %v", err)
		}
	}
}

// TestNotOnMainThread calls onOwnThread from the main thread, which is idle while
// the call lasts and is therefore the one that the runtime uses next. Only a new
// process is sure to have its main thread at hand.
func TestNotOnMainThread(t *testing.T) {
	for range 20 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), childEnv+"="+mainThread)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		switch said := strings.TrimSpace(string(out)); said {
		case "own":
			return
		case "elsewhere": // the main goroutine had been moved
		default:
			t.Fatalf("the child said %q", said)
		}
	}
	t.Error("no child ran on its main thread")
}

// callFromMainThread is the child of TestNotOnMainThread.
func callFromMainThread() string {
	if unix.Gettid() != unix.Getpid() {
		return "elsewhere"
	}
	said := "own"
	for range 100 {
		err := onOwnThread(func() error {
			if unix.Gettid() == unix.Getpid() {
				said = "main"
			}
			return nil
		})
		if err != nil {
			return err.Error()
		}
	}
	return said
}

// TestDo checks where Do runs, many at a time.
func TestDo(t *testing.T) {
	lab := newLab(t, Options{})
	home, err := os.Readlink("/proc/self/task/" + strconv.Itoa(os.Getpid()) + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			err := lab.Client().Do(func() error {
				if unix.Gettid() == unix.Getpid() {
					t.Error("Do runs on the main thread")
				}
				here, err := os.Readlink(currentNetNS)
				if here == home {
					t.Error("Do runs in the namespace of the process")
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if now, err := os.Readlink("/proc/self/ns/net"); err != nil || now != home {
		t.Errorf("the main thread is in %s, %v; was in %s", now, err, home)
	}
	want := errors.New("mine")
	if err := lab.Client().Do(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("Do returned %v", err)
	}
	if err := lab.Client().Do(func() error { runtime.Goexit(); return nil }); !errors.Is(err, errGoexit) {
		t.Errorf("Do of a function that ends its goroutine returned %v", err)
	}
}

// TestCountersConcurrently is for the race detector.
func TestCountersConcurrently(t *testing.T) {
	lab := newLab(t, Options{Kind: Loopback})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				if _, err := lab.Client().Counters(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// TestCountersLongFile gives the reader a buffer that is too small.
func TestCountersLongFile(t *testing.T) {
	lab := newLab(t, Options{Kind: Loopback})
	path := filepath.Join(t.TempDir(), "netstat")
	text := "Long:" + strings.Repeat(" N", 20000) + "\nLong:" + strings.Repeat(" 1", 20000) + "\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := lab.Client().readWhole(f); err != nil || got != text {
		t.Errorf("read %d bytes of %d, %v", len(got), len(text), err)
	}
}

// netnsCookies returns the cookie of every network namespace that a thread of
// this machine is in or a file descriptor holds. Inode numbers would not do: they
// are given again at once.
func netnsCookies(t testing.TB) map[uint64]string {
	t.Helper()
	var paths []string
	for _, pattern := range []string{"/proc/[0-9]*/task/*/ns/net", "/proc/[0-9]*/fd/*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, found...)
	}
	cookies := map[uint64]string{}
	seen := map[string]bool{}
	for _, path := range paths {
		link, err := os.Readlink(path)
		if err != nil || !strings.HasPrefix(link, "net:[") || seen[link] {
			continue // ended meanwhile, or something else
		}
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		seen[link] = true
		err = inOwnNamespace(func() error {
			if err := enter(f); err != nil {
				return err
			}
			cookie, err := readCookie()
			cookies[cookie] = path
			return err
		})
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	return cookies
}

func linkNames(t testing.TB) []string {
	t.Helper()
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Name)
	}
	return slices.Sorted(slices.Values(names))
}

func TestCloseLeavesNothing(t *testing.T) {
	links := linkNames(t)
	// What the host is told about links meanwhile. The kernel queues a message
	// to this socket before the system call that caused it returns.
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	if err := unix.Bind(s, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK}); err != nil {
		t.Fatal(err)
	}

	lab := newLab(t, Options{Sources: 2})
	cookies := []uint64{lab.Client().Cookie(), lab.Server().Cookie()}
	held := netnsCookies(t)
	for _, c := range cookies {
		if held[c] == "" {
			t.Errorf("namespace %d is not found while it is there", c)
		}
	}
	if err := lab.Close(); err != nil {
		t.Fatal(err)
	}
	held = netnsCookies(t)
	for _, c := range cookies {
		if held[c] != "" {
			t.Errorf("namespace %d is held by %s after Close", c, held[c])
		}
	}
	if now := linkNames(t); !slices.Equal(now, links) {
		t.Errorf("links of the host: %v, before: %v", now, links)
	}
	b := make([]byte, 64<<10)
	for {
		n, err := unix.Read(s, b)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b[:n]), vethName+"\x00") {
			t.Error("the host was told of a veth link")
		}
	}
}

// TestFailureLeavesNothing makes New fail late.
func TestFailureLeavesNothing(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.Veth)
	before := netnsCookies(t)
	self := fmt.Sprintf("/proc/%d/", os.Getpid())
	_, err := New(Options{Sysctls: []Sysctl{{"net.ipv4.conf." + vethName + ".rp_filter", "x"}}})
	if !errors.Is(err, unix.EINVAL) {
		t.Fatalf("New: %v", err)
	}
	for c, holder := range netnsCookies(t) {
		if before[c] == "" && strings.HasPrefix(holder, self) {
			t.Errorf("namespace %d is held by %s after New failed", c, holder)
		}
	}
}

func TestDeathLeavesNothing(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.Veth)
	for _, death := range []string{"SIGKILL", "panic"} {
		t.Run(death, func(t *testing.T) {
			links := linkNames(t)
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), childEnv+"="+death)
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cmd.Process.Kill() })
			said, err := bufio.NewReader(stdout).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			var ok bool
			cookies := make([]uint64, 2)
			if _, err := fmt.Sscan(said, &ok, &cookies[0], &cookies[1]); err != nil || !ok {
				t.Fatalf("the child said %q: %v", said, err)
			}
			held := netnsCookies(t)
			for _, c := range cookies {
				if held[c] == "" {
					t.Errorf("namespace %d is not found while the child lives", c)
				}
			}
			if death == "SIGKILL" {
				err = cmd.Process.Kill()
			} else {
				err = stdin.Close()
			}
			if err != nil {
				t.Fatal(err)
			}
			if cmd.Wait() == nil {
				t.Fatal("the child ended well")
			}
			held = netnsCookies(t)
			for _, c := range cookies {
				if held[c] != "" {
					t.Errorf("namespace %d is held by %s after %s", c, held[c], death)
				}
			}
			if now := linkNames(t); !slices.Equal(now, links) {
				t.Errorf("links of the host: %v, before: %v", now, links)
			}
		})
	}
}

func TestNotPermitted(t *testing.T) {
	testenv.Require(t, testenv.Root) // to become somebody else
	cmd := exec.Command("/proc/self/exe")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), childEnv+"="+unprivileged)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if !strings.HasPrefix(string(out), "true ") || !strings.Contains(string(out), "CAP_NET_ADMIN") {
		t.Errorf("New as nobody: %s", out)
	}
}

func BenchmarkCounters(b *testing.B) {
	lab := newLab(b, Options{Kind: Loopback})
	b.ReportAllocs()
	for b.Loop() {
		counters(b, lab.Client())
	}
}

func BenchmarkNew(b *testing.B) {
	for _, o := range []Options{{}, {Kind: Loopback}, {Sources: 300}, {Sources: 300, IPv6: true}} {
		b.Run(fmt.Sprintf("%v/sources=%d/ipv6=%v", o.Kind, o.Sources, o.IPv6), func(b *testing.B) {
			for b.Loop() {
				newLab(b, o).Close()
			}
		})
	}
}
