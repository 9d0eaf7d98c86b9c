package timeline

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/twtrace/twtrace/internal/tcp"
)

// parseEvent reads an event: its time in ms, its socket (client or server, and the number of the connection), kind or
// change of state, and what else there is.
func parseEvent(t testing.TB, text string) tcp.Event {
	t.Helper()
	f := strings.Fields(text)
	var at float64
	if _, err := fmt.Sscan(f[0], &at); err != nil {
		t.Fatal(err)
	}
	ev := tcp.Event{MonoNS: int64(at * 1e6), Kind: tcp.KindState, NetNS: 1}
	ev.Tuple = tcp.FourTuple{Local: netip.MustParseAddrPort("198.18.0.1:40000"), Peer: netip.MustParseAddrPort("198.18.0.2:7")}
	ev.Cookie = tcp.Cookie(f[1][1] - '0')
	if f[1][0] == 's' {
		ev.Tuple, ev.Cookie, ev.NetNS = ev.Tuple.Reverse(), ev.Cookie+100, 2
	}
	if from, to, ok := strings.Cut(f[2], ">"); ok {
		ev.Old, ev.New = parseState(t, from), parseState(t, to)
	} else {
		kind, err := tcp.ParseKind(f[2])
		if err != nil {
			t.Fatal(err)
		}
		ev.Kind = kind
	}
	for _, w := range f[3:] {
		switch w {
		case "no-port":
			ev.Tuple.Local = netip.AddrPortFrom(ev.Tuple.Local.Addr(), 0)
		case "no-socket":
			ev.Cookie = 0
		case "no-segment":
			ev.Flags |= tcp.FlagNoSegment
		case "active":
			ev.Flags |= tcp.FlagActive
		case "tw-made":
			ev.Flags |= tcp.FlagTWMade
		case "self":
			ev.Tuple.Peer = ev.Tuple.Local
		case "ETIMEDOUT", "ECONNRESET", "ECONNREFUSED", "EPERM":
			ev.Errno, _ = tcp.ParseErrno(w)
		default:
			s := parseState(t, w)
			if ev.Kind == tcp.KindTWEnter || ev.Kind == tcp.KindTWConvert {
				ev.Substate, ev.New = s, tcp.TimeWait
			} else {
				ev.Old, ev.New = s, s
			}
		}
	}
	return ev
}

