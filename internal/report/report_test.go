package report

import (
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
	"github.com/twtrace/twtrace/internal/verdict"
)

var update = flag.Bool("update", false, "write the golden files")

func ptr[T any](v T) *T { return &v }

// base is a traced run of 2 × 300 between two namespaces.
func base() *Summary {
	return &Summary{
		Schema: Schema, Version: "v0.1.0", Kernel: "6.18.44-fc-v595", Started: time.Date(2026, 3, 1, 12, 0, 0, 5, time.UTC),
		Net: "pair", Target: "198.19.0.1:7",
		Options: Options{
			Clients: 1, Loops: 2, Connections: 300, Concurrency: 300, Bytes: 100, Close: "client", Backlog: 4096, ServerMode: ServerEcho, AcceptEvery: 1, Trace: true,
		},
		Sysctls: map[string]string{
			SysctlPortRange: "32768 60999", SysctlReserved: "", SysctlReuse: "2", SysctlReuseWait: "1000", SysctlBuckets: "131072",
			SysctlFin: "60", SysctlStamps: "1", SysctlCookies: "1", SysctlSomaxconn: "4096", SysctlRFC1337: "0",
			SysctlOverflow: "0", SysctlRetries: "6", SysctlSynQueue: "1024",
		},
		Coverage: tcp.Coverage{
			tcp.FactState: tcp.Exact, tcp.FactRstSent: tcp.Exact, tcp.FactRstReason: tcp.Exact, tcp.FactRstReceived: tcp.Exact,
			tcp.FactTWEnter: tcp.Exact, tcp.FactTWEnd: tcp.Exact, tcp.FactTWCause: tcp.Exact, tcp.FactTWOverflow: tcp.Exact,
			tcp.FactConnectFail: tcp.Exact, tcp.FactListenDrop: tcp.Inferred, tcp.FactCause: tcp.Exact,
		},
		Clients:  []Client{{Client: 1, PID: 4321, Attempts: 600, Finished: 600, Errors: map[string]int{}, Ended: "done"}},
		Server:   &Server{Accepted: 600, Closed: 600},
		TimeWait: TimeWait{Sides: map[string]SideTimeWait{"client": {}, "server": {}}},
		Resets:   Resets{Reasons: map[string]int{}},
		Events:   Events{ByKind: map[string]uint64{}},
		CrossCheck: []CrossCheck{
			{"client", "Tcp.ActiveOpens", 600, 600, true}, {"client", "TcpExt.TW", 0, 0, true},
			{"server", "Tcp.PassiveOpens", 600, 600, true}, {"server", "TcpExt.TW", 0, 0, true},
		},
	}
}

// attempts makes a loop of n attempts that connected in 100 µs, 101 µs…
func attempts(loop uint32, n int, start int64) []tcp.Attempt {
	as := make([]tcp.Attempt, n)
	for i := range as {
		started := start + int64(i)*10_000
		as[i] = tcp.Attempt{
			Cookie: tcp.Cookie(int(loop)*1000 + i), Loop: loop, Index: uint32(i), Phase: tcp.PhaseDone, Started: started,
			Connected: started + 100_000 + int64(i)*1000, Closed: started + 500_000, LocalPort: uint16(32768 + i),
		}
	}
	return as
}

const start = int64(1e12)

// exhaust makes the attempts from a place on fail for want of a port.
func exhaust(as []tcp.Attempt) []timeline.Timeline {
	tls := make([]timeline.Timeline, len(as))
	for i := range as {
		as[i].Phase, as[i].Errno, as[i].Connected, as[i].LocalPort = tcp.PhaseConnect, tcp.EADDRNOTAVAIL, 0, 0
		tls[i] = timeline.Timeline{
			Attempt: as[i], Joined: true, NumSteps: 2, AtConnect: timeline.Ports{TimeWait: 190, Open: 100},
			Census: &timeline.Census{
				At: as[i].Closed, OldestNS: 1.25e9, LeftNS: 58.75e9,
				Holdings: []timeline.Holding{
					{Owner: tcp.Owner{PID: 4321, Comm: tcp.Comm{'t', 'w', 't', 'r', 'a', 'c', 'e'}}, Ports: timeline.Ports{TimeWait: 100, Open: 95}, FinWait2: 1},
					{Owner: tcp.Owner{PID: 99, Comm: tcp.Comm{'c', 'u', 'r', 'l'}}, Ports: timeline.Ports{TimeWait: 90, Open: 5}},
				},
			},
			Steps: [timeline.MaxSteps]timeline.Step{
				{Seq: uint64(5000 + 2*i), MonoNS: as[i].Started, Kind: tcp.KindState, Old: tcp.Close, New: tcp.SynSent},
				{
					Seq: uint64(5001 + 2*i), MonoNS: as[i].Started, Kind: tcp.KindState, Old: tcp.SynSent, New: tcp.Close,
					Flags: tcp.FlagNoSegment,
				},
			},
		}
	}
	return tls
}

func (b *Builder) ok(as []tcp.Attempt, joined bool) {
	for i := range as {
		b.Timeline(&timeline.Timeline{Attempt: as[i], Joined: joined})
	}
}

// withPeer is a joined attempt that connected, took long for it, and failed, with what the other end did.
func withPeer(a tcp.Attempt, retransmits uint8, steps ...timeline.PeerStep) timeline.Timeline {
	t := timeline.Timeline{
		Attempt: a, Joined: true, NumSteps: 1, SynRetransmits: retransmits, Peer: steps,
		Steps:    [timeline.MaxSteps]timeline.Step{{Seq: 40, Kind: tcp.KindState, Old: tcp.Close, New: tcp.SynSent}},
		Listener: &timeline.Listener{Owner: tcp.Owner{PID: 4321, Comm: tcp.Comm{'t', 'w', 't'}}, Since: start - 5e8},
	}
	for i := range retransmits {
		t.Steps[t.NumSteps] = timeline.Step{Seq: 50 + uint64(i), Kind: tcp.KindRetransmit, Old: tcp.SynSent, New: tcp.SynSent}
		t.NumSteps++
	}
	return t
}

