package story_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/twtrace/twtrace/internal/eventline"
	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/report"
	"github.com/twtrace/twtrace/internal/story"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/verdict"
)

var update = flag.Bool("update", false, "write the golden files")

// Real recordings, made by testdata/record.sh.
var recorded = []string{"reuse", "exhausted", "linger6", "untraced", "trace"}

func open(t *testing.T, name string) *recording.Reader {
	t.Helper()
	r, err := recording.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func real(t *testing.T, name string) *recording.Reader {
	t.Helper()
	return open(t, filepath.Join("testdata", name+".twt"))
}

func read(t *testing.T, r *recording.Reader, q story.Query, tell func(*story.Story) error) *story.Result {
	t.Helper()
	result, err := story.Read(t.Context(), r, q, func(*recording.Condition) {}, tell)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func stories(t *testing.T, r *recording.Reader, q story.Query) []*story.Story {
	t.Helper()
	var all []*story.Story
	read(t, r, q, func(s *story.Story) error { all = append(all, s); return nil })
	return all
}

func text(t *testing.T, r *recording.Reader, q story.Query, change func(*story.Options)) string {
	t.Helper()
	var b bytes.Buffer
	opts := story.NewOptions(r.Header())
	if change != nil {
		change(&opts)
	}
	read(t, r, q, story.NewText(&b, opts).Story)
	return b.String()
}

func lines(t *testing.T, r *recording.Reader, q story.Query) string {
	t.Helper()
	var b bytes.Buffer
	read(t, r, q, story.NewJSON(&b, story.NewOptions(r.Header())).Story)
	return b.String()
}

// TestGolden: what is told of real recordings, and of one made by hand that has what is rare.
func TestGolden(t *testing.T) {
	rare := open(t, write(t, rarities()))
	for file, got := range map[string]string{
		"reuse.txt":     text(t, real(t, "reuse"), story.Query{Causes: []story.Cause{{Kernel: tcp.CauseReusedByConnect}}, Limit: 2}, nil),
		"exhausted.txt": text(t, real(t, "exhausted"), story.Query{Failed: true, Limit: 1}, nil),
		"linger6.txt":   text(t, real(t, "linger6"), story.Query{}, func(o *story.Options) { o.Time = eventline.TimeDelta }),
		"untraced.txt":  text(t, real(t, "untraced"), story.Query{}, nil),
		"trace.txt":     text(t, real(t, "trace"), story.Query{}, nil),
		"trace.jsonl":   lines(t, real(t, "trace"), story.Query{}),
		"reuse.jsonl":   lines(t, real(t, "reuse"), story.Query{Limit: 1}),
		"rare.txt":      text(t, rare, story.Query{}, nil),
		"rare.jsonl":    lines(t, rare, story.Query{}),
		"color.txt":     text(t, real(t, "trace"), story.Query{Failed: true}, func(o *story.Options) { o.Color = true }),
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

// made is a recording made by hand.
type made struct {
	header   recording.Header
	events   []tcp.Event
	attempts []tcp.Attempt
	lost     uint64
}

func write(t *testing.T, m made) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "made.twt")
	now := func() recording.Clock { return recording.Clock{MonoNS: 1e9, RealNS: 1_700_000_000e9, BootNS: 1e9} }
	w, err := recording.Create(name, m.header, recording.Options{Now: now, FlushEvery: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	w.SetLoss(m.lost, 0)
	w.Events(m.events)
	w.Attempts(m.attempts)
	if err := w.Close(nil); err != nil {
		t.Fatal(err)
	}
	return name
}

func header() recording.Header {
	return recording.Header{
		Command: recording.CommandTrace, StartMonoNS: 1e9, HZ: 250, Started: time.Unix(1_700_000_000, 0),
		NetNS: []recording.NetNS{{Cookie: 1, Name: "front"}, {Cookie: 2, Name: "back\x1b[2J\u009b"}},
		Enums: map[string]map[uint32]string{"rst_reason": {7: "TCP_\x1b]0;x\a"}},
	}
}

// maker makes events in the kernel's order.
type maker struct {
	made
	now int64
}

func newMaker() *maker { return &maker{made: made{header: header()}, now: 1e9} }

func (m *maker) add(ev tcp.Event) {
	m.now += 10_000
	ev.Seq, ev.MonoNS = uint64(len(m.events)+1), m.now
	m.events = append(m.events, ev)
}

func (m *maker) state(ns tcp.NetNS, c tcp.Cookie, t tcp.FourTuple, old, new tcp.State, errno tcp.Errno) {
	m.add(tcp.Event{Kind: tcp.KindState, NetNS: ns, Cookie: c, Tuple: t, Old: old, New: new, Errno: errno})
}

func tuple(port uint16) tcp.FourTuple {
	return tcp.FourTuple{Local: netip.AddrPortFrom(netip.MustParseAddr("198.18.0.1"), port), Peer: netip.MustParseAddrPort("198.19.0.1:7")}
}

func without(t tcp.FourTuple) tcp.FourTuple {
	t.Local = netip.AddrPortFrom(t.Local.Addr(), 0)
	return t
}

func (m *maker) connect(c tcp.Cookie, t tcp.FourTuple) {
	m.state(1, c, without(t), tcp.Close, tcp.SynSent, 0)
	m.state(1, c, t, tcp.SynSent, tcp.Established, 0)
}

// rarities is a recording of things that storms on one machine have seldom or never.
func rarities() made {
	m := newMaker()
	evil := tcp.Owner{PID: 66, Comm: tcp.Comm{0x1b, ']', '0', ';', 'x', 0x07, '<', 'b', '>', 0xc2, 0x9b}}
	// A connection of which the SYN is dropped, sent again, and answered twice; lost segments; the other end out of sight.
	a := tuple(40001)
	m.add(tcp.Event{Kind: tcp.KindState, NetNS: 1, Cookie: 11, Tuple: without(a), Old: tcp.Close, New: tcp.SynSent, Flags: tcp.FlagOwner, Owner: evil})
	m.add(tcp.Event{Kind: tcp.KindListenDrop, NetNS: 2, Cookie: 99, Tuple: a.Reverse(), Old: tcp.Listen, New: tcp.Listen, Cause: tcp.CauseAcceptQueue})
	m.now += 1e9
	m.add(tcp.Event{Kind: tcp.KindRetransmit, NetNS: 1, Cookie: 11, Tuple: a, Old: tcp.SynSent, New: tcp.SynSent})
	m.add(tcp.Event{Kind: tcp.KindSynAckRetransmit, NetNS: 2, Tuple: a.Reverse(), Old: tcp.NewSynRecv, New: tcp.NewSynRecv})
	m.state(1, 11, a, tcp.SynSent, tcp.Established, 0)
	m.add(tcp.Event{Kind: tcp.KindRetransmit, NetNS: 1, Cookie: 11, Tuple: a, Old: tcp.Established, New: tcp.Established, Errno: 65535})
	m.state(1, 11, a, tcp.Established, tcp.FinWait1, 0)
	m.add(tcp.Event{Kind: tcp.KindRetransmit, NetNS: 1, Cookie: 11, Tuple: a, Old: tcp.FinWait1, New: tcp.FinWait1, Errno: tcp.ENOBUFS})
	m.state(1, 11, a, tcp.FinWait1, tcp.Closing, 0)
	m.state(1, 11, a, tcp.Closing, tcp.Close, 0)
	m.add(tcp.Event{Kind: tcp.KindTWOverflow, NetNS: 1, Cookie: 11, Tuple: a, Old: tcp.Closing, New: tcp.Close})
	// A FIN_WAIT2 minisock that a SYN replaces, seen from the server, between two namespaces.
	b := tuple(40002)
	m.connect(21, b)
	m.state(2, 22, b.Reverse(), tcp.SynRecv, tcp.Established, 0)
	m.state(2, 22, b.Reverse(), tcp.Established, tcp.FinWait1, 0)
	m.state(2, 22, b.Reverse(), tcp.FinWait1, tcp.FinWait2, 0)
	m.add(tcp.Event{Kind: tcp.KindTWEnter, NetNS: 2, Cookie: 22, Tuple: b.Reverse(), New: tcp.TimeWait, Substate: tcp.FinWait2, Ticks: 15000})
	m.add(tcp.Event{Kind: tcp.KindState, NetNS: 2, Cookie: 22, Tuple: b.Reverse(), Old: tcp.FinWait2, New: tcp.Close, Flags: tcp.FlagTWMade})
	m.state(1, 21, b, tcp.Established, tcp.CloseWait, 0)
	m.state(1, 21, b, tcp.CloseWait, tcp.LastAck, 0)
	m.add(tcp.Event{Kind: tcp.KindTWConvert, NetNS: 2, Cookie: 22, Tuple: b.Reverse(), Old: tcp.TimeWait, New: tcp.TimeWait, Substate: tcp.TimeWait})
	m.state(1, 21, b, tcp.LastAck, tcp.Close, 0)
	m.now += 500e6
	m.state(1, 31, without(b), tcp.Close, tcp.SynSent, 0)
	m.add(tcp.Event{Kind: tcp.KindTWEnd, NetNS: 2, Cookie: 22, Tuple: b.Reverse(), Old: tcp.TimeWait, New: tcp.Close, Substate: tcp.TimeWait, Cause: tcp.CauseReplacedBySyn})
	m.state(1, 31, b, tcp.SynSent, tcp.Established, 0)
	m.state(2, 32, b.Reverse(), tcp.SynRecv, tcp.Established, 0)
	// An RST for a reason with a name that is an attack, and no word of the other end's.
	m.add(tcp.Event{Kind: tcp.KindRstSent, NetNS: 2, Cookie: 32, Tuple: b.Reverse(), Old: tcp.Established, New: tcp.Established, Reason: 7})
	m.state(2, 32, b.Reverse(), tcp.Established, tcp.Close, tcp.ECONNABORTED)
	// What was there before, the longest addresses, numbers of a later version.
	far := tcp.FourTuple{Local: netip.MustParseAddrPort("[2001:db8:1111:2222:3333:4444:5555:6666]:65535"), Peer: netip.MustParseAddrPort("[2001:db8:7777:8888:9999:aaaa:bbbb:cccc]:65534")}
	m.add(tcp.Event{Kind: tcp.KindSnapshot, NetNS: 3, Cookie: 41, Tuple: far, Old: tcp.Established, New: tcp.Established})
	m.add(tcp.Event{Kind: 255, NetNS: 3, Cookie: 41, Tuple: far, Old: 255, New: 255, Substate: 255, Cause: 255, Reason: 9, Errno: 4095, Flags: 255})
	m.add(tcp.Event{Kind: tcp.KindSnapshot, NetNS: 3, Cookie: 42, Tuple: tuple(9), Old: tcp.TimeWait, New: tcp.TimeWait, Substate: tcp.TimeWait, Ticks: 500})
	m.now += 2e9
	m.add(tcp.Event{Kind: tcp.KindTWEnd, NetNS: 3, Cookie: 42, Tuple: tuple(9), Old: tcp.TimeWait, New: tcp.Close, Substate: tcp.TimeWait, Cause: tcp.CauseExpired})
	m.lost = 5
	return m.made
}

var escape = regexp.MustCompile("\x1b\\[[0-9]*m")

// TestWidth: no line is wider than a page of 100 columns, whatever is told and however times are, and color
// adds nothing but color.
func TestWidth(t *testing.T) {
	readers := []*recording.Reader{open(t, write(t, rarities()))}
	for _, name := range recorded {
		readers = append(readers, real(t, name))
	}
	for _, r := range readers {
		for mode := range eventline.TimeModes {
			plain := text(t, r, story.Query{}, func(o *story.Options) { o.Time = eventline.TimeMode(mode) })
			for line := range strings.Lines(plain) {
				if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 100 {
					t.Errorf("%d columns: %s", n, line)
				}
				if strings.HasSuffix(line, " \n") {
					t.Errorf("ends in space: %q", line)
				}
			}
			colored := text(t, r, story.Query{}, func(o *story.Options) { o.Time, o.Color = eventline.TimeMode(mode), true })
			trailing := regexp.MustCompile(` +\n`)
			if got := trailing.ReplaceAllString(escape.ReplaceAllString(colored, ""), "\n"); got != plain {
				t.Errorf("with color it is another text:\n%s\nwant\n%s", got, plain)
			}
		}
	}
}

// TestHostile: what names in a recording can have upsets no terminal.
func TestHostile(t *testing.T) {
	r := open(t, write(t, rarities()))
	for form, out := range map[string]string{"text": text(t, r, story.Query{}, nil), "json": lines(t, r, story.Query{})} {
		for _, c := range out {
			if c < ' ' && c != '\n' || c >= 0x7f && c <= 0x9f || c == utf8.RuneError {
				t.Fatalf("%s has %q", form, c)
			}
		}
		if !strings.Contains(out, "x1b") && !strings.Contains(out, "u001b") {
			t.Errorf("%s does not show the name at all", form)
		}
	}
}

// TestQueries counts what each query finds, in recordings of which it is known what they have.
func TestQueries(t *testing.T) {
	rare := write(t, rarities())
	for _, tt := range []struct {
		name, file string
		q          story.Query
		want       int
		more       bool
	}{
		{"all of a run", "reuse", story.Query{}, 10, false},
		{"some of a run", "reuse", story.Query{Limit: 3}, 3, true},
		{"a run without failures", "reuse", story.Query{Failed: true}, 0, false},
		{"slowest", "reuse", story.Query{Slowest: true, Limit: 4}, 4, true},
		{"the server's port", "reuse", story.Query{Ports: []uint16{7}}, 10, false},
		{"the server's port, some", "reuse", story.Query{Ports: []uint16{7}, Limit: 9}, 9, true},
		{"a port that nobody had", "reuse", story.Query{Ports: []uint16{9}}, 0, false},
		{"failures", "exhausted", story.Query{Failed: true}, 4, false},
		{"failures by errno", "exhausted", story.Query{Errnos: []tcp.Errno{tcp.EADDRNOTAVAIL}}, 4, false},
		{"by another errno", "exhausted", story.Query{Errnos: []tcp.Errno{tcp.ECONNRESET}}, 0, false},
		{"by the report's cause", "exhausted", story.Query{Causes: causes("port-exhausted")}, 4, false},
		{"by the kernel's cause", "exhausted", story.Query{Causes: causes("port-search")}, 4, false},
		{"by both", "exhausted", story.Query{Causes: causes("port-search", "refused")}, 4, false},
		{"failures with a port", "exhausted", story.Query{Failed: true, Ports: []uint16{7}}, 4, false},
		{"failures with a port that none got", "exhausted", story.Query{Failed: true, Ports: []uint16{40001}}, 0, false},
		{"without a trace", "untraced", story.Query{}, 2, false},
		{"of a trace", "trace", story.Query{}, 5, false},
		{"failures of a trace", "trace", story.Query{Failed: true}, 3, false},
		{"refused", "trace", story.Query{Causes: causes("refused")}, 1, false},
		{"bind", "trace", story.Query{Errnos: []tcp.Errno{tcp.EADDRINUSE}}, 1, false},
		{"slowest of a trace", "trace", story.Query{Slowest: true, Limit: 2}, 2, true},
		{"by linger", "linger6", story.Query{}, 2, false},
		{"dropped by a listener", rare, story.Query{Causes: causes("accept-queue")}, 1, false},
		{"replaced by a SYN", rare, story.Query{Causes: causes("replaced-by-syn")}, 1, false},
		{"by an owner", rare, story.Query{PIDs: []uint32{66}}, 1, false},
		{"by an owner and another's port", rare, story.Query{PIDs: []uint32{66}, Ports: []uint16{40002}}, 0, false},
		{"two lives of a port", rare, story.Query{Ports: []uint16{40002}}, 2, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			name := tt.file
			if !filepath.IsAbs(name) {
				name = filepath.Join("testdata", name+".twt")
			}
			n := 0
			result := read(t, open(t, name), tt.q, func(*story.Story) error { n++; return nil })
			if n != tt.want || result.Told != n || result.More != tt.more {
				t.Errorf("%d told (%d by the result, more %t), want %d, more %t", n, result.Told, result.More, tt.want, tt.more)
			}
		})
	}
}

func causes(names ...string) (list []story.Cause) {
	for _, n := range names {
		c, err := story.ParseCause(n)
		if err != nil {
			panic(err)
		}
		list = append(list, c)
	}
	return list
}

// TestSlowest: the order is by the attempts' own times.
func TestSlowest(t *testing.T) {
	last := int64(1 << 62)
	for _, s := range stories(t, real(t, "reuse"), story.Query{Slowest: true}) {
		took := s.Attempt.Connected - s.Attempt.Intended
		if took > last {
			t.Errorf("%d ns after %d", took, last)
		}
		last = took
	}
}

// TestAgreesWithReport: each failure has the cause that the run's own summary counted.
func TestAgreesWithReport(t *testing.T) {
	r := real(t, "exhausted")
	summary, _, err := report.FromRecording(r)
	if err != nil {
		t.Fatal(err)
	}
	want := make(map[string]int)
	for _, f := range summary.Failures {
		want[string(f.Cause)] += f.Count
	}
	got := make(map[string]int)
	for _, s := range stories(t, r, story.Query{Failed: true}) {
		got[string(s.Outcome.Cause)]++
	}
	if len(want) == 0 || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("causes %v, want %v", got, want)
	}
}

// TestByCookie: each connection is the same story whether it is found among all or by the cookie of either
// end; and all events of the recording that have a cookie of a connection are in the stories, once.
func TestByCookie(t *testing.T) {
	for _, name := range append(slices.Clone(recorded), write(t, rarities())) {
		if !filepath.IsAbs(name) {
			name = filepath.Join("testdata", name+".twt")
		}
		r := open(t, name)
		told := make(map[uint64]int)
		for _, s := range stories(t, r, story.Query{}) {
			want := asJSON(t, r, s)
			for i := range s.Events {
				if !s.Events[i].Stray {
					told[s.Events[i].Seq]++
				}
			}
			for i := range s.Ends {
				if s.Ends[i].Cookie == 0 {
					continue
				}
				again := stories(t, r, story.Query{Cookies: []tcp.Cookie{s.Ends[i].Cookie}})
				if len(again) != 1 {
					t.Errorf("%s: %d stories of cookie %d", name, len(again), s.Ends[i].Cookie)
				} else if got := asJSON(t, r, again[0]); got != want {
					t.Errorf("%s, by cookie %d:\n%s\nwant\n%s", name, s.Ends[i].Cookie, got, want)
				}
			}
		}
		listeners, snapshots := make(map[tcp.Cookie]bool), make(map[tcp.Cookie]int)
		_, err := r.Scan(recording.Query{Tables: []recording.Table{recording.TableEvents}}, func(b *recording.Batch) error {
			for i := range b.Events {
				ev := &b.Events[i]
				listeners[ev.Cookie] = listeners[ev.Cookie] || ev.New == tcp.Listen || ev.Old == tcp.Listen
				snapshots[ev.Cookie]++
				if ev.Cookie != 0 && !listeners[ev.Cookie] && told[ev.Seq] != 1 && ev.Kind != tcp.KindSnapshot {
					t.Errorf("%s: event %d (%s) is told %d times", name, ev.Seq, ev.Kind, told[ev.Seq])
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// asJSON is a story without what says how it was found.
func asJSON(t *testing.T, r *recording.Reader, s *story.Story) string {
	t.Helper()
	var b bytes.Buffer
	if err := story.NewJSON(&b, story.NewOptions(r.Header())).Story(s); err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`"role":"[a-z]*","joined_by":"[a-z-]*"`).ReplaceAllString(b.String(), "")
}

// TestJSON: every line is an object with the schema and what is promised of it.
func TestJSON(t *testing.T) {
	for line := range strings.Lines(lines(t, open(t, write(t, rarities())), story.Query{})) {
		var d map[string]any
		if err := json.Unmarshal([]byte(line), &d); err != nil {
			t.Fatal(err)
		}
		for _, field := range []string{"schema", "time", "mono_ns", "local", "peer", "outcome", "attempt", "ends", "events", "completeness"} {
			if _, ok := d[field]; !ok {
				t.Errorf("no %s in %s", field, line)
			}
		}
		if d["schema"] != story.Schema {
			t.Errorf("schema %v", d["schema"])
		}
	}
}

// TestFarBegin: a connection is found by its port though its SYN_SENT, which has none, lies two minutes and many
// segments before.
func TestFarBegin(t *testing.T) {
	m := newMaker()
	m.state(1, 1<<40, without(tuple(40000)), tcp.Close, tcp.SynSent, 0)
	for i := range 50_000 {
		m.now += 120e9 / 50_000
		m.connect(tcp.Cookie(i+1), tuple(uint16(1024+i%20000)))
	}
	m.state(1, 1<<40, tuple(40000), tcp.SynSent, tcp.Close, tcp.ETIMEDOUT)
	r := open(t, write(t, m.made))
	got := stories(t, r, story.Query{Ports: []uint16{40000}})
	if len(got) != 1 || len(got[0].Events) != 2 || got[0].Outcome.Cause != verdict.SynUnanswered || len(got[0].Missing) != 0 {
		t.Fatalf("%d stories: %+v", len(got), got)
	}
}

// TestHandshakes: what is said of a connect() that failed, of which the kernel's events are all that is known. An RST that did
// not come is said to be an ICMP error where every RST was recorded, and only there.
func TestHandshakes(t *testing.T) {
	const icmp, rst = "an ICMP error answered the SYN to 198.19.0.1:7", "an RST from 198.19.0.1:7"
	got, filtered := tcp.Event{Kind: tcp.KindRstReceived}, tcp.Event{Kind: tcp.KindRetransmit, Errno: tcp.EPERM}
	for _, tt := range []struct {
		name    string
		errno   tcp.Errno
		grade   tcp.Grade
		between tcp.Event
		lost    uint64
		verdict verdict.Verdict
		why     string
	}{
		{"no RST", tcp.ECONNREFUSED, tcp.Exact, tcp.Event{}, 0, verdict.Verdict{Cause: verdict.Refused, Detail: verdict.ICMPError}, icmp + ", and no RST"},
		{"an RST", tcp.ECONNREFUSED, tcp.Exact, got, 0, verdict.Verdict{Cause: verdict.Refused}, rst + " answered the SYN"},
		{"RSTs were not recorded", tcp.ECONNREFUSED, tcp.NotObservable, tcp.Event{}, 0, verdict.Verdict{Cause: verdict.Refused}, rst + ", or an ICMP error, answered the SYN"},
		{"it may be lost", tcp.ECONNREFUSED, tcp.Exact, tcp.Event{}, 1, verdict.Verdict{Cause: verdict.Refused}, rst + ", or an ICMP error, answered the SYN"},
		{"host unreachable", tcp.EHOSTUNREACH, tcp.NotObservable, tcp.Event{}, 0, verdict.Verdict{Cause: verdict.Unreachable, Detail: verdict.ICMPError}, icmp},
		{"prohibited, IPv6", tcp.EACCES, tcp.Exact, tcp.Event{}, 0, verdict.Verdict{Cause: verdict.Unreachable, Detail: verdict.ICMPError}, icmp},
		{"no answer", tcp.ETIMEDOUT, tcp.Exact, tcp.Event{}, 0, verdict.Verdict{Cause: verdict.SynUnanswered}, "198.19.0.1:7 did not answer its SYN"},
		{"filtered here", tcp.ETIMEDOUT, tcp.Exact, filtered, 0, verdict.Verdict{Cause: verdict.SynUnanswered, Detail: verdict.NotSent}, "a packet filter on this host dropped its SYN to 198.19.0.1:7"},
		{"destroyed", tcp.ECONNABORTED, tcp.Exact, tcp.Event{}, 0, verdict.Verdict{Cause: verdict.Destroyed}, "the socket was ended by SOCK_DESTROY on its host"},
		{"by a reason of its own", tcp.EPERM, tcp.Exact, tcp.Event{}, 0, verdict.Verdict{Cause: verdict.Forbidden}, "a local policy refused it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMaker()
			m.header.Coverage = tcp.Coverage{tcp.FactRstReceived: tt.grade}
			m.lost = tt.lost
			m.state(1, 1, without(tuple(40000)), tcp.Close, tcp.SynSent, 0)
			if ev := tt.between; ev.Kind != 0 {
				ev.NetNS, ev.Cookie, ev.Tuple, ev.Old, ev.New = 1, 1, tuple(40000), tcp.SynSent, tcp.SynSent
				m.add(ev)
			}
			m.state(1, 1, tuple(40000), tcp.SynSent, tcp.Close, tt.errno)
			r := open(t, write(t, m.made))
			o := stories(t, r, story.Query{})[0].Outcome
			begin, end := fmt.Sprintf("failed: connect() %s after", tt.errno), fmt.Sprintf(": %s, %s", tt.verdict.Cause, tt.why)
			if (verdict.Verdict{Cause: o.Cause, Detail: o.Detail}) != tt.verdict || !o.Failed ||
				!strings.HasPrefix(o.Text, begin) || !strings.HasSuffix(o.Text, end) {
				t.Errorf("%+v", o)
			}
			if got := strings.Contains(text(t, r, story.Query{}, nil), " ICMP error ---|"); got != (tt.verdict.Detail == verdict.ICMPError) {
				t.Errorf("drawn as an ICMP error: %v", got)
			}
		})
	}
}

// TestTimedOutUnreachable: an established connection that times out has the error of what was in its way before.
func TestTimedOutUnreachable(t *testing.T) {
	for _, tt := range []struct {
		errno, again tcp.Errno
		detail       verdict.Detail
		why          string
	}{
		{tcp.ECONNREFUSED, 0, "", "ICMP errors answered its segments until it timed out"},
		{tcp.EHOSTUNREACH, 0, "", "no way to 198.19.0.1:7"},
		{tcp.ENETUNREACH, tcp.EHOSTUNREACH, verdict.NoRoute, "this host lost its route to 198.19.0.1:7"},
	} {
		m := newMaker()
		m.connect(1, tuple(40000))
		m.add(tcp.Event{Kind: tcp.KindRetransmit, NetNS: 1, Cookie: 1, Tuple: tuple(40000), Old: tcp.Established, New: tcp.Established, Errno: tt.again})
		m.state(1, 1, tuple(40000), tcp.Established, tcp.Close, tt.errno)
		o := stories(t, open(t, write(t, m.made)), story.Query{})[0].Outcome
		want := fmt.Sprintf("ended by %s at the client after 20.0 us: unreachable, %s", tt.errno, tt.why)
		if o.Cause != verdict.Unreachable || o.Detail != tt.detail || !o.Failed || o.Text != want {
			t.Errorf("%+v, want %s", o, want)
		}
	}
}

// TestLosses: events that were lost are told of where the connection lies in that time, and say why an end is not there.
func TestLosses(t *testing.T) {
	m := newMaker()
	m.connect(1, tuple(40000))
	m.lost = 12
	for _, s := range stories(t, open(t, write(t, m.made)), story.Query{}) {
		if s.Lost != 12 {
			t.Errorf("lost %d, want 12", s.Lost)
		}
		want := story.Gap{What: "the server's side", Why: "events were lost at that time"}
		if !slices.Contains(s.Missing, want) {
			t.Errorf("missing: %v", s.Missing)
		}
	}
}

// TestCut: a recording that is cut anywhere is told of as far as it goes.
func TestCut(t *testing.T) {
	whole, err := os.ReadFile(filepath.Join("testdata", "reuse.twt"))
	if err != nil {
		t.Fatal(err)
	}
	r := real(t, "reuse")
	all := stories(t, r, story.Query{})
	told := make(map[int]bool)
	for n := len(whole); n > 0; n -= 97 {
		r, err := recording.NewReader(bytes.NewReader(whole[:n]), int64(n))
		if err != nil {
			break // in the header
		}
		var conditions int
		result, err := story.Read(t.Context(), r, story.Query{}, func(c *recording.Condition) { conditions++ }, func(s *story.Story) error {
			if len(s.Events) > 0 && s.Ends[story.Client].State != tcp.Close && len(s.Missing) == 0 {
				t.Errorf("cut at %d: an end that is not there is not missed", n)
			}
			return nil
		})
		if err != nil || conditions != 1 {
			t.Fatalf("cut at %d: %v", n, err)
		}
		if n < len(whole) && result.Condition.Complete() {
			t.Errorf("cut at %d: it is complete", n)
		}
		told[result.Told] = true
	}
	if len(told) < 2 || !told[len(all)] {
		t.Errorf("as many were told of wherever it was cut: %v", told)
	}
}

// TestFlood: a socket with very many events is told of in bounded room, and says so.
func TestFlood(t *testing.T) {
	m := newMaker()
	m.connect(1, tuple(40000))
	for range 5000 {
		m.add(tcp.Event{Kind: tcp.KindRetransmit, NetNS: 1, Cookie: 1, Tuple: tuple(40000), Old: tcp.Established, New: tcp.Established})
	}
	got := stories(t, open(t, write(t, m.made)), story.Query{Cookies: []tcp.Cookie{1}})
	if len(got) != 1 || len(got[0].Events) > 1000 || len(got[0].Events)+got[0].Omitted != 5002 || len(got[0].Missing) == 0 {
		t.Fatalf("%d stories, %d events, %d omitted", len(got), len(got[0].Events), got[0].Omitted)
	}
}

func TestParseCause(t *testing.T) {
	for _, name := range story.CauseNames() {
		c, err := story.ParseCause(strings.ToUpper(name))
		if err != nil || c.String() != name {
			t.Errorf("ParseCause(%q) = %v, %v", name, c, err)
		}
	}
	if c, err := story.ParseCause("no-such"); err == nil {
		t.Errorf("ParseCause of what is no cause: %v", c)
	}
}
