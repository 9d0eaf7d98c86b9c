package vmtest

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// column is one kernel of the matrix.
type column struct {
	kernel Kernel
	jobs   []job
	*outcome
	err error // why there are no more results
}

// writeMatrix writes kernel × job, and below a job the tests that have a line:
// all of those for which the job says so, and elsewhere those that are not ok
// somewhere. A cell that is not ok has the number of a note with the reason.
func writeMatrix(w io.Writer, columns []column) error {
	notes := new(notes)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name string, cell func(column) string) {
		cells := []string{name}
		for _, c := range columns {
			cells = append(cells, cell(c))
		}
		fmt.Fprintln(t, strings.TrimRight(strings.Join(cells, "\t"), "\t "))
	}
	row("KERNEL", func(c column) string { return c.kernel.Name })
	row("release", func(c column) string {
		if c.outcome == nil || c.release == "" {
			return "-"
		}
		return strings.TrimSuffix(c.release, "-cloud-amd64")
	})
	row("boot", func(c column) string {
		cell := "-"
		if c.outcome != nil {
			if c.release != "" {
				cell = fmt.Sprintf("ok, %v", c.boot.Round(time.Second))
			}
			for _, crash := range c.crashes {
				cell += notes.mark("a boot crashed and was repeated: " + crash)
			}
		}
		if c.err != nil {
			cell = string(failure) + notes.mark(c.err.Error())
		}
		return cell
	})
	for _, name := range jobNames(columns) {
		row(name, func(c column) string {
			r := c.job(name)
			if r == nil {
				return "-"
			}
			cell := string(r.verdict)
			var counts []string
			for _, v := range []verdict{failure, success, skipped} {
				if n := r.count(v); n > 0 {
					counts = append(counts, fmt.Sprintf("%s %d", v, n))
				}
			}
			if len(counts) > 0 && strings.HasPrefix(counts[0], cell) {
				cell = ""
			} else if len(counts) > 0 {
				cell += ", "
			}
			cell += strings.Join(counts, ", ")
			cell += fmt.Sprintf(", %v", r.took)
			if r.verdict == failure {
				cell += notes.mark(r.reason)
			}
			return cell
		})
		for _, line := range testNames(columns, name) {
			row("  "+line, func(c column) string {
				r := c.job(name)
				if r == nil {
					return "-"
				}
				i := slices.IndexFunc(r.tests, func(u test) bool { return u.name == line })
				if i < 0 {
					return "-"
				}
				return testCell(r.tests[i], notes)
			})
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	return notes.write(w)
}

// testCell is what became of a test, and on how many facts the oracle agreed with the
// tracer, where this kernel has one.
func testCell(t test, notes *notes) string {
	cell := string(t.verdict)
	facts, words := t.oracle()
	if facts != "" {
		cell += ", fentry " + facts
	}
	if t.verdict != success {
		cell += notes.mark(t.reason)
	}
	for _, w := range words {
		cell += notes.mark(w)
	}
	return cell
}

// job returns the kernel's result of a job, or nil.
func (c column) job(name string) *result {
	if c.outcome == nil {
		return nil
	}
	if i := slices.IndexFunc(c.results, func(r result) bool { return r.job.Name == name }); i >= 0 {
		return &c.results[i]
	}
	return nil
}

// jobNames are all jobs, in the order in which they are run.
func jobNames(columns []column) (names []string) {
	for _, c := range columns {
		for _, j := range c.jobs {
			if !slices.Contains(names, j.Name) {
				names = append(names, j.Name)
			}
		}
	}
	return names
}

// testNames are the tests of a job that have a line.
func testNames(columns []column, job string) (names []string) {
	for _, c := range columns {
		r := c.job(job)
		if r == nil {
			continue
		}
		for _, t := range leaves(r.tests) {
			detail := r.job.detail != nil && r.job.detail.MatchString(t.name)
			if (detail || t.verdict != success) && !slices.Contains(names, t.name) {
				names = append(names, t.name)
			}
		}
	}
	return names
}

// notes are numbered from 1; the same words have the same number.
type notes struct{ texts []string }

func (n *notes) mark(text string) string {
	i := slices.Index(n.texts, text)
	if i < 0 {
		i = len(n.texts)
		n.texts = append(n.texts, text)
	}
	return fmt.Sprintf(" [%d]", i+1)
}

func (n *notes) write(w io.Writer) error {
	for i, text := range n.texts {
		if _, err := fmt.Fprintf(w, "[%d] %s\n", i+1, strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n    ")); err != nil {
			return err
		}
	}
	return nil
}
