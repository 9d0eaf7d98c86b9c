package export

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/csv"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/parquet-go/parquet-go"

	"github.com/twtrace/twtrace/internal/eventline"
	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
)

var update = flag.Bool("update", false, "write the golden files")

// write returns a recording in a format.
func write(t testing.TB, r *recording.Reader, format, table string) []byte {
	t.Helper()
	var out bytes.Buffer
	c, err := Write(t.Context(), r, format, &out, Options{Table: table, Missing: func(text string) { t.Error(text) }})
	if err != nil {
		t.Fatal(err)
	}
	if !c.Complete() {
		t.Errorf("%s of %s: %+v", format, table, c)
	}
	return out.Bytes()
}

// record is a row as text, without the columns that have nothing.
type record map[string]string

// wanted is what a row should say of each event, from the event itself.
func wanted(t testing.TB, r *recording.Reader) map[string]record {
	t.Helper()
	all := make(map[string]record)
	owners := timeline.NewOwners(0)
	_, err := r.Scan(recording.Query{Tables: []recording.Table{recording.TableEvents}}, func(b *recording.Batch) error {
		for i := range b.Events {
			ev := &b.Events[i]
			past := owners.Event(ev)
			w := wantedEvent(ev)
			w.add("pid", past.Owner.PID)
			w.add("cgroup_id", past.Owner.Cgroup)
			w.add("comm", past.Owner.Comm)
			if past.InState >= 0 {
				w["in_state_ns"] = fmt.Sprint(past.InState)
			}
			all[w["seq"]] = w
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// add adds what is not zero.
func (w record) add(name string, value any) {
	if text := fmt.Sprint(value); text != "" && text != "0" && text != "invalid IP" {
		w[name] = text
	}
}

func wantedEvent(ev *tcp.Event) record {
	w := record{
		"seq": fmt.Sprint(ev.Seq), "t_ns": fmt.Sprint(ev.MonoNS), "kind": ev.Kind.String(),
		"time":   time.Unix(0, ev.MonoNS-bootMono+bootReal).UTC().Format("2006-01-02T15:04:05.000000000Z"),
		"cookie": fmt.Sprint(ev.Cookie), "netns": fmt.Sprint(ev.NetNS), "netns_name": map[tcp.NetNS]string{11: "client", 12: "server"}[ev.NetNS],
		"local_port": fmt.Sprint(ev.Tuple.Local.Port()), "peer_port": fmt.Sprint(ev.Tuple.Peer.Port()),
		"host": "host-a", "boot_id": stormHeader.BootID,
	}
	w.add("local_addr", ev.Tuple.Local.Addr())
	w.add("peer_addr", ev.Tuple.Peer.Addr())
	w.add("errno", ev.Errno)
	w.add("cause", ev.Cause)
	for name, s := range map[string]tcp.State{"old_state": ev.Old, "new_state": ev.New, "substate": ev.Substate, "holder_state": ev.Holder.State} {
		if s != tcp.StateNone {
			w[name] = s.JSON()
		}
	}
	if ev.Kind == tcp.KindRstSent {
		w["reason"], w["flags"] = "NO_SOCKET", "linger0|active"
	}
	if ev.Kind == tcp.KindTWEnter {
		w["time_left_ns"] = "60000000000" // 15000 jiffies at 250 a second
	}
	if ev.Flags&tcp.FlagRefusals != 0 {
		w["refused_too_young"], w["refused_not_allowed"], w["refused_no_timestamps"], w["refused_taken"] = "1", "2", "0", "4"
	}
	if ev.Holder.State != tcp.StateNone {
		w["holder_cookie"], w["holder_addr"] = "4", "::"
		// The socket of this cookie is the server's of the second connection, and its owner that of its SYN.
		w["holder_pid"], w["holder_comm"] = "101", comms[1].String()
	}
	return w
}

// same compares rows by their number; spell changes what is wanted to how the format writes it.
func same(t *testing.T, got []record, want map[string]record, spell func(column, text string) string) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d rows, want %d", len(got), len(want))
	}
	wrong := 0
	for _, row := range got {
		expected := make(record)
		for column, text := range want[row["seq"]] {
			expected[column] = spell(column, text)
		}
		if !maps.Equal(expected, row) {
			t.Errorf("row %s (-want +got):\n%s", row["seq"], cmp.Diff(expected, row))
			if wrong++; wrong == 5 {
				return
			}
		}
	}
}

func asIs(_, text string) string { return text }

func TestParquet(t *testing.T) {
	r := open(t, writeStorm(t, 2000))
	var out bytes.Buffer
	j := &job{ctx: t.Context(), r: r, w: &out, opts: Options{Table: TableEvents}, passes: 1}
	if err := j.readClocks(); err != nil {
		t.Fatal(err)
	}
	table := newEventTable(j)
	table.group = 7000
	if err := parquetOf(j, table); err != nil {
		t.Fatal(err)
	}
	f, err := parquet.OpenFile(bytes.NewReader(out.Bytes()), int64(out.Len()))
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := f.Lookup("twtrace.schema"); got != "twtrace.event/1" {
		t.Errorf("twtrace.schema is %q", got)
	}
	if got, _ := f.Lookup("twtrace.boot_id"); got != stormHeader.BootID {
		t.Errorf("twtrace.boot_id is %q", got)
	}
	if n := len(f.RowGroups()); n != 4 { // 24,000 events
		t.Errorf("%d row groups", n)
	}
	names := f.Schema().Columns()
	var rows []record
	for _, group := range f.RowGroups() {
		if s := group.SortingColumns(); len(s) != 2 || s[0].Path()[0] != "cookie" || s[1].Path()[0] != "t_ns" {
			t.Errorf("sorted by %v", s)
		}
		in := parquetRows(t, group, names)
		if !slices.IsSortedFunc(in, func(a, b record) int {
			return slices.Compare([]uint64{number(t, a["cookie"]), number(t, a["t_ns"])}, []uint64{number(t, b["cookie"]), number(t, b["t_ns"])})
		}) {
			t.Error("a row group is not sorted")
		}
		rows = append(rows, in...)
	}
	same(t, rows, wanted(t, r), asIs)
	for _, c := range f.Schema().Fields() {
		switch logical := c.Type().LogicalType(); {
		case c.Name() == "time":
			if ts, ok := logical.Value.(interface{ String() string }); !ok || ts.String() != "TIMESTAMP(isAdjustedToUTC=false,unit=NANOS)" {
				t.Errorf("time is %v", logical)
			}
		case c.Name() == "t_ns" && c.Type().Kind() != parquet.Int64:
			t.Errorf("t_ns is %s", c.Type())
		}
	}
}

func parquetRows(t *testing.T, group parquet.RowGroup, names [][]string) (rows []record) {
	t.Helper()
	in := group.Rows()
	defer in.Close()
	buf := make([]parquet.Row, 64)
	for {
		n, err := in.ReadRows(buf)
		for _, row := range buf[:n] {
			rec := make(record)
			for _, v := range row {
				name := names[v.Column()][0]
				switch {
				case v.IsNull():
				case name == "time":
					rec[name] = time.Unix(0, v.Int64()).UTC().Format("2006-01-02T15:04:05.000000000Z")
				case v.Kind() == parquet.Int32:
					rec[name] = fmt.Sprint(v.Uint32())
				default:
					rec[name] = v.String()
				}
			}
			rows = append(rows, rec)
		}
		if errors.Is(err, io.EOF) {
			return rows
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func number(t *testing.T, text string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// inCSV is how names that processes chose look in a cell.
var inCSV = strings.NewReplacer("=cmd", `\x3dcmd`, "@SUM(1,2);+1", `\x40SUM(1,2)\x3b+1`, "＝1+1", `\uff1d1+1`, `]0;x`, `]0\x3bx`)

func TestCSV(t *testing.T) {
	r := open(t, writeStorm(t, 2000))
	text := write(t, r, "csv", TableEvents)
	if lines := bytes.Count(text, []byte("\r\n")); lines != 24_001 || bytes.Count(text, []byte("\n")) != lines {
		t.Errorf("%d lines", lines)
	}
	cells, err := csv.NewReader(bytes.NewReader(text)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	var rows []record
	for _, line := range cells[1:] {
		row := make(record)
		for i, cell := range line {
			if cell != "" {
				row[cells[0][i]] = cell
			}
			if c, _ := utf8.DecodeRuneInString(strings.TrimLeft(cell, " ")); strings.ContainsRune("=+-@\t\r＝＋－＠", c) || strings.Contains(cell, ";") {
				t.Fatalf("a spreadsheet takes %q for a formula", cell)
			}
		}
		rows = append(rows, row)
	}
	same(t, rows, wanted(t, r), func(_, text string) string { return inCSV.Replace(text) })
}

func TestQuoted(t *testing.T) {
	for text, want := range map[string]string{
		"":         ``,
		"curl":     `curl`,
		"a-b+c=d@": `a-b+c=d@`,
		"-1":       `\x2d1`,
		" =1":      ` \x3d1`,
		"+":        `\x2b`,
		`a"b`:      `"a""b"`,
		`=",;`:     `"\x3d"",\x3b"`,
		"x;=1":     `x\x3b=1`,
		"＋1":       `\uff0b1`,
		"ü,":       `"ü,"`,
	} {
		if got := string(appendQuoted(nil, []byte(text))); got != want {
			t.Errorf("%q comes out as %s, want %s", text, got, want)
		}
	}
}

func TestRowBinary(t *testing.T) {
	r := open(t, writeStorm(t, 2000))
	in := &binaryReader{t: t, b: write(t, r, "rowbinary", TableEvents)}
	names := make([]string, in.size())
	types := make([]string, len(names))
	for i := range names {
		names[i] = in.text()
	}
	for i := range types {
		types[i] = in.text()
	}
	var rows []record
	for len(in.b) > 0 {
		row := make(record)
		for i, name := range names {
			if v, ok := in.value(types[i]); ok {
				row[name] = v
			}
		}
		rows = append(rows, row)
	}
	same(t, rows, wanted(t, r), func(column, text string) string {
		if strings.HasSuffix(column, "_addr") {
			return netip.AddrFrom16(netip.MustParseAddr(text).As16()).String()
		}
		return text
	})
}

// binaryReader reads RowBinary as ClickHouse's documentation has it.
type binaryReader struct {
	t *testing.T
	b []byte
}

func (r *binaryReader) take(n int) []byte {
	r.t.Helper()
	if n > len(r.b) {
		r.t.Fatalf("%d bytes are missing", n-len(r.b))
	}
	taken := r.b[:n]
	r.b = r.b[n:]
	return taken
}

func (r *binaryReader) size() int {
	n, k := binary.Uvarint(r.b)
	r.take(max(k, 1))
	return int(n)
}

func (r *binaryReader) text() string { return string(r.take(r.size())) }

func (r *binaryReader) value(typ string) (string, bool) {
	typ = strings.TrimSuffix(strings.TrimPrefix(typ, "LowCardinality("), ")")
	if inner, ok := strings.CutPrefix(typ, "Nullable("); ok {
		if r.take(1)[0] == 1 {
			return "", false
		}
		typ = strings.TrimSuffix(inner, ")")
	}
	le := binary.LittleEndian
	switch typ {
	case "String":
		return r.text(), true
	case "UInt16":
		return fmt.Sprint(le.Uint16(r.take(2))), true
	case "UInt32":
		return fmt.Sprint(le.Uint32(r.take(4))), true
	case "UInt64":
		return fmt.Sprint(le.Uint64(r.take(8))), true
	case "Int64":
		return fmt.Sprint(int64(le.Uint64(r.take(8)))), true
	case "DateTime64(9, 'UTC'":
		return time.Unix(0, int64(le.Uint64(r.take(8)))).UTC().Format("2006-01-02T15:04:05.000000000Z"), true
	case "IPv6":
		return netip.AddrFrom16([16]byte(r.take(16))).String(), true
	}
	r.t.Fatalf("a column of type %s", typ)
	return "", false
}

// TestEventLines: what `twtrace trace -o json` writes, here with the times of day that the recording's clocks give.
func TestEventLines(t *testing.T) {
	r := open(t, writeStorm(t, 500))
	var want bytes.Buffer
	lines := eventline.NewJSON(&want, eventline.Options{HZ: 250, Reasons: stormHeader.Enums["rst_reason"]})
	owners := timeline.NewOwners(0)
	_, err := r.Scan(recording.Query{}, func(b *recording.Batch) error {
		for i := range b.Events {
			ev := &b.Events[i]
			lines.Line(&eventline.Line{Event: ev, Past: owners.Event(ev), Wall: time.Unix(0, ev.MonoNS-bootMono+bootReal)})
		}
		return nil
	})
	if err != nil || lines.Flush() != nil {
		t.Fatal(err)
	}
	got := write(t, r, "jsonl", "")
	if bytes.Count(got, []byte("\n")) != 6000 || !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%d lines that differ (-want +got):\n%s", bytes.Count(got, []byte("\n")), cmp.Diff(firstLines(want.Bytes()), firstLines(got)))
	}
}

func firstLines(text []byte) string { return string(text[:min(len(text), 4000)]) }

// TestGolden has the first connections of a storm in every table.
func TestGolden(t *testing.T) {
	r := open(t, writeStorm(t, 11))
	for _, tt := range []struct{ format, table string }{
		{"csv", TableEvents}, {"csv", TableAttempts}, {"csv", TableConnections}, {"jsonl", TableAttempts}, {"jsonl", TableConnections},
	} {
		got := write(t, r, tt.format, tt.table)
		name := filepath.Join("testdata", tt.table+"."+tt.format)
		if *update {
			if err := os.WriteFile(name, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestLines: every line is an object with its schema, and nothing but what can be printed.
func TestLines(t *testing.T) {
	r := open(t, writeStorm(t, 2000))
	for _, table := range tables {
		text := write(t, r, "jsonl", table)
		for line := range bytes.Lines(text) {
			var object struct{ Schema string }
			if err := json.Unmarshal(line, &object); err != nil || object.Schema != "twtrace."+strings.TrimSuffix(table, "s")+"/1" {
				t.Fatalf("%v: %s", err, line)
			}
		}
		harmless(t, table, text)
		harmless(t, table, write(t, r, "csv", table))
	}
}

// harmless looks for what a terminal obeys.
func harmless(t *testing.T, what string, text []byte) {
	t.Helper()
	for len(text) > 0 {
		c, n := utf8.DecodeRune(text)
		if c == utf8.RuneError || !unicode.IsPrint(c) && c != '\n' && c != '\r' {
			t.Fatalf("%s: %q before %q", what, c, text[:min(40, len(text))])
		}
		text = text[n:]
	}
}

// TestWriteWrong: what Write refuses.
func TestWriteWrong(t *testing.T) {
	r := open(t, writeStorm(t, 3))
	for _, tt := range []struct{ format, table string }{{"excel", ""}, {"csv", "people"}} {
		if _, err := Write(t.Context(), r, tt.format, io.Discard, Options{Table: tt.table}); err == nil || !strings.Contains(err.Error(), "no such table") {
			t.Errorf("%s of %q: %v", tt.format, tt.table, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, f := range Formats {
		if _, err := Write(ctx, r, f.Name, io.Discard, Options{}); err == nil {
			t.Errorf("%s goes on when it should stop", f.Name)
		}
		if _, err := Write(t.Context(), r, f.Name, full{}, Options{}); err == nil {
			t.Errorf("%s does not say that it could not be written", f.Name)
		}
	}
}

// full is a disk with no room.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, os.ErrClosed }

// TestDamaged: what there is of a recording comes out, and what is missing is in the condition.
func TestDamaged(t *testing.T) {
	name := writeStorm(t, 3000)
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for what, file := range map[string][]byte{
		"cut":     whole[:len(whole)*2/3],
		"damaged": slices.Concat(whole[:len(whole)/2], []byte("damage!!"), whole[len(whole)/2+8:]),
	} {
		for _, f := range Formats {
			for _, table := range f.Tables {
				r, err := recording.NewReader(bytes.NewReader(file), int64(len(file)))
				if err != nil {
					t.Fatal(err)
				}
				var out bytes.Buffer
				c, err := Write(t.Context(), r, f.Name, &out, Options{Table: table})
				if err != nil || c.Complete() && table != TableAttempts {
					t.Errorf("%s: %s of %s: %v, %+v", what, f.Name, table, err, c)
				}
				if rows := uint64(bytes.Count(out.Bytes(), []byte("\n"))); f.Name == "jsonl" && table == TableEvents && rows != c.Records[recording.TableEvents] {
					t.Errorf("%s: %d lines of %d events", what, rows, c.Records[recording.TableEvents])
				}
			}
		}
	}
}

// TestNonsense: a recording may say anything of anything.
func TestNonsense(t *testing.T) {
	name := filepath.Join(t.TempDir(), "nonsense.twt")
	h := stormHeader
	evil := "\x1b[2J\u202e\"<script>;=1"
	h.Host, h.BootID, h.HZ = evil, evil, -1
	h.NetNS = []recording.NetNS{{Cookie: 1, Name: evil}}
	h.Enums = map[string]map[uint32]string{"rst_reason": {0: evil, 1: evil}}
	w, err := recording.Create(name, h, recording.Options{})
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	addr := func() netip.AddrPort {
		all := []netip.Addr{{}, netip.IPv4Unspecified(), netip.MustParseAddr("::ffff:1.2.3.4"), netip.AddrFrom16([16]byte{byte(rnd.Uint32()), 1})}
		return netip.AddrPortFrom(all[rnd.IntN(len(all))], uint16(rnd.Uint32()))
	}
	for i := range 20_000 {
		ev := tcp.Event{
			Seq: uint64(i + 1), MonoNS: int64(rnd.Uint64()), Cookie: tcp.Cookie(rnd.Uint64() >> rnd.IntN(65)), NetNS: tcp.NetNS(rnd.IntN(3)),
			Tuple: tcp.FourTuple{Local: addr(), Peer: addr()}, Reason: rnd.Uint32N(3), Ticks: rnd.Uint32(),
			Kind: tcp.Kind(rnd.IntN(256) >> rnd.IntN(8)), Cause: tcp.Cause(rnd.IntN(256)), Flags: tcp.Flags(rnd.IntN(256)), Errno: tcp.Errno(rnd.Uint32()),
			Old: tcp.State(rnd.IntN(256) >> rnd.IntN(8)), New: tcp.State(rnd.IntN(256) >> rnd.IntN(8)), Substate: tcp.State(rnd.IntN(256)),
			Owner:    tcp.Owner{PID: rnd.Uint32(), Cgroup: rnd.Uint64()},
			Refusals: tcp.Refusals{TooYoung: uint16(rnd.Uint32())},
			Holder:   tcp.Holder{State: tcp.State(rnd.IntN(256)), Cookie: tcp.Cookie(rnd.Uint64()), Addr: addr().Addr()},
		}
		for k := range ev.Owner.Comm {
			ev.Owner.Comm[k] = byte(rnd.Uint32())
		}
		w.Events([]tcp.Event{ev})
		w.Attempts([]tcp.Attempt{{
			Cookie: ev.Cookie, Started: int64(rnd.Uint64()), Intended: int64(rnd.Uint64()), Closed: int64(rnd.Uint64()), Loop: rnd.Uint32(),
			Shard: uint16(rnd.Uint32()), Errno: ev.Errno, Phase: tcp.Phase(rnd.IntN(256)), Flags: tcp.AttemptFlags(rnd.IntN(256)),
		}})
		w.Sample(recording.Sample{Kind: recording.SampleTick, MonoNS: int64(rnd.Uint64()), RealNS: int64(rnd.Uint64())})
	}
	if err := w.Close(nil); err != nil {
		t.Fatal(err)
	}
	r := open(t, name)
	for _, f := range Formats {
		for _, table := range f.Tables {
			text := write(t, r, f.Name, table)
			if !f.Binary {
				harmless(t, f.Name+" of "+table, text)
			}
			if f.Name != "jsonl" {
				continue
			}
			for line := range bytes.Lines(text) {
				if !json.Valid(line) {
					t.Fatalf("%s: %s", table, line)
				}
			}
		}
	}
}

// TestProgress: it grows, and ends at the end of what is read.
func TestProgress(t *testing.T) {
	r := open(t, writeStorm(t, 3000))
	for _, f := range Formats {
		var last, whole int64
		_, err := Write(t.Context(), r, f.Name, io.Discard, Options{Progress: func(done, all int64) {
			if done < last || done > all {
				t.Errorf("%s: %d of %d after %d", f.Name, done, all, last)
			}
			last, whole = done, all
		}})
		if err != nil || whole == 0 || last < whole/2 {
			t.Errorf("%s: %d of %d at the end: %v", f.Name, last, whole, err)
		}
	}
}
