package recording_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
)

// numbered makes events that say who handed them over, in the cookie, and as which, in Seq.
func numbered(by, from, n int) []tcp.Event {
	events := make([]tcp.Event, n)
	for i := range events {
		events[i] = tcp.Event{Seq: uint64(from + i), Cookie: tcp.Cookie(by), MonoNS: int64(from + i), Kind: tcp.KindState}
	}
	return events
}

// readAll returns all events of a file, and how it is.
func readAll(t *testing.T, name string) ([]tcp.Event, *recording.Condition, *recording.Header) {
	t.Helper()
	r, err := recording.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var events []tcp.Event
	c, err := r.Scan(recording.Query{}, func(b *recording.Batch) error {
		events = append(events, b.Events...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return events, c, r.Header()
}

// inOrder fails the test unless events are those of one writer, from 0 on, each once.
func inOrder(t *testing.T, events []tcp.Event, n int) {
	t.Helper()
	for i := range events {
		if events[i].Seq != uint64(i) {
			t.Fatalf("event %d at place %d", events[i].Seq, i)
		}
	}
	if len(events) != n {
		t.Errorf("%d events, handed over %d", len(events), n)
	}
}

// TestStalledDisk holds up the goroutine that writes: who hands over waits, with bounded memory, and nothing is
// lost when it goes on. Close waits as well.
func TestStalledDisk(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		resume, files := make(chan struct{}), 0
		w, err := recording.Create(filepath.Join(dir, "a.twt"), recording.Header{}, recording.Options{
			RotateSize: 1,
			Create: func(name string) (*os.File, error) {
				if files++; files > 1 { // the first is of Create; then it is the writing goroutine's
					<-resume
				}
				return os.Create(name)
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		w.Events(numbered(1, 0, 1))
		w.Flush()
		synctest.Wait()
		if !w.RotationDue() {
			t.Fatal("no rotation is due")
		}
		w.Rotate()
		const n = 3 * recording.MaxWaiting
		handed, done := 1, make(chan struct{})
		go func() {
			defer close(done)
			for handed < n {
				w.Events(numbered(1, handed, 1000))
				handed += 1000
			}
		}()
		synctest.Wait() // until everybody waits for something in here: the disk
		if handed < recording.MaxWaiting/2 || handed > recording.MaxWaiting {
			t.Errorf("%d events were taken while nothing could be written, want up to %d", handed, recording.MaxWaiting)
		}
		time.Sleep(time.Hour) // ticks come and go
		synctest.Wait()
		if handed > recording.MaxWaiting {
			t.Errorf("%d events taken", handed)
		}
		close(resume)
		<-done
		if err := w.Close(nil); err != nil {
			t.Fatal(err)
		}
		var all []tcp.Event
		for _, name := range w.Names() {
			events, c, _ := readAll(t, name)
			if !c.Complete() {
				t.Errorf("%s: %+v", name, c)
			}
			all = append(all, events...)
		}
		inOrder(t, all, handed)
	})
}

// TestCloseWhileManyWrite closes a Writer that is in use, from several goroutines.
func TestCloseWhileManyWrite(t *testing.T) {
	const writers = 4
	for round := range 8 {
		name := filepath.Join(t.TempDir(), "a.twt")
		w, err := recording.Create(name, recording.Header{}, recording.Options{FlushEvery: time.Millisecond, SyncEvery: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		stop, begun := make(chan struct{}), make(chan struct{}, writers)
		for by := range writers {
			all.Go(func() {
				for from := 0; ; from += 100 {
					w.Events(numbered(by, from, 100))
					w.Attempts(attempts(3))
					w.Sample(recording.Sample{Kind: recording.SampleTick})
					w.SetLoss(uint64(from), 0)
					w.Rotate()
					if from == 100*round {
						begun <- struct{}{}
					}
					select {
					case <-stop:
						return
					default:
					}
				}
			})
		}
		for range writers {
			<-begun
		}
		for range 3 {
			all.Go(func() {
				if err := w.Close(nil); err != nil {
					t.Error(err)
				}
				// Whoever Close returned to finds the recording ended.
				if info, err := os.Stat(name); err != nil || info.Size() != w.Size() {
					t.Errorf("%v, %d bytes after Close", err, w.Size())
				}
				if names := w.Names(); len(names) != 1 || names[0] != name {
					t.Errorf("names %q", names)
				}
			})
		}
		if err := w.Close(nil); err != nil {
			t.Error(err)
		}
		close(stop)
		all.Wait()
		events, c, _ := readAll(t, name)
		if !c.Complete() {
			t.Errorf("%+v", c)
		}
		var next [writers]uint64
		for i := range events {
			ev := &events[i]
			if ev.Seq != next[ev.Cookie] {
				t.Fatalf("event %d of writer %d, want %d", ev.Seq, ev.Cookie, next[ev.Cookie])
			}
			next[ev.Cookie]++
		}
		for by, n := range next {
			if n < uint64(100*round) || n%100 != 0 {
				t.Errorf("%d events of writer %d", n, by)
			}
		}
	}
}

// parts reads a rotated recording from its first file on, by what the footers say, and returns all events.
func parts(t *testing.T, names []string) []tcp.Event {
	t.Helper()
	var all []tcp.Event
	for i, name := range names {
		events, c, h := readAll(t, name)
		if !c.Complete() {
			t.Errorf("%s: %+v", name, c)
		}
		next := ""
		if i+1 < len(names) {
			next = filepath.Base(names[i+1])
		}
		if c.Footer != nil && c.Footer.Next != next {
			t.Errorf("%s is followed by %q, want %q", name, c.Footer.Next, next)
		}
		_, _, first := readAll(t, names[0])
		if h.Part != first.Part+i {
			t.Errorf("%s is part %d, want %d", name, h.Part, first.Part+i)
		}
		all = append(all, events...)
	}
	return all
}

// TestRotationBySize: no record is lost or there twice, and files are about as long as was asked for.
func TestRotationBySize(t *testing.T) {
	dir := t.TempDir()
	const size = 64 << 10
	w, err := recording.Create(filepath.Join(dir, "watch.twt"), recording.Header{}, recording.Options{RotateSize: size})
	if err != nil {
		t.Fatal(err)
	}
	events, rotated := storm(200_000), 0
	for i := range events {
		events[i].Seq = uint64(i)
	}
	for from := 0; from < len(events); from += 500 {
		if w.RotationDue() {
			w.Rotate()
			rotated++
		}
		w.Events(events[from : from+500])
	}
	if err := w.Close(nil); err != nil {
		t.Fatal(err)
	}
	all := parts(t, w.Names())
	inOrder(t, all, len(events))
	for i := range all {
		if all[i] != events[i] {
			t.Fatalf("event %d: %+v, was %+v", i, all[i], events[i])
		}
	}
	if rotated == 0 || len(w.Names()) != rotated+1 {
		t.Errorf("%d files after %d rotations", len(w.Names()), rotated)
	}
	for i, name := range w.Names() {
		if want := fmt.Sprintf("watch-%05d.twt", i+1); filepath.Base(name) != want {
			t.Errorf("file %s, want %s", name, want)
		}
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if i+1 < len(w.Names()) && info.Size() < size {
			t.Errorf("%s has %d bytes", name, info.Size())
		}
	}
}

// TestKeep: the oldest files are removed, nothing else is.
func TestKeep(t *testing.T) {
	dir := t.TempDir()
	other := filepath.Join(dir, "watch-other.twt")
	if err := os.WriteFile(other, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := recording.Create(filepath.Join(dir, "watch.twt"), recording.Header{}, recording.Options{RotateSize: 1, Keep: 3})
	if err != nil {
		t.Fatal(err)
	}
	n, rotations := 0, 0
	for rotations < 10 {
		w.Events(numbered(1, n, 100))
		n += 100
		w.Flush()
		if w.RotationDue() {
			w.Rotate()
			rotations++
		}
	}
	if err := w.Close(nil); err != nil {
		t.Fatal(err)
	}
	there, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	want := append(slices.Clone(w.Names()), other)
	slices.Sort(want)
	if len(w.Names()) != 3 || !slices.Equal(there, want) {
		t.Errorf("files %q, names %q", there, w.Names())
	}
	last := parts(t, w.Names())
	for i := range last {
		if i > 0 && last[i].Seq != last[i-1].Seq+1 {
			t.Fatalf("event %d after %d", last[i].Seq, last[i-1].Seq)
		}
	}
	if len(last) > 0 && last[len(last)-1].Seq != uint64(n-1) {
		t.Errorf("the last event is %d, was %d", last[len(last)-1].Seq, n-1)
	}
}

// TestRotationByAge: a file is ended once it is so old, if there is something for the next.
func TestRotationByAge(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w, err := recording.Create(filepath.Join(dir, "watch.twt"), recording.Header{}, recording.Options{RotateAge: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		rotations := 0
		for i := range 300 { // seconds
			if w.RotationDue() {
				w.Rotate()
				rotations++
			}
			w.Events(numbered(1, i, 1))
			time.Sleep(time.Second)
		}
		if err := w.Close(nil); err != nil {
			t.Fatal(err)
		}
		if rotations < 4 || rotations > 5 || len(w.Names()) != rotations+1 {
			t.Errorf("%d rotations, %d files in five minutes", rotations, len(w.Names()))
		}
		inOrder(t, parts(t, w.Names()), 300)
	})
}

// TestNoNextFile: if there can be no further file, the last one says why.
func TestNoNextFile(t *testing.T) {
	dir := t.TempDir()
	full := errors.New("no room in the directory")
	files, stops := 0, 0
	w, err := recording.Create(filepath.Join(dir, "watch.twt"), recording.Header{}, recording.Options{
		RotateSize: 1, FlushEvery: time.Millisecond,
		Create: func(name string) (*os.File, error) {
			if files++; files == 3 {
				return nil, full
			}
			return os.Create(name)
		},
		OnStop: func(err error) {
			if stops++; !errors.Is(err, full) {
				t.Errorf("stopped by %v", err)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for range 3 {
		w.Events(numbered(1, n, 10))
		n += 10
		w.Flush()
		for range 1000 {
			if w.RotationDue() {
				break
			}
			time.Sleep(time.Millisecond) // the other goroutine writes
		}
		w.Rotate()
	}
	if err := w.Close(nil); err != nil {
		t.Fatal(err)
	}
	if stops != 1 || len(w.Names()) != 2 {
		t.Fatalf("%d stops, files %q", stops, w.Names())
	}
	all, _, _ := readAll(t, w.Names()[0])
	last, c, _ := readAll(t, w.Names()[1])
	all = append(all, last...)
	if c.Footer == nil || c.Footer.Next != "" || c.Footer.Stopped == nil || c.Footer.Stopped.Cause != full.Error() {
		t.Fatalf("footer %+v", c.Footer)
	}
	inOrder(t, all, n-int(c.Footer.Stopped.Dropped["events"]))
}

// TestFlushedSoon: what was handed over is in the file soon, though the Writer is never at rest and never full.
func TestFlushedSoon(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		name := filepath.Join(dir, "a.twt")
		w, err := recording.Create(name, recording.Header{}, recording.Options{})
		if err != nil {
			t.Fatal(err)
		}
		w.Events(numbered(1, 0, 10))
		w.Attempts(attempts(5))
		w.Sample(recording.Sample{Kind: recording.SampleTick})
		time.Sleep(2 * recording.DefaultFlush)
		synctest.Wait()
		_, c, _ := readAll(t, name)
		if c.Records[recording.TableEvents] != 10 || c.Records[recording.TableAttempts] != 5 || c.Records[recording.TableSamples] != 1 {
			t.Errorf("after a flush: %+v", c)
		}
		if c.Complete() || c.Cut != 0 {
			t.Errorf("a file that is being written: %+v", c)
		}
		if err := w.Close(nil); err != nil {
			t.Fatal(err)
		}
	})
}
