package recording_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/twtrace/twtrace/internal/recording"
)

// seeds are short recordings: of a real storm, and of version 1 with everything that can be in one.
func seeds(f *testing.F) [][]byte {
	f.Helper()
	var all [][]byte
	for _, name := range []string{"tiny.twt", "v1.twt"} {
		file, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		all = append(all, file)
	}
	return all
}

// scanAll reads all that there is, in two ways, and compares what is handed out with what is counted.
func scanAll(t *testing.T, file []byte) {
	t.Helper()
	r, err := recording.NewReader(bytes.NewReader(file), int64(len(file)))
	var version *recording.VersionError
	switch {
	case errors.Is(err, recording.ErrFormat) || errors.As(err, &version):
		return
	case err != nil:
		t.Fatal(err)
	}
	for _, q := range []recording.Query{
		{},
		{Want: func(*recording.Segment) bool { return true }},
		{Tables: []recording.Table{recording.TableAttempts}, Want: (*recording.Segment).MayFail},
	} {
		var handed [len(recording.Tables) + 1]uint64
		c, err := r.Scan(q, func(b *recording.Batch) error {
			handed[recording.TableEvents] += uint64(len(b.Events))
			handed[recording.TableAttempts] += uint64(len(b.Attempts))
			handed[recording.TableSamples] += uint64(len(b.Samples))
			for i := range b.Events {
				_ = b.Events[i].Owner.Comm.String() + b.Events[i].Kind.String() + b.Events[i].Cause.String() + b.Events[i].New.String()
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, table := range recording.Tables {
			if table != recording.TableDetails && q.Tables == nil && handed[table] != c.Records[table] {
				t.Errorf("%d %s handed out, %d counted", handed[table], table, c.Records[table])
			}
		}
		covered := c.Cut
		for _, d := range c.Damage {
			if d.Offset < 0 || d.Length <= 0 || d.Offset+d.Length > c.Bytes {
				t.Errorf("damage %+v in %d bytes", d, c.Bytes)
			}
			covered += d.Length
		}
		if covered > c.Bytes || c.Cut < 0 {
			t.Errorf("%d of %d bytes damaged or cut", covered, c.Bytes)
		}
	}
}

// FuzzReader reads files that are like recordings, and the same with the checksums that belong to them.
func FuzzReader(f *testing.F) {
	for _, file := range seeds(f) {
		f.Add(file)
		f.Add(file[:len(file)/2])
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		scanAll(t, file)
		file = bytes.Clone(file)
		recording.Seal(file)
		scanAll(t, file)
	})
}

// FuzzHeader reads a recording with another header.
func FuzzHeader(f *testing.F) {
	all := seeds(f)
	for _, file := range all {
		f.Add(uint32(1), recording.HeaderText(file))
	}
	f.Add(uint32(2), []byte("{}"))
	f.Fuzz(func(t *testing.T, version uint32, text []byte) {
		if len(text) < 1<<20 {
			scanAll(t, recording.WithHeader(version, text, all[1]))
		}
	})
}

// FuzzSegment decodes a segment, whose checksums are right.
func FuzzSegment(f *testing.F) {
	for _, file := range seeds(f) {
		for _, table := range recording.Tables {
			payload, data := recording.SegmentParts(file, table)
			f.Add(payload, data)
		}
	}
	f.Fuzz(func(_ *testing.T, payload, data []byte) {
		recording.ReadSegment(payload, data)
	})
}

// TestSegmentsAreRead: what FuzzSegment begins with is read, so that it fuzzes more than what refuses it.
func TestSegmentsAreRead(t *testing.T) {
	file, err := os.ReadFile(filepath.Join("testdata", "v1.twt"))
	if err != nil {
		t.Fatal(err)
	}
	for table, n := range map[recording.Table]int{
		recording.TableEvents: 21, recording.TableDetails: 5, recording.TableAttempts: 14, recording.TableSamples: 3,
	} {
		if got := recording.ReadSegment(recording.SegmentParts(file, table)); got != n {
			t.Errorf("%d %s, want %d", got, table, n)
		}
	}
}