func peerStep(seq uint64, kind tcp.Kind, old, new tcp.State, flags tcp.Flags) timeline.PeerStep {
	return timeline.PeerStep{Step: timeline.Step{Seq: seq, MonoNS: start, Kind: kind, Old: old, New: new, Flags: flags}}
}

func drop(seq uint64, client tcp.State) timeline.PeerStep {
	p := peerStep(seq, tcp.KindListenDrop, tcp.Listen, tcp.Listen, 0)
	p.Cause, p.Substate = tcp.CauseAcceptQueue, client
	return p
}

// summaries are the runs of the golden files.
var summaries = map[string]func() *Summary{
	"queues": func() *Summary {
		s := base()
		s.Options.Backlog, s.Options.Rate = 16, 100
		s.Server = &Server{Accepted: 1, Closed: 1}
		b := NewBuilder(start, true)
		b.SetEnv(EnvOf(s, map[uint32]string{9: "TCP_ABORT_ON_CLOSE"}))
		as := attempts(1, 6, start)
		fail := func(a *tcp.Attempt, phase tcp.Phase, errno tcp.Errno, flags tcp.AttemptFlags) {
			a.Phase, a.Errno, a.Flags, a.FirstByte = phase, errno, flags, 0
		}
		for i := range as {
			as[i].FirstByte = as[i].Connected + 1000
		}
		fail(&as[1], tcp.PhaseConnect, tcp.ETIMEDOUT, tcp.OwnTimeout)
		as[1].Connected = 0
		fail(&as[2], tcp.PhaseReceive, tcp.ETIMEDOUT, tcp.OwnTimeout)
		fail(&as[3], tcp.PhaseReceive, tcp.ECONNRESET, 0)
		as[4].Connected, as[5].Connected = as[4].Started+1_020_000_000, as[5].Started+3_040_000_000
		b.Attempts(as)
		reset := peerStep(72, tcp.KindRstSent, tcp.Close, tcp.Close, tcp.FlagActive)
		reset.Reason = 9
		for _, t := range []timeline.Timeline{
			withPeer(as[0], 0),
			withPeer(as[1], 2, drop(60, tcp.SynSent), drop(61, tcp.SynSent)),
			withPeer(as[2], 0, drop(65, tcp.Established), peerStep(66, tcp.KindSynAckRetransmit, tcp.NewSynRecv, tcp.NewSynRecv, 0)),
			withPeer(as[3], 0, peerStep(71, tcp.KindState, tcp.Established, tcp.Close, 0), reset),
			withPeer(as[4], 1, drop(80, tcp.SynSent)),
			withPeer(as[5], 2),
		} {
			if t.Attempt.Errno == tcp.ECONNRESET {
				t.Steps[1], t.NumSteps = timeline.Step{Seq: 70, Kind: tcp.KindRstReceived}, 2
			}
			b.Timeline(&t)
		}
		b.LoopDone(1, 6, 3, 3, 3*time.Second)
		b.SetForecast(timeline.Forecast{
			Source: netip.MustParseAddr("198.18.0.1"), Dest: netip.MustParseAddrPort("198.19.0.1:7"), Ports: 290,
			Begun: start, Failed: start + 3e9, First: timeline.Guess{Made: start + 1e9, Held: 100, Rate: 99.6, At: start + 2.91e9},
			Revised: timeline.Guess{Made: start + 1.5e9, Held: 150, Rate: 94, At: start + 2.99e9},
		})
		return fill(b, s)
	},
	"bind-conflict": func() *Summary {
		s := base()
		s.Net, s.Target, s.Options.Bind = "host", "127.0.0.1:7007", "port"
		s.Coverage[tcp.FactBindFail], s.Coverage[tcp.FactBindOwner] = tcp.Exact, tcp.Inferred
		s.BoundPorts = []BoundPort{
			{Port: 40000, Addr: "10.0.0.1", State: "LISTEN", PID: 76, Comm: "other"}, // which is in nobody's way
			{Port: 40000, Addr: "0.0.0.0", State: "LISTEN", PID: 77, Comm: "nginx"},
			{Port: 40002, Addr: "127.0.0.1", State: "LISTEN", PID: 78, Comm: "sshd"},
			{Port: 40002, Addr: "0.0.0.0", State: "BOUND_INACTIVE", PID: 79, Comm: "nc"},
		}
		b := NewBuilder(start, true)
		as := attempts(1, 10, start)
		for i := range as {
			as[i].Phase, as[i].Errno, as[i].Connected, as[i].LocalPort = tcp.PhaseBind, tcp.EADDRINUSE, 0, 0
		}
		refuse := func(pid uint32, port uint16, holder tcp.Holder, owner tcp.Owner) {
			b.BindFailed(&tcp.Event{
				Kind: tcp.KindBindFailed, Errno: tcp.EADDRINUSE, Flags: tcp.FlagOwner, Owner: tcp.Owner{PID: pid}, Holder: holder,
				Tuple: tcp.FourTuple{Local: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)},
			}, owner)
		}
		addr := netip.MustParseAddr("127.0.0.1")
		curl := tcp.Owner{PID: 99, Comm: tcp.Comm{'c', 'u', 'r', 'l'}}
		for range 3 {
			refuse(4321, 40000, tcp.Holder{}, tcp.Owner{})                              // as the list has it
			refuse(4321, 40001, tcp.Holder{State: tcp.Established, Addr: addr}, curl)   // seen
			refuse(4321, 40002, tcp.Holder{State: tcp.Listen, Addr: addr}, tcp.Owner{}) // seen, and older than the trace
			refuse(4321, 40003, tcp.Holder{}, tcp.Owner{})                              // nobody knows
			refuse(77, 40005, tcp.Holder{State: tcp.Close, Addr: addr}, curl)           // not of the run
			refuse(4321, 0, tcp.Holder{}, tcp.Owner{})                                  // no port was wanted
		}
		refuse(4321, 40004, tcp.Holder{State: tcp.Close, Addr: addr}, tcp.Owner{})
		b.Attempts(as)
		b.ok(as, false)
		b.LoopDone(1, 10, 0, 10, time.Millisecond)
		b.SetLoop(1, new(0), new(0))
		return fill(b, s)
	},
	"linger": func() *Summary {
		s := base()
		s.Options.Linger = ptr(0.0)
		s.Resets = Resets{Sent: 600, Received: 600, Reasons: map[string]int{"TCP_STATE": 600}}
		s.Events = Events{Seen: 4801, Recorded: 4799, SkippedRecursion: 2, Rescued: 2, ByKind: map[string]uint64{"state": 3601, "rst-sent": 600, "rst-received": 600}}
		b := NewBuilder(start, true)
		for loop := range uint32(2) {
			as := attempts(loop+1, 300, start+int64(loop)*1e8)
			b.Attempts(as)
			b.ok(as, true)
			b.LoopDone(int(loop+1), 300, 300, 0, 20*time.Millisecond)
			b.SetLoop(int(loop+1), new(0), new(0))
		}
		return fill(b, s)
	},
	"port-exhausted": func() *Summary {
		s := base()
		s.Options.ReusePort = true
		s.Sysctls[SysctlPortRange] = "40000 40299"
		s.Sysctls[SysctlReserved] = "40000-40009,50000"
		s.Sysctls[SysctlReuse] = "0"
		s.Server = &Server{Accepted: 390, Closed: 389}
		s.TimeWait = TimeWait{
			Entered: 390, FinWait2: 3, Expired: 100, Now: 290,
			Sides: map[string]SideTimeWait{"client": {Entered: 390}, "server": {}},
		}
		s.Events = Events{Seen: 3000, Recorded: 3000, ByKind: map[string]uint64{"state": 2610, "tw-enter": 390}}
		b := NewBuilder(start, true)
		for loop := range uint32(2) {
			finished := 300 - int(loop)*210
			as := attempts(loop+1, 300, start+int64(loop)*1e8)
			for _, tl := range exhaust(as[finished:]) {
				b.Timeline(&tl)
			}
			b.Attempts(as)
			b.ok(as[:finished], true)
			b.LoopDone(int(loop+1), 300, finished, 300-finished, 50*time.Millisecond)
			b.SetLoop(int(loop+1), new(290), new(290))
		}
		for i := range 100 {
			b.Lifetime(timeline.Lifetime{NS: 60_400_000_000 + int64(i)*1e7, Cause: tcp.CauseExpired})
		}
		return fill(b, s)
	},
	"interrupted": func() *Summary {
		s := base()
		s.Interrupted, s.StoppedBy = true, StoppedByUser
		s.Server = &Server{Accepted: 120, Closed: 120}
		s.TimeWait.Entered, s.TimeWait.Now = 120, 120
		s.TimeWait.Sides["client"] = SideTimeWait{Entered: 120}
		s.Events = Events{Seen: 900, Recorded: 900, ByKind: map[string]uint64{"state": 780, "tw-enter": 120}}
		b := NewBuilder(start, true)
		as := attempts(1, 120, start)
		cancelled := &as[119]
		cancelled.Phase, cancelled.Errno, cancelled.Flags = tcp.PhaseReceive, tcp.ECANCELED, tcp.Cancelled
		b.Attempts(as)
		b.ok(as, true)
		b.LoopDone(1, 120, 119, 1, 10*time.Millisecond)
		b.SetLoop(1, new(120), new(120))
		return fill(b, s)
	},
	"clients": func() *Summary {
		s := base()
		s.Options.Clients = 3
		s.Clients = []Client{
			{Client: 1, PID: 4321, Attempts: 60, Finished: 60, Errors: map[string]int{}, Ended: "done"},
			{Client: 2, PID: 4322, Attempts: 40, Finished: 38, Failed: 2, Errors: map[string]int{"ECANCELED": 2}, Ended: "interrupted"},
			{Client: 3, PID: 4194304, Attempts: 20, Finished: 20, Errors: map[string]int{}, NotReported: 7, Ended: "killed by SIGKILL"},
		}
		s.Server = &Server{Accepted: 125, Closed: 125}
		b := NewBuilder(start, true)
		as := attempts(1, 120, start)
		for i := range 2 {
			as[118+i].Phase, as[118+i].Errno, as[118+i].Flags = tcp.PhaseReceive, tcp.ECANCELED, tcp.Cancelled
		}
		b.Attempts(as)
		b.ok(as, true)
		b.LoopDone(1, 120, 118, 2, 10*time.Millisecond)
		return fill(b, s)
	},
	"untraced": func() *Summary {
		s := base()
		s.Options.Trace = false
		s.Net, s.Target, s.Options.IPv6 = "loopback", "[::1]:7", true
		s.Sysctls[SysctlPortRange] = "40000 40099"
		for fact := range s.Coverage {
			s.Coverage[fact] = tcp.NotObservable
		}
		s.Coverage[tcp.FactCause] = tcp.Inferred
		s.CrossCheck = []CrossCheck{}
		s.TimeWait.Sides = map[string]SideTimeWait{}
		s.Server = &Server{Accepted: 100, Closed: 100}
		b := NewBuilder(start, false)
		as := attempts(1, 300, start)
		exhaust(as[100:])
		b.Attempts(as)
		b.ok(as, false)
		b.LoopDone(1, 300, 100, 200, 30*time.Millisecond)
		b.SetLoop(1, new(100), nil)
		return fill(b, s)
	},
	"lost": func() *Summary {
		s := base()
		s.Kernel = "6.12.117+deb13-rt-amd64-with-a-long-name"
		s.Server = &Server{Accepted: 598, Closed: 597}
		s.TimeWait = TimeWait{
			Entered: 590, Expired: 1, ReusedByConnect: 2, ReplacedBySyn: 3, KilledByRst: 4, Purged: 5, Destroyed: 6, UnknownEnd: 7,
			Overflowed: 8, Now: 562, Sides: map[string]SideTimeWait{"client": {590, 8}, "server": {}},
		}
		s.Coverage[tcp.FactTWCause] = tcp.Inferred
		for _, f := range []tcp.Fact{tcp.FactRstSent, tcp.FactRstReason, tcp.FactRstReceived, tcp.FactTWOverflow, tcp.FactConnectFail} {
			s.Coverage[f] = tcp.NotObservable
		}
		s.Resets = Resets{Sent: 12, Received: 11, Reasons: map[string]int{
			"TCP_STATE": 3, "TCP_ABORT_ON_CLOSE": 2, "TCP_ABORT_ON_MEMORY": 1, "TCP_TIMEWAIT_SOCKET": 1, "NO_SOCKET": 2,
			"TCP_KEEPALIVE_TIMEOUT": 2, "TCP_DISCONNECT_WITH_DATA": 1,
		}}
		s.Events = Events{
			Seen: 123_456_789_012, Recorded: 123_456_780_000, LostRing: 9000, SkippedRecursion: 12, Rescued: 10,
			ByKind: map[string]uint64{"state": 123_456_780_010},
		}
		s.CrossCheck[1] = CrossCheck{"client", "TcpExt.TCPTimeWaitOverflow", 18_446_744_073_709_551_615, 18_446_744_073_709_551_614, false}
		b := NewBuilder(start, true)
		as := attempts(1, 600, start)
		reset := &as[5]
		reset.Phase, reset.Errno = tcp.PhaseReceive, tcp.ECONNRESET
		b.Attempts(as)
		b.ok(as, true) // the RST was not seen: unexplained
		b.LoopDone(1, 600, 599, 1, 1234567*time.Second)
		b.SetLoop(1, new(562), new(562))
		return fill(b, s)
	},
}

