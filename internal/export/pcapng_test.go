package export_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/twtrace/twtrace/internal/export"
	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/testenv"
	"github.com/twtrace/twtrace/internal/timeline"
)

// evil is what a process can call itself.
var evil = tcp.Comm{0x1b, ']', '0', ';', 'x', 7, '<', 'b', '>', '"', '\n'}

// wire is a way to write down the events of connections by hand: of one end of a connection at a time.
type wire struct {
	events []tcp.Event
	at     int64
}

type end struct {
	w      *wire
	cookie tcp.Cookie
	tuple  tcp.FourTuple
}

// pair returns both ends of a connection, in namespaces 21 and 22.
func (w *wire) pair(n int, client, server string) (c, s end) {
	t := tcp.FourTuple{Local: netip.MustParseAddrPort(client), Peer: netip.MustParseAddrPort(server)}
	return end{w, tcp.Cookie(1000 + n), t}, end{w, tcp.Cookie(2000 + n), t.Reverse()}
}

func (e end) add(ev tcp.Event) {
	e.w.at += 1e6
	ev.Seq, ev.MonoNS, ev.Cookie, ev.Tuple, ev.NetNS = uint64(len(e.w.events)+1), e.w.at, e.cookie, e.tuple, 21
	if e.cookie >= 2000 {
		ev.NetNS = 22
	}
	if ev.Kind == 0 {
		ev.Kind = tcp.KindState
	}
	if ev.New == tcp.SynSent && ev.Old == tcp.Close {
		ev.Tuple.Local = netip.AddrPortFrom(ev.Tuple.Local.Addr(), 0)
		ev.Flags, ev.Owner = tcp.FlagOwner, tcp.Owner{PID: 7, Comm: evil}
	}
	e.w.events = append(e.w.events, ev)
}

func (e end) goes(states ...tcp.State) {
	for i := range states[1:] {
		e.add(tcp.Event{Old: states[i], New: states[i+1]})
	}
}

// shake opens a connection.
func shake(c, s end) {
	c.goes(tcp.Close, tcp.SynSent, tcp.Established)
	s.goes(tcp.SynRecv, tcp.Established)
}

// byHand is a bit of everything, with what was on the wire.
func byHand() (events []tcp.Event, want timeline.Segments) {
	w := &wire{at: 5e9}
	closed := func(n int, client, server string) {
		c, s := w.pair(n, client, server)
		shake(c, s)
		c.goes(tcp.Established, tcp.FinWait1)
		s.goes(tcp.Established, tcp.CloseWait, tcp.LastAck)
		c.goes(tcp.FinWait1, tcp.FinWait2)
		c.add(tcp.Event{Kind: tcp.KindTWEnter, New: tcp.TimeWait, Substate: tcp.TimeWait})
		c.goes(tcp.FinWait2, tcp.Close)
		s.goes(tcp.LastAck, tcp.Close)
		want.Conversations++
		want.Fins += 2
	}
	for n := range 5 {
		closed(n, "198.18.0.1:40000", "198.19.0.1:7") // again and again
	}
	closed(10, "[2001:db8::1]:40000", "[2001:db8::2]:7")
	reset := func(n int, addr string) {
		c, s := w.pair(n, addr, "198.19.0.1:7")
		shake(c, s)
		c.goes(tcp.Established, tcp.Close)
		s.add(tcp.Event{Kind: tcp.KindRstReceived, Old: tcp.Established, New: tcp.Established})
		s.add(tcp.Event{Old: tcp.Established, New: tcp.Close, Errno: tcp.ECONNRESET})
		c.add(tcp.Event{Kind: tcp.KindRstSent, Old: tcp.Close, New: tcp.Close, Flags: tcp.FlagActive, Reason: 3})
		want.Conversations++
		want.Rsts++
	}
	reset(20, "198.18.0.1:40000")
	reset(21, "198.18.0.1:40001")
	for n := range 2 { // refused, twice on one port
		c, s := w.pair(30+n, "198.18.0.1:40002", "198.19.0.1:8")
		c.goes(tcp.Close, tcp.SynSent)
		s.cookie = 0
		s.add(tcp.Event{Kind: tcp.KindRstSent})
		c.add(tcp.Event{Kind: tcp.KindRstReceived, Old: tcp.SynSent, New: tcp.SynSent})
		c.add(tcp.Event{Old: tcp.SynSent, New: tcp.Close, Errno: tcp.ECONNREFUSED})
		want.Conversations++
		want.Rsts++
	}
	// Lost SYNs, and segments of an established connection.
	c, s := w.pair(40, "198.18.0.1:40003", "198.19.0.1:7")
	c.goes(tcp.Close, tcp.SynSent)
	for range 2 {
		w.at += 1e9
		c.add(tcp.Event{Kind: tcp.KindRetransmit, Old: tcp.SynSent, New: tcp.SynSent})
	}
	w.at += 1e9
	s.add(tcp.Event{Kind: tcp.KindSynAckRetransmit, Old: tcp.NewSynRecv, New: tcp.NewSynRecv})
	c.goes(tcp.SynSent, tcp.Established)
	s.goes(tcp.SynRecv, tcp.Established)
	for range 2 {
		w.at += 1e9
		c.add(tcp.Event{Kind: tcp.KindRetransmit, Old: tcp.Established, New: tcp.Established})
	}
	c.goes(tcp.Established, tcp.FinWait1)
	w.at += 1e9
	c.add(tcp.Event{Kind: tcp.KindRetransmit, Old: tcp.FinWait1, New: tcp.FinWait1})
	c.add(tcp.Event{Old: tcp.FinWait1, New: tcp.Close, Errno: tcp.ETIMEDOUT})
	want.Conversations++
	want.Fins++
	want.Retransmits += 6
	// One end of each is traced; older than the trace; an RST of nobody's.
	c, _ = w.pair(50, "198.18.0.1:40004", "203.0.113.1:80")
	c.goes(tcp.Close, tcp.SynSent, tcp.Established, tcp.FinWait1, tcp.FinWait2)
	c.add(tcp.Event{Kind: tcp.KindTWEnter, New: tcp.TimeWait, Substate: tcp.TimeWait})
	_, s = w.pair(51, "203.0.113.1:40004", "198.18.0.1:80")
	s.goes(tcp.SynRecv, tcp.Established)
	s.add(tcp.Event{Kind: tcp.KindRstReceived, Old: tcp.Established, New: tcp.Established})
	s.add(tcp.Event{Old: tcp.Established, New: tcp.Close, Errno: tcp.ECONNRESET})
	c, _ = w.pair(52, "198.18.0.1:40005", "203.0.113.1:80")
	c.goes(tcp.Established, tcp.FinWait1)
	_, s = w.pair(53, "203.0.113.1:40006", "198.18.0.1:80")
	s.cookie = 0
	s.add(tcp.Event{Kind: tcp.KindRstSent})
	want.Conversations += 4
	want.Fins += 3
	want.Rsts += 2
	closed(60, "198.18.0.1:40005", "203.0.113.1:80") // its port again, with a SYN that is seen
	// No port, no addresses: nothing on the wire.
	c, _ = w.pair(70, "198.18.0.1:40007", "198.19.0.1:7")
	c.goes(tcp.Close, tcp.SynSent)
	c.add(tcp.Event{Old: tcp.SynSent, New: tcp.Close, Flags: tcp.FlagNoSegment})
	return w.events, want
}

