package report

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twtrace/twtrace/internal/tcp"
)

// TestMostOpen: of each loop, at moments 10 ms apart, whatever the order in which the
// attempts end and the time between loops.
func TestMostOpen(t *testing.T) {
	const ms = int64(time.Millisecond)
	b := NewBuilder(start, false)
	for loop, spans := range [][][2]int64{
		{{1, 25}, {5, 15}, {5, 35}, {31, 39}}, // at 10: three; the last at no moment
		{{100000, 100030}, {100010, 100020}},  // at 100010: both
		{{200000, 200010}, {200010, 200020}},  // one ends as the other begins
		{{0, 300000}},                         // no connection: connect() failed
	} {
		for _, span := range spans {
			a := tcp.Attempt{Started: start + span[0]*ms, Connected: start + span[0]*ms, Closed: start + span[1]*ms}
			if span[0] == 0 {
				a.Connected = 0
			}
			b.Attempts([]tcp.Attempt{a})
		}
		b.LoopDone(loop+1, len(spans), len(spans), 0, time.Second)
	}
	s := new(Summary)
	b.Fill(s)
	var got [4]int
	for i, l := range s.Loops {
		got[i] = l.MostOpen
	}
	if want := [4]int{3, 2, 1, 0}; got != want || s.Totals.MostOpen != 3 {
		t.Errorf("%v were open at once, and %d in all, want %v and 3", got, s.Totals.MostOpen, want)
	}
}

// TestLoopWithoutConnection: where no connection was made there is no time that one took.
func TestLoopWithoutConnection(t *testing.T) {
	var out strings.Builder
	if err := NewText(&out, false).Loop(Loop{Loop: 1, Attempts: 5, Failed: 5}); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Fields(out.String()), []string{"1", "0", "5", "0.00", "-", "-", "-", "-"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