func fill(b *Builder, s *Summary) *Summary {
	b.Fill(s)
	Explain(s)
	return s
}

func text(t *testing.T, s *Summary, color bool) string {
	t.Helper()
	var b bytes.Buffer
	if err := NewText(&b, color).Write(s); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestGolden(t *testing.T) {
	for name, make := range summaries {
		s := make()
		var doc bytes.Buffer
		if err := s.WriteJSON(&doc); err != nil {
			t.Fatal(err)
		}
		for file, got := range map[string]string{name + ".txt": text(t, s, false), name + ".json": doc.String()} {
			t.Run(file, func(t *testing.T) {
				path := filepath.Join("testdata", file)
				if *update {
					if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if got != string(want) {
					t.Errorf("%s differs (run with -update if it should):\n%s\nwant\n%s", path, got, want)
				}
			})
		}
	}
}

// TestStable: the same run gives the same document, whatever the order of maps
// inside.
func TestStable(t *testing.T) {
	build := func() string {
		b := NewBuilder(start, true)
		s := base()
		as := attempts(1, 8, start)
		for i := range as {
			a := &as[i]
			a.Phase, a.Errno = tcp.PhaseConnect, tcp.EADDRNOTAVAIL
			tl := timeline.Timeline{Attempt: *a, Joined: true}
			switch i % 3 {
			case 1: // no port
				tl = exhaust(as[i : i+1])[0]
			case 2: // bound
				tl = exhaust(as[i : i+1])[0]
				tl.Tuple.Local = netip.MustParseAddrPort("198.18.0.1:5000")
			}
			if i < 6 {
				b.Timeline(&tl)
			}
		}
		b.LoopDone(1, 6, 0, 6, time.Second)
		b.Fill(s)
		var doc bytes.Buffer
		if err := s.WriteJSON(&doc); err != nil {
			t.Fatal(err)
		}
		return doc.String()
	}
	first := build()
	for range 50 {
		if again := build(); again != first {
			t.Fatalf("three causes of one errno come in another order:\n%s\nthe first time\n%s", again, first)
		}
	}
}

// promised are the fields that checks outside the project rely on (CLI.md,
// twtrace.summary/1). A name with [] is of each element.
var promised = strings.Fields(`
	schema version kernel net options sysctls coverage unexplained
	options.clients clients[].client clients[].pid clients[].attempts clients[].errors clients[].not_reported clients[].ended
	loops[].loop loops[].attempts loops[].finished loops[].failed loops[].seconds loops[].errors
	loops[].connect_us.p50 loops[].connect_us.p90 loops[].connect_us.p99 loops[].connect_us.p999 loops[].connect_us.max
	loops[].first_byte_us.p9999 loops[].exchange_us.p9999 totals.connect_us.p9999 totals.exchange_us.max
	loops[].time_wait_now loops[].ports_in_use
	totals.attempts totals.finished totals.failed totals.seconds totals.per_second totals.errors
	server.accepted server.closed server.never_accepted
	time_wait.entered time_wait.fin_wait2_minisocks time_wait.expired time_wait.reused_by_connect
	time_wait.replaced_by_syn time_wait.killed_by_rst time_wait.purged time_wait.destroyed time_wait.overflowed time_wait.now
	failures[].errno failures[].phase failures[].cause failures[].count failures[].evidence failures[].events failures[].advice
	joined.attempts joined.by_cookie joined.by_tuple
	events.seen events.recorded events.lost_ring events.skipped_recursion events.rescued events.by_kind
	cross_check[].side cross_check[].counter cross_check[].kernel cross_check[].twtrace cross_check[].agrees`)

func TestFields(t *testing.T) {
	var doc bytes.Buffer
	if err := summaries["port-exhausted"]().WriteJSON(&doc); err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(doc.Bytes(), &m); err != nil {
		t.Fatal(err)
	}
	for _, name := range promised {
		var at any = m
		for part := range strings.SplitSeq(name, ".") {
			key, list := strings.CutSuffix(part, "[]")
			object, _ := at.(map[string]any)
			value, ok := object[key]
			if !ok {
				t.Errorf("%s is missing", name)
				break
			}
			if at = value; list {
				elements, _ := value.([]any)
				if len(elements) == 0 {
					t.Errorf("%s: %s has no element", name, key)
					break
				}
				at = elements[0]
			}
		}
	}
	if m["schema"] != "twtrace.summary/1" {
		t.Errorf("schema %v", m["schema"])
	}
}

// TestEmpty: a run that was stopped at once has every list, empty and not null.
func TestEmpty(t *testing.T) {
	s := &Summary{
		CrossCheck: []CrossCheck{}, TimeWait: TimeWait{Sides: map[string]SideTimeWait{}},
		Resets: Resets{Reasons: map[string]int{}}, Events: Events{ByKind: map[string]uint64{}},
		Sysctls: map[string]string{}, Coverage: tcp.Coverage{},
	}
	fill(NewBuilder(start, true), s)
	var doc bytes.Buffer
	if err := s.WriteJSON(&doc); err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(doc.Bytes(), &m); err != nil {
		t.Fatal(err)
	}
	for key, v := range m {
		if v == nil && key != "server" && key != "forecast" {
			t.Errorf("%s is null", key)
		}
	}
	if got := text(t, s, false); strings.Contains(got, "%!") || strings.Contains(got, "NaN") {
		t.Errorf("text:\n%s", got)
	}
}

// TestWidth: no line is wider than 100 columns, and colour does not change where
// lines end.
func TestWidth(t *testing.T) {
	for name, make := range summaries {
		t.Run(name, func(t *testing.T) {
			plain := text(t, make(), false)
			for line := range strings.Lines(plain) {
				if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
					t.Errorf("%d columns: %s", n, line)
				}
			}
			if strings.Contains(plain, "%!") {
				t.Errorf("a value is missing:\n%s", plain)
			}
			if strings.Contains(plain, "\x1b") {
				t.Error("colour that nobody asked for")
			}
			colored := text(t, make(), true)
			if !strings.Contains(colored, "\x1b[1m") {
				t.Error("no colour")
			}
			if bare := strings.NewReplacer("\x1b[1m", "", "\x1b[31m", "", "\x1b[0m", "").Replace(colored); bare != plain {
				t.Errorf("without its colour the text is\n%s\nwant\n%s", bare, plain)
			}
		})
	}
}

func TestWriteError(t *testing.T) {
	s := summaries["linger"]()
	if err := s.WriteJSON(full{}); err == nil {
		t.Error("WriteJSON: no error from a full disk")
	}
	if err := NewText(full{}, false).Write(s); err == nil {
		t.Error("Text: no error from a full disk")
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestReserved(t *testing.T) {
	for _, tt := range []struct {
		list string
		want int // in 1000-1009
	}{
		{"", 0}, {"\n", 0}, {"1000", 1}, {"1009\n", 1}, {"999,1010", 0}, {"1000-1009", 10}, {"1-65535", 10}, {"500-1001", 2},
		{"1008-2000", 2}, {"1001,1003,1005-1006", 4}, {"1005-1003", 0}, {"x", 0}, {"1001,x-1005,1002-y,1003", 2},
	} {
		if got := reserved(tt.list, 1000, 1009); got != tt.want {
			t.Errorf("reserved(%q) = %d, want %d", tt.list, got, tt.want)
		}
	}
}

func TestPortRange(t *testing.T) {
	s := &Summary{Sysctls: map[string]string{SysctlPortRange: "40000 40299", SysctlReserved: "40000-40009"}}
	if lo, hi, ports, ok := portRange(s); lo != 40000 || hi != 40299 || ports != 290 || !ok {
		t.Errorf("portRange = %d, %d, %d, %t", lo, hi, ports, ok)
	}
	for _, text := range []string{"", "40000", "a b"} {
		s.Sysctls[SysctlPortRange] = text
		if _, _, _, ok := portRange(s); ok {
			t.Errorf("%q is a port range", text)
		}
	}
}

// TestQuantiles: of 1 to 1000 µs, known by hand. The histogram keeps three digits.
func TestQuantiles(t *testing.T) {
	b := NewBuilder(start, true)
	as := make([]tcp.Attempt, 1000)
	for i := range as {
		as[i] = tcp.Attempt{Phase: tcp.PhaseDone, Started: start, Connected: start + int64(i+1)*1000}
	}
	as = append(as, tcp.Attempt{Phase: tcp.PhaseConnect, Errno: tcp.EADDRNOTAVAIL, Started: start}) // never connected
	b.Attempts(as)
	b.LoopDone(1, 1001, 1000, 1, time.Second)
	// A clock that stands still, and one connection of a week.
	b.Attempts([]tcp.Attempt{
		{Phase: tcp.PhaseDone, Started: start, Connected: start},
		{Phase: tcp.PhaseDone, Started: start, Connected: start + int64(7*24*time.Hour)},
	})
	b.LoopDone(2, 2, 2, 0, time.Second)
	b.LoopDone(3, 0, 0, 0, 0)
	s := fill(b, base())
	if got, want := s.Loops[0].ConnectUS, (Quantiles{500, 900, 990, 999, 1000, 1000}); got != want {
		t.Errorf("quantiles %+v, want %+v", got, want)
	}
	if got, want := s.Loops[1].ConnectUS.Max, maxLatency; got < want || got > want+want/1000 {
		t.Errorf("max %d, want %d", got, want)
	}
	if got := s.Loops[2].ConnectUS; got != (Quantiles{}) {
		t.Errorf("a loop without attempts has %+v", got)
	}
	if got := s.Totals.ConnectUS.P50; got != 500 {
		t.Errorf("median of all loops %d, want 500", got)
	}
}

// TestLatencies: each time is of the attempts that got so far, and all loops are in the
// distribution that is written.
func TestLatencies(t *testing.T) {
	b := NewBuilder(start, false)
	for loop := 1; loop <= 2; loop++ {
		b.Attempts([]tcp.Attempt{
			{Phase: tcp.PhaseDone, Started: start, Connected: start + 100_000, FirstByte: start + 200_000, Closed: start + 300_000},
			{Phase: tcp.PhaseReceive, Errno: tcp.ECONNRESET, Started: start, Connected: start + 400_000, Closed: start + 500_000},
			{Phase: tcp.PhaseConnect, Errno: tcp.ECONNREFUSED, Started: start, Closed: start + 600_000},
		})
		b.LoopDone(loop, 3, 1, 2, time.Second)
	}
	flat := func(us int64) Quantiles { return Quantiles{us, us, us, us, us, us} }
	want := Latencies{ConnectUS: Quantiles{100, 400, 400, 400, 400, 400}, FirstByteUS: flat(200), ExchangeUS: flat(300)}
	s := fill(b, base())
	if s.Loops[1].Latencies != want || s.Totals.Latencies != want {
		t.Errorf("loop %+v\ntotal %+v\nwant %+v", s.Loops[1].Latencies, s.Totals.Latencies, want)
	}
	for name, count := range map[string]string{"connect": "4", "first-byte": "2", "exchange": "2"} {
		var out strings.Builder
		if err := b.WriteLatency(name, &out); err != nil {
			t.Fatal(err)
		}
		if got := out.String(); !strings.Contains(got, "Percentile") || !strings.Contains(strings.Join(strings.Fields(got), " "), "Total count = "+count+"]") {
			t.Errorf("%s: %s", name, got)
		}
	}
	if err := b.WriteLatency("close", io.Discard); err == nil {
		t.Error("a latency that there is not was written")
	}
}

// TestOpenLoop: what is waited for counts from when it was due.
func TestOpenLoop(t *testing.T) {
	b := NewBuilder(start, false)
	b.Attempts([]tcp.Attempt{
		{Phase: tcp.PhaseDone, Intended: start, Started: start + 20_000, Connected: start + 100_000, Closed: start + 300_000},
		{Phase: tcp.PhaseDone, Intended: start, Started: start + 5_000_000, Connected: start + 5_100_000, Closed: start + 5_300_000},
	})
	b.LoopDone(1, 2, 2, 0, time.Second)
	summary := base()
	summary.Options.Rate, summary.Options.RateTo = 1000, 5000
	s := fill(b, summary)
	if got := s.Totals.OpenLoop; got == nil || got.Late != 1 || got.StartLagUS.P50 != 20 || got.StartLagUS.Max < 5000 {
		t.Errorf("%+v", got)
	}
	if got := s.Totals.ConnectUS; got.P50 != 100 || got.Max < 5100 {
		t.Errorf("connect %+v", got)
	}
	var out strings.Builder
	if err := NewText(&out, false).Rest(s); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"start lag", "1000 to 5000 connections a second", "1 of 2 began more than a"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("does not say %q:\n%s", want, out.String())
		}
	}
}

// TestWarmup: what was due before counts as an attempt, but not among the latencies.
func TestWarmup(t *testing.T) {
	b := NewBuilder(start, false)
	b.WarmUntil(start + 1000)
	b.Attempts([]tcp.Attempt{
		{Phase: tcp.PhaseConnect, Errno: tcp.ECONNREFUSED, Intended: start, Started: start},
		{Phase: tcp.PhaseDone, Intended: start + 999, Started: start + 5000, Connected: start + 9_000_000},
		{Phase: tcp.PhaseDone, Intended: start + 1000, Started: start + 1000, Connected: start + 101_000},
	})
	b.LoopDone(1, 3, 2, 1, time.Second)
	s := fill(b, base())
	if got := s.Totals.ConnectUS; got.P50 != 100 || got.Max != 100 {
		t.Errorf("connect %+v", got)
	}
	if s.Totals.Attempts != 3 || s.Totals.Errors["ECONNREFUSED"] != 1 {
		t.Errorf("%+v", s.Totals)
	}
}

func TestLengths(t *testing.T) {
	b := NewBuilder(start, true)
	for _, ns := range []int64{62e9, 60e9, 61e9} {
		b.Lifetime(timeline.Lifetime{NS: ns, Cause: tcp.CauseExpired})
	}
	b.Lifetime(timeline.Lifetime{NS: 1, Cause: tcp.CauseKilledByRst})
	if got, want := *fill(b, base()).TimeWait.ExpiredSeconds, (Lengths{3, 60, 61, 62}); got != want {
		t.Errorf("lengths %+v, want %+v", got, want)
	}
	if got := fill(NewBuilder(start, true), base()).TimeWait.ExpiredSeconds; got != nil {
		t.Errorf("lengths of nothing: %+v", got)
	}
}

// TestSums: the parts of a summary add up.
func TestSums(t *testing.T) {
	for name, make := range summaries {
		t.Run(name, func(t *testing.T) {
			s := make()
			var failed, errs, attempts, unexplained int
			for _, f := range s.Failures {
				failed += f.Count
				if f.Cause == verdict.Unexplained {
					unexplained += f.Count
				}
				if n, ok := f.Evidence["with_events"].(int); !ok || n > f.Count {
					t.Errorf("%s: %v of %d have events", f.Cause, f.Evidence["with_events"], f.Count)
				}
				if len(f.Advice) == 0 && f.Cause != verdict.Interrupted {
					t.Errorf("%s: no advice", f.Cause)
				}
				if len(f.Events) > maxEvents {
					t.Errorf("%s: %d events", f.Cause, len(f.Events))
				}
				if f.Cause == verdict.PortExhausted && s.Options.Trace {
					// What the test put in: 190 in TIME_WAIT and 100 open.
					if f.Evidence["time_wait"] != 190 || f.Evidence["open"] != 100 || f.Evidence["ports"] != 290 ||
						f.Evidence["last_time_wait"] != 190 || f.Evidence["last_open"] != 100 {
						t.Errorf("evidence %v", f.Evidence)
					}
				}
			}
			for _, n := range s.Totals.Errors {
				errs += n
			}
			for _, l := range s.Loops {
				attempts += l.Attempts
				if l.Attempts != l.Finished+l.Failed {
					t.Errorf("loop %d: %d ≠ %d + %d", l.Loop, l.Attempts, l.Finished, l.Failed)
				}
			}
			if failed != s.Totals.Failed || errs != s.Totals.Failed || attempts != s.Totals.Attempts || unexplained != s.Unexplained {
				t.Errorf("failures of %d, errors of %d, %d attempts and %d unexplained; want %+v and %d unexplained",
					failed, errs, attempts, unexplained, s.Totals, s.Unexplained)
			}
			if s.Totals.Attempts != s.Totals.Finished+s.Totals.Failed {
				t.Errorf("totals %+v", s.Totals)
			}
		})
	}
}

// TestFirstAndLast: attempts complete in no particular order, and the evidence
// is of the first and the last by time.
func TestFirstAndLast(t *testing.T) {
	as := attempts(1, 3, start)
	tls := exhaust(as)
	tls[0].AtConnect = timeline.Ports{TimeWait: 1}
	tls[2].AtConnect = timeline.Ports{TimeWait: 3}
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}} {
		b := NewBuilder(start, true)
		for _, i := range order {
			b.Timeline(&tls[i])
		}
		b.LoopDone(1, 3, 0, 3, time.Second)
		e := fill(b, base()).Failures[0].Evidence
		if e["time_wait"] != 1 || e["last_time_wait"] != 3 || e["first_seconds"] != 0.0005 || e["last_seconds"] != 0.00052 {
			t.Errorf("order %v: evidence %v", order, e)
		}
	}
}

