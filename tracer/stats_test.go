package tracer

import (
	"testing"

	"github.com/twtrace/twtrace/bpf"
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
	rescued := uint8(tcp.FlagRescued)
	type step struct {
		ev   bpf.ProbesEvent
		want bool
	}
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"main program only", []step{{bpf.ProbesEvent{Kind: 1, Cookie: 1, Call: 7}, false}}},
		{"twin only", []step{{bpf.ProbesEvent{Kind: 1, Cookie: 1, Call: 7, Flags: rescued}, false}}},
		{"both", []step{
			{bpf.ProbesEvent{Kind: 1, Cookie: 1, Call: 7}, false},
			{bpf.ProbesEvent{Kind: 1, Cookie: 1, Call: 7, Flags: rescued}, true},
		}},
		{"both, two events each", []step{
			{bpf.ProbesEvent{Kind: 1, Cookie: 1, Call: 7}, false},
			{bpf.ProbesEvent{Kind: 6, Cookie: 1, Call: 7, Nth: 1}, false},
			{bpf.ProbesEvent{Kind: 1, Cookie: 1, Call: 7, Flags: rescued}, true},
			{bpf.ProbesEvent{Kind: 6, Cookie: 1, Call: 7, Nth: 1, Flags: rescued}, true},
		}},
		// A listener that is closed and listens again does the same twice.
		{"twice by the main program", []step{
			{bpf.ProbesEvent{Kind: 1, Cookie: 1, Call: 7}, false},
			{bpf.ProbesEvent{Kind: 1, Cookie: 1, Call: 7}, false},
		}},
		{"the same again, much later", []step{
			{bpf.ProbesEvent{Kind: 1, Cookie: 1, Call: 7, MonoNs: 5}, false},
			{bpf.ProbesEvent{Kind: 1, Cookie: 1, Call: 7, MonoNs: 4 + sameCall, Flags: rescued}, true},
			{bpf.ProbesEvent{Kind: 1, Cookie: 1, Call: 7, MonoNs: 5 + sameCall, Flags: rescued}, false},
		}},
		{"another socket", []step{
			{bpf.ProbesEvent{Kind: 1, Cookie: 1, Call: 7}, false},
			{bpf.ProbesEvent{Kind: 1, Cookie: 2, Call: 7, Flags: rescued}, false},
		}},
		{"another call, of no socket", []step{
			{bpf.ProbesEvent{Kind: 2, Call: 7}, false},
			{bpf.ProbesEvent{Kind: 2, Call: 8, Flags: rescued}, false},
		}},
		{"another kind", []step{
			{bpf.ProbesEvent{Kind: 1, Cookie: 1, Call: 7}, false},
			{bpf.ProbesEvent{Kind: 2, Cookie: 1, Call: 7, Flags: rescued}, false},
		}},
		{"a program without a twin", []step{
			{bpf.ProbesEvent{Kind: 5, Cookie: 1}, false},
			{bpf.ProbesEvent{Kind: 5, Cookie: 1}, false},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var recent recentCalls
			for i, s := range tt.steps {
				if got := recent.duplicate(&s.ev); got != s.want {
					t.Errorf("step %d: %v, want %v", i, got, s.want)
				}
			}
		})
	}
}

// TestDuplicateForgets: the memory is a ring of so many events.
func TestDuplicateForgets(t *testing.T) {
	var recent recentCalls
	size := len(recent.calls)
	change := func(cookie int, flags tcp.Flags) bool {
		return recent.duplicate(&bpf.ProbesEvent{Kind: 1, Cookie: uint64(cookie), Call: 7, Flags: uint8(flags)})
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

// TestConversions feeds what a kernel shows of minisocks that began in FIN_WAIT2.
func TestConversions(t *testing.T) {
	enter := Event{Kind: tcp.KindTWEnter, Cookie: 1, New: tcp.TimeWait, Substate: tcp.FinWait2}
	existed := Event{Kind: tcp.KindSnapshot, Cookie: 1, Old: tcp.TimeWait, New: tcp.TimeWait, Substate: tcp.FinWait2}
	fin := Event{Kind: tcp.KindTWConvert, Cookie: 1, Old: tcp.TimeWait, New: tcp.TimeWait, Substate: tcp.TimeWait}
	end := Event{Kind: tcp.KindTWEnd, Cookie: 1, Old: tcp.TimeWait, New: tcp.Close, Substate: tcp.TimeWait, Cause: tcp.CauseExpired}
	endEarly := end
	endEarly.Substate = tcp.FinWait2
	fromStart := enter
	fromStart.Substate = tcp.TimeWait
	for _, tt := range []struct {
		name   string
		stream []Event
		want   string // c: conversion, l: a late one, other kinds by their first letter
	}{
		{"FIN seen", []Event{enter, fin, end}, "ece"},
		{"FIN sent again", []Event{enter, fin, fin, end}, "ece"},
		{"FIN not seen", []Event{enter, end}, "ele"},
		{"there before the trace", []Event{existed, end}, "sle"},
		{"ended in FIN_WAIT2", []Event{enter, endEarly}, "ee"},
		{"TIME_WAIT from the start, FIN sent again", []Event{fromStart, fin, end}, "ee"},
		{"again under the same cookie", []Event{enter, fin, end, end}, "ecee"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := conversions{wanted: true}
			var got string
			note := func(ev *Event) {
				switch {
				case ev.Kind == tcp.KindTWConvert && ev.Flags&tcp.FlagLate != 0:
					got += "l"
				case ev.Kind == tcp.KindTWConvert:
					got += "c"
				case ev.Kind == tcp.KindSnapshot:
					got += "s"
				default:
					got += "e"
				}
			}
			for _, ev := range tt.stream {
				if c.repeated(&ev) {
					continue
				}
				c.late(&ev)
				note(&ev)
				if c.pop(&ev) {
					note(&ev)
				}
			}
			if got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
			if len(c.waiting) != 0 {
				t.Errorf("%d minisocks are still waited for", len(c.waiting))
			}
		})
	}
}
