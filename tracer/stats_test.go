package tracer

import (
	"testing"

	"github.com/twtrace/twtrace/internal/tcp"
)

func TestStatsLost(t *testing.T) {
	for _, tt := range []struct {
		stats Stats
		want  uint64
	}{
		{Stats{}, 0},
		{Stats{Recorded: 10}, 0},
		{Stats{LostRing: 3}, 3},
		{Stats{SkippedRecursion: 5}, 5},
		{Stats{SkippedRecursion: 5, Rescued: 5}, 0},
		{Stats{SkippedRecursion: 5, Rescued: 3, LostRing: 2}, 4},
		// A twin can record two events for one that was skipped (a state change
		// and the TIME_WAIT that was not made): never less than nothing.
		{Stats{SkippedRecursion: 5, Rescued: 6}, 0},
		{Stats{SkippedRecursion: 5, Rescued: 6, LostRing: 1}, 1},
	} {
		if got := tt.stats.Lost(); got != tt.want {
			t.Errorf("%+v: lost %d, want %d", tt.stats, got, tt.want)
		}
	}
}

func TestDuplicate(t *testing.T) {
	state := func(cookie tcp.Cookie, flags tcp.Flags) *Event {
		return &Event{Kind: tcp.KindState, Cookie: cookie, Old: tcp.Established, New: tcp.FinWait1, Flags: flags}
	}
	other := func(ev *Event, change func(*Event)) *Event {
		change(ev)
		return ev
	}
	type step struct {
		ev   *Event
		want bool
	}
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"main program only", []step{{state(1, 0), false}}},
		{"twin only", []step{{state(1, tcp.FlagRescued), false}}},
		{"both", []step{{state(1, 0), false}, {state(1, tcp.FlagRescued), true}}},
		// A listener that is closed and listens again does the same twice.
		{"twice by the main program", []step{{state(1, 0), false}, {state(1, 0), false}}},
		{"another socket", []step{{state(1, 0), false}, {state(2, tcp.FlagRescued), false}}},
		{"another change", []step{{state(1, 0), false},
			{other(state(1, tcp.FlagRescued), func(e *Event) { e.New = tcp.CloseWait }), false}}},
		{"without a cookie", []step{{state(0, 0), false}, {state(0, tcp.FlagRescued), false}}},
		{"another kind", []step{{state(1, 0), false},
			{other(state(1, tcp.FlagRescued), func(e *Event) { e.Kind = tcp.KindRstSent }), false}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var recent recentStates
			for i, s := range tt.steps {
				if got := recent.duplicate(s.ev); got != s.want {
					t.Errorf("step %d: %v, want %v", i, got, s.want)
				}
			}
		})
	}
}

// TestDuplicateForgets: the memory is a ring of so many changes.
func TestDuplicateForgets(t *testing.T) {
	var recent recentStates
	size := len(recent.keys)
	change := func(cookie int, flags tcp.Flags) bool {
		return recent.duplicate(&Event{Kind: tcp.KindState, Cookie: tcp.Cookie(cookie), Old: 1, New: 7, Flags: flags})
	}
	for cookie := 1; cookie <= size+1; cookie++ {
		change(cookie, 0)
	}
	if change(1, tcp.FlagRescued) {
		t.Error("remembers a change further back than its size")
	}
	for _, cookie := range []int{2, size + 1} {
		if !change(cookie, tcp.FlagRescued) {
			t.Errorf("forgot the change of socket %d", cookie)
		}
	}
}