// TestPartlyJoined: a group of which only some have events, the first not.
func TestPartlyJoined(t *testing.T) {
	b := NewBuilder(start, true)
	as := attempts(1, 2, start)
	for i := range as {
		as[i].Phase, as[i].Errno = tcp.PhaseReceive, tcp.ECONNRESET
	}
	b.Attempts(as)
	b.Timeline(&timeline.Timeline{Attempt: as[0]})
	b.Timeline(&timeline.Timeline{Attempt: as[1], Joined: true, NumSteps: 2, Steps: [timeline.MaxSteps]timeline.Step{
		{Seq: 17, Kind: tcp.KindRstSent, Old: tcp.Close, New: tcp.Close}, // the state before was lost
		{Seq: 18, Kind: tcp.KindState, Old: tcp.Established, New: tcp.Close},
	}})
	b.LoopDone(1, 2, 0, 2, time.Second)
	s := fill(b, base())
	got := text(t, s, false)
	if strings.Contains(got, "%!") {
		t.Errorf("a value is missing:\n%s", got)
	}
	if want := "ESTABLISHED > CLOSE"; !strings.Contains(got, " "+want+"\n") || strings.Contains(got, "  > CLOSE") {
		t.Errorf("the text does not say %q:\n%s", want, got)
	}
}

