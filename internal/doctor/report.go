package doctor

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Schema names the JSON document.
const Schema = "twtrace.doctor/1"

// Status is how a check came out.
type Status string

// The statuses.
const (
	OK      Status = "ok"
	Limited Status = "limited" // it works, and shows or allows less than it could
	Missing Status = "missing" // something that a command needs is not there
)

// Finding is what a check found, what that means here, and what to run to change it.
type Finding struct {
	Status Status `json:"status"`
	Found  string `json:"found"`
	Means  string `json:"means"`
	Fix    string `json:"fix"` // a command, or a sentence; "": nothing to do
}

// Result is a check and its finding.
type Result struct {
	Check string `json:"check"`
	Finding

	group  string
	needed bool
}

// Report is all of them. It is written as twtrace.doctor/1.
type Report struct {
	Schema string   `json:"schema"`
	Checks []Result `json:"checks"`
}

// Examine runs every check.
func Examine(m *Machine) *Report {
	r := &Report{Schema: Schema}
	for _, c := range checks() {
		r.Checks = append(r.Checks, Result{Check: c.name, Finding: c.look(m), group: c.group, needed: c.needed})
	}
	return r
}

// ErrCantTrace says that `twtrace run` can't trace on this machine.
var ErrCantTrace = errors.New("`twtrace run` can't trace here")

// Err is nil where `twtrace run` can trace, or ErrCantTrace with the names of the
// checks that stand in its way.
func (r *Report) Err() error {
	var names []string
	for _, c := range r.Checks {
		if c.needed && c.Status == Missing {
			names = append(names, c.Check)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrCantTrace, strings.Join(names, ", "))
}

// WriteJSON writes the report as one document.
func (r *Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// width is what text lines fit into.
const width = 100

// colors are the SGR parameters of ECMA-48.
var colors = map[Status]string{OK: "32", Limited: "33", Missing: "31"}

// WriteText writes the report for people, in colour if asked to.
func (r *Report) WriteText(w io.Writer, color bool) error {
	b := bufio.NewWriter(w)
	paint := func(sgr, text string) string {
		if !color {
			return text
		}
		return "\x1b[" + sgr + "m" + text + "\x1b[0m"
	}
	const indent = "           "
	group := ""
	for _, c := range r.Checks {
		if c.group != group {
			if group != "" {
				fmt.Fprintln(b)
			}
			group = c.group
			fmt.Fprintln(b, paint("1", group))
		}
		status := paint(colors[c.Status], fmt.Sprintf("%-7s", c.Status))
		for i, line := range wrap(c.Check+": "+c.Found, width-len(indent)) {
			if i == 0 {
				fmt.Fprintf(b, "  %s  %s\n", status, line)
				continue
			}
			fmt.Fprintf(b, "%s%s\n", indent, line)
		}
		for _, line := range wrap(c.Means, width-len(indent)-2) {
			fmt.Fprintf(b, "%s  %s\n", indent, line)
		}
		for i, line := range wrap(c.Fix, width-len(indent)-7) {
			head := "fix: "
			if i > 0 {
				head = "     "
			}
			fmt.Fprintf(b, "%s  %s%s\n", indent, head, line)
		}
	}
	fmt.Fprintln(b)
	verdict := paint(colors[OK], "`twtrace run` can trace here.")
	if err := r.Err(); err != nil {
		verdict = paint(colors[Missing], ErrCantTrace.Error()) + strings.TrimPrefix(err.Error(), ErrCantTrace.Error())
	}
	fmt.Fprintln(b, verdict)
	if err := b.Flush(); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// wrap breaks text at spaces into lines of at most n characters; a longer word has
// a line of its own.
func wrap(text string, n int) (lines []string) {
	line := ""
	for word := range strings.FieldsSeq(text) {
		switch {
		case line == "":
			line = word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > n:
			lines = append(lines, line)
			line = word
		default:
			line += " " + word
		}
	}
	if line != "" {
		lines = append(lines, line)
	}
	return lines
}
