package eventline

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
)

var update = flag.Bool("update", false, "write the golden files")

const start = int64(5_000_000_000_000)

var wall = time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC) // at start

func comm(name string) (c tcp.Comm) {
	copy(c[:], name)
	return c
}

// story is one event of each kind, and of each form that the kind has.
func story() []Line {
	var (
		client = tcp.Owner{PID: 4242, Cgroup: 77, Comm: comm("curl")}
		server = tcp.Owner{PID: 1234567, Cgroup: 78, Comm: comm("haproxy")}
		here   = tcp.FourTuple{
			Local: netip.MustParseAddrPort("198.18.0.1:40000"), Peer: netip.MustParseAddrPort("198.19.0.1:443"),
		}
		there = here.Reverse()
		far   = tcp.FourTuple{
			Local: netip.MustParseAddrPort("203.113.113.113:65535"), Peer: netip.MustParseAddrPort("198.151.100.200:65535"),
		}
	)
	type e = tcp.Event
	lines := []struct {
		ev    e
		owner tcp.Owner
		in    time.Duration
	}{
		{e{Kind: tcp.KindSnapshot, Tuple: here, Old: tcp.Established, New: tcp.Established}, client, -1},
		{e{Kind: tcp.KindSnapshot, Tuple: here, Old: tcp.TimeWait, New: tcp.TimeWait, Substate: tcp.TimeWait, Ticks: 10_800}, client, -1},
		{e{Kind: tcp.KindSnapshot, Tuple: here, Old: tcp.TimeWait, New: tcp.TimeWait, Substate: tcp.FinWait2, Ticks: 25}, tcp.Owner{}, -1},
		{e{Kind: tcp.KindState, Tuple: tcp.FourTuple{Local: netip.AddrPortFrom(here.Local.Addr(), 0), Peer: here.Peer}, Old: tcp.Close, New: tcp.SynSent, Flags: tcp.FlagOwner}, client, -1},
		{e{Kind: tcp.KindState, Tuple: here, Old: tcp.SynSent, New: tcp.Established}, client, 12_345_678},
		{e{Kind: tcp.KindState, Tuple: there, Old: tcp.Established, New: tcp.CloseWait}, server, 60 * time.Second},
		{e{Kind: tcp.KindRetransmit, Tuple: here, Old: tcp.SynSent, New: tcp.SynSent}, client, time.Second},
		{e{Kind: tcp.KindRetransmit, Tuple: here, Old: tcp.Established, New: tcp.Established, Errno: tcp.ENOBUFS}, client, time.Second},
		{e{Kind: tcp.KindSynAckRetransmit, Tuple: there}, tcp.Owner{}, -1},
		{e{Kind: tcp.KindTWEnter, Tuple: here, New: tcp.TimeWait, Substate: tcp.FinWait2, Ticks: 15_000}, client, time.Millisecond},
		{e{Kind: tcp.KindState, Tuple: here, Old: tcp.FinWait2, New: tcp.Close, Flags: tcp.FlagTWMade}, client, time.Millisecond},
		{e{Kind: tcp.KindTWConvert, Tuple: here, Old: tcp.TimeWait, New: tcp.TimeWait, Substate: tcp.TimeWait, Flags: tcp.FlagLate}, client, -1},
		{e{Kind: tcp.KindTWEnd, Tuple: here, Old: tcp.TimeWait, New: tcp.Close, Substate: tcp.TimeWait, Cause: tcp.CauseReusedByConnect}, client, 61*time.Second + 23456},
		{e{Kind: tcp.KindTWOverflow, Tuple: here, Old: tcp.FinWait2, New: tcp.Close}, client, 0},
		{e{Kind: tcp.KindState, Tuple: far, Old: tcp.Established, New: tcp.Close, Flags: tcp.FlagLinger0}, server, 1500},
		{e{Kind: tcp.KindRstSent, Tuple: far, Old: tcp.Close, New: tcp.Close, Reason: 15, Flags: tcp.FlagActive}, server, 2500},
		{e{Kind: tcp.KindRstReceived, Tuple: here, Old: tcp.Established, New: tcp.Established, Flags: tcp.FlagRescued}, client, time.Millisecond},
		{e{Kind: tcp.KindError, Tuple: here, Old: tcp.Close, New: tcp.Close, Errno: tcp.ECONNRESET}, client, time.Microsecond},
		{e{Kind: tcp.KindState, Tuple: here, Old: tcp.SynSent, New: tcp.Close, Flags: tcp.FlagNoSegment}, client, time.Microsecond},
		{e{
			Kind: tcp.KindConnectFailed, Tuple: here, Old: tcp.SynSent, New: tcp.Close, Errno: tcp.EADDRNOTAVAIL, Cause: tcp.CausePortSearch,
			Flags: tcp.FlagOwner | tcp.FlagRefusals, Refusals: tcp.Refusals{TooYoung: 28000, Taken: 2},
		}, client, time.Microsecond},
		{e{Kind: tcp.KindBindFailed, Tuple: tcp.FourTuple{Local: there.Local}, Errno: tcp.EADDRINUSE}, server, -1},
		{e{Kind: tcp.KindBindFailed, Tuple: tcp.FourTuple{Local: there.Local}, Errno: 4095}, server, -1},
		{e{
			Kind: tcp.KindBindFailed, Tuple: tcp.FourTuple{Local: there.Local}, Errno: tcp.EADDRINUSE,
			Holder: tcp.Holder{State: tcp.Listen, Cookie: 8999, Addr: netip.IPv4Unspecified()},
		}, server, -1},
		{e{
			Kind: tcp.KindBindFailed, Tuple: tcp.FourTuple{Local: there.Local}, Errno: tcp.EADDRINUSE,
			Holder: tcp.Holder{State: tcp.TimeWait, Addr: there.Local.Addr()},
		}, server, -1},
		{e{Kind: tcp.KindListenDrop, Tuple: there, Old: tcp.Listen, New: tcp.Listen, Cause: tcp.CauseAcceptQueue}, server, 100 * time.Hour},
		{e{Kind: tcp.KindState, Tuple: tcp.FourTuple{
			Local: netip.MustParseAddrPort("[2001:db8:1234:5678:9abc:def0:1234:5678]:40000"), Peer: netip.MustParseAddrPort("[2001:2::1]:443"),
		}, Old: tcp.FinWait1, New: tcp.FinWait2}, client, time.Millisecond},
		{e{Kind: tcp.KindState, Tuple: here, Old: tcp.FinWait2, New: tcp.Close}, client, time.Millisecond}, // as wide as the one before
		{e{Kind: tcp.KindState, Tuple: here, Old: tcp.Close, New: tcp.SynSent}, tcp.Owner{PID: 9, Comm: comm("\x1b]0;x\x07\x9b\"\\\n")}, -1},
		{e{Kind: tcp.Kind(tcp.NumKinds + 3), Old: 99, New: 200, Cause: 99, Reason: 9}, tcp.Owner{}, -1}, // of a newer kernel side
	}
	out := make([]Line, len(lines))
	for i, l := range lines {
		l.ev.Seq = uint64(i + 1)
		l.ev.MonoNS = start + int64(i)*int64(1_234_567_890)
		l.ev.Cookie, l.ev.NetNS = tcp.Cookie(9000+i/4), 1
		out[i] = Line{
			Event: &l.ev, Past: timeline.Past{Owner: l.owner, InState: int64(l.in)},
			Wall: wall.Add(time.Duration(l.ev.MonoNS - start)),
		}
		if l.ev.Holder.Cookie != 0 {
			out[i].Past.Holder = tcp.Owner{PID: 80, Comm: comm("old nginx")}
		}
	}
	return out
}

