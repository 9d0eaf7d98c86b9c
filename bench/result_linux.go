package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// measurement is a row of a table, run once.
type measurement struct {
	Table string `json:"table"`
	Row   string `json:"row"`
	Round int    `json:"round"`
	Turn  int    `json:"turn"` // its place among the rows of the round
	Loops []loop `json:"loops"`
	// Of all loops; the seconds are the sum of theirs, so that nothing of the set-up
	// is in them.
	Finished  int     `json:"finished"`
	Failed    int     `json:"failed"`
	Seconds   float64 `json:"seconds"`
	PerSecond float64 `json:"per_second"` // finished
	// Of all processes, from their start to their end.
	User   float64 `json:"user_seconds"`
	System float64 `json:"system_seconds"`
	PeakKB int     `json:"peak_kb"`
	// Others is what other programs used of all processors' time meanwhile: 0.25 is a quarter.
	Others float64 `json:"others"`
}

func (m *measurement) add(u usage) {
	m.User += u.user.Seconds()
	m.System += u.system.Seconds()
	m.PeakKB += u.peak
}

func (m *measurement) sumUp() {
	for _, l := range m.Loops {
		m.Finished += l.Finished
		m.Failed += l.Failed
		m.Seconds += l.Seconds
	}
	if m.Seconds > 0 {
		m.PerSecond = float64(m.Finished) / m.Seconds
	}
}

func (m *measurement) attempts() float64 { return float64(m.Finished + m.Failed) }

// A quantity is what a column is about.
type quantity func(*measurement) float64

func perSecond(m *measurement) float64 { return m.PerSecond }

// cpu is seconds of processor time for 100,000 attempts.
func cpu(m *measurement) float64 { return (m.User + m.System) * 1e5 / m.attempts() }

func peak(m *measurement) float64 { return float64(m.PeakKB) / 1024 }

// micros is the time of an attempt where they are one after the other.
func micros(m *measurement) float64 { return m.Seconds * 1e6 / m.attempts() }

// spread is the middle of some values, and where their middle half lies.
type spread struct{ low, median, high float64 }

func spreadOf(values []float64) spread {
	sorted := slices.Sorted(slices.Values(values))
	return spread{quantile(sorted, 0.25), quantile(sorted, 0.5), quantile(sorted, 0.75)}
}

// quantile interpolates between the two nearest values.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i == len(sorted)-1 {
		return sorted[i]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

func (s spread) format(decimals int) string {
	f := func(v float64) string { return strconv.FormatFloat(v, 'f', decimals, 64) }
	switch {
	case math.IsNaN(s.median):
		return "-"
	case f(s.low) == f(s.high):
		return f(s.median)
	}
	return fmt.Sprintf("%s [%s-%s]", f(s.median), f(s.low), f(s.high))
}

// results are the measurements of one table: by row, and then by round.
type results map[string]map[int]*measurement

func collect(measured []measurement) results {
	all := make(results)
	for i := range measured {
		m := &measured[i]
		if all[m.Row] == nil {
			all[m.Row] = make(map[int]*measurement)
		}
		all[m.Row][m.Round] = m
	}
	return all
}

func (r results) values(row string, q quantity) spread {
	var values []float64
	for _, m := range r[row] {
		values = append(values, q(m))
	}
	return spreadOf(values)
}

// paired is the spread of a function of the quantity in two rows of the same round.
func (r results) paired(row, other string, q quantity, f func(a, b *measurement) float64) spread {
	var values []float64
	for round, m := range r[row] {
		if o := r[other][round]; o != nil {
			values = append(values, f(m, o))
		}
	}
	return spreadOf(values)
}

func (r results) ratio(row, base string, q quantity) spread {
	return r.paired(row, base, q, func(a, b *measurement) float64 { return q(a) / q(b) })
}

// lessFixed is a row's processor time for 100,000 attempts without that of the row that has only the
// fixed part.
func lessFixed(m, fixed *measurement) float64 {
	less := *m
	less.User -= fixed.User
	less.System -= fixed.System
	return cpu(&less)
}

// column is one of a table's.
type column struct {
	title string
	cell  func(results, *row) string
}

// absolute is a column of a quantity as it is.
func absolute(title string, q quantity, decimals int) column {
	return column{title, func(all results, r *row) string { return all.values(r.name, q).format(decimals) }}
}

// rate is a column of a quantity that rows of the least have none of.
func rate(title string, q quantity, decimals int) column {
	return column{title, func(all results, r *row) string {
		if r.least {
			return "-"
		}
		return all.values(r.name, q).format(decimals)
	}}
}

// relative is a column of ratios to the row that r is compared with.
func relative(title string, q quantity) column {
	return column{title, func(all results, r *row) string {
		if r.base == "" {
			return "-"
		}
		return all.ratio(r.name, r.base, q).format(3)
	}}
}

