package lab

import (
	"fmt"
	"io"
)

// DiffSchema names the JSON form of a Difference.
const DiffSchema = "twtrace.lab.diff/1"

// Difference is a claim that came out differently in two profiles, or is in one of them alone.
type Difference struct {
	Schema string `json:"schema"`
	Entry  string `json:"entry"`
	Key    string `json:"key"`
	Text   string `json:"text"`
	// A and B are what was found; null: there it was not asked.
	A *Holds `json:"a"`
	B *Holds `json:"b"`
}

// Diff compares two profiles, claim by claim, in the order of a.
func Diff(a, b []Answer) (list []Difference) {
	type key struct{ entry, claim string }
	other := make(map[key]*Claim)
	for i := range b {
		for j := range b[i].Claims {
			other[key{b[i].Name, b[i].Claims[j].Key}] = &b[i].Claims[j]
		}
	}
	seen := make(map[key]bool)
	for i := range a {
		for j := range a[i].Claims {
			c := &a[i].Claims[j]
			k := key{a[i].Name, c.Key}
			seen[k] = true
			d := Difference{Schema: DiffSchema, Entry: a[i].Name, Key: c.Key, Text: c.Text, A: &c.Holds}
			if o := other[k]; o != nil {
				if o.Holds == c.Holds {
					continue
				}
				d.B = &o.Holds
			}
			list = append(list, d)
		}
	}
	for i := range b {
		for j := range b[i].Claims {
			if c := &b[i].Claims[j]; !seen[key{b[i].Name, c.Key}] {
				list = append(list, Difference{Schema: DiffSchema, Entry: b[i].Name, Key: c.Key, Text: c.Text, B: &c.Holds})
			}
		}
	}
	return list
}

// WriteDiff writes differences for people.
func WriteDiff(w io.Writer, list []Difference) error {
	name := func(h *Holds) string {
		if h == nil {
			return "not asked"
		}
		return h.String()
	}
	for _, d := range list {
		if _, err := fmt.Fprintf(w, "%s %s: %s, then %s\n  %s\n", d.Entry, d.Key, name(d.A), name(d.B), d.Text); err != nil {
			return fmt.Errorf("write differences: %w", err)
		}
	}
	if len(list) == 0 {
		if _, err := fmt.Fprintln(w, "no difference"); err != nil {
			return fmt.Errorf("write differences: %w", err)
		}
	}
	return nil
}
