package progress

import (
	"fmt"
	"io"
	"sync"
)

// Display is a line at the bottom of a terminal that is written over again and again. What
// else is written to that terminal goes through Around, so that it does not mix with it.
type Display struct {
	mu    sync.Mutex
	w     io.Writer
	width func() int
	shown bool
}

// NewDisplay returns a Display on w, whose width in columns is asked for each time; 0: it
// is not known.
func NewDisplay(w io.Writer, width func() int) *Display { return &Display{w: w, width: width} }

// What is asked of the terminal: to go to the begin of the line, and to clear it from the
// cursor to its end (ECMA-48, EL).
const (
	home      = "\r"
	clearLine = "\x1b[K"
)

// usual is the width of a terminal that does not tell.
const usual = 80

// Show replaces the line by what line returns for a number of columns. The terminal's last one stays
// free: a character there makes some of them go to the next line. An error of the terminal is
// passed over: there is nobody to tell.
func (d *Display) Show(line func(width int) string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	width := d.width()
	if width <= 0 {
		width = usual
	}
	d.shown = true
	fmt.Fprint(d.w, home, line(max(1, width-1)), clearLine)
}

// Erase leaves an empty line, and the cursor at its begin.
func (d *Display) Erase() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.erase()
}

func (d *Display) erase() {
	if d.shown {
		d.shown = false
		fmt.Fprint(d.w, home, clearLine)
	}
}

// Around returns a writer to w that erases the line first. Whole lines should be written
// at once: the next Show begins where the cursor is.
func (d *Display) Around(w io.Writer) io.Writer { return around{d, w} }

type around struct {
	d *Display
	w io.Writer
}

func (a around) Write(p []byte) (int, error) {
	a.d.mu.Lock()
	defer a.d.mu.Unlock()
	a.d.erase()
	return a.w.Write(p)
}