var (
	speedColumns = []column{rate("connections/s", perSecond, 0), relative("ratio", perSecond)}
	cpuColumns   = []column{rate("CPU s per 100,000", cpu, 2), relative("ratio", cpu)}
	usedColumn   = absolute("CPU s", func(m *measurement) float64 { return m.User + m.System }, 3)
	peakColumn   = absolute("peak RSS, MB", peak, 1)
	microsColumn = absolute("µs an attempt", micros, 1)
	microsRatio  = relative("ratio", micros)
	failedColumn = column{"failed", func(all results, r *row) string {
		attempts, failed := 0, 0
		for _, m := range all[r.name] {
			attempts, failed = attempts+m.Finished+m.Failed, failed+m.Failed
		}
		return fmt.Sprintf("%d of %d", failed, attempts)
	}}
	lessColumn = column{"CPU less the empty storm's", func(all results, r *row) string {
		if r.fixed == "" {
			return "-"
		}
		return all.paired(r.name, r.fixed, cpu, lessFixed).format(2)
	}}
	lessRatio = column{"ratio", func(all results, r *row) string {
		if r.fixed == "" || r.base == "" {
			return "-"
		}
		var values []float64
		for round, m := range all[r.name] {
			fixed, base := all[r.fixed][round], all[r.base][round]
			if fixed != nil && base != nil {
				values = append(values, lessFixed(m, fixed)/cpu(base))
			}
		}
		return spreadOf(values).format(3)
	}}
	perOpenColumn = column{"bytes a connection", func(all results, r *row) string {
		if r.fixed == "" || r.open == 0 {
			return "-"
		}
		return all.paired(r.name, r.fixed, peak, func(a, b *measurement) float64 {
			return float64(a.PeakKB-b.PeakKB) * 1024 / float64(r.open)
		}).format(0)
	}}
)

// loopColumn is what became of a loop: finished/failed/seconds, each the median.
func loopColumn(i int) column {
	return column{fmt.Sprintf("loop %d", i+1), func(all results, r *row) string {
		part := func(decimals int, q func(loop) float64) string {
			s := all.values(r.name, func(m *measurement) float64 {
				if i >= len(m.Loops) {
					return math.NaN()
				}
				return q(m.Loops[i])
			})
			return strconv.FormatFloat(s.median, 'f', decimals, 64)
		}
		return part(0, func(l loop) float64 { return float64(l.Finished) }) + "/" +
			part(0, func(l loop) float64 { return float64(l.Failed) }) + "/" +
			part(2, func(l loop) float64 { return l.Seconds })
	}}
}

// write prints a table that can be pasted into Markdown, and below it what each row
// ran and how busy the machine was with other things.
func (t *table) write(w io.Writer, measured []measurement, missing []string) {
	fmt.Fprintf(w, "\n### %s: %s\n\n", t.name, t.title)
	if len(measured) > 0 {
		all := collect(measured)
		cells := [][]string{{"what"}}
		for _, c := range t.columns {
			cells[0] = append(cells[0], c.title)
		}
		for i := range t.rows {
			line := []string{t.rows[i].name}
			for _, c := range t.columns {
				line = append(line, c.cell(all, &t.rows[i]))
			}
			cells = append(cells, line)
		}
		writeAligned(w, cells)
		t.writeNotes(w, measured)
	}
	if len(missing) > 0 {
		fmt.Fprintf(w, "\nLeft out: %s.\n", strings.Join(missing, "; "))
	}
}

func (t *table) writeNotes(w io.Writer, measured []measurement) {
	rounds := 0
	var others []float64
	for i := range measured {
		rounds = max(rounds, measured[i].Round)
		others = append(others, 100*measured[i].Others)
	}
	fmt.Fprintf(w, "\n%d rounds; medians, [quartiles].", rounds)
	var compared []string
	for _, r := range t.rows {
		if r.base != "" && !slices.Contains(compared, r.base) {
			compared = append(compared, r.base)
		}
	}
	for _, base := range compared {
		var names []string
		for _, r := range t.rows {
			if r.base == base {
				names = append(names, r.name)
			}
		}
		fmt.Fprintf(w, " Ratio of %s: to %s.", strings.Join(names, ", "), base)
	}
	fmt.Fprintf(w, " Other programs used %.0f %% of the processors in the median of the measurements, %.0f %% in the worst.\n\n",
		quantile(slices.Sorted(slices.Values(others)), 0.5), slices.Max(others))
	for _, r := range t.rows {
		fmt.Fprintf(w, "- %s: `%s`\n", r.name, r.command)
	}
}

// writeAligned pads the cells, so that the table can also be read as it is.
func writeAligned(w io.Writer, cells [][]string) {
	widths := make([]int, len(cells[0]))
	for _, line := range cells {
		for i, cell := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for n, line := range cells {
		for i, cell := range line {
			fmt.Fprintf(w, "| %-*s ", widths[i], cell)
		}
		fmt.Fprintln(w, "|")
		if n > 0 {
			continue
		}
		for i, width := range widths {
			align := strings.Repeat("-", width+1) + ":"
			if i == 0 {
				align = strings.Repeat("-", width+2)
			}
			fmt.Fprintf(w, "|%s", align)
		}
		fmt.Fprintln(w, "|")
	}
}
