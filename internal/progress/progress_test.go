package progress

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestLine(t *testing.T) {
	storm := Run{
		Stage: Storm, Elapsed: 4210 * time.Millisecond, Loop: 3, Loops: 10,
		Started: 8232, Finished: 8100, Failed: 12, Open: 120, PerSecond: 31022.4, TimeWait: 16232,
	}
	soon := storm
	soon.NoPortIn = 12400 * time.Millisecond
	untold := storm
	untold.TimeWait = Unknown
	watch := Run{Stage: Watching, Elapsed: 5 * time.Second, TimeWait: 9000, Left: 42 * time.Second}
	for _, tt := range []struct {
		line  interface{ Line(int) string }
		width int
		want  string
	}{
		{storm, 0, "4.2 s: loop 3/10: 8100 finished, 12 failed, 31022/s, TIME_WAIT 16232, 120 open, 8232 started"},
		{soon, 0, "4.2 s: loop 3/10: 8100 finished, 12 failed, 31022/s, TIME_WAIT 16232, first failure in 12 s, 120 open, 8232 started"},
		{storm, 79, "4.2 s: loop 3/10: 8100 finished, 12 failed, 31022/s, TIME_WAIT 16232, 120 open"},
		{storm, 40, "4.2 s: loop 3/10: 8100 finished"},
		{storm, 41, "4.2 s: loop 3/10: 8100 finished"},
		{storm, 42, "4.2 s: loop 3/10: 8100 finished, 12 failed"},
		{storm, 10, "4.2 s: loo"},
		{storm, 18, "4.2 s: loop 3/10"},
		{untold, 0, "4.2 s: loop 3/10: 8100 finished, 12 failed, 31022/s, 120 open, 8232 started"},
		{watch, 0, "5.0 s: watching TIME_WAITs: 9000 left, 42.0 s to go"},
		{watch, 40, "5.0 s: watching TIME_WAITs: 9000 left"},
		{Run{Stage: Watching, TimeWait: Unknown}, 0, "0.0 s: watching TIME_WAITs: how many is not known, 0.0 s to go"},
		{Run{Stage: SettingUp}, 0, "0.0 s: setting up"},
		{Run{Stage: Settling, Elapsed: time.Hour}, 0, "3600.0 s: waiting for the last segments"},
		{Run{Stage: Settling}, 9, "0.0 s: wa"},
		{Server{Elapsed: time.Second, Accepted: 500, Closed: 480, PerSecond: 99.6}, 0, "1.0 s: 500 accepted, 20 open, 100/s, 480 closed"},
		{Reading{Elapsed: 2 * time.Second, Done: 50e6, All: 200e6}, 0, "2.0 s: 25 % of 200.0 MB, 6.0 s to go"},
		{Reading{Elapsed: 2 * time.Second, Done: 50e6, All: 200e6}, 30, "2.0 s: 25 % of 200.0 MB"},
		{Reading{Elapsed: time.Second, Done: 1, All: 200e6}, 0, "1.0 s: 0 % of 200.0 MB"},
		{Reading{Elapsed: time.Second, Done: 7, All: 5}, 0, "1.0 s: 100 % of 0.0 MB, 0.0 s to go"},
		{Reading{Elapsed: time.Second}, 0, "1.0 s: reading"},
		{Server{Accepted: 5, Closed: 6}, 0, "0.0 s: 5 accepted, 0 open, 0/s, 6 closed"}, // the two are read one after the other
	} {
		if got := tt.line.Line(tt.width); got != tt.want {
			t.Errorf("width %d:\ngot  %q\nwant %q", tt.width, got, tt.want)
		}
	}
}

func TestMeter(t *testing.T) {
	var m Meter
	for _, tt := range []struct {
		at   time.Duration
		n    int64
		want float64
	}{
		{0, 0, 0},
		{0, 0, 0},
		{250, 100, 400},
		{500, 200, 400},
		{1000, 400, 400},
		{1250, 400, 300}, // since 250
		{1500, 400, 200},
		{2000, 400, 0},
		{9000, 7400, 1000}, // nobody looked for long
	} {
		if got := m.PerSecond(tt.at*time.Millisecond, tt.n); got != tt.want {
			t.Errorf("%d at %d ms: %g a second, want %g", tt.n, tt.at, got, tt.want)
		}
	}
	for i := range 10_000 {
		m.PerSecond(10*time.Second+time.Duration(i)*time.Millisecond, int64(i))
	}
	if len(m.samples) > 1002 {
		t.Errorf("%d samples of a second", len(m.samples))
	}
}

// TestDisplay: other output begins where the line was, and nothing of the line is left.
func TestDisplay(t *testing.T) {
	var tty bytes.Buffer
	width := 20
	d := NewDisplay(&tty, func() int { return width })
	out := d.Around(&tty)
	show := func(text string) {
		d.Show(func(width int) string { return cut(text, width) })
	}
	d.Erase() // nothing is there
	show("first")
	show(strings.Repeat("x", 30))
	fmt.Fprint(out, "a row\n")
	fmt.Fprint(out, "another\n")
	width = 0
	show(strings.Repeat("y", 90))
	d.Erase()
	d.Erase()
	want := "\rfirst\x1b[K" + "\r" + strings.Repeat("x", 19) + "\x1b[K" + "\r\x1b[Ka row\nanother\n" +
		"\r" + strings.Repeat("y", 79) + "\x1b[K" + "\r\x1b[K"
	if got := tty.String(); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
