package recording_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
)

// golden writes testdata/v1.twt anew. Once a release has written version 1, the file must stay as it is.
var golden = flag.Bool("golden", false, "write testdata/v1.twt anew: not after a release")

// everything has each kind, state, cause, phase, flag and kind of sample that there was in version 1, and each
// field with a value of its own.
func everything() *written {
	const kinds, states, causes, phases, flags, attemptFlags = 14, 14, 14, 7, 8, 4
	w := new(written)
	v4 := netip.MustParseAddrPort("198.18.0.1:40000")
	v6 := netip.MustParseAddrPort("[2001:db8::17]:443")
	mapped := netip.MustParseAddrPort("[::ffff:192.0.2.9]:8080")
	for i := range 42 {
		n := uint64(i)
		ev := tcp.Event{
			Seq: n + 1, MonoNS: 1e12 + int64(i)*777, Cookie: tcp.Cookie(1<<40 + n/3), NetNS: tcp.NetNS(4096 + n%2),
			Tuple:  tcp.FourTuple{Local: v4, Peer: v6},
			Reason: uint32(i), Ticks: uint32(1e6 + i), Kind: tcp.Kind(1 + i%(kinds)), Old: tcp.State(i % states), New: tcp.State((i + 1) % states),
			Substate: tcp.State((i + 2) % states), Cause: tcp.Cause(i % causes), Errno: tcp.Errno(i * 1560),
			Flags: 1 << (i % flags),
		}
		switch i % 4 {
		case 1:
			ev.Tuple = tcp.FourTuple{Local: v6, Peer: mapped}
		case 2:
			ev.Tuple = tcp.FourTuple{Local: v6}
		case 3:
			ev.Tuple = tcp.FourTuple{}
		}
		if ev.Flags&tcp.FlagOwner != 0 {
			ev.Owner = tcp.Owner{PID: uint32(1<<22 + i), Cgroup: 1<<50 + n, Comm: tcp.Comm{'n', 'c', 0x1b, '[', '3', '1', 'm', byte(i)}}
		}
		if ev.Flags&tcp.FlagRefusals != 0 {
			ev.Refusals = tcp.Refusals{TooYoung: 65535, NotAllowed: uint16(i), NoTimestamps: 3, Taken: 4}
		}
		if ev.Kind == tcp.KindBindFailed {
			ev.Holder = tcp.Holder{State: tcp.Listen, Cookie: tcp.Cookie(n), Addr: v6.Addr()}
		}
		w.events = append(w.events, ev)
	}
	for i := range 14 {
		at := 1e12 + int64(i)*1e6
		w.attempts = append(w.attempts, tcp.Attempt{
			Cookie: tcp.Cookie(1<<40 + i), Started: at, Intended: at - 5, Connected: at + 10, FirstByte: at + 20, Closed: at + 30,
			Loop: uint32(i / 7), Index: uint32(i % 7), LocalPort: uint16(40000 + i), Shard: uint16(i << 10), Errno: tcp.Errno(i * 9),
			Phase: tcp.Phase(i % phases), Flags: 1 << (i % attemptFlags),
		})
	}
	for i := range 3 {
		w.samples = append(w.samples, recording.Sample{
			Kind: recording.SampleKind(1 + i), MonoNS: 1e12 + int64(i), RealNS: 17e17 + int64(i), BootNS: 2e12 + int64(i),
			Lost: 5, Skipped: 6, Loop: 1, Started: 2, Finished: 3, Failed: 4, Open: 5, TimeWait: -1, Ports: 28232, DurationNS: 1e9,
		})
	}
	return w
}

const goldenSummary = `{"schema":"twtrace.summary/1"}`

// create writes a file, with gap bytes before every field of a record.
func (w *written) create(t *testing.T, name string, gap int) {
	t.Helper()
	create := recording.Create
	if gap > 0 {
		create = func(name string, h recording.Header, opts recording.Options) (*recording.Writer, error) {
			return recording.CreateLater(name, h, opts, gap)
		}
	}
	rec, err := create(name, recording.Header{
		Twtrace: "v0.0.0", Command: recording.CommandRun, Started: time.Unix(1.7e9, 0).UTC(), StartMonoNS: 1e12, Host: "example",
		BootID: "00000000-0000-4000-8000-000000000000", Kernel: "6.18.0", Arch: "amd64", HZ: 250,
		NetNS:    []recording.NetNS{{Cookie: 4096, Name: "client"}, {Cookie: 4097, Name: "server"}},
		Sysctls:  map[string]string{"net.ipv4.tcp_tw_reuse": "2"},
		Coverage: tcp.Coverage{tcp.FactState: tcp.Exact}, Options: json.RawMessage(`{"loops":2}`), Summary: json.RawMessage(goldenSummary),
		Enums: map[string]map[uint32]string{"rst_reason": {5: "TCP_ABORT_ON_DATA"}},
	}, recording.Options{FlushEvery: time.Hour, Now: func() recording.Clock { return recording.Clock{MonoNS: 1e12, RealNS: 17e17, BootNS: 2e12} }})
	if err != nil {
		t.Fatal(err)
	}
	rec.SetLoss(5, 6)
	for at := 0; at < len(w.events); at += 21 {
		rec.Events(w.events[at : at+21])
		rec.Flush()
	}
	rec.Attempts(w.attempts)
	for _, s := range w.samples {
		rec.Sample(s)
	}
	if err := rec.Close(json.RawMessage(goldenSummary)); err != nil {
		t.Fatal(err)
	}
}