// TestAdvice: each cause has some, and it fits the run's settings.
func TestAdvice(t *testing.T) {
	for _, c := range verdict.Causes {
		if len(advice(base(), c, "")) == 0 && c != verdict.Interrupted {
			t.Errorf("no advice for %s", c)
		}
	}
	if got := advice(base(), verdict.Interrupted, ""); got == nil || len(got) > 0 {
		t.Errorf("advice for what was interrupted: %q", got)
	}
	for _, tt := range []struct {
		reuse, stamps, target, says string
	}{
		{"0", "1", "198.19.0.1:7", "set tcp_tw_reuse=1"},
		{"2", "1", "198.19.0.1:7", "set tcp_tw_reuse=1"},
		{"2", "1", "127.0.0.1:7", "tcp_tw_reuse is on"},
		{"2", "1", "[::1]:7", "tcp_tw_reuse is on"},
		{"1", "1", "198.19.0.1:7", "comes back 1000 ms after"},
		{"1", "0", "198.19.0.1:7", "set tcp_timestamps=1"},
		{"0", "0", "127.0.0.1:7", "set tcp_timestamps=1"},
	} {
		s := base()
		s.Target, s.Sysctls[SysctlReuse], s.Sysctls[SysctlStamps] = tt.target, tt.reuse, tt.stamps
		if got := strings.Join(advice(s, verdict.PortExhausted, ""), "\n"); !strings.Contains(got, tt.says) {
			t.Errorf("tcp_tw_reuse=%s, tcp_timestamps=%s, to %s: the advice does not say %q:\n%s", tt.reuse, tt.stamps, tt.target, tt.says, got)
		}
	}
}

