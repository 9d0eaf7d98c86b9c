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
	// Open is how many connections were open at once, where memory is the subject.
	Open int `json:"open"`
	// ServerCPU is the part of User and System that the server used; 0 where both ends are one process.
	ServerCPU float64 `json:"server_cpu_seconds"`
	// Whole is how long all of it took, set-up included.
	Whole float64 `json:"whole_seconds"`
	// Events and Bytes are of the recording that the storm was kept in: events of the kernel, and
	// the length of the file, attempts and samples included.
	Events int   `json:"events"`
	Bytes  int64 `json:"bytes"`
	// Others is what other programs used of all processors' time meanwhile: 0.25 is a quarter.
	Others float64 `json:"others"`
}

func (m *measurement) add(u usage) {
	m.User += u.user.Seconds()
	m.System += u.system.Seconds()
	m.PeakKB += u.peak
	m.Open = max(m.Open, u.open)
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

// longEnough is how many seconds a measurement must take for the kernel's ticks to tell who
// used the processors.
const longEnough = 0.5

// noisy reports whether others are known to have used more than quiet of the processors.
func (m *measurement) noisy(quiet float64) bool { return m.Whole >= longEnough && m.Others > quiet }

// A quantity is what a column is about.
type quantity func(*measurement) float64

func perSecond(m *measurement) float64 { return m.PerSecond }

// cpu is seconds of processor time for 100,000 attempts.
func cpu(m *measurement) float64 { return (m.User + m.System) * 1e5 / m.attempts() }

func serverCPU(m *measurement) float64 { return m.ServerCPU * 1e5 / m.attempts() }

func clientCPU(m *measurement) float64 { return cpu(m) - serverCPU(m) }

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

// relative is a column of ratios to the row that r is compared with.
func relative(title string, q quantity) column {
	return column{title, func(all results, r *row) string {
		if r.base == "" {
			return "-"
		}
		return all.ratio(r.name, r.base, q).format(3)
	}}
}

// speedColumn has nothing to say of a row of the least.
var speedColumn = column{"connections/s", func(all results, r *row) string {
	if r.least {
		return "-"
	}
	return all.values(r.name, perSecond).format(0)
}}

// cpuColumn has the whole of a row of the least.
var cpuColumn = column{"CPU s per 100,000", func(all results, r *row) string {
	if r.least {
		return all.values(r.name, func(m *measurement) float64 { return m.User + m.System }).format(3) + " in all"
	}
	return all.values(r.name, cpu).format(2)
}}

var (
	endColumns = []column{
		absolute("client's CPU s per 100,000", clientCPU, 2), relative("ratio", clientCPU),
		absolute("server's", serverCPU, 2), relative("ratio", serverCPU),
	}
	speedColumns = []column{speedColumn, relative("ratio", perSecond)}
	cpuColumns   = []column{cpuColumn, relative("ratio", cpu)}
	peakColumn   = absolute("peak RSS, MB", peak, 1)
	openColumn   = column{"open at once", func(all results, r *row) string {
		return all.values(r.name, func(m *measurement) float64 { return float64(m.Open) }).format(0)
	}}
	eventColumn = column{"CPU ns an event more", func(all results, r *row) string {
		if r.base == "" {
			return "-"
		}
		return all.paired(r.name, r.base, cpu, func(a, b *measurement) float64 {
			return (a.User + a.System - b.User - b.System) * 1e9 / float64(a.Events)
		}).format(0)
	}}
	bytesColumn = column{"bytes an event", func(all results, r *row) string {
		if r.base == "" {
			return "-"
		}
		return all.values(r.name, func(m *measurement) float64 { return float64(m.Bytes) / float64(m.Events) }).format(1)
	}}
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
		if r.fixed == "" {
			return "-"
		}
		return all.paired(r.name, r.fixed, peak, func(a, b *measurement) float64 {
			return float64(a.PeakKB-b.PeakKB) * 1024 / float64(a.Open)
		}).format(0)
	}}
)

// loopColumn is what became of a loop: finished/failed/seconds, each the median.
func loopColumn(i int) column {
	return column{fmt.Sprintf("loop %d", i+1), func(all results, r *row) string {
		if len(all[r.name]) == 0 {
			return "-"
		}
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
// ran and how busy the machine was with other things. Measurements during which others used more
// than quiet of the processors are left out.
func (t *table) write(w io.Writer, measured []measurement, missing []string, quiet float64) {
	fmt.Fprintf(w, "\n### %s: %s\n\n", t.name, t.title)
	if len(measured) > 0 {
		all := collect(slices.DeleteFunc(slices.Clone(measured), func(m measurement) bool { return m.noisy(quiet) }))
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
		t.writeNotes(w, measured, quiet)
	}
	if len(missing) > 0 {
		fmt.Fprintf(w, "\nLeft out: %s.\n", strings.Join(missing, "; "))
	}
}

func (t *table) writeNotes(w io.Writer, measured []measurement, quiet float64) {
	rounds, left := 0, 0
	var whole, others, worst float64
	for _, m := range measured {
		rounds = max(rounds, m.Round)
		whole, others = whole+m.Whole, others+m.Whole*m.Others
		if m.noisy(quiet) {
			left++
		}
		if m.Whole >= longEnough {
			worst = max(worst, m.Others)
		}
	}
	fmt.Fprintf(w, "\nRounds: %d; medians, [quartiles].", rounds)
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
		fmt.Fprintf(w, " Ratio of %s: to that of %s.", strings.Join(names, "; "), base)
	}
	fmt.Fprintf(w, " Meanwhile other programs used %.0f %% of the processors, %.0f %% in the worst measurement", 100*others/whole, 100*worst)
	if left > 0 {
		fmt.Fprintf(w, "; %d of %d measurements are left out because it was more than %.0f %%", left, len(measured), 100*quiet)
	}
	fmt.Fprint(w, ".\n\n")
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
