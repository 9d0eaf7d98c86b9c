package recording_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
)

// written is what was handed to a Writer, and the file that came of it.
type written struct {
	events   []tcp.Event
	attempts []tcp.Attempt
	samples  []recording.Sample
	summary  string
	file     []byte
}

// write makes a file of many short segments of every table. The name of the host tells two files apart.
func write(t testing.TB, host string) *written {
	t.Helper()
	const rounds, ofEvents, ofAttempts = 12, 60, 20
	w := &written{
		events: storm(rounds * ofEvents), attempts: attempts(rounds * ofAttempts), summary: `{"host":"` + host + `"}`,
	}
	name := filepath.Join(t.TempDir(), "a.twt")
	rec, err := recording.Create(name, recording.Header{Command: recording.CommandRun, Host: host}, recording.Options{
		FlushEvery: time.Hour,
		Now:        func() recording.Clock { return recording.Clock{MonoNS: 1, RealNS: 2, BootNS: 3} },
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range rounds {
		sample := recording.Sample{Kind: recording.SampleTick, MonoNS: int64(1e9 + i), Started: uint32(i), TimeWait: -1}
		w.samples = append(w.samples, sample)
		rec.Events(w.events[i*ofEvents : (i+1)*ofEvents])
		rec.Attempts(w.attempts[i*ofAttempts : (i+1)*ofAttempts])
		rec.Sample(sample)
		rec.Flush()
	}
	if err := rec.Close(json.RawMessage(w.summary)); err != nil {
		t.Fatal(err)
	}
	if w.file, err = os.ReadFile(name); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *written) count(table recording.Table) uint64 {
	switch table {
	case recording.TableEvents:
		return uint64(len(w.events))
	case recording.TableDetails:
		n := 0
		for i := range w.events {
			if ev := &w.events[i]; ev.Flags&(tcp.FlagOwner|tcp.FlagRefusals) != 0 || ev.Holder.State != 0 {
				n++
			}
		}
		return uint64(n)
	case recording.TableAttempts:
		return uint64(len(w.attempts))
	}
	return uint64(len(w.samples))
}

// withoutDetails is what is left of an event whose details are lost.
func withoutDetails(ev tcp.Event) tcp.Event {
	ev.Flags &^= tcp.FlagOwner | tcp.FlagRefusals
	ev.Owner, ev.Refusals, ev.Holder = tcp.Owner{}, tcp.Refusals{}, tcp.Holder{}
	return ev
}

// judge reads a damaged file and compares all that is handed out with what was written. It returns what is wrong,
// and the condition; errUnreadable if the file was refused.
func (w *written) judge(file []byte) (*recording.Condition, error) {
	r, err := recording.NewReader(bytes.NewReader(file), int64(len(file)))
	if errors.Is(err, recording.ErrFormat) {
		return nil, errUnreadable
	}
	if err != nil {
		return nil, err
	}
	var wrong error
	bad := func(format string, args ...any) {
		if wrong == nil {
			wrong = fmt.Errorf(format, args...)
		}
	}
	var lastSeq, bare, events, tries, samples uint64
	visit := func(b *recording.Batch) error {
		for i := range b.Events {
			ev := &b.Events[i]
			if ev.Seq <= lastSeq || ev.Seq > uint64(len(w.events)) {
				bad("event %d after %d", ev.Seq, lastSeq)
				continue
			}
			lastSeq = ev.Seq
			if want := w.events[ev.Seq-1]; *ev != want {
				if *ev != withoutDetails(want) {
					bad("event %d is %+v, was %+v", ev.Seq, *ev, want)
				}
				bare++
			}
			events++
		}
		for i := range b.Attempts {
			if a := &b.Attempts[i]; *a != w.attempts[(a.Cookie-w.attempts[0].Cookie)%tcp.Cookie(len(w.attempts))] {
				bad("attempt %+v", *a)
			}
			tries++
		}
		for i := range b.Samples {
			if s := &b.Samples[i]; !slices.Contains(w.samples, *s) {
				bad("sample %+v", *s)
			}
			samples++
		}
		return nil
	}
	c, err := r.Scan(recording.Query{}, visit)
	if err != nil {
		return nil, err
	}
	for _, x := range []struct {
		table recording.Table
		got   uint64
	}{{recording.TableEvents, events}, {recording.TableAttempts, tries}, {recording.TableSamples, samples}, {recording.TableDetails, c.Records[recording.TableDetails]}} {
		all := c.Records[x.table] + c.Missing[x.table]
		if c.Records[x.table] != x.got {
			bad("%d %s handed out, counted %d", x.got, x.table, c.Records[x.table])
		}
		if all > w.count(x.table) || c.Footer != nil && all != w.count(x.table) {
			bad("%s: %d there and %d missing of %d", x.table, x.got, c.Missing[x.table], w.count(x.table))
		}
	}
	if bare > 0 && c.Complete() {
		bad("%d events without details in a complete recording", bare)
	}
	if c.Footer != nil && string(c.Footer.Summary) != w.summary {
		bad("summary %s", c.Footer.Summary)
	}
	return c, wrong
}

var errUnreadable = errors.New("refused")

// headerEnd is where the first segment begins.
func (w *written) headerEnd() int64 { return recording.Segments(w.file)[0].Offset() }

// mustNotice fails the test if a file that was tampered with passes for whole.
func (w *written) mustNotice(t *testing.T, what string, file []byte) *recording.Condition {
	t.Helper()
	c, err := w.judge(file)
	switch {
	case errors.Is(err, errUnreadable):
		return nil
	case err != nil:
		t.Errorf("%s: %v", what, err)
	case c.Complete():
		t.Errorf("%s: nobody noticed", what)
	}
	return c
}

func TestUndamaged(t *testing.T) {
	w := write(t, "a")
	c, err := w.judge(w.file)
	if err != nil || !c.Complete() {
		t.Fatalf("%v, condition %+v", err, c)
	}
	for _, table := range recording.Tables {
		if c.Records[table] != w.count(table) || c.Records[table] == 0 {
			t.Errorf("%d of %d %s", c.Records[table], w.count(table), table)
		}
	}
}

// TestCutAtEveryByte cuts a file at every byte of its last 4 KiB, and at fewer places before. All segments
// that are whole must be there.
func TestCutAtEveryByte(t *testing.T) {
	w := write(t, "a")
	segments, headerEnd := recording.Segments(w.file), w.headerEnd()
	for at := len(w.file) - 1; at >= 0; at-- {
		if at < len(w.file)-4096 && at%37 != 0 {
			continue
		}
		c := w.mustNotice(t, fmt.Sprintf("cut at %d of %d", at, len(w.file)), w.file[:at])
		if c == nil {
			if int64(at) >= headerEnd {
				t.Errorf("cut at %d: refused", at)
			}
			continue
		}
		var want [5]uint64 // by table: all that is whole before the cut
		end := headerEnd
		for _, s := range segments {
			if s.End() <= int64(at) {
				want[s.Table] += uint64(s.Count)
				end = s.End()
			}
		}
		for _, table := range recording.Tables {
			if c.Records[table] != want[table] {
				t.Errorf("cut at %d: %d %s, want %d", at, c.Records[table], table, want[table])
			}
		}
		if c.Footer != nil || len(c.Damage) > 0 || c.Cut != int64(at)-end {
			t.Errorf("cut at %d: %d cut off, want %d; damage %v", at, c.Cut, int64(at)-end, c.Damage)
		}
	}
}

// TestFlippedBits flips one bit, or the bits of some bytes, of a recording, at random places.
func TestFlippedBits(t *testing.T) {
	w := write(t, "a")
	rnd := rand.New(rand.NewPCG(3, 4))
	refused, headerEnd := 0, w.headerEnd()
	flips := 10_000
	if testing.Short() {
		flips = 500
	}
	for range flips {
		file := bytes.Clone(w.file)
		at, what := rnd.IntN(len(file)), ""
		switch rnd.IntN(4) {
		case 0:
			n := min(1+rnd.IntN(64), len(file)-at)
			for i := range n {
				file[at+i] ^= byte(1 + rnd.IntN(255))
			}
			what = fmt.Sprintf("%d bytes at %d", n, at)
		default:
			bit := rnd.IntN(8)
			file[at] ^= 1 << bit
			what = fmt.Sprintf("bit %d at %d", bit, at)
		}
		if c := w.mustNotice(t, what, file); c == nil {
			refused++
			if int64(at) >= headerEnd {
				t.Errorf("%s: refused, and the header is whole", what)
			}
		} else if int64(at) < headerEnd {
			t.Errorf("%s: the header is damaged, and not refused", what)
		}
	}
	if refused == 0 || refused == flips {
		t.Errorf("%d of %d refused", refused, flips)
	}
}

// TestOneSegmentDamaged: whatever is damaged in a segment, it alone is lost, and its details.
func TestOneSegmentDamaged(t *testing.T) {
	w := write(t, "a")
	segments := recording.Segments(w.file)
	for i, s := range segments {
		for at := s.Offset(); at < s.End(); at += 1 + at%13 {
			file := bytes.Clone(w.file)
			file[at] ^= 0x40
			c := w.mustNotice(t, fmt.Sprintf("byte %d of segment %d", at-s.Offset(), i), file)
			for _, table := range recording.Tables {
				lost := uint64(0)
				if table == s.Table {
					lost = uint64(s.Count)
				}
				if c.Missing[table] != lost {
					t.Fatalf("byte %d of segment %d (%s): %d %s missing, want %d", at-s.Offset(), i, s.Table, c.Missing[table], table, lost)
				}
			}
			if c.Footer == nil || c.Cut != 0 || len(c.Damage) != 1 || c.Damage[0].Offset < s.Offset() || c.Damage[0].Offset+c.Damage[0].Length != s.End() {
				t.Fatalf("byte %d of segment %d, which is %d to %d: %+v", at-s.Offset(), i, s.Offset(), s.End(), c)
			}
		}
	}
}

// TestMovedSegments removes, doubles and swaps segments, and parts of them.
func TestMovedSegments(t *testing.T) {
	w := write(t, "a")
	segments := recording.Segments(w.file)
	piece := func(from, to int64) []byte { return w.file[from:to] }
	end := int64(len(w.file))
	for i, s := range segments {
		w.mustNotice(t, fmt.Sprintf("segment %d removed", i), slices.Concat(piece(0, s.Offset()), piece(s.End(), end)))
		w.mustNotice(t, fmt.Sprintf("segment %d twice", i), slices.Concat(piece(0, s.End()), piece(s.Offset(), end)))
		for _, other := range segments[i+1:] {
			what := fmt.Sprintf("segments %d and %d swapped", s.Seq, other.Seq)
			w.mustNotice(t, what, slices.Concat(piece(0, s.Offset()), piece(other.Offset(), other.End()),
				piece(s.End(), other.Offset()), piece(s.Offset(), s.End()), piece(other.End(), end)))
			if s.Table == other.Table && s.Length == other.Length {
				// The chunks alone: each has a right checksum of its own.
				file := bytes.Clone(w.file)
				copy(file[s.End()-int64(s.Length):], piece(other.End()-int64(other.Length), other.End()))
				w.mustNotice(t, what+", chunks alone", file)
			}
		}
	}
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 700 {
		from := rnd.Int64N(end)
		to := min(end, from+1+rnd.Int64N(3000))
		w.mustNotice(t, fmt.Sprintf("%d to %d removed", from, to), slices.Concat(piece(0, from), piece(to, end)))
		at := rnd.Int64N(end)
		w.mustNotice(t, fmt.Sprintf("%d to %d again at %d", from, to, at), slices.Concat(piece(0, at), piece(from, to), piece(at, end)))
		zero := bytes.Clone(w.file)
		clear(zero[from:to]) // a block that was never written
		if !bytes.Equal(zero, w.file) {
			w.mustNotice(t, fmt.Sprintf("%d to %d zero", from, to), zero)
		}
	}
}

// TestTwoFilesInOne: what is of another recording is not taken for one's own, though it fits.
func TestTwoFilesInOne(t *testing.T) {
	w, other := write(t, "a"), write(t, "b")
	if n, want := len(recording.Segments(other.file)), len(recording.Segments(w.file)); n != want {
		t.Fatalf("%d segments, and %d", n, want)
	}
	// Events of the other are to be seen if they are taken.
	for i := range other.events {
		other.events[i].NetNS++
	}
	c := w.mustNotice(t, "one after the other", slices.Concat(w.file, other.file))
	if c.Footer == nil || c.Records[recording.TableEvents] != w.count(recording.TableEvents) {
		t.Errorf("one after the other: %+v", c)
	}
	theirs := recording.Segments(other.file)
	for _, s := range recording.Segments(w.file) {
		cut := w.file[:s.End()]
		c := w.mustNotice(t, "another after a cut", slices.Concat(cut, other.file))
		if c.Footer != nil || c.Records[s.Table] == 0 {
			t.Errorf("cut after segment %d, then another recording: %+v", s.Seq, c)
		}
		rest := other.file[theirs[s.Seq].End():]
		if c := w.mustNotice(t, "the end of another", slices.Concat(cut, rest)); c.Footer != nil {
			t.Errorf("cut after segment %d, then the rest of another: footer %+v", s.Seq, c.Footer)
		}
	}
}

// TestQueryOfDamaged: a search by cookie in a damaged file finds no more than there was.
func TestQueryOfDamaged(t *testing.T) {
	w := write(t, "a")
	rnd := rand.New(rand.NewPCG(7, 8))
	body := int(w.headerEnd())
	for range 1000 {
		file := bytes.Clone(w.file)
		file[body+rnd.IntN(len(file)-body)] ^= 1 << rnd.IntN(8)
		r, err := recording.NewReader(bytes.NewReader(file), int64(len(file)))
		if err != nil {
			t.Fatal(err)
		}
		cookie := w.events[rnd.IntN(len(w.events))].Cookie
		_, err = r.Scan(recording.Query{Want: func(s *recording.Segment) bool { return s.MayHaveCookie(cookie) }}, func(b *recording.Batch) error {
			for i := range b.Events {
				ev := &b.Events[i]
				if want := w.events[ev.Seq-1]; *ev != want && *ev != withoutDetails(want) {
					t.Errorf("event %+v, was %+v", *ev, want)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestQueries: what is looked up by the descriptions of segments is all there is.
func TestQueries(t *testing.T) {
	w := write(t, "a")
	r, err := recording.NewReader(bytes.NewReader(w.file), int64(len(w.file)))
	if err != nil {
		t.Fatal(err)
	}
	find := func(want func(*recording.Segment) bool, is func(*tcp.Event) bool) (found []tcp.Event) {
		t.Helper()
		_, err := r.Scan(recording.Query{Tables: []recording.Table{recording.TableEvents}, Want: want}, func(b *recording.Batch) error {
			for i := range b.Events {
				if is(&b.Events[i]) {
					found = append(found, b.Events[i])
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		var there []tcp.Event
		for i := range w.events {
			if is(&w.events[i]) {
				there = append(there, w.events[i])
			}
		}
		if !slices.Equal(found, there) {
			t.Errorf("found %d of %d", len(found), len(there))
		}
		return found
	}
	for i := range w.events {
		c, port, errno := w.events[i].Cookie, w.events[i].Tuple.Local.Port(), w.events[i].Errno
		find(func(s *recording.Segment) bool { return s.MayHaveCookie(c) }, func(ev *tcp.Event) bool { return ev.Cookie == c })
		if i%20 == 0 {
			find(func(s *recording.Segment) bool { return s.MayHavePort(port) },
				func(ev *tcp.Event) bool { return ev.Tuple.Local.Port() == port || ev.Tuple.Peer.Port() == port })
			find(func(s *recording.Segment) bool { return s.MayHaveErrno(errno) }, func(ev *tcp.Event) bool { return ev.Errno == errno })
		}
	}
	if len(find((*recording.Segment).MayFail, func(ev *tcp.Event) bool { return ev.Errno != 0 })) == 0 {
		t.Error("no event has an error number")
	}
}

// TestFileThatCannotBeRead: an error of the file system is one, and no damage.
func TestFileThatCannotBeRead(t *testing.T) {
	w := write(t, "a")
	broken := errors.New("no medium")
	for n := range 40 {
		src := &failing{data: w.file, after: n, err: broken}
		r, err := recording.NewReader(src, int64(len(w.file)))
		if err == nil {
			_, err = r.Check()
		}
		if !errors.Is(err, broken) {
			t.Fatalf("after %d reads: error %v", n, err)
		}
	}
}

// failing is a file that can't be read after some reads.
type failing struct {
	data  []byte
	after int
	err   error
}

func (f *failing) ReadAt(b []byte, at int64) (int, error) {
	if f.after--; f.after < 0 {
		return 0, f.err
	}
	return bytes.NewReader(f.data).ReadAt(b, at)
}

// TestNoRecording: what is none is refused with words.
func TestNoRecording(t *testing.T) {
	w := write(t, "a")
	for _, tt := range []struct {
		what string
		file []byte
	}{
		{"nothing", nil},
		{"text", []byte("loops: 10\n")},
		{"another program's stream", []byte("\xff\x06\x00\x00sNaPpY\x00\x00\x00\x00")},
		{"a header that is cut", w.file[:200]},
		{"zeros", make([]byte, 10_000)},
	} {
		_, err := recording.NewReader(bytes.NewReader(tt.file), int64(len(tt.file)))
		if !errors.Is(err, recording.ErrFormat) {
			t.Errorf("%s: error %v", tt.what, err)
		}
	}
	if _, err := recording.Open(t.TempDir()); err == nil {
		t.Error("a directory was opened")
	}
}

// TestHostileFiles: what looks like chunks over and over is looked through once, in bounded memory.
func TestHostileFiles(t *testing.T) {
	w := write(t, "a")
	const long = 4 << 20
	for _, pattern := range []string{"\x81\x00\x08\x00TWRS", "\x82\xff\xff\x01TWRF", "TWR", "\x81", "\xfe\x00\x00\x00"} {
		file := append(bytes.Clone(w.file[:w.headerEnd()]), bytes.Repeat([]byte(pattern), long/len(pattern))...)
		c := w.mustNotice(t, fmt.Sprintf("%q again and again", pattern), file)
		if c != nil && (c.Footer != nil || c.Segments != 0) {
			t.Errorf("%q again and again: %+v", pattern, c)
		}
	}
	// A segment again and again, with something between: it is taken once.
	s := recording.Segments(w.file)[0]
	piece := append(bytes.Clone(w.file[s.Offset():s.End()]), 'x')
	file := append(bytes.Clone(w.file[:s.Offset()]), bytes.Repeat(piece, long/len(piece))...)
	if c := w.mustNotice(t, "a segment again and again", file); c.Segments != 1 || c.Records[s.Table] != uint64(s.Count) {
		t.Errorf("a segment again and again: %+v", c)
	}
}
