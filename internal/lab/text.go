package lab

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// Text writes answers for people: the sentence first, then claim by claim.
type Text struct {
	w     *bufio.Writer
	color bool
}

// NewText returns a Text that writes to w, in colour if asked to.
func NewText(w io.Writer, color bool) *Text { return &Text{bufio.NewWriter(w), color} }

const (
	bold  = "\x1b[1m"
	red   = "\x1b[31m"
	green = "\x1b[32m"
	plain = "\x1b[0m"
)

func (t *Text) paint(code, s string) string {
	if !t.color {
		return s
	}
	return code + s + plain
}

// width is what text is wrapped to.
const width = 100

// wrap writes text behind head, and lines after the first behind as many blanks.
func (t *Text) wrap(head, text string) {
	column, indent := len(head), strings.Repeat(" ", len(head))
	fmt.Fprint(t.w, head)
	first := true
	for _, word := range strings.Fields(text) {
		n := len([]rune(word))
		switch {
		case first:
		case column+1+n > width:
			fmt.Fprint(t.w, "\n", indent)
			column = len(indent)
		default:
			fmt.Fprint(t.w, " ")
			column++
		}
		fmt.Fprint(t.w, word)
		column += n
		first = false
	}
	fmt.Fprintln(t.w)
}

// Answer writes one.
func (t *Text) Answer(a *Answer) error {
	fmt.Fprintf(t.w, "%s  %s  (%.1f s)\n", t.paint(bold, a.Name), a.Question, a.Seconds)
	if a.Error != "" {
		fmt.Fprintln(t.w, t.paint(red, "  no answer"))
		t.wrap("  ", a.Error)
	}
	if a.Answer != "" {
		t.wrap("  ", a.Answer)
	}
	for i := range a.Claims {
		c := &a.Claims[i]
		word, code := "true ", green
		switch c.Holds {
		case No:
			word = "false"
		case NotObservable:
			word, code = "  ?  ", ""
		}
		if !c.AsExpected() {
			code = red
		}
		mark := word
		if code != "" {
			mark = t.paint(code, word)
		}
		surprise := ""
		if !c.AsExpected() {
			surprise = fmt.Sprintf(" NOT AS EXPECTED: %s.", c.Expected)
		}
		// The mark's colour is no column.
		head := "  " + mark + "  "
		t.wrapPainted(head, len("  "+word+"  "), c.Text+surprise)
		if text := c.Evidence.line(); text != "" {
			t.wrap("         ", text)
		}
		if c.History != "" {
			t.wrap("         ", c.History)
		}
	}
	fmt.Fprintln(t.w)
	return t.flush()
}

func (t *Text) wrapPainted(head string, columns int, text string) {
	var b strings.Builder
	inner := &Text{w: bufio.NewWriter(&b)}
	inner.wrap(strings.Repeat(" ", columns), text)
	_ = inner.w.Flush() // of a strings.Builder
	fmt.Fprint(t.w, head, b.String()[columns:])
}

// line writes what is short of evidence.
func (e Evidence) line() string {
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(e)) {
		switch v := e[key].(type) {
		case string, bool, int, int64, uint64, uint16, uint32:
			parts = append(parts, fmt.Sprintf("%s %v", key, v))
		case float64:
			parts = append(parts, fmt.Sprintf("%s %.4g", key, v))
		}
	}
	return strings.Join(parts, ", ")
}

// Rest writes what all of it comes to.
func (t *Text) Rest(answers []Answer) error {
	claims, unexpected, unseen, failed := 0, 0, 0, 0
	for i := range answers {
		a := &answers[i]
		claims += len(a.Claims)
		unexpected += len(a.Unexpected())
		for _, c := range a.Claims {
			if c.Holds == NotObservable {
				unseen++
			}
		}
		if a.Error != "" {
			failed++
		}
	}
	fmt.Fprintf(t.w, "%d entries, %d claims: %d as expected", len(answers), claims, claims-unexpected-unseen)
	for _, n := range []struct {
		n    int
		what string
	}{{unexpected, "not as expected"}, {unseen, "not observable"}, {failed, "entries without an answer"}} {
		if n.n > 0 {
			fmt.Fprintf(t.w, ", %s", t.paint(red, fmt.Sprintf("%d %s", n.n, n.what)))
		}
	}
	fmt.Fprintln(t.w)
	return t.flush()
}

// List writes the catalogue.
func (t *Text) List(entries []Entry, full bool) error {
	for i := range entries {
		e := &entries[i]
		seconds := e.Seconds
		if full {
			seconds = cmp.Or(e.FullSeconds, seconds)
		}
		fmt.Fprintf(t.w, "%s %s\n", t.paint(bold, fmt.Sprintf("%-20s", e.Name)), e.Question)
		t.wrap(strings.Repeat(" ", 21), fmt.Sprintf("%s; about %d s", e.Source, seconds))
	}
	return t.flush()
}

func (t *Text) flush() error {
	if err := t.w.Flush(); err != nil {
		return fmt.Errorf("write answers: %w", err)
	}
	return nil
}
