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
		{Row: "C", Round: 1, Finished: 100, PerSecond: 50000, User: 0.001, System: 0.003, PeakKB: 2048, Whole: 3, Others: 0.1},
		{Row: "twtrace", Round: 1, Finished: 99, Failed: 1, PerSecond: 25000, User: 0.003, System: 0.005, PeakKB: 10240, Whole: 1, Others: 0.5},
		{Row: "1 × 1", Round: 1, Finished: 1, PerSecond: 9000, User: 0.001, System: 0.001, PeakKB: 9216, Whole: 0.1, Others: 0.9},
	}
	var got strings.Builder
	table.write(&got, measured, []string{"nothing (not installed: x)"}, 1)
	const want = `
### try: a trial

| what    | connections/s | ratio | CPU s per 100,000 | ratio | CPU less the empty storm's | ratio | peak RSS, MB | failed   |
|---------|--------------:|------:|------------------:|------:|---------------------------:|------:|-------------:|---------:|
| C       | 50000         | -     | 4.00              | -     | -                          | -     | 2.0          | 0 of 100 |
| twtrace | 25000         | 0.500 | 8.00              | 2.000 | 6.00                       | 1.500 | 10.0         | 1 of 100 |
| 1 × 1   | -             | -     | 0.002 in all      | -     | -                          | -     | 9.0          | 0 of 1   |

Rounds: 1; medians, [quartiles]. Ratio of twtrace: to that of C. Meanwhile other programs used 22 % of the processors, 50 % in the worst measurement.

- C: ` + "`cref`" + `
- twtrace: ` + "`twtrace run`" + `
- 1 × 1: ` + "`twtrace run --loops 1`" + `

Left out: nothing (not installed: x).
`
	if got.String() != want {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
}

// TestQuiet leaves the rounds out in which others were busy, and says so.
func TestQuiet(t *testing.T) {
	table := table{name: "try", columns: []column{speedColumn}, rows: []row{{name: "C"}}}
	measured := []measurement{
		{Row: "C", Round: 1, PerSecond: 100, Whole: 1, Others: 0.1},
		{Row: "C", Round: 2, PerSecond: 10, Whole: 1, Others: 0.6},
	}
	for quiet, want := range map[float64][]string{
		1:    {"| 55 [32-78] ", "60 % in the worst measurement.\n"},
		0.25: {"| 100 ", "; 1 of 2 measurements are left out because it was more than 25 %.\n"},
		0:    {"| - ", "; 2 of 2 measurements are left out"},
	} {
		var got strings.Builder
		table.write(&got, measured, nil, quiet)
		for _, w := range want {
			if !strings.Contains(got.String(), w) {
				t.Errorf("quiet %v: no %q in\n%s", quiet, w, &got)
			}
		}
	}
}