var options = Options{
	Start: start, HZ: 250,
	Reasons: map[uint32]string{0: "NOT_SPECIFIED", 15: "TCP_STATE"},
	Cgroup: func(id uint64) (string, string) {
		if id == 77 {
			return "/system.slice/docker-0123.scope", "0123"
		}
		return "/evil\u009b[2J", ""
	},
}

func write(t *testing.T, w Writer, lines []Line) {
	t.Helper()
	w.Header()
	for i := range lines {
		w.Line(&lines[i])
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
}

func text(t *testing.T, opts Options, lines []Line) string {
	t.Helper()
	var b bytes.Buffer
	write(t, NewText(&b, opts), lines)
	return b.String()
}

func TestGolden(t *testing.T) {
	var doc bytes.Buffer
	write(t, NewJSON(&doc, options), story())
	colored := options
	colored.Color = true
	for file, got := range map[string]string{
		"story.txt": text(t, options, story()), "story-color.txt": text(t, colored, story()), "story.jsonl": doc.String(),
	} {
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

// TestEveryKind: the story, and so the golden files, leave no kind out.
func TestEveryKind(t *testing.T) {
	told := make(map[tcp.Kind]bool)
	for _, l := range story() {
		told[l.Event.Kind] = true
	}
	for k := tcp.Kind(1); int(k) < tcp.NumKinds; k++ {
		if !told[k] {
			t.Errorf("no %s", k)
		}
		if details[k] == nil {
			t.Errorf("%s has no row in the table of words", k)
		}
	}
}

// TestFits: lines of IPv4 with a short name, whatever the addresses, fit 100
// columns, and so do those of short addresses with a name of 15 characters.
func TestFits(t *testing.T) {
	far := tcp.FourTuple{
		Local: netip.MustParseAddrPort("203.113.113.113:65535"), Peer: netip.MustParseAddrPort("198.151.100.200:65535"),
	}
	near := tcp.FourTuple{Local: netip.MustParseAddrPort("198.18.0.1:65535"), Peer: netip.MustParseAddrPort("198.19.0.1:443")}
	for _, tt := range []struct {
		tuple tcp.FourTuple
		owner tcp.Owner
	}{
		{far, tcp.Owner{PID: 32768, Comm: comm("haproxy")}},
		{near, tcp.Owner{PID: 32768, Comm: comm("123456789012345")}},
	} {
		out := text(t, options, []Line{{
			Event: &tcp.Event{
				Kind: tcp.KindState, MonoNS: start + 999e9, Tuple: tt.tuple, Old: tcp.Established, New: tcp.CloseWait,
			},
			Past: timeline.Past{Owner: tt.owner, InState: 1_234_567}, Wall: wall,
		}})
		for line := range strings.Lines(out) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 100 {
				t.Errorf("%d columns: %s", n, line)
			}
		}
	}
}

func TestTimeModes(t *testing.T) {
	here := time.Local
	defer func() { time.Local = here }()
	time.Local = time.FixedZone("", 3600)
	lines := story()[:3]
	for mode, want := range map[TimeMode][]string{
		TimeRelative: {"0.000000", "1.234568", "2.469136"},
		TimeWall:     {"05:05:06.000000", "05:05:07.234567", "05:05:08.469135"},
		TimeMono:     {"5000.000000", "5001.234568", "5002.469136"},
		TimeDelta:    {"0.000000", "1.234568", "1.234568"},
	} {
		opts := options
		opts.Time = mode
		var got []string
		for i, line := range strings.Split(strings.TrimSpace(text(t, opts, lines)), "\n") {
			if i > 0 {
				got = append(got, strings.Fields(line)[0])
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", TimeModes[mode], got, want)
		}
	}
}

// TestJSONLines holds what consumers rely on: each line is an object of its own
// and has the fields that CLI.md promises, with the same type in every line or null.
func TestJSONLines(t *testing.T) {
	var doc bytes.Buffer
	write(t, NewJSON(&doc, options), story())
	promised := map[string]string{
		"schema": "string", "seq": "number", "time": "string", "mono_ns": "number", "kind": "string", "cookie": "number",
		"netns": "number", "pid": "number?", "comm": "string?", "local": "object", "peer": "object",
		"old_state": "string?", "new_state": "string?", "cause": "string?", "reason": "string?", "errno": "string?",
		"ms_in_state": "number?",
	}
	stamp := regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z$`)
	n := 0
	for line := range strings.Lines(doc.String()) {
		n++
		var d map[string]any
		if err := json.Unmarshal([]byte(line), &d); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		for field, want := range promised {
			v, ok := d[field]
			if optional := strings.HasSuffix(want, "?"); !ok || v == nil && !optional {
				t.Errorf("line %d: %s is %v: %s", n, field, v, line)
				continue
			}
			got := map[bool]string{true: "null"}[v == nil]
			switch v.(type) {
			case string:
				got = "string"
			case float64:
				got = "number"
			case map[string]any:
				got = "object"
			}
			if got != strings.TrimSuffix(want, "?") && got != "null" {
				t.Errorf("line %d: %s is a %s, want %s", n, field, got, want)
			}
		}
		if d["schema"] != Schema || !stamp.MatchString(d["time"].(string)) {
			t.Errorf("line %d: schema %v, time %v", n, d["schema"], d["time"])
		}
		for _, side := range []string{"local", "peer"} {
			e := d[side].(map[string]any)
			if _, ok := e["port"].(float64); !ok {
				t.Errorf("line %d: %s is %v", n, side, e)
			}
		}
	}
	if n != len(story()) {
		t.Errorf("%d lines for %d events", n, len(story()))
	}
}

// TestNothingLeaks: whatever names processes and cgroups give themselves, a terminal is
// not told anything, and a line stays one line.
func TestNothingLeaks(t *testing.T) {
	for b := range 256 {
		name := "a" + string([]byte{byte(b)}) + "b" + string(rune(b))
		lines := []Line{{
			Event: &tcp.Event{Kind: tcp.KindState}, Wall: wall,
			Past: timeline.Past{Owner: tcp.Owner{PID: 1, Cgroup: 1, Comm: comm(name)}, InState: -1},
		}}
		opts := Options{Cgroup: func(uint64) (string, string) { return name, name }}
		var doc bytes.Buffer
		write(t, NewJSON(&doc, opts), lines)
		for form, out := range map[string]string{"text": text(t, opts, lines), "json": doc.String()} {
			if want := map[string]int{"text": 2, "json": 1}[form]; strings.Count(out, "\n") != want {
				t.Errorf("%s of %q: %q", form, name, out)
			}
			for _, r := range out {
				if r != '\n' && !unicode.IsPrint(r) || r == utf8.RuneError {
					t.Errorf("%s of %q: %q", form, name, out)
				}
			}
		}
	}
}

type brokenWriter struct{ err error }

func (b brokenWriter) Write([]byte) (int, error) { return 0, b.err }

// TestWriteError: the error of any write is told once there is a flush, and can be recognised.
func TestWriteError(t *testing.T) {
	broken := errors.New("broken")
	for name, w := range map[string]Writer{
		"text": NewText(brokenWriter{broken}, options), "json": NewJSON(brokenWriter{broken}, options),
	} {
		lines := story()
		for range 100 { // more than a buffer
			for i := range lines {
				w.Line(&lines[i])
			}
		}
		if err := w.Flush(); !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func BenchmarkLine(b *testing.B) {
	lines := story()
	for name, w := range map[string]Writer{"text": NewText(io.Discard, options), "json": NewJSON(io.Discard, options)} {
		b.Run(name, func(b *testing.B) {
			i := 0
			for b.Loop() {
				w.Line(&lines[i%len(lines)])
				i++
			}
		})
	}
}