// TestNotes: a note may not contradict the failures.
func TestNotes(t *testing.T) {
	s := summaries["port-exhausted"]()
	s.Notes, s.TimeWait.ReusedByConnect, s.Sysctls[SysctlReuse] = nil, 5, "1"
	Explain(s)
	notes := strings.Join(s.Notes, "\n")
	if !strings.Contains(notes, "ports of 5 TIME_WAITs: tcp_tw_reuse is 1") || strings.Contains(notes, "did not run out") {
		t.Errorf("ports were reused, and yet ran out; the notes say\n%s", notes)
	}
	s.Failures, s.Notes = nil, nil
	Explain(s)
	if notes := strings.Join(s.Notes, "\n"); !strings.Contains(notes, "did not run out") || strings.Contains(notes, "SO_REUSEPORT") {
		t.Errorf("ports were reused, and did not run out; the notes say\n%s", notes)
	}
}

func TestIncomplete(t *testing.T) {
	s := summaries["linger"]()
	if s.Incomplete(false) || s.Incomplete(true) {
		t.Error("what was skipped and rescued is not lost, and listen-drop is inferred")
	}
	s.Events.Rescued--
	if !s.Incomplete(false) {
		t.Error("an event is missing")
	}
	s.Events.Rescued++
	s.Events.LostRing++
	if !s.Incomplete(false) {
		t.Error("an event was lost in the ring")
	}
	s = summaries["linger"]()
	s.Coverage[tcp.FactTWCause] = tcp.NotObservable
	if s.Incomplete(false) || !s.Incomplete(true) {
		t.Error("a fact that can't be observed counts if strict, and only then")
	}
}

