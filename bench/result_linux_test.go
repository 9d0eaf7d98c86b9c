package main

import (
	"math"
	"strings"
	"testing"
)

func TestSpread(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   spread
	}{
		{[]float64{3}, spread{3, 3, 3}},
		{[]float64{4, 1, 2, 3}, spread{1.75, 2.5, 3.25}},
		{[]float64{7, 1, 6, 2, 5, 3, 4}, spread{2.5, 4, 5.5}},
	} {
		if got := spreadOf(tt.values); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.values, got, tt.want)
		}
	}
	if got := spreadOf(nil); !math.IsNaN(got.median) || got.format(2) != "-" {
		t.Errorf("of nothing: %v", got)
	}
}

// TestRatioOfPairs has a machine that is three times as slow in the second round: the
// ratio of medians would be of different rounds.
func TestRatioOfPairs(t *testing.T) {
	all := collect([]measurement{
		{Row: "a", Round: 1, PerSecond: 90}, {Row: "b", Round: 1, PerSecond: 100},
		{Row: "b", Round: 2, PerSecond: 33}, {Row: "a", Round: 2, PerSecond: 33},
		{Row: "a", Round: 3, PerSecond: 110}, {Row: "b", Round: 3, PerSecond: 100},
		{Row: "b", Round: 4, PerSecond: 1}, // interrupted: no pair
	})
	if got := all.ratio("a", "b", perSecond); math.Abs(got.median-1) > 1e-9 || math.Abs(got.low-0.95) > 1e-9 {
		t.Errorf("%+v, want 1 [0.95-1.05]", got)
	}
}

// TestWrite shows a table as it is pasted.
func TestWrite(t *testing.T) {
	table := table{
		name: "try", title: "a trial", columns: join(speedColumns, cpuColumns, []column{lessColumn, lessRatio, peakColumn, failedColumn}),
		rows: []row{
			{name: "C", command: "cref"},
			{name: "twtrace", command: "twtrace run", base: "C", fixed: "1 × 1"},
			{name: "1 × 1", command: "twtrace run --loops 1", least: true},
		},
	}
	measured := []measurement{
		{Row: "C", Round: 1, Finished: 100, PerSecond: 50000, User: 0.001, System: 0.003, PeakKB: 2048, Others: 0.1},
		{Row: "twtrace", Round: 1, Finished: 99, Failed: 1, PerSecond: 25000, User: 0.003, System: 0.005, PeakKB: 10240, Others: 0.5},
		{Row: "1 × 1", Round: 1, Finished: 1, PerSecond: 9000, User: 0.001, System: 0.001, PeakKB: 9216},
	}
	var got strings.Builder
	table.write(&got, measured, []string{"nothing (not installed: x)"})
	const want = `
### try: a trial

| what    | connections/s | ratio | CPU s per 100,000 | ratio | CPU less the empty storm's | ratio | peak RSS, MB | failed   |
|---------|--------------:|------:|------------------:|------:|---------------------------:|------:|-------------:|---------:|
| C       | 50000         | -     | 4.00              | -     | -                          | -     | 2.0          | 0 of 100 |
| twtrace | 25000         | 0.500 | 8.00              | 2.000 | 6.00                       | 1.500 | 10.0         | 1 of 100 |
| 1 × 1   | -             | -     | -                 | -     | -                          | -     | 9.0          | 0 of 1   |

1 rounds; medians, [quartiles]. Ratio of twtrace: to C. Other programs used 10 % of the processors in the median of the measurements, 50 % in the worst.

- C: ` + "`cref`" + `
- twtrace: ` + "`twtrace run`" + `
- 1 × 1: ` + "`twtrace run --loops 1`" + `

Left out: nothing (not installed: x).
`
	if got.String() != want {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
}
