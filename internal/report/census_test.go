package report

import (
	"fmt"
	"testing"

	"github.com/twtrace/twtrace/internal/timeline"
)

// TestCensusLeftOut: of an odd number of ports each search leaves one out, and no more than one.
func TestCensusLeftOut(t *testing.T) {
	for _, tt := range []struct {
		high, timeWaits int
		own             []int // the run's own range, by IP_LOCAL_PORT_RANGE
		leftOut         int
		sums            bool
	}{
		{high: 40150, timeWaits: 151, sums: true},
		{high: 40150, timeWaits: 150, leftOut: 1, sums: true},
		{high: 40150, timeWaits: 149},
		{high: 40149, timeWaits: 150, sums: true},
		{high: 40149, timeWaits: 149},
		{high: 40150, timeWaits: 150, own: []int{40000, 40150}},
		{high: 40000, timeWaits: 0},
	} {
		s := &Summary{Target: "198.19.0.1:7", Sysctls: map[string]string{
			SysctlPortRange: fmt.Sprint(40000, tt.high), SysctlReuse: "0", SysctlStamps: "1",
		}, Options: Options{LocalPortRange: tt.own}}
		var at timeline.Timeline
		at.Census = &timeline.Census{}
		at.AtConnect = timeline.Ports{TimeWait: tt.timeWaits}
		if c := census(s, &at, 0); c == nil || c.LeftOut != tt.leftOut || c.Sums != tt.sums || c.Ports != tt.high-40000+1 {
			t.Errorf("%+v: %+v", tt, c)
		}
	}
}