// record writes events and samples into a recording.
func record(t testing.TB, events []tcp.Event, samples ...recording.Sample) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "a.twt")
	h := recording.Header{
		Command: recording.CommandRun, HZ: 250, Host: "evil\x1b[31mhost<script>", Kernel: "6.18.0", Arch: "amd64", BootID: "b",
		NetNS: []recording.NetNS{{Cookie: 21, Name: "client"}, {Cookie: 22, Name: "server\x1b"}},
		Enums: map[string]map[uint32]string{"rst_reason": {3: "NO\x1bSOCKET"}},
	}
	w, err := recording.Create(name, h, recording.Options{Now: func() recording.Clock {
		return recording.Clock{MonoNS: 5e9, RealNS: 1_700_000_005e9, BootNS: 6e9}
	}})
	if err != nil {
		t.Fatal(err)
	}
	w.Events(events)
	for _, s := range samples {
		w.Sample(s)
	}
	if err := w.Close(json.RawMessage("{}")); err != nil {
		t.Fatal(err)
	}
	return name
}

// exported writes a recording in a format to a file.
func exported(t testing.TB, name, format string, o export.Options) string {
	t.Helper()
	r, err := recording.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	out, err := os.Create(filepath.Join(t.TempDir(), "out."+format))
	if err != nil {
		t.Fatal(err)
	}
	c, err := export.Write(t.Context(), r, format, out, o)
	if err = errors.Join(err, out.Close()); err != nil {
		t.Fatal(err)
	}
	if !c.Complete() {
		t.Errorf("%s is not complete: %+v", name, c)
	}
	return out.Name()
}

