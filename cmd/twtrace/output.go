package main

import (
	"io"
	"os"

	"github.com/spf13/pflag"
	"golang.org/x/term"
)

// choice is a flag whose value is one of a few words.
type choice struct {
	value   string
	allowed []string
}

func newChoice(value string, allowed ...string) *choice { return &choice{value, allowed} }

var _ pflag.Value = (*choice)(nil)

func (c *choice) String() string { return c.value }
func (c *choice) Type() string   { return join(c.allowed) }
func (c *choice) Set(v string) error {
	for _, a := range c.allowed {
		if v == a {
			c.value = v
			return nil
		}
	}
	return usagef("want one of %s", join(c.allowed))
}

func join(words []string) string {
	s := ""
	for i, w := range words {
		if i > 0 {
			s += "|"
		}
		s += w
	}
	return s
}

// useColor decides as NO_COLOR (no-color.org) and a terminal ask.
func useColor(mode string, w io.Writer) bool {
	switch mode {
	case "always":
		return true
	case "never":
		return false
	}
	return os.Getenv("NO_COLOR") == "" && isTerminal(w)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
