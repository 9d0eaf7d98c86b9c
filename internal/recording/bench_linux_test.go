package recording_test

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/recording/enlarge"
	"github.com/twtrace/twtrace/internal/tcp"
)

// real writes a recording of so many events, from those of a real storm.
func real(b *testing.B, events uint64) string {
	b.Helper()
	r, err := recording.Open(filepath.Join("testdata", "storm.twt"))
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	name := filepath.Join(b.TempDir(), "real.twt")
	w, err := recording.Create(name, *r.Header(), recording.Options{})
	if err != nil {
		b.Fatal(err)
	}
	if err := enlarge.Events(w, r, events); err != nil {
		b.Fatal(err)
	}
	if err := w.Close(nil); err != nil {
		b.Fatal(err)
	}
	return name
}

// cpu is what the process used, in nanoseconds of all its threads.
func cpu(b *testing.B) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkWriteEvents writes a real storm's events. CPU is that of all threads: compression and writing too.
func BenchmarkWriteEvents(b *testing.B) {
	const batch = 1024
	r, err := recording.Open(real(b, 1<<17))
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	var events []tcp.Event
	if _, err := r.Scan(recording.Query{}, func(b *recording.Batch) error {
		events = append(events, b.Events...)
		return nil
	}); err != nil {
		b.Fatal(err)
	}
	w, err := recording.Create(filepath.Join(b.TempDir(), "a.twt"), recording.Header{}, recording.Options{})
	if err != nil {
		b.Fatal(err)
	}
	before, n := cpu(b), 0
	b.ReportAllocs()
	for b.Loop() {
		w.Events(events[n : n+batch])
		n = (n + batch) % len(events)
	}
	if err := w.Close(nil); err != nil {
		b.Fatal(err)
	}
	all := float64(b.N) * batch
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/all, "ns/event")
	b.ReportMetric(float64(cpu(b)-before)/all, "cpu-ns/event")
	b.ReportMetric(float64(w.Size())/all, "B/event")
}

// BenchmarkRead reads a real storm's events in each way there is.
func BenchmarkRead(b *testing.B) {
	const events = 1 << 20
	r, err := recording.Open(real(b, events))
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	var some tcp.Cookie
	nothing := func(b *recording.Batch) error {
		if len(b.Events) > 0 {
			some = b.Events[0].Cookie
		}
		return nil
	}
	scan := func(name string, q recording.Query, visit func(*recording.Batch) error) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := r.Scan(q, visit); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/events, "ns/event")
		})
	}
	scan("check", recording.Query{}, nil)
	scan("scan", recording.Query{}, nothing)
	scan("one cookie", recording.Query{Want: func(s *recording.Segment) bool { return s.MayHaveCookie(some) }}, func(*recording.Batch) error { return nil })
	scan("descriptions", recording.Query{Want: func(*recording.Segment) bool { return false }}, nil)
}
