package lab

import (
	"testing"

	"github.com/twtrace/twtrace/internal/report"
)

// TestUnseen: a storm is made once more if the trace has less than the kernel counted, and not for anything else.
func TestUnseen(t *testing.T) {
	for _, tt := range []struct {
		name            string
		kernel, twtrace uint64
		lost            uint64
		want            bool
	}{
		{"the same", 2500, 2500, 0, false},
		{"one of 2,500", 2500, 2499, 0, false},
		{"a burst", 2500, 2484, 0, true},
		{"all", 1, 0, 0, true},
		{"more than the kernel", 2484, 2500, 0, false},
		{"lost by the trace", 2500, 2484, 16, false},
	} {
		s := &report.Summary{CrossCheck: []report.CrossCheck{{Counter: "TcpExt.TW", Kernel: tt.kernel, Twtrace: tt.twtrace, Agrees: tt.kernel == tt.twtrace}}}
		s.Events.LostRing = tt.lost
		if got := unseen(s); got != tt.want {
			t.Errorf("%s: made once more: %v", tt.name, got)
		}
	}
}
