package export_test

import (
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/twtrace/twtrace/internal/export"
	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/run"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/testenv"
	"github.com/twtrace/twtrace/internal/timeline"
	"github.com/twtrace/twtrace/loadgen"
)

// TestTsharkOfStorms has tshark count what real storms left, once as both ends tell of it and once as each end
// alone does. What there has to be is counted from the events by the kernel's rules, without a Segmenter.
func TestTsharkOfStorms(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.Veth, testenv.BPF, testenv.Tshark)
	if testing.Short() {
		t.Skip("twelve storms take longer than a test with -short may")
	}
	for name, set := range map[string]func(*run.Options){
		"client closes": func(*run.Options) {},
		"server closes": func(o *run.Options) { o.Plan.Close = loadgen.ServerCloses },
		"both close":    func(o *run.Options) { o.Plan.Close = loadgen.BothClose },
		"linger":        func(o *run.Options) { o.Plan.Linger = 0 },
		"server resets": func(o *run.Options) { o.Server = loadgen.ResetOnClose },
		"IPv6":          func(o *run.Options) { o.Net.IPv6 = true },
		"loopback":      func(o *run.Options) { o.Net.Kind = netlab.Loopback },
		"ports again":   func(o *run.Options) { o.Plan.Linger = 0; sysctl(o, "net.ipv4.ip_local_port_range=40000 40150") },
		"no ports":      func(o *run.Options) { sysctl(o, "net.ipv4.ip_local_port_range=40000 40150") },
		"no TIME_WAITs": func(o *run.Options) { sysctl(o, "net.ipv4.tcp_max_tw_buckets=20") },
		"backlog":       func(o *run.Options) { o.Backlog, o.AcceptDelay, o.Plan.Timeout = 4, 20*time.Millisecond, 4*time.Second },
		"TIME_WAIT again": func(o *run.Options) {
			sysctl(o, "net.ipv4.tcp_tw_reuse=1")
			sysctl(o, "net.ipv4.ip_local_port_range=40000 40299")
			o.Plan.Interval = 1200 * time.Millisecond
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := run.Options{Plan: loadgen.NewPlan(netip.AddrPort{}), Net: netlab.Options{Kind: netlab.Pair}, Trace: true}
			o.Plan.Loops, o.Plan.Connections = 2, 150
			o.Record.File = filepath.Join(t.TempDir(), "storm.twt")
			set(&o)
			summary, err := run.Run(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if summary.Events.Lost() != 0 {
				t.Skipf("events were lost: %+v", summary.Events)
			}
			checkTshark(t, exported(t, o.Record.File, "pcapng", export.Options{}), expected(t, o.Record.File, summary.Coverage))
			if o.Net.Kind == netlab.Pair {
				for side := range 2 {
					checkOneEnd(t, o.Record.File, side)
				}
			}
		})
	}
}

func sysctl(o *run.Options, text string) {
	s, err := netlab.ParseSysctl(text)
	if err != nil {
		panic(err)
	}
	o.Net.Sysctls = append(o.Net.Sysctls, s)
}

// expected counts what the events of both ends say was on the wire.
func expected(t *testing.T, name string, c tcp.Coverage) (want timeline.Segments) {
	t.Helper()
	received := uint64(0)
	for _, ev := range eventsOf(t, name) {
		switch {
		case ev.Kind == tcp.KindRstSent:
			want.Rsts++
		case ev.Kind == tcp.KindRstReceived:
			received++
		case ev.Kind == tcp.KindRetransmit && (ev.Errno == 0 || ev.Errno == tcp.LinkDropped), ev.Kind == tcp.KindSynAckRetransmit:
			want.Retransmits++
		case ev.Kind != tcp.KindState:
		case ev.New == tcp.SynSent:
			want.Conversations++
		case ev.Old == tcp.SynSent && ev.New == tcp.Close && ev.Flags&tcp.FlagNoSegment != 0:
			want.Conversations--
		case ev.New == tcp.FinWait1, ev.New == tcp.LastAck:
			want.Fins++
		}
	}
	if c[tcp.FactRstSent] != tcp.Exact {
		want.Rsts = max(want.Rsts, received) // the kernel does not show those that no full socket sent
	}
	return want
}

// checkOneEnd leaves out what the other end tells.
func checkOneEnd(t *testing.T, name string, side int) {
	t.Helper()
	r, err := recording.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	ns := r.Header().NetNS[side].Cookie
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	var half []tcp.Event
	fins, rsts := uint64(0), uint64(0)
	opened := uint64(0)
	for _, ev := range eventsOf(t, name) {
		if ev.NetNS != ns {
			continue
		}
		half = append(half, ev)
		switch {
		case ev.Kind == tcp.KindRstSent, ev.Kind == tcp.KindRstReceived:
			rsts++
		case (ev.Kind == tcp.KindTWEnter || ev.Kind == tcp.KindTWConvert) && ev.Substate == tcp.TimeWait:
			fins++ // received, unless it was in CLOSING
		case ev.Kind != tcp.KindState:
		case ev.New == tcp.FinWait1, ev.New == tcp.LastAck, ev.New == tcp.CloseWait:
			fins++
		case ev.New == tcp.Established:
			opened++
		}
	}
	capture := exported(t, record(t, half), "pcapng", export.Options{})
	got := tshark(t, capture)
	// A socket that resets itself tells of an RST twice; connects that nobody answered are no handshakes.
	if got.Fins != fins || got.Rsts > rsts || rsts > 0 && got.Rsts == 0 || got.Conversations < opened || len(got.odd) > 0 {
		t.Errorf("of %s alone tshark counts %+v, and finds odd %v; want %d FINs, %d RSTs, at least %d conversations", r.Header().NetNS[side].Name, got.Segments, got.odd, fins, rsts, opened)
	}
}

func eventsOf(t *testing.T, name string) (events []tcp.Event) {
	t.Helper()
	r, err := recording.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c, err := r.Scan(recording.Query{Tables: []recording.Table{recording.TableEvents}}, func(b *recording.Batch) error {
		events = append(events, b.Events...)
		return nil
	})
	if err != nil || !c.Complete() {
		t.Fatalf("%s: %+v, %v", name, c, err)
	}
	return events
}
