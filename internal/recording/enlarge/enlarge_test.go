package enlarge_test

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/recording/enlarge"
	"github.com/twtrace/twtrace/internal/tcp"
)

func create(t *testing.T, h recording.Header) (*recording.Writer, string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "long.twt")
	w, err := recording.Create(name, h, recording.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return w, name
}

func open(t *testing.T, name string) *recording.Reader {
	t.Helper()
	r, err := recording.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// TestEvents: numbers go on, every connection has a cookie of its own, with as many events as in the original,
// and events and attempts are still of the same connections.
func TestEvents(t *testing.T) {
	from := open(t, filepath.Join("..", "testdata", "storm.twt"))
	events := func(r *recording.Reader) (all []tcp.Event, tries []tcp.Attempt) {
		if _, err := r.Scan(recording.Query{}, func(b *recording.Batch) error {
			all, tries = append(all, b.Events...), append(tries, b.Attempts...)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return all, tries
	}
	original, originalTries := events(from)
	const rounds = 20
	n := rounds*len(original) + 100
	w, name := create(t, *from.Header())
	if err := enlarge.Events(w, from, uint64(n)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(nil); err != nil {
		t.Fatal(err)
	}
	all, tries := events(open(t, name))
	if len(all) != n || len(tries) < rounds*len(originalTries) {
		t.Fatalf("%d events and %d attempts", len(all), len(tries))
	}
	of, port := make(map[tcp.Cookie]int), make(map[tcp.Cookie]uint16)
	for i := range all {
		ev := &all[i]
		if ev.Seq != uint64(i+1) || i > 0 && ev.MonoNS+1e9 < all[i-1].MonoNS {
			t.Fatalf("event %d at %d after one at %d", ev.Seq, ev.MonoNS, all[max(i, 1)-1].MonoNS)
		}
		of[ev.Cookie]++
		if p := ev.Tuple.Local.Port(); p >= 32768 {
			port[ev.Cookie] = p
		}
		if first := &original[i%len(original)]; ev.Kind != first.Kind || ev.New != first.New || ev.Owner != first.Owner || ev.Refusals != first.Refusals ||
			ev.Tuple.Local.Addr() != first.Tuple.Local.Addr() || ev.Errno != first.Errno {
			t.Fatalf("event %+v, was %+v", ev, first)
		}
	}
	sockets := make(map[tcp.Cookie]int)
	for i := range original {
		sockets[original[i].Cookie]++
	}
	for c, n := range sockets {
		if c != 0 && of[c] != n {
			t.Errorf("%d events of cookie %d, want %d", of[c], c, n)
		}
	}
	if len(of) < rounds*(len(sockets)-2) { // listeners have theirs again too
		t.Errorf("%d sockets, want %d times %d", len(of), rounds, len(sockets))
	}
	loops := make(map[uint32]int)
	for i := range tries {
		a := &tries[i]
		loops[a.Loop]++
		if of[a.Cookie] == 0 && i < rounds*len(originalTries) {
			t.Fatalf("no event of attempt %+v", a)
		}
		if a.LocalPort != 0 && port[a.Cookie] != 0 && a.LocalPort != port[a.Cookie] {
			t.Fatalf("attempt from port %d, its events from %d", a.LocalPort, port[a.Cookie])
		}
	}
	if len(loops) < 2*rounds || loops[1] != 150 || loops[2*rounds] != 150 {
		t.Errorf("attempts of loops: %v", loops)
	}
}

func TestNothingToRepeat(t *testing.T) {
	w, name := create(t, recording.Header{})
	if err := w.Close(nil); err != nil {
		t.Fatal(err)
	}
	to, _ := create(t, recording.Header{})
	defer to.Close(nil)
	if err := enlarge.Events(to, open(t, name), 5); !errors.Is(err, enlarge.ErrEmpty) {
		t.Errorf("error %v", err)
	}
}
