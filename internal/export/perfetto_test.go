package export_test

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/twtrace/twtrace/internal/export"
	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
)

// message is a protobuf message without its schema: values by field, messages and texts as bytes.
type message map[protowire.Number][]any

func parse(t testing.TB, b []byte) message {
	t.Helper()
	m := make(message)
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			t.Fatal(protowire.ParseError(n))
		}
		b = b[n:]
		var v any
		switch kind {
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			v, n = protowire.ConsumeBytes(b)
		default:
			t.Fatalf("field %d is of wire type %d", field, kind)
		}
		if n < 0 {
			t.Fatal(protowire.ParseError(n))
		}
		m[field] = append(m[field], v)
		b = b[n:]
	}
	return m
}

func (m message) uint(field protowire.Number) uint64 {
	if v := m[field]; len(v) == 1 {
		return v[0].(uint64)
	}
	return 0
}

func (m message) bytes(field protowire.Number) []byte {
	if v := m[field]; len(v) == 1 {
		return v[0].([]byte)
	}
	return nil
}

// rows reads a trace as Perfetto's trace processor does: per track, by its path of names, what is on it. Field numbers are those of
// protos/perfetto/trace in Perfetto's repository.
func rows(t testing.TB, trace []byte) map[string][]string {
	t.Helper()
	names, notes := make(map[uint64]string), make(map[uint64]string)
	tracks, parents := make(map[uint64]string), make(map[uint64]uint64)
	events := make(map[uint64][]string)
	open := make(map[uint64][]string)
	for i, p := range parse(t, trace)[1] {
		packet := parse(t, p.([]byte))
		if i == 0 && (packet.uint(13) != 1 || parse(t, packet.bytes(59)).uint(58) != 3 || packet.bytes(6) == nil) {
			t.Errorf("the first packet is %v: no clocks", packet)
		}
		interned := parse(t, packet.bytes(12))
		for field, to := range map[protowire.Number]map[uint64]string{2: names, 3: notes} {
			for _, b := range interned[field] {
				m := parse(t, b.([]byte))
				to[m.uint(1)] = string(m.bytes(2))
			}
		}
		if d := packet.bytes(60); d != nil {
			m := parse(t, d)
			if _, twice := tracks[m.uint(1)]; twice {
				t.Errorf("track %d is described twice", m.uint(1))
			}
			tracks[m.uint(1)], parents[m.uint(1)] = string(m.bytes(2)), m.uint(5)
		}
		b := packet.bytes(11)
		if b == nil {
			continue
		}
		m := parse(t, b)
		track, name := m.uint(11), names[m.uint(10)]
		if _, ok := tracks[track]; !ok {
			t.Errorf("an event on track %d, which is not described", track)
		}
		at := float64(packet.uint(8)) / 1e6
		var extra []string
		for _, a := range m[4] {
			n := parse(t, a.([]byte))
			key := string(n.bytes(10)) + notes[n.uint(1)]
			value := string(n.bytes(6))
			if n[3] != nil {
				value = fmt.Sprint(n.uint(3))
			}
			if key != "event" {
				extra = append(extra, key+"="+value)
			}
		}
		text := strings.TrimSpace(name + " " + strings.Join(extra, " "))
		switch m.uint(9) {
		case 1:
			open[track] = append(open[track], fmt.Sprintf("%g %s", at, text))
		case 2:
			n := len(open[track]) - 1
			if n != 0 {
				t.Fatalf("track %s: an end at %g of %d slices", tracks[track], at, n+1)
			}
			events[track] = append(events[track], strings.TrimSpace(fmt.Sprintf("%s to %g %s", open[track][n], at, text)))
			open[track] = open[track][:n]
		case 3:
			events[track] = append(events[track], fmt.Sprintf("%g: %s", at, text))
		case 4:
			events[track] = append(events[track], fmt.Sprintf("%g: %d", at, m.uint(30)))
		}
	}
	all := make(map[string][]string)
	for id, name := range tracks {
		path := name
		for up := parents[id]; up != 0; up = parents[up] {
			path = tracks[up] + "/" + path
		}
		all[path] = append(append(all[path], events[id]...), open[id]...)
	}
	return all
}

