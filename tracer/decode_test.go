package tracer

import (
	"bytes"
	"math"
	"net/netip"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/bpf"
	"github.com/twtrace/twtrace/internal/tcp"
)

// bytesOf is what the kernel side writes for w.
func bytesOf(w *bpf.ProbesEvent) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(w)), unsafe.Sizeof(*w))
}

func TestDecode(t *testing.T) {
	for _, tt := range []struct {
		name string
		wire bpf.ProbesEvent
		want Event
	}{
		{name: "zero"},
		{
			name: "state",
			wire: bpf.ProbesEvent{
				MonoNs: 5, Cookie: 6, Netns: 7, Family: unix.AF_INET,
				Local: [16]uint8{198, 18, 0, 1}, LocalPort: 40000,
				Peer: [16]uint8{198, 19, 0, 1}, PeerPort: 8080,
				Kind: 1, OldState: 1, NewState: 7, Err: 104, Flags: 4,
			},
			want: Event{
				MonoNS: 5, Cookie: 6, NetNS: 7, Kind: tcp.KindState,
				Tuple: tcp.FourTuple{
					Local: netip.MustParseAddrPort("198.18.0.1:40000"),
					Peer:  netip.MustParseAddrPort("198.19.0.1:8080"),
				},
				Old: tcp.Established, New: tcp.Close, Errno: tcp.ECONNRESET, Flags: tcp.FlagLinger0,
			},
		},
		{
			name: "the end of a TIME_WAIT, IPv6",
			wire: bpf.ProbesEvent{
				Family: unix.AF_INET6, LocalPort: 65535, PeerPort: 1,
				Local: [16]uint8{15: 1},
				Peer:  [16]uint8{0x20, 1, 0, 2, 15: 1},
				Kind:  5, OldState: 6, NewState: 7, Substate: 5, Cause: 4,
			},
			want: Event{
				Kind: tcp.KindTWEnd, Old: tcp.TimeWait, New: tcp.Close, Substate: tcp.FinWait2, Cause: tcp.CauseKilledByRst,
				Tuple: tcp.FourTuple{
					Local: netip.MustParseAddrPort("[::1]:65535"),
					Peer:  netip.MustParseAddrPort("[2001:2::1]:1"),
				},
			},
		},
		{
			name: "a bind() that failed because of a listener",
			wire: bpf.ProbesEvent{
				Family: unix.AF_INET, Local: [16]uint8{127, 0, 0, 1}, LocalPort: 80, Kind: 12, OldState: 7, NewState: 7, Substate: 10, Err: 98,
				Refusals: [4]uint16{1, 0, 0, 1 << 15}, Peer: [16]uint8{15: 1},
			},
			want: Event{
				Kind: tcp.KindBindFailed, Old: tcp.Close, New: tcp.Close, Errno: tcp.EADDRINUSE,
				Tuple:  tcp.FourTuple{Local: netip.MustParseAddrPort("127.0.0.1:80"), Peer: netip.MustParseAddrPort("0.0.0.0:0")},
				Holder: tcp.Holder{State: tcp.Listen, Cookie: 1<<63 + 1, Addr: netip.IPv6Loopback()},
			},
		},
		{
			name: "a bind() that failed because of a TIME_WAIT on all addresses",
			wire: bpf.ProbesEvent{
				Family: unix.AF_INET6, LocalPort: 80, Kind: 12, OldState: 7, NewState: 7, Substate: 6,
				Peer: [16]uint8{10: 0xff, 11: 0xff},
			},
			want: Event{
				Kind: tcp.KindBindFailed, Old: tcp.Close, New: tcp.Close,
				Tuple:  tcp.FourTuple{Local: netip.MustParseAddrPort("[::]:80"), Peer: netip.MustParseAddrPort("[::]:0")},
				Holder: tcp.Holder{State: tcp.TimeWait, Addr: netip.IPv4Unspecified()},
			},
		},
		{
			name: "the largest of everything, and what no version of the kernel side sends",
			wire: bpf.ProbesEvent{
				MonoNs: math.MaxInt64, Cookie: math.MaxUint64, Netns: math.MaxUint64, Reason: math.MaxUint32,
				Ticks: math.MaxUint32, Err: math.MaxUint16, Kind: 255, OldState: 255, NewState: 255,
				Substate: 255, Cause: 255, Flags: 255, Family: 255, Nth: 255, Pad: [2]uint8{255, 255}, Call: math.MaxUint32,
				Cgroup: math.MaxUint64, Pid: math.MaxUint32, Comm: [16]uint8{255}, Refusals: [4]uint16{1, 2, 3, math.MaxUint16},
			},
			want: Event{
				MonoNS: math.MaxInt64, Cookie: math.MaxUint64, NetNS: math.MaxUint64, Reason: math.MaxUint32,
				Ticks: math.MaxUint32, Errno: math.MaxUint16, Kind: 255, Old: 255, New: 255,
				Substate: 255, Cause: 255, Flags: 255,
				Owner:    tcp.Owner{PID: math.MaxUint32, Cgroup: math.MaxUint64, Comm: tcp.Comm{255}},
				Refusals: tcp.Refusals{TooYoung: 1, NotAllowed: 2, NoTimestamps: 3, Taken: math.MaxUint16},
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Event{Seq: 9, Reason: 9, Ticks: 9} // of another event before
			decode(&tt.wire, &got)
			if got != tt.want {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

// FuzzDecode: whatever a slot holds, decode makes an event of it that can be printed.
func FuzzDecode(f *testing.F) {
	var none bpf.ProbesEvent
	f.Add(bytesOf(&none))
	f.Add(bytes.Repeat([]byte{255}, len(bytesOf(&none))))
	for _, family := range []uint8{0, unix.AF_INET, unix.AF_INET6} {
		f.Add(bytesOf(&bpf.ProbesEvent{
			MonoNs: 1, Cookie: 2, Netns: 3, Family: family, Kind: 1, OldState: 2, NewState: 7,
			Local: [16]uint8{10: 0xff, 11: 0xff, 12: 127, 15: 1}, LocalPort: 1,
		}))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var w bpf.ProbesEvent
		copy(bytesOf(&w), raw)
		var ev Event
		decode(&w, &ev)
		if ev.Tuple.Local.Addr().Is4In6() || ev.Tuple.Peer.Addr().Is4In6() {
			t.Errorf("a mapped address came out: %v", ev.Tuple)
		}
		for _, s := range []string{ev.Kind.String(), ev.Old.String(), ev.New.String(), ev.Tuple.String()} {
			if s == "" {
				t.Errorf("%+v has a part that can't be printed", ev)
			}
		}
		_, _, _ = ev.Cause.String(), ev.Substate.JSON(), ev.Errno.String()
	})
}

func TestAddrPort(t *testing.T) {
	v4 := [16]byte{192, 0, 2, 1, 0xff} // what follows the fourth byte is not of the address
	v6 := [16]byte{0x20, 1, 0xd, 0xb8, 15: 1}
	mapped := [16]byte{10: 0xff, 11: 0xff, 12: 192, 14: 2, 15: 1}
	for _, tt := range []struct {
		name   string
		family uint8
		addr   [16]byte
		port   uint16
		want   netip.AddrPort
	}{
		{"IPv4", unix.AF_INET, v4, 80, netip.MustParseAddrPort("192.0.2.1:80")},
		{"IPv6", unix.AF_INET6, v6, 80, netip.MustParseAddrPort("[2001:db8::1]:80")},
		{"IPv4 on an IPv6 socket", unix.AF_INET6, mapped, 80, netip.MustParseAddrPort("192.0.2.1:80")},
		{"IPv4 not yet chosen", unix.AF_INET, [16]byte{}, 0, netip.MustParseAddrPort("0.0.0.0:0")},
		{"IPv6 not yet chosen", unix.AF_INET6, [16]byte{}, 0, netip.MustParseAddrPort("[::]:0")},
		{"no family", 0, v4, 80, netip.AddrPortFrom(netip.Addr{}, 80)},
		{"unknown family", unix.AF_UNIX, v4, 80, netip.AddrPortFrom(netip.Addr{}, 80)},
	} {
		if got := addrPort(tt.family, &tt.addr, tt.port); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
