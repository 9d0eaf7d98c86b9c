package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/twtrace/twtrace/internal/export"
)

// TestExportTerminal: what is binary does not go to a terminal, and what is text does without a line of progress.
func TestExportTerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	name := record(t, 3, nil)
	for _, f := range export.Formats {
		term := openTerminal(t, 200)
		var stderr bytes.Buffer
		code := Main(t.Context(), []string{"export", name, "--format", f.Name}, term.slave, &stderr)
		text := term.end()
		if f.Binary && (code != exitUsage || text != "" || !strings.Contains(stderr.String(), "--output")) {
			t.Errorf("%s: exit code %d, terminal %q, stderr %q", f.Name, code, text, stderr.String())
		}
		if !f.Binary && (code != exitDone || !strings.Contains(text, "198.18.0.1") || strings.Contains(text, "\x1b")) {
			t.Errorf("%s: exit code %d, terminal %q, stderr %q", f.Name, code, text, stderr.String())
		}
	}
}

// TestExportProgress: the line comes after a second, and is taken away.
func TestExportProgress(t *testing.T) {
	term := openTerminal(t, 60)
	t.Setenv("TERM", "xterm")
	_, follower, end := newApp(term.slave, term.slave).follow("auto")
	follower.reading(time.Now().Add(time.Minute))(1, 100) // a second is not over
	tell := follower.reading(time.Now().Add(-progressAfter))
	tell(50, 100)
	tell(51, 100) // too soon after the one before
	end()
	text := term.end()
	rows, _ := screen(t, text, 60)
	if strings.Count(text, "%") != 1 || !strings.Contains(text, "50 % of 0.0 MB") || strings.Join(rows, "") != "" {
		t.Errorf("%q leaves %q", text, rows)
	}
}

// TestExportDevice: what is no file is written to, and stays what it is.
func TestExportDevice(t *testing.T) {
	name := record(t, 3, nil)
	if code, _, stderr := exported(t, name, "--format", "csv", "--output", os.DevNull); code != exitDone {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
	if info, err := os.Stat(os.DevNull); err != nil || info.Mode()&os.ModeDevice == 0 {
		t.Fatalf("%s is %v now: %v", os.DevNull, info.Mode(), err)
	}
}