// TestPcapng reads a capture with a decoder of packets: checksums, times, and what it says of itself.
func TestPcapng(t *testing.T) {
	events, want := byHand()
	f, err := os.Open(exported(t, record(t, events), "pcapng", export.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	if about := r.SectionInfo().Comment; !strings.Contains(about, "synthesised by twtrace") {
		t.Errorf("the section says %q", about)
	}
	var got timeline.Segments
	var last, packets int64
	for {
		data, info, opts, err := r.ReadPacketDataWithOptions()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		packets++
		p := gopacket.NewPacket(data, layers.LinkTypeRaw, gopacket.Default)
		if bad := p.ErrorLayer(); bad != nil {
			t.Fatal(bad.Error())
		}
		head := p.TransportLayer().(*layers.TCP)
		if err := head.SetNetworkLayerForChecksum(p.NetworkLayer()); err != nil {
			t.Fatal(err)
		}
		if err, wrong := p.VerifyChecksums(); err != nil || len(wrong) > 0 {
			t.Fatalf("packet %d: checksums %+v, %v", packets, wrong, err)
		}
		if head.FIN {
			got.Fins++
		}
		if head.RST {
			got.Rsts++
		}
		if at := info.Timestamp.UnixNano(); at < last || at < 1_700_000_005e9 || at > 1_700_000_060e9 {
			t.Errorf("packet %d is of %d, after one of %d", packets, at, last)
		} else {
			last = at
		}
		iface, err := r.Interface(info.InterfaceIndex)
		if err != nil || !strings.HasPrefix(iface.Name, "twtrace-") || !strings.Contains(iface.Description, "not real") {
			t.Errorf("packet %d is of interface %+v, %v", packets, iface, err)
		}
		var seq int
		if len(opts.Comments) != 1 {
			t.Fatalf("packet %d: comments %q", packets, opts.Comments)
		}
		comment := opts.Comments[0]
		if _, err := fmt.Sscanf(comment, "twtrace: event %d ", &seq); err != nil || seq < 1 || seq > len(events) {
			t.Errorf("packet %d: comment %q: %v", packets, comment, err)
		}
		if head.RST && seq > 0 && events[seq-1].Reason == 3 && !strings.Contains(comment, `reason NO\x1bSOCKET`) {
			t.Errorf("packet %d: comment %q", packets, comment)
		}
		if i := strings.IndexFunc(comment, func(r rune) bool { return r < ' ' || r == 0x7f }); i >= 0 {
			t.Errorf("packet %d: comment %q", packets, comment)
		}
	}
	if got.Fins != want.Fins || got.Rsts != want.Rsts || packets == 0 {
		t.Errorf("%d packets: %+v, want %+v", packets, got, want)
	}
}

// TestPcapngOfNothing: a recording without events is a capture without packets.
func TestPcapngOfNothing(t *testing.T) {
	f, err := os.Open(exported(t, record(t, nil), "pcapng", export.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.ReadPacketData(); !errors.Is(err, io.EOF) {
		t.Errorf("reading a packet: %v", err)
	}
}

// seen is what tshark makes of a capture.
type seen struct {
	timeline.Segments
	odd map[string]int // what its analysis of sequence numbers finds
}

// tshark has Wireshark's own dissectors read a capture.
func tshark(t testing.TB, name string) seen {
	t.Helper()
	testenv.Require(t, testenv.Tshark)
	var stderr bytes.Buffer
	cmd := exec.Command("tshark", "-n", "-r", name, "-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE",
		"-T", "fields", "-e", "tcp.stream", "-e", "tcp.flags.fin", "-e", "tcp.flags.reset", "-e", "_ws.expert.message", "-E", "occurrence=a", "-E", "aggregator=|")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v: %s", cmd, err, &stderr)
	}
	s := seen{odd: make(map[string]int)}
	streams := make(map[string]bool)
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 4 || f[0] == "" {
			t.Fatalf("tshark says %q", line)
		}
		streams[f[0]] = true
		if f[1] == "1" || f[1] == "True" {
			s.Fins++
		}
		if f[2] == "1" || f[2] == "True" {
			s.Rsts++
		}
		for message := range strings.SplitSeq(f[3], "|") {
			s.note(message)
		}
	}
	s.Conversations = uint64(len(streams))
	return s
}

// note counts what Wireshark has to say, unless it is what any capture of such connections has.
func (s *seen) note(message string) {
	message = strings.TrimSpace(message)
	for _, usual := range []string{
		"Connection establish", "Connection finish", "Connection reset", "This frame initiates the connection closing",
		"This frame undergoes the connection closing", "A new tcp session is started with the same ports", "twtrace: event",
	} {
		if message == "" || strings.HasPrefix(message, usual) {
			return
		}
	}
	switch {
	case strings.Contains(message, "retransmission"), strings.Contains(message, "keep-alive"):
		s.Retransmits++
	default:
		s.odd[message]++
	}
}

// conversations is how many lines of `-z conv,tcp` are of one.
func conversations(t testing.TB, name string) uint64 {
	t.Helper()
	out, err := exec.Command("tshark", "-n", "-r", name, "-q", "-z", "conv,tcp").Output()
	if err != nil {
		t.Fatal(err)
	}
	return uint64(bytes.Count(out, []byte("<->")))
}

// checkTshark compares what tshark counts with what the recording says.
func checkTshark(t *testing.T, capture string, want timeline.Segments) {
	t.Helper()
	got := tshark(t, capture)
	if got.Segments != want {
		t.Errorf("tshark counts %+v, want %+v", got.Segments, want)
	}
	if n := conversations(t, capture); n != want.Conversations {
		t.Errorf("tshark -z conv,tcp has %d conversations, want %d", n, want.Conversations)
	}
	if len(got.odd) > 0 {
		t.Errorf("tshark finds it odd: %v", got.odd)
	}
}

// TestTsharkByHand has tshark count the events that were made by hand.
func TestTsharkByHand(t *testing.T) {
	events, want := byHand()
	want.Retransmits-- // a SYN+ACK is the first that tshark sees, since the one before had no event
	checkTshark(t, exported(t, record(t, events), "pcapng", export.Options{}), want)
}
