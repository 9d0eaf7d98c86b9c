package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// noArgs is cobra.NoArgs with the exit code of wrong usage.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%s takes no argument, but got %q: see `%s --help`", cmd.CommandPath(), args[0], cmd.CommandPath())
	}
	return nil
}

// wants say what the flags of a type take, in the words of people.
var wants = map[string]string{
	"int":      "a whole number",
	"uint64":   "a whole number",
	"float64":  "a number",
	"duration": "a time with its unit, for instance 500ms or 2s",
	"bool":     "true or false",
}

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

// list is a flag of values that can be given with commas, and several times.
type list[T any] struct {
	name, want string
	values     *[]T
	parse      func(string) (T, error)
}

func newList[T any](name, want string, values *[]T, parse func(string) (T, error)) *list[T] {
	return &list[T]{name, want, values, parse}
}

func (l *list[T]) Type() string { return l.name }

func (l *list[T]) String() string {
	if l.values == nil || len(*l.values) == 0 {
		return ""
	}
	return joinText(*l.values)
}

func (l *list[T]) Set(text string) error {
	for word := range strings.SplitSeq(text, ",") {
		v, err := l.parse(strings.TrimSpace(word))
		if err != nil {
			if l.want != "" {
				return fmt.Errorf("%q: want %s", word, l.want)
			}
			return err
		}
		*l.values = append(*l.values, v)
	}
	return nil
}

func joinText[T any](values []T) string {
	words := make([]string, len(values))
	for i, v := range values {
		words[i] = fmt.Sprint(v)
	}
	return strings.Join(words, ", ")
}

func parseUint32(text string) (uint32, error) {
	n, err := strconv.ParseUint(text, 10, 31)
	if err == nil && n == 0 {
		err = strconv.ErrRange
	}
	return uint32(n), err
}

func parsePort(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err == nil && n == 0 {
		err = strconv.ErrRange
	}
	return uint16(n), err
}

func parseText(text string) (string, error) {
	if text == "" {
		return "", errors.New("empty")
	}
	return text, nil
}