// TestConcurrent uses one Builder from several goroutines, for the race detector.
func TestConcurrent(t *testing.T) {
	const loops, each = 20, 100
	b := NewBuilder(start, true)
	var wg sync.WaitGroup
	wg.Go(func() {
		for loop := range uint32(loops) {
			b.Attempts(attempts(loop+1, each, start))
			b.LoopDone(int(loop+1), each, each, 0, time.Millisecond)
		}
	})
	wg.Go(func() {
		for loop := range uint32(loops) {
			b.ok(attempts(loop+1, each, start), true)
			tl := exhaust(attempts(loop+1, 1, start))
			b.Timeline(&tl[0])
			b.Lifetime(timeline.Lifetime{NS: 1, Cause: tcp.CauseExpired})
		}
	})
	wg.Go(func() {
		for loop := range loops {
			b.SetLoop(loop+1, new(0), new(0))
			b.SetLoop(loop+1, new(3), nil)
			b.Fill(base())
		}
	})
	wg.Wait()
	s := fill(b, base())
	if s.Joined.Attempts != loops*(each+1) || s.Totals.Finished != loops*each || s.Failures[0].Count != loops {
		t.Errorf("joined %+v, totals %+v, failures %+v", s.Joined, s.Totals, s.Failures)
	}
}

