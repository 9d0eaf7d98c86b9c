package export

import (
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
)

// stage is a step in the life of a connection, and how many connections later it is taken.
type stage struct {
	after  int
	server bool
	ev     tcp.Event
}

// life is that of a connection which the client closes first, as both ends' events have it.
var life = []stage{
	{0, false, tcp.Event{Kind: tcp.KindState, Old: tcp.Close, New: tcp.SynSent, Flags: tcp.FlagOwner}},
	{1, true, tcp.Event{Kind: tcp.KindState, Old: tcp.Listen, New: tcp.SynRecv, Flags: tcp.FlagOwner}},
	{1, false, tcp.Event{Kind: tcp.KindState, Old: tcp.SynSent, New: tcp.Established}},
	{2, true, tcp.Event{Kind: tcp.KindState, Old: tcp.SynRecv, New: tcp.Established}},
	{90, false, tcp.Event{Kind: tcp.KindState, Old: tcp.Established, New: tcp.FinWait1}},
	{91, true, tcp.Event{Kind: tcp.KindState, Old: tcp.Established, New: tcp.CloseWait}},
	{91, true, tcp.Event{Kind: tcp.KindState, Old: tcp.CloseWait, New: tcp.LastAck}},
	{92, false, tcp.Event{Kind: tcp.KindState, Old: tcp.FinWait1, New: tcp.FinWait2}},
	{92, false, tcp.Event{Kind: tcp.KindTWEnter, Substate: tcp.TimeWait, Ticks: 15000}},
	{92, false, tcp.Event{Kind: tcp.KindState, Old: tcp.FinWait2, New: tcp.Close}},
	{93, true, tcp.Event{Kind: tcp.KindState, Old: tcp.LastAck, New: tcp.Close}},
	{30000, false, tcp.Event{Kind: tcp.KindTWEnd, Cause: tcp.CauseExpired}},
}

const (
	bootMono = int64(5_000_000_000_000)
	bootReal = int64(1_790_000_000_123_456_789)
	pace     = int64(50_000) // a connection each, ns
)

var stormHeader = recording.Header{
	Command: recording.CommandRun, HZ: 250, Host: "host-a", BootID: "8f8c1b5e-0000-4000-8000-000000000001", Kernel: "6.18.0", Twtrace: "test",
	NetNS: []recording.NetNS{{Cookie: 11, Name: "client"}, {Cookie: 12, Name: "server"}},
	Enums: map[string]map[uint32]string{"rst_reason": {3: "NO_SOCKET"}},
}

// comms are names that processes chose to do harm.
var comms = []tcp.Comm{
	comm("curl"), comm("=cmd|'/C calc'!"), comm("\x1b]0;x\a<b>&\""), comm("@SUM(1,2);+1"), comm("\xff\x9b31m\n,"), comm("＝1+1"),
}

func comm(s string) (c tcp.Comm) {
	copy(c[:], s)
	return c
}

// writeStorm records a storm of n connections.
func writeStorm(t testing.TB, n int) string {
	name := filepath.Join(t.TempDir(), "storm.twt")
	now := recording.Clock{MonoNS: bootMono, RealNS: bootReal, BootNS: bootMono}
	w, err := recording.Create(name, stormHeader, recording.Options{Now: func() recording.Clock { return now }})
	if err != nil {
		t.Fatal(err)
	}
	var batch []tcp.Event
	var seq uint64
	last := life[len(life)-1].after
	for k := range n + last {
		at := bootMono + int64(k)*pace
		for _, s := range life {
			i := k - s.after
			if i < 0 || i >= n {
				continue
			}
			ev := s.ev
			seq++
			ev.Seq, ev.MonoNS = seq, at+int64(len(batch)&15)
			ev.Cookie, ev.NetNS = tcp.Cookie(2*i+1), 11
			ev.Tuple = tcp.FourTuple{
				Local: netip.AddrPortFrom(netip.MustParseAddr("198.18.0.1"), uint16(1024+i%60000)),
				Peer:  netip.MustParseAddrPort("198.18.0.2:7"),
			}
			if s.server {
				ev.Cookie, ev.NetNS, ev.Tuple = ev.Cookie+1, 12, ev.Tuple.Reverse()
			}
			if ev.Flags&tcp.FlagOwner != 0 {
				ev.Owner = tcp.Owner{PID: uint32(100 + i%3), Cgroup: 77, Comm: comms[i%len(comms)]}
			}
			odd(&ev, i)
			batch = append(batch, ev)
		}
		if len(batch) >= 1024 || k == n+last-1 {
			w.Events(batch)
			batch = batch[:0]
		}
		if k%20000 == 0 {
			w.Sample(recording.Sample{Kind: recording.SampleTick, MonoNS: at, RealNS: at - bootMono + bootReal, BootNS: at})
		}
		if k < n {
			w.Attempts([]tcp.Attempt{attempt(k, at)})
		}
	}
	if err := w.Close(nil); err != nil {
		t.Fatal(err)
	}
	return name
}

// odd gives few events what few have.
func odd(ev *tcp.Event, i int) {
	switch {
	case i%1000 == 5 && ev.Old == tcp.Established:
		ev.Kind, ev.Old, ev.New, ev.Reason, ev.Flags = tcp.KindRstSent, tcp.Established, 0, 3, tcp.FlagActive|tcp.FlagLinger0
	case i%1000 == 6 && ev.New == tcp.Close:
		ev.Errno = tcp.ECONNRESET
	case i%1000 == 7 && ev.New == tcp.SynSent:
		ev.Kind, ev.Cause, ev.Errno, ev.New = tcp.KindConnectFailed, tcp.CausePortSearch, tcp.EADDRNOTAVAIL, 0
		ev.Flags |= tcp.FlagRefusals
		ev.Refusals = tcp.Refusals{TooYoung: 1, NotAllowed: 2, Taken: 4}
	case i%1000 == 8 && ev.New == tcp.SynSent:
		ev.Kind, ev.Errno, ev.New = tcp.KindBindFailed, tcp.EADDRINUSE, 0
		ev.Holder = tcp.Holder{State: tcp.Listen, Cookie: 4, Addr: netip.IPv6Unspecified()}
		ev.Tuple.Peer = netip.AddrPort{}
	case i%1000 == 9:
		ev.Tuple.Local = netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), 0)
	case i%1000 == 10 && ev.Kind == tcp.KindTWEnd:
		ev.Kind, ev.Cause, ev.Old, ev.Errno = 255, 255, 255, 4000 // of a later version
	}
}

func attempt(i int, at int64) tcp.Attempt {
	a := tcp.Attempt{
		Cookie: tcp.Cookie(2*i + 1), Started: at, Intended: at, Connected: at + pace, FirstByte: at + 60*pace, Closed: at + 90*pace,
		Loop: uint32(i / 10000), Index: uint32(i % 10000), LocalPort: uint16(1024 + i%60000), Shard: 1<<tcp.ShardBits | 2, Phase: tcp.PhaseDone,
	}
	if i%1000 == 7 {
		a.Connected, a.FirstByte, a.LocalPort, a.Phase, a.Errno, a.Flags = 0, 0, 0, tcp.PhaseConnect, tcp.EADDRNOTAVAIL, tcp.OwnTimeout|tcp.Cancelled
	}
	return a
}

func open(t testing.TB, name string) *recording.Reader {
	r, err := recording.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}
