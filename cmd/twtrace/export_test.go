package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/twtrace/twtrace/internal/export"
	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
)

// record writes a recording of n connections that were opened; end is called before its end.
func record(t *testing.T, n int, end func(*recording.Writer)) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "storm.twt")
	w, err := recording.Create(name, recording.Here("test", recording.CommandTrace), recording.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		w.Events([]tcp.Event{{
			Seq: uint64(i + 1), MonoNS: int64(1e9 + 1000*i), Cookie: tcp.Cookie(i + 1), NetNS: 1, Kind: tcp.KindState,
			Old: tcp.Close, New: tcp.SynSent, Flags: tcp.FlagOwner, Owner: tcp.Owner{PID: 7, Comm: tcp.Comm{'=', 0x1b}},
			Tuple: tcp.FourTuple{Local: netip.MustParseAddrPort("198.18.0.1:40000"), Peer: netip.MustParseAddrPort("198.18.0.2:7")},
		}})
	}
	if end != nil {
		end(w)
	}
	if err := w.Close(nil); err != nil {
		t.Fatal(err)
	}
	return name
}

// exported runs `twtrace export`.
func exported(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = Main(t.Context(), append([]string{"export"}, args...), &out, &err)
	return code, out.String(), err.String()
}

func TestExport(t *testing.T) {
	name := record(t, 300, nil)
	for _, f := range export.Formats {
		for _, table := range f.Tables {
			to := filepath.Join(t.TempDir(), "out"+f.Extension)
			code, stdout, stderr := exported(t, name, "--output", to, "--table", table)
			if code != exitDone || stdout != "" || stderr != "" {
				t.Errorf("%s of %s: exit code %d, stdout %q, stderr %q", f.Name, table, code, firstLine(stdout), stderr)
			}
			file, err := os.ReadFile(to)
			if err != nil {
				t.Fatal(err)
			}
			code, stdout, stderr = exported(t, name, "--format", f.Name, "--table", table)
			if code != exitDone || stdout != string(file) || stderr != "" {
				t.Errorf("%s of %s on stdout: exit code %d, %d bytes and %d in the file, stderr %q", f.Name, table, code, len(stdout), len(file), stderr)
			}
			if names := directory(t, filepath.Dir(to)); len(names) != 1 {
				t.Errorf("%s leaves %q", f.Name, names)
			}
		}
	}
	_, lines, _ := exported(t, name, "--format", "jsonl")
	var first struct {
		Schema, Comm string
		Seq          int
	}
	if err := json.Unmarshal([]byte(firstLine(lines)), &first); err != nil || first.Schema != "twtrace.event/1" || first.Comm != `=\x1b` || first.Seq != 1 {
		t.Errorf("%v: %+v", err, first)
	}
	if n := strings.Count(lines, "\n"); n != 300 {
		t.Errorf("%d lines", n)
	}
}

func directory(t *testing.T, name string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// eventsAfter finds the records of the first segment of events that begins at or after an offset (FORMAT.md).
func eventsAfter(file []byte, after int) int {
	const segment, table = 0x81, 8 // a segment's table is the first byte after its magic
	for at := 0; ; {
		next := at + 4 + int(file[at+1]) + int(file[at+2])<<8 + int(file[at+3])<<16
		if at >= after && file[at] == segment && recording.Table(file[at+table]) == recording.TableEvents {
			return next
		}
		at = next
	}
}

// TestExportIncomplete: what is there is written, what is not is said, and the exit code is 3.
func TestExportIncomplete(t *testing.T) {
	name := record(t, 30_000, nil)
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	damaged := slices.Clone(whole)
	copy(damaged[eventsAfter(whole, len(whole)/2)+8:], "damage!!")
	lost := record(t, 300, func(w *recording.Writer) { w.SetLoss(5, 2) })
	for _, tt := range []struct {
		what string
		file []byte
		says string
	}{
		{"cut", whole[:len(whole)-len(whole)/4], "has no end"},
		{"damaged", damaged, "is damaged"},
		{"lost", nil, "5 events were lost in the ring and 2 skipped"},
	} {
		dir := t.TempDir()
		part := filepath.Join(dir, "part.twt")
		if tt.file == nil {
			part = lost
		} else if err := os.WriteFile(part, tt.file, 0o600); err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, "out.jsonl")
		code, _, stderr := exported(t, part, "--output", to)
		if code != exitIncomplete || !strings.Contains(stderr, tt.says) {
			t.Errorf("%s: exit code %d, stderr %q", tt.what, code, stderr)
		}
		text, err := os.ReadFile(to)
		if n := bytes.Count(text, []byte("\n")); err != nil || n < 300 || n >= 30_000 {
			t.Errorf("%s: %d lines: %v", tt.what, n, err)
		}
	}
}

// TestExportKeeps: what was there before stays until the new file is whole, and for good if it will not be.
func TestExportKeeps(t *testing.T) {
	name := record(t, 300, nil)
	dir := t.TempDir()
	to, link := filepath.Join(dir, "out.csv"), filepath.Join(dir, "link.csv")
	if err := os.WriteFile(to, []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if code := Main(ctx, []string{"export", name, "--output", to}, &stdout, &stderr); code != exitFailed || !strings.Contains(stderr.String(), "stopped") {
		t.Errorf("exit code %d, stderr %q", code, stderr.String())
	}
	if text, err := os.ReadFile(to); err != nil || string(text) != "before" {
		t.Errorf("%q is left of the file: %v", text, err)
	}
	if names := directory(t, dir); len(names) != 1 {
		t.Errorf("left in the directory: %q", names)
	}
	if err := os.Symlink("out.csv", link); err != nil {
		t.Skip(err) // Windows without the privilege
	}
	if code, _, stderr := exported(t, name, "--output", link); code != exitDone {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
	if text, err := os.ReadFile(to); err != nil || !strings.HasPrefix(string(text), "seq,time,") {
		t.Errorf("what the link names has %q: %v", firstLine(string(text)), err)
	}
}

// TestExportWrong: nothing is written where the use is wrong, or there is no recording.
func TestExportWrong(t *testing.T) {
	name := record(t, 3, nil)
	for _, tt := range []wrongUse{
		{"export", []string{"one recording"}},
		{"export a b", []string{"one recording", "2"}},
		{"export FILE", []string{"--format is missing", "parquet", "csv"}},
		{"export FILE --output x.doc", []string{"--format is missing", "parquet"}},
		{"export FILE --format excel", []string{"--format excel", "parquet"}},
		{"export FILE --format csv --table people", []string{"--table people", "events", "attempts", "connections"}},
		{"export FILE --format csv --output=", []string{"--output"}},
		{"export FILE --format csv --output FILE", []string{"--output", "the recording itself"}},
		{"export FILE --format csv --progress loud", []string{"--progress", "auto|plain|never"}},
	} {
		tt.args = strings.ReplaceAll(tt.args, "FILE", name)
		testUsage(t, []wrongUse{tt})
	}
	if r, err := recording.Open(name); err != nil {
		t.Errorf("the recording is gone: %v", err)
	} else {
		r.Close()
	}
	none := filepath.Join(t.TempDir(), "none.csv")
	for _, file := range []string{none, filepath.Join("testdata", "script", "help.txtar")} {
		if code, stdout, stderr := exported(t, file, "--output", none); code != exitFailed || stdout != "" || !isOneLine(stderr) {
			t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
		}
		if _, err := os.Stat(none); err == nil {
			t.Error("a file is there")
		}
	}
}