func parseState(t testing.TB, text string) tcp.State {
	t.Helper()
	s, err := tcp.ParseState(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// say is a segment as the tests want it: ms, conversation, direction, flags, numbers as Wireshark shows them.
type sayer struct {
	isn map[uint64][2]uint32
}

func (y *sayer) say(s *Segment) string {
	dir, from := "c>s", 0
	if s.From.Port() == 7 {
		dir, from = "s>c", 1
	}
	isn, seen := y.isn[s.Conversation]
	if !seen {
		// Of a SYN it is its own, and the other end's is told by its SYN or the first ACK.
		isn[from] = s.Seq
		if s.Flags&SYN == 0 {
			isn[from]--
		}
	}
	if s.Flags&ACK != 0 && isn[1-from] == 0 {
		isn[1-from] = s.Ack - 1
	}
	if s.Flags == SYN|ACK {
		isn[from] = s.Seq
	}
	y.isn[s.Conversation] = isn
	var flags []string
	for _, f := range []struct {
		bit  SegmentFlags
		name string
	}{{SYN, "SYN"}, {FIN, "FIN"}, {RST, "RST"}, {ACK, "ACK"}} {
		if s.Flags&f.bit != 0 {
			flags = append(flags, f.name)
		}
	}
	text := fmt.Sprintf("%g %d %s %s %d", float64(s.MonoNS)/1e6, s.Conversation, dir, strings.Join(flags, "+"), int32(s.Seq-isn[from]))
	if s.Flags&ACK != 0 {
		text += fmt.Sprintf(",%d", int32(s.Ack-isn[1-from]))
	}
	if s.Retransmit {
		text += " again"
	}
	if s.Witness == ByReceiver {
		text += " received"
	}
	if s.Witness == Implied {
		text += " implied"
	}
	if s.WaitedNS > 0 {
		text += fmt.Sprintf(" waited %g", float64(s.WaitedNS)/1e6)
	}
	return text
}

const handshake = `
	0 c1 CLOSE>SYN_SENT no-port
	1 c1 SYN_SENT>ESTABLISHED
	1.1 s1 LISTEN>SYN_RECV
	1.2 s1 SYN_RECV>ESTABLISHED`

const shaken = `
	0 0 c>s SYN 0
	1 0 s>c SYN+ACK 0,1 received
	1 0 c>s ACK 1,1`

// TestSegmenter tells lives of connections as the kernel does, and says what was on the wire (RFC 9293).
func TestSegmenter(t *testing.T) {
	for name, tt := range map[string]struct {
		events, want string
		counts       Segments
	}{
		"an active close, both ends": {
			events: handshake + `
				10 c1 ESTABLISHED>FIN_WAIT1
				11 s1 ESTABLISHED>CLOSE_WAIT
				12 s1 CLOSE_WAIT>LAST_ACK
				13 c1 FIN_WAIT1>FIN_WAIT2
				13.1 c1 tw-enter TIME_WAIT
				13.2 c1 FIN_WAIT2>CLOSE tw-made
				14 s1 LAST_ACK>CLOSE
				60000 c1 tw-end`,
			want: shaken + `
				10 0 c>s FIN+ACK 1,1
				11 0 s>c ACK 1,2
				12 0 s>c FIN+ACK 1,2
				13.1 0 c>s ACK 2,2`,
			counts: Segments{Conversations: 1, Fins: 2},
		},
		"the same, the client alone": {
			events: `
				0 c1 CLOSE>SYN_SENT no-port
				1 c1 SYN_SENT>ESTABLISHED
				10 c1 ESTABLISHED>FIN_WAIT1
				13 c1 FIN_WAIT1>FIN_WAIT2
				13.1 c1 tw-enter TIME_WAIT
				13.2 c1 FIN_WAIT2>CLOSE tw-made`,
			want: shaken + `
				10 0 c>s FIN+ACK 1,1
				13 0 s>c ACK 1,2 received
				13.1 0 s>c FIN+ACK 1,2 received
				13.1 0 c>s ACK 2,2`,
			counts: Segments{Conversations: 1, Fins: 2},
		},
		"the same, the server alone": {
			events: `
				1.1 s1 LISTEN>SYN_RECV
				1.2 s1 SYN_RECV>ESTABLISHED
				11 s1 ESTABLISHED>CLOSE_WAIT
				12 s1 CLOSE_WAIT>LAST_ACK
				14 s1 LAST_ACK>CLOSE`,
			want: `
				1.2 0 c>s SYN 0 implied
				1.2 0 s>c SYN+ACK 0,1 implied
				1.2 0 c>s ACK 1,1 received
				11 0 c>s FIN+ACK 1,1 received
				11 0 s>c ACK 1,2
				12 0 s>c FIN+ACK 1,2
				14 0 c>s ACK 2,2 received`,
			counts: Segments{Conversations: 1, Fins: 2},
		},
		"both close at once": {
			events: handshake + `
				10 c1 ESTABLISHED>FIN_WAIT1
				10.1 s1 ESTABLISHED>FIN_WAIT1
				11 c1 FIN_WAIT1>CLOSING
				11.1 s1 FIN_WAIT1>CLOSING
				12 c1 tw-enter TIME_WAIT
				12 c1 CLOSING>CLOSE tw-made
				12.1 s1 tw-enter TIME_WAIT
				12.1 s1 CLOSING>CLOSE tw-made`,
			want: shaken + `
				10 0 c>s FIN+ACK 1,1
				10.1 0 s>c FIN+ACK 1,2
				11 0 c>s ACK 2,2
				11.1 0 s>c ACK 2,2`,
			counts: Segments{Conversations: 1, Fins: 2},
		},
		"closed by RST, which the kernel reports when it has arrived": {
			events: handshake + `
				10 c1 ESTABLISHED>CLOSE
				10.1 s1 rst-received ESTABLISHED
				10.2 s1 ESTABLISHED>CLOSE ECONNRESET
				10.3 c1 rst-sent CLOSE active`,
			want:   shaken + "\n10.3 0 c>s RST+ACK 1,1",
			counts: Segments{Conversations: 1, Rsts: 1},
		},
		"an RST that is received later": {
			events: handshake + `
				10 c1 rst-sent ESTABLISHED
				10.2 s1 rst-received ESTABLISHED
				10.3 s1 ESTABLISHED>CLOSE ECONNRESET`,
			want:   shaken + "\n10 0 c>s RST+ACK 1,1",
			counts: Segments{Conversations: 1, Rsts: 1},
		},
		"an RST whose sender is not traced": {
			events: `
				0 c1 CLOSE>SYN_SENT no-port
				1 c1 SYN_SENT>ESTABLISHED
				10 c1 rst-received ESTABLISHED
				10 c1 ESTABLISHED>CLOSE ECONNRESET`,
			want:   shaken + "\n10 0 s>c RST+ACK 1,1 received",
			counts: Segments{Conversations: 1, Rsts: 1},
		},
		"a socket that resets itself": {
			events: handshake + `
				10 c1 ESTABLISHED>FIN_WAIT1
				11 c1 rst-received FIN_WAIT1
				11 c1 FIN_WAIT1>CLOSE ECONNRESET
				11.1 c1 rst-sent CLOSE
				11.2 s1 rst-received ESTABLISHED
				11.3 s1 ESTABLISHED>CLOSE ECONNRESET`,
			want: shaken + `
				10 0 c>s FIN+ACK 1,1
				11.1 0 c>s RST+ACK 2,1`,
			counts: Segments{Conversations: 1, Fins: 1, Rsts: 1},
		},
		"refused, by no socket": {
			events: `
				0 c1 CLOSE>SYN_SENT no-port
				0.1 s0 rst-sent no-socket
				0.2 c1 rst-received SYN_SENT
				0.3 c1 SYN_SENT>CLOSE ECONNREFUSED`,
			want: `
				0 0 c>s SYN 0
				0.1 0 s>c RST+ACK 0,1`,
			counts: Segments{Conversations: 1, Rsts: 1},
		},
		"no port for it": {
			events: "0 c1 CLOSE>SYN_SENT no-port\n0.1 c1 SYN_SENT>CLOSE no-port no-segment\n0.1 c1 connect-failed no-port",
		},
		"a SYN without an answer": {
			events: `
				0 c1 CLOSE>SYN_SENT no-port
				1000 c1 retransmit SYN_SENT
				3000 c1 retransmit SYN_SENT
				7000 c1 SYN_SENT>CLOSE ETIMEDOUT`,
			want: `
				0 0 c>s SYN 0
				1000 0 c>s SYN 0 again
				3000 0 c>s SYN 0 again`,
			counts: Segments{Conversations: 1, Retransmits: 2},
		},
		"a SYN that a packet filter of this host drops": {
			events: `
				0 c1 CLOSE>SYN_SENT no-port
				1000 c1 retransmit SYN_SENT EPERM
				7000 c1 SYN_SENT>CLOSE ETIMEDOUT`,
			want:   "0 0 c>s SYN 0",
			counts: Segments{Conversations: 1},
		},
		"a SYN whose port is known too late": {
			events: `
				0 c1 CLOSE>SYN_SENT no-port
				5000 c2 CLOSE>SYN_SENT no-port
				5001 c1 SYN_SENT>CLOSE ETIMEDOUT`,
			want:   "5001 0 c>s SYN 0 waited 5001",
			counts: Segments{Conversations: 1},
		},
		"a SYN+ACK that is sent again, before the client's port is known": {
			events: `
				0 c1 CLOSE>SYN_SENT no-port
				1000 s0 synack-retransmit NEW_SYN_RECV no-socket
				1001 c1 SYN_SENT>ESTABLISHED
				1002 s1 SYN_RECV>ESTABLISHED`,
			want: `
				1000 0 c>s SYN 0 implied
				1000 0 s>c SYN+ACK 0,1 again
				1001 0 c>s ACK 1,1`,
			counts: Segments{Conversations: 1, Retransmits: 1},
		},
		"segments that are sent again": {
			events: handshake + `
				200 c1 retransmit ESTABLISHED
				201 c1 ESTABLISHED>FIN_WAIT1
				600 c1 retransmit FIN_WAIT1`,
			want: shaken + `
				200 0 c>s ACK 0,1 again
				201 0 c>s FIN+ACK 1,1
				600 0 c>s ACK 1,1 again`,
			counts: Segments{Conversations: 1, Fins: 1, Retransmits: 2},
		},
		"a four-tuple that is used again": {
			events: handshake + `
				10 c1 ESTABLISHED>FIN_WAIT1
				11 s1 ESTABLISHED>CLOSE_WAIT
				12 s1 CLOSE_WAIT>LAST_ACK
				13.1 c1 tw-enter TIME_WAIT
				13.2 c1 FIN_WAIT2>CLOSE tw-made
				14 s1 LAST_ACK>CLOSE
				2000 c2 CLOSE>SYN_SENT no-port
				2000.1 c1 tw-end
				2001 c2 SYN_SENT>ESTABLISHED
				2002 s2 SYN_RECV>ESTABLISHED
				2003 c2 ESTABLISHED>CLOSE
				2003.1 s2 rst-received ESTABLISHED
				2003.2 c2 rst-sent CLOSE active`,
			want: shaken + `
				10 0 c>s FIN+ACK 1,1
				11 0 s>c ACK 1,2
				12 0 s>c FIN+ACK 1,2
				13.1 0 c>s ACK 2,2
				2000 1 c>s SYN 0
				2001 1 s>c SYN+ACK 0,1 received
				2001 1 c>s ACK 1,1
				2003.2 1 c>s RST+ACK 1,1`,
			counts: Segments{Conversations: 2, Fins: 2, Rsts: 1},
		},
		"a four-tuple that is used again, the server alone": {
			events: `
				1 s1 SYN_RECV>ESTABLISHED
				2 s1 rst-received ESTABLISHED
				2 s1 ESTABLISHED>CLOSE ECONNRESET
				3 s2 SYN_RECV>ESTABLISHED`,
			want: `
				1 0 c>s SYN 0 implied
				1 0 s>c SYN+ACK 0,1 implied
				1 0 c>s ACK 1,1 received
				2 0 c>s RST+ACK 1,1 received
				3 1 c>s SYN 0 implied
				3 1 s>c SYN+ACK 0,1 implied
				3 1 c>s ACK 1,1 received`,
			counts: Segments{Conversations: 2, Rsts: 1},
		},
		"older than the trace": {
			events: `
				10 c1 ESTABLISHED>FIN_WAIT1
				11 s1 ESTABLISHED>CLOSE_WAIT`,
			want: `
				10 0 c>s FIN+ACK 1,1
				11 0 s>c ACK 1,2`,
			counts: Segments{Conversations: 1, Fins: 1},
		},
		"an RST long after": {
			events: handshake + `
				10 c1 ESTABLISHED>FIN_WAIT1
				11 s1 ESTABLISHED>CLOSE_WAIT
				12 s1 CLOSE_WAIT>LAST_ACK
				13.1 c1 tw-enter TIME_WAIT
				13.2 c1 FIN_WAIT2>CLOSE tw-made
				14 s1 LAST_ACK>CLOSE
				30000 s0 rst-sent no-socket`,
			want: shaken + `
				10 0 c>s FIN+ACK 1,1
				11 0 s>c ACK 1,2
				12 0 s>c FIN+ACK 1,2
				13.1 0 c>s ACK 2,2
				30000 0 s>c RST+ACK 2,2`,
			counts: Segments{Conversations: 1, Fins: 2, Rsts: 1},
		},
		"a listener that has room when the client has gone": {
			events: `
				0 c1 CLOSE>SYN_SENT no-port
				1 c1 SYN_SENT>ESTABLISHED
				1000 s0 synack-retransmit NEW_SYN_RECV no-socket
				4000 c1 ESTABLISHED>CLOSE
				4000.1 c1 rst-sent CLOSE active
				9000 c9 CLOSE>SYN_SENT no-port
				15000 s0 synack-retransmit NEW_SYN_RECV no-socket
				15000.1 c0 rst-sent no-socket`,
			want: shaken + `
				1000 0 s>c SYN+ACK 0,1 again
				4000.1 0 c>s RST+ACK 1,1
				15000 0 s>c SYN+ACK 0,1 again
				15000.1 0 c>s RST+ACK 1,1`,
			counts: Segments{Conversations: 1, Rsts: 2, Retransmits: 2},
		},
		"connected to itself": {
			events: `
				0 c1 CLOSE>SYN_SENT no-port
				1 c1 SYN_SENT>SYN_RECV self
				1 c1 SYN_RECV>ESTABLISHED self
				2 c1 ESTABLISHED>FIN_WAIT1 self
				3 c1 FIN_WAIT1>CLOSING self
				3 c1 CLOSING>CLOSE tw-made self`,
			want: `
				0 0 c>s SYN 0
				2 0 c>s FIN+ACK 1,1`,
			counts: Segments{Conversations: 1, Fins: 1},
		},
		"a FIN_WAIT2 minisock": {
			events: handshake + `
				10 c1 ESTABLISHED>FIN_WAIT1
				11 c1 FIN_WAIT1>FIN_WAIT2
				11 c1 tw-enter FIN_WAIT2
				11 c1 FIN_WAIT2>CLOSE tw-made
				20 c1 tw-convert TIME_WAIT`,
			want: shaken + `
				10 0 c>s FIN+ACK 1,1
				11 0 s>c ACK 1,2 received
				20 0 s>c FIN+ACK 1,2 received
				20 0 c>s ACK 2,2`,
			counts: Segments{Conversations: 1, Fins: 2},
		},
		"events of several processors in the wrong order": {
			events: `
				0 c1 CLOSE>SYN_SENT no-port
				1.2 s1 SYN_RECV>ESTABLISHED
				1 c1 SYN_SENT>ESTABLISHED
				11 s1 ESTABLISHED>CLOSE_WAIT
				10 c1 ESTABLISHED>FIN_WAIT1`,
			want: `
				1.2 0 c>s SYN 0 implied
				1.2 0 s>c SYN+ACK 0,1 implied
				1.2 0 c>s ACK 1,1 received
				11 0 c>s FIN+ACK 1,1 received
				11 0 s>c ACK 1,2`,
			counts: Segments{Conversations: 1, Fins: 1},
		},
		"an event without addresses": {
			events: "0 c1 rst-sent no-port",
			counts: Segments{Unplaced: 1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			y := sayer{make(map[uint64][2]uint32)}
			last := int64(0)
			s := NewSegmenter(0, func(seg *Segment) error {
				if seg.MonoNS < last {
					t.Errorf("a segment of %d after one of %d", seg.MonoNS, last)
				}
				last = seg.MonoNS
				got = append(got, y.say(seg))
				return nil
			})
			for i, line := range lines(tt.events) {
				ev := parseEvent(t, line)
				ev.Seq = uint64(i + 1)
				if err := s.Event(&ev); err != nil {
					t.Fatal(err)
				}
			}
			counts, err := s.Finish()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(lines(tt.want), got); diff != "" {
				t.Errorf("segments (-want +got):\n%s", diff)
			}
			if counts != tt.counts {
				t.Errorf("counts %+v, want %+v", counts, tt.counts)
			}
		})
	}
}

// lines are those of a text that are not empty.
func lines(text string) []string {
	var all []string
	for line := range strings.SplitSeq(text, "\n") {
		if line = strings.TrimSpace(line); line != "" {
			all = append(all, line)
		}
	}
	return all
}

// TestSegmenterForgets: nothing is left of what is over but the numbers of its pair, however much there was.
func TestSegmenterForgets(t *testing.T) {
	var events []tcp.Event
	for _, line := range lines(handshake + "\n10 c1 ESTABLISHED>CLOSE\n10.1 s1 rst-received ESTABLISHED\n10.2 s1 ESTABLISHED>CLOSE\n10.3 c1 rst-sent CLOSE active") {
		events = append(events, parseEvent(t, line))
	}
	s := NewSegmenter(0, nil)
	const n = 20_000
	for i := range n {
		for _, ev := range events {
			ev.MonoNS += int64(i) * ms
			if ev.Cookie != 0 {
				ev.Cookie += tcp.Cookie(i) * 1000
			}
			port := uint16(10_000 + i)
			if ev.NetNS == 2 {
				ev.Tuple.Peer = netip.AddrPortFrom(ev.Tuple.Peer.Addr(), port)
			} else if ev.Tuple.Local.Port() != 0 {
				ev.Tuple.Local = netip.AddrPortFrom(ev.Tuple.Local.Addr(), port)
			}
			if err := s.Event(&ev); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := s.Counts(); got.Conversations > n || got.Conversations < n-100 {
		t.Errorf("%d conversations so far, of %d", got.Conversations, n)
	}
	for what, n := range map[string]int{
		"conversations": len(s.live), "closed": s.closed.len(), "resets": len(s.resets), "syns": len(s.syns), "waiting": len(s.waiting),
	} {
		if n > 8000 { // of three seconds at most, one a millisecond, two resets each
			t.Errorf("%d %s are kept", n, what)
		}
	}
	if got, _ := s.Finish(); got != (Segments{Conversations: n, Rsts: n}) {
		t.Errorf("counts %+v", got)
	}
}

// FuzzSegmenter feeds any stream: no panic, memory within the limit, and in each direction numbers that do not run
// backwards.
func FuzzSegmenter(f *testing.F) {
	f.Add([]byte{1, 1, 0x72, 0, 1, 0, 1, 1, 0x21, 0, 1, 0, 1, 2, 0x31, 1, 1, 0, 1, 1, 0x14, 0, 5, 0})
	f.Add([]byte{1, 48, 0x58, 48, 48, 48, 1, 48, 48, 128, 0, 0}) // a FIN of a connection of before, later than the pair's next SYN
	f.Fuzz(func(t *testing.T, data []byte) {
		const limit = 4
		next := make(map[[2]netip.AddrPort]uint32)
		s := NewSegmenter(limit, func(seg *Segment) error {
			dir := [2]netip.AddrPort{seg.From, seg.To}
			if seg.Flags&SYN == 0 && !seg.Retransmit && seg.Seq != 0 {
				if before, ok := next[dir]; ok && int32(seg.Seq-before) < 0 && int32(seg.Seq-before) > -16 {
					t.Fatalf("%v after %d", seg, before)
				}
			}
			next[dir] = seg.Seq
			return nil
		})
		at := int64(1)
		for ; len(data) >= 6; data = data[6:] {
			at += int64(binary.LittleEndian.Uint16(data[4:])) * ms
			ev := tcp.Event{
				MonoNS: at - int64(data[3]>>4)*ms, Kind: tcp.Kind(data[0]), Cookie: tcp.Cookie(data[1] % 16),
				Old: tcp.State(data[2] >> 4), New: tcp.State(data[2] & 15), Flags: tcp.Flags(data[3]), Substate: tcp.State(data[2] & 15),
			}
			ev.Tuple = tuple(uint16(data[1] >> 5))
			if data[3]&1 != 0 {
				ev.Tuple = ev.Tuple.Reverse()
			}
			if err := s.Event(&ev); err != nil {
				t.Fatal(err)
			}
			if len(s.live) > limit+1 {
				t.Fatalf("%d conversations, limit %d", len(s.live), limit)
			}
		}
		counts, _ := s.Finish()
		if len(s.waiting) != 0 || counts.Conversations > s.order {
			t.Fatalf("%d wait, counts %+v", len(s.waiting), counts)
		}
	})
}

func BenchmarkSegmenter(b *testing.B) {
	var events []tcp.Event
	for _, line := range lines(handshake + `
		10 c1 ESTABLISHED>FIN_WAIT1
		11 s1 ESTABLISHED>CLOSE_WAIT
		12 s1 CLOSE_WAIT>LAST_ACK
		13 c1 FIN_WAIT1>FIN_WAIT2
		13.1 c1 tw-enter TIME_WAIT
		13.2 c1 FIN_WAIT2>CLOSE tw-made
		14 s1 LAST_ACK>CLOSE`) {
		events = append(events, parseEvent(b, line))
	}
	s := NewSegmenter(0, func(*Segment) error { return nil })
	all := slices.Clone(events)
	i := 0
	for b.Loop() {
		for k := range all {
			ev := &all[k]
			*ev = events[k]
			ev.MonoNS += int64(i) * 10_000
			ev.Cookie += tcp.Cookie(i) * 1000
		}
		for k := range all {
			_ = s.Event(&all[k])
		}
		i++
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(all)), "ns/event")
}
