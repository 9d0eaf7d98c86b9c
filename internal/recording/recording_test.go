package recording_test

import (
	"encoding/json"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
)

// equalAddrs compares addresses as the values that they are.
var equalAddrs = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})

// storm makes events of connections that overlap, with everything that an event can have.
func storm(n int) []tcp.Event {
	rnd := rand.New(rand.NewPCG(1, 2))
	events := make([]tcp.Event, n)
	for i := range events {
		conn := uint64(i/7 + rnd.IntN(50))
		ev := &events[i]
		*ev = tcp.Event{
			Seq: uint64(i + 1), MonoNS: int64(1e9 + i*900 + rnd.IntN(300)), Cookie: tcp.Cookie(conn + 4096), NetNS: 7,
			Tuple: tcp.FourTuple{
				Local: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, 0, 1}), uint16(32768+conn*2%28232)),
				Peer:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, 0, 2}), 7),
			},
			Kind: tcp.KindState, Old: tcp.State(i % 12), New: tcp.State((i + 1) % 12),
		}
		switch i % 97 {
		case 1:
			ev.Flags = tcp.FlagOwner
			ev.Owner = tcp.Owner{PID: uint32(i), Cgroup: 77, Comm: tcp.Comm{'a', 0x1b, '['}}
		case 2:
			ev.Kind, ev.Cause, ev.Flags, ev.Errno = tcp.KindConnectFailed, tcp.CausePortSearch, tcp.FlagRefusals, tcp.EADDRNOTAVAIL
			ev.Refusals = tcp.Refusals{TooYoung: 1, NotAllowed: 2, NoTimestamps: 3, Taken: 4}
		case 3:
			ev.Kind, ev.Holder = tcp.KindBindFailed, tcp.Holder{State: tcp.Listen, Cookie: 9, Addr: netip.IPv6Unspecified()}
		case 4:
			ev.Tuple.Local = netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), 0)
			ev.Tuple.Peer = netip.AddrPort{}
		case 5:
			ev.Kind, ev.Reason, ev.Ticks, ev.Substate = tcp.KindTWEnter, 5, 15000, tcp.FinWait2
		}
	}
	return events
}

func attempts(n int) []tcp.Attempt {
	all := make([]tcp.Attempt, n)
	for i := range all {
		t := int64(1e9 + i*30_000)
		all[i] = tcp.Attempt{
			Cookie: tcp.Cookie(4096 + i), Started: t, Intended: t - 1, Connected: t + 2, FirstByte: t + 3, Closed: t + 4,
			Loop: uint32(i / 1000), Index: uint32(i % 1000), LocalPort: uint16(i), Shard: 3, Errno: tcp.Errno(i % 2 * 99),
			Phase: tcp.PhaseDone, Flags: tcp.ShortReply,
		}
	}
	return all
}

func TestRoundTrip(t *testing.T) {
	name := filepath.Join(t.TempDir(), "a.twt")
	w, err := recording.Create(name, recording.Header{Command: recording.CommandRun, HZ: 250}, recording.Options{})
	if err != nil {
		t.Fatal(err)
	}
	events, tries := storm(20_000), attempts(9_000)
	sample := recording.Sample{
		Kind: recording.SampleLoop, MonoNS: 5, RealNS: 6, BootNS: 7, Loop: 1, Started: 2, Finished: 3, Failed: 4, Open: 5,
		TimeWait: -1, Ports: 6, DurationNS: 7,
	}
	for at := 0; at < len(events); at += 1000 {
		w.Events(events[at : at+1000])
	}
	w.Attempts(tries)
	w.Sample(sample)
	if err := w.Close(json.RawMessage(`{"a":1}`)); err != nil {
		t.Fatal(err)
	}
	r, err := recording.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var gotEvents []tcp.Event
	var gotTries []tcp.Attempt
	var gotSamples []recording.Sample
	c, err := r.Scan(recording.Query{}, func(b *recording.Batch) error {
		gotEvents = append(gotEvents, b.Events...)
		gotTries = append(gotTries, b.Attempts...)
		gotSamples = append(gotSamples, b.Samples...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !c.Complete() || string(c.Footer.Summary) != `{"a":1}` {
		t.Errorf("condition: %+v", c)
	}
	if diff := cmp.Diff(events, gotEvents, equalAddrs); diff != "" {
		t.Errorf("events (-written +read):\n%s", diff)
	}
	if diff := cmp.Diff(tries, gotTries); diff != "" {
		t.Errorf("attempts (-written +read):\n%s", diff)
	}
	if diff := cmp.Diff([]recording.Sample{sample}, gotSamples); diff != "" {
		t.Errorf("samples (-written +read):\n%s", diff)
	}
}