// TestPerfetto reads a trace back.
func TestPerfetto(t *testing.T) {
	w := &wire{at: 5e9}
	c, s := w.pair(1, "198.18.0.1:40000", "198.19.0.1:7")
	shake(c, s)
	c.add(tcp.Event{Kind: tcp.KindRetransmit, Old: tcp.Established, New: tcp.Established})
	c.goes(tcp.Established, tcp.FinWait1, tcp.FinWait2)
	c.add(tcp.Event{Kind: tcp.KindTWEnter, New: tcp.TimeWait, Substate: tcp.FinWait2})
	c.goes(tcp.FinWait2, tcp.Close)
	c.add(tcp.Event{Kind: tcp.KindTWConvert, Old: tcp.TimeWait, New: tcp.TimeWait, Substate: tcp.TimeWait})
	c.add(tcp.Event{Kind: tcp.KindTWEnd, Old: tcp.TimeWait, New: tcp.Close, Cause: tcp.CauseExpired})
	s.add(tcp.Event{Kind: tcp.KindRstSent, Old: tcp.Established, New: tcp.Established, Reason: 3})
	s.add(tcp.Event{Old: tcp.Established, New: tcp.Close, Errno: tcp.ECONNRESET})
	s.cookie = 0
	s.add(tcp.Event{Kind: tcp.KindRstSent, Reason: 4})

	name := exported(t, record(t, w.events,
		recording.Sample{Kind: recording.SampleTick, MonoNS: 5_020e6, TimeWait: 12, Ports: 34, Open: 56},
		recording.Sample{Kind: recording.SampleLoop, MonoNS: 5_021e6, TimeWait: -1, Ports: -1, Open: 78}), "perfetto", export.Options{})
	trace, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	root := `twtrace on evil\x1b[31mhost<script>`
	comm := `\x1b]0;x\a<b>"\n`
	want := map[string][]string{
		root: {"5000: recording schema=twtrace.perfetto/1 made_by=twtrace , command run kernel=6.18.0 boot_id=b limit=the first 20000 sockets"},
		root + "/network namespace client/198.18.0.1:40000 > 198.19.0.1:7 " + comm + "[7]": {
			"5001 SYN_SENT to 5002", "5004: retransmit", "5002 ESTABLISHED to 5005", "5005 FIN_WAIT1 to 5006", "5006 FIN_WAIT2 to 5007",
			"5007 FIN_WAIT2 minisock to 5009", "5009 TIME_WAIT to 5010 cause=expired",
		},
		root + `/network namespace server\x1b/198.19.0.1:7 > 198.18.0.1:40000`: {
			`5011: rst-sent NO\x1bSOCKET`, "5003 ESTABLISHED to 5012 errno=ECONNRESET",
		},
		root + `/network namespace server\x1b`: nil,
		root + "/network namespace client":     {"5013: rst-sent 4"}, // the tests' own: a socket without a cookie is the client's
		root + "/TIME_WAIT":                    {"5020: 12"},
		root + "/source ports in use":          {"5020: 34"},
		root + "/open connections":             {"5020: 56"},
		root + "/events lost":                  {"5020: 0", "5021: 0"},
	}
	got := rows(t, trace)
	for path, events := range got {
		for _, text := range append(slices.Clone(events), path) {
			if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) || !utf8.ValidString(text) {
				t.Errorf("%q", text)
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tracks (-want +got):\n%s", diff)
	}
	if protoc, err := exec.LookPath("protoc"); err == nil {
		cmd := exec.Command(protoc, "--decode_raw")
		if cmd.Stdin, err = os.Open(name); err != nil {
			t.Fatal(err)
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("protoc: %v: %.200s", err, out)
		}
	}
}

// TestPerfettoLimit: a trace says what it leaves out.
func TestPerfettoLimit(t *testing.T) {
	w := &wire{at: 5e9}
	for n := range 20_010 {
		c, _ := w.pair(1, fmt.Sprintf("198.18.%d.%d:40000", n>>8, n&255), "203.0.113.1:7")
		c.cookie = tcp.Cookie(10_000 + n)
		c.goes(tcp.Close, tcp.SynSent, tcp.Established)
	}
	var notes []string
	name := exported(t, record(t, w.events), "perfetto", export.Options{Note: func(text string) { notes = append(notes, text) }})
	trace, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	got, sockets := rows(t, trace), 0
	for path := range got {
		if strings.Contains(path, " > ") {
			sockets++
		}
	}
	if sockets != 20_000 {
		t.Errorf("%d sockets are shown", sockets)
	}
	const left = "20 events of sockets after the first 20000"
	if len(notes) != 1 || !strings.HasPrefix(notes[0], left) {
		t.Errorf("notes %q", notes)
	}
	if root := got[`twtrace on evil\x1b[31mhost<script>`]; len(root) != 2 || !strings.Contains(root[1], left) {
		t.Errorf("the trace says %q", root)
	}
}