func TestSetLoop(t *testing.T) {
	b := NewBuilder(start, true)
	if _, ok := b.SetLoop(1, new(3), new(4)); ok {
		t.Error("a loop before the first")
	}
	b.LoopDone(1, 1, 1, 0, time.Second)
	b.LoopDone(2, 1, 1, 0, time.Second)
	l, ok := b.SetLoop(1, new(3), new(4))
	if !ok || l.Loop != 1 || *l.TimeWaitNow != 3 || *l.PortsInUse != 4 {
		t.Errorf("loop %+v, %t", l, ok)
	}
	if _, ok := b.SetLoop(3, new(3), new(4)); ok {
		t.Error("a loop that is not known was set")
	}
	if l, ok := b.SetLoop(2, new(5), nil); !ok || *l.TimeWaitNow != 5 || l.PortsInUse != nil {
		t.Errorf("loop %+v, %t", l, ok)
	}
	if l, ok := b.SetLoop(2, nil, nil); !ok || l.TimeWaitNow != nil {
		t.Errorf("loop %+v, %t", l, ok)
	}
}

// TestSysctls: what evidence and advice ask for is read for every summary.
func TestSysctls(t *testing.T) {
	if got, want := slices.Sorted(maps.Keys(base().Sysctls)), slices.Sorted(slices.Values(Sysctls)); !slices.Equal(got, want) {
		t.Errorf("%v are read, %v used", got, want)
	}
	for _, key := range Sysctls {
		if !strings.HasPrefix(key, "net.") {
			t.Errorf("%s is no setting of a namespace", key)
		}
	}
}

// TestRetransmits: stalls are shown where there were any, and only there.
func TestRetransmits(t *testing.T) {
	for _, r := range []Retransmits{{}, {Syn: 3, SynAck: 2, Other: 1}} {
		var b strings.Builder
		s := Summary{Options: Options{Trace: true}, Retransmits: r}
		if err := NewText(&b, false).Write(&s); err != nil {
			t.Fatal(err)
		}
		const want = "RETRANSMIT 3 SYN, 2 SYN+ACK, 1 other segments\n"
		if got := strings.Contains(b.String(), want); got != (r.Syn > 0) {
			t.Errorf("%+v: shown %t in\n%s", r, got, b.String())
		}
	}
}