// sameAs reads a file and compares all of it.
func (w *written) sameAs(t *testing.T, file []byte) *recording.Reader {
	t.Helper()
	r, err := recording.NewReader(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	var got written
	c, err := r.Scan(recording.Query{}, func(b *recording.Batch) error {
		got.events = append(got.events, b.Events...)
		got.attempts = append(got.attempts, b.Attempts...)
		got.samples = append(got.samples, b.Samples...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !c.Complete() || c.Lost != 5 || c.Skipped != 6 || string(c.Footer.Summary) != goldenSummary {
		t.Errorf("condition: %+v", c)
	}
	if diff := cmp.Diff(w.events, got.events, equalAddrs); diff != "" {
		t.Errorf("events (-written +read):\n%s", diff)
	}
	if diff := cmp.Diff(w.attempts, got.attempts); diff != "" {
		t.Errorf("attempts (-written +read):\n%s", diff)
	}
	if diff := cmp.Diff(w.samples, got.samples); diff != "" {
		t.Errorf("samples (-written +read):\n%s", diff)
	}
	return r
}

// TestVersion1 reads a file that was written by version 1.
func TestVersion1(t *testing.T) {
	name := filepath.Join("testdata", "v1.twt")
	w := everything()
	if *golden {
		w.create(t, name, 0)
	}
	file, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	h := w.sameAs(t, file).Header()
	if h.Schema != "twtrace.recording/1" || h.Version != 1 || h.Host != "example" || h.HZ != 250 || h.Part != 1 || len(h.NetNS) != 2 ||
		h.NetNS[1].Name != "server" || h.StartMonoNS != 1e12 || !h.Started.Equal(time.Unix(1.7e9, 0)) ||
		h.Clock != (recording.Clock{MonoNS: 1e12, RealNS: 17e17, BootNS: 2e12}) || h.Coverage[tcp.FactState] != tcp.Exact ||
		h.Enums["rst_reason"][5] != "TCP_ABORT_ON_DATA" || h.Enums["kind"][5] != "tw-end" || string(h.Options) != `{"loops":2}` {
		t.Errorf("header: %+v", h)
	}
}

// editHeader changes the text of a file's header.
func editHeader(t *testing.T, file []byte, version uint32, edit func(h map[string]any)) []byte {
	t.Helper()
	var h map[string]any
	if err := json.Unmarshal(recording.HeaderText(file), &h); err != nil {
		t.Fatal(err)
	}
	edit(h)
	text, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	return recording.WithHeader(version, text, file)
}

// TestLaterWriter reads what a later twtrace may write with the same version: fields that are
// not known, at other places, in longer records; a table, chunks and enumerations that are not known; other numbers
// for the names that are.
func TestLaterWriter(t *testing.T) {
	w := everything()
	name := filepath.Join(t.TempDir(), "a.twt")
	w.create(t, name, 9)
	file, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	w.sameAs(t, file) // whose fields are elsewhere
	file = editHeader(t, file, 1, func(h map[string]any) {
		h["of_a_later_version"] = map[string]any{"a": 1}
		tables := h["tables"].([]any)
		for _, table := range tables {
			table := table.(map[string]any)
			table["fields"] = append(table["fields"].([]any), map[string]any{"name": "later", "type": "u128", "offset": 0})
		}
		h["tables"] = append(tables, map[string]any{"name": "packets", "id": 9, "record_size": 3, "fields": []any{}})
		h["enums"].(map[string]any)["weather"] = map[string]any{"1": "rain"}
		h["enums"].(map[string]any)["kind"].(map[string]any)["200"] = "moved"
	})
	w.sameAs(t, recording.WithLaterTable(file, 9))
}

// TestRenumbered: numbers are read by their names. Those whose name is not known come out as 255, and bits as none.
func TestRenumbered(t *testing.T) {
	w := everything()
	name := filepath.Join(t.TempDir(), "a.twt")
	w.create(t, name, 0)
	file, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	swap := func(h map[string]any, enum, a, b string) {
		e := h["enums"].(map[string]any)[enum].(map[string]any)
		e[a], e[b] = e[b], e[a]
	}
	file = editHeader(t, file, 1, func(h map[string]any) {
		swap(h, "kind", "1", "2")
		swap(h, "state", "1", "11")
		swap(h, "cause", "3", "4")
		swap(h, "phase", "0", "6")
		swap(h, "sample", "1", "2")
		swap(h, "flag", "1", "2")
		swap(h, "attempt_flag", "1", "8")
		h["enums"].(map[string]any)["kind"].(map[string]any)["14"] = "of a later version"
		h["enums"].(map[string]any)["attempt_flag"].(map[string]any)["4"] = "of a later version"
	})
	swapped := func(n, a, b int) int {
		switch n {
		case a:
			return b
		case b:
			return a
		}
		return n
	}
	for i := range w.events {
		ev := &w.events[i]
		ev.Kind = tcp.Kind(swapped(int(ev.Kind), 1, 2))
		if ev.Kind == 14 {
			ev.Kind = 255
		}
		for _, s := range []*tcp.State{&ev.Old, &ev.New, &ev.Substate, &ev.Holder.State} {
			*s = tcp.State(swapped(int(*s), 1, 11))
		}
		ev.Cause = tcp.Cause(swapped(int(ev.Cause), 3, 4))
		ev.Flags = tcp.Flags(swapped(int(ev.Flags), 1, 2))
	}
	for i := range w.attempts {
		a := &w.attempts[i]
		a.Phase = tcp.Phase(swapped(int(a.Phase), 0, 6))
		a.Flags = tcp.AttemptFlags(swapped(int(a.Flags), 1, 8)) &^ 4
	}
	for i := range w.samples {
		s := &w.samples[i]
		s.Kind = recording.SampleKind(swapped(int(s.Kind), 1, 2))
	}
	w.sameAs(t, file)
}

func TestLaterVersion(t *testing.T) {
	w := write(t, "a")
	// The version decides, whatever the rest of the header has become.
	file := recording.WithHeader(2, []byte("not even JSON"), w.file)
	_, err := recording.NewReader(bytes.NewReader(file), int64(len(file)))
	var version *recording.VersionError
	if !errors.As(err, &version) || version.Version != 2 {
		t.Fatalf("error %v", err)
	}
	for _, words := range []string{"version 2", "versions 1 to 1", "newer twtrace"} {
		if !strings.Contains(err.Error(), words) {
			t.Errorf("%q does not say %q", err, words)
		}
	}
}

// TestHeaders: what a header must have is asked for, by name.
func TestHeaders(t *testing.T) {
	w := write(t, "a")
	table := func(h map[string]any, i int) map[string]any { return h["tables"].([]any)[i].(map[string]any) }
	field := func(h map[string]any, i, j int) map[string]any {
		return table(h, i)["fields"].([]any)[j].(map[string]any)
	}
	for _, tt := range []struct {
		words string
		edit  func(h map[string]any)
	}{
		{"table events is missing", func(h map[string]any) { h["tables"] = h["tables"].([]any)[1:] }},
		{"table samples is missing", func(h map[string]any) { h["tables"] = h["tables"].([]any)[:3] }},
		{"records of 1e+06 bytes|records of 1000000 bytes", func(h map[string]any) { table(h, 0)["record_size"] = 1000000 }},
		{"table events: records of -1", func(h map[string]any) { table(h, 0)["record_size"] = -1 }},
		{"records of 88 bytes", func(h map[string]any) { h["tables"] = append(h["tables"].([]any), table(h, 0)) }},
		{"field seq_shift of type i64", func(h map[string]any) { field(h, 0, 0)["name"] = "sequence" }},
		{"field seq_shift of type i64", func(h map[string]any) { field(h, 0, 0)["type"] = "u32" }},
		{"field seq_shift of type i64", func(h map[string]any) { field(h, 0, 0)["offset"] = 81 }},
		{"field seq_shift of type i64", func(h map[string]any) { field(h, 0, 0)["offset"] = -1 }},
		{"names of state", func(h map[string]any) { delete(h["enums"].(map[string]any), "state") }},
		{"header", func(h map[string]any) { h["tables"] = "none" }},
	} {
		file := editHeader(t, w.file, 1, tt.edit)
		_, err := recording.NewReader(bytes.NewReader(file), int64(len(file)))
		if !errors.Is(err, recording.ErrFormat) {
			t.Errorf("%s: error %v", tt.words, err)
			continue
		}
		said := false
		for words := range strings.SplitSeq(tt.words, "|") {
			said = said || strings.Contains(err.Error(), words)
		}
		if !said {
			t.Errorf("%q does not say %q", err, tt.words)
		}
	}
}
