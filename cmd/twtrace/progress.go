package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"

	"github.com/twtrace/twtrace/internal/progress"
)

// How often the line on a terminal is written again, and lines are added with --progress plain.
const (
	redrawEvery = 200 * time.Millisecond
	plainEvery  = time.Second
)

const progressHelp = "how far it is, on stderr: auto, a line in place if that is a terminal; plain, a line a second; or never"

func newProgressChoice() *choice { return newChoice("auto", "auto", "plain", "never") }

// follower shows how far a command is.
type follower struct {
	every time.Duration
	show  func(line func(width int) string)
}

// follow returns the follower for a value of --progress, nil if nothing is to be shown, and the app
// to go on with, whose output does not mix with what is shown. The function it returns
// takes the line away, and is called when nothing more is shown.
func (a *app) follow(mode string) (*app, *follower, func()) {
	if mode == "plain" {
		return a, &follower{plainEvery, func(line func(int) string) { fmt.Fprintln(a.stderr, line(0)) }}, func() {}
	}
	if mode == "never" || !isTerminal(a.stderr) || os.Getenv("TERM") == "dumb" {
		return a, nil, func() {}
	}
	d := progress.NewDisplay(a.stderr, func() int { return widthOf(a.stderr) })
	b := newApp(d.Around(a.stdout), d.Around(a.stderr))
	b.dropPrivilege = a.dropPrivilege
	return b, &follower{redrawEvery, d.Show}, d.Erase
}

// widthOf is how many columns a terminal has; 0: it does not tell.
func widthOf(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	columns, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return columns
}
