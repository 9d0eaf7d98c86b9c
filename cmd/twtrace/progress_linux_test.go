package main

import (
	"bytes"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/testenv"
)

// terminal is a pseudo-terminal: the slave is what a program writes to.
type terminal struct {
	slave  *os.File
	master *os.File
	mu     sync.Mutex
	got    bytes.Buffer
	read   chan struct{}
}

// Write takes what the program has written.
func (term *terminal) Write(p []byte) (int, error) {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.got.Write(p)
}

// await waits until a text has been written.
func (term *terminal) await(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(pollLimit); ; time.Sleep(time.Millisecond) {
		term.mu.Lock()
		found := strings.Contains(term.got.String(), text)
		term.mu.Unlock()
		if found {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("never %q on the terminal", text)
		}
	}
}

func openTerminal(t *testing.T, columns int) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err) // no devpts here
	}
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: uint16(columns)}); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{slave: slave, master: master, read: make(chan struct{})}
	go func() {
		defer close(term.read)
		_, _ = io.Copy(term, master) // until EIO: the slave is closed
	}()
	return term
}

// end closes the terminal, and returns all that was written to it.
func (term *terminal) end() string {
	term.slave.Close()
	<-term.read
	term.master.Close()
	return term.got.String()
}

// screen is what is left to be read on a terminal of so many columns, and whether a row was
// too long for it.
func screen(t *testing.T, text string, columns int) (rows []string, wrapped bool) {
	t.Helper()
	var row []rune
	x := 0
	runes := []rune(text)
	for i := 0; i < len(runes); i++ {
		switch c := runes[i]; c {
		case '\r':
			x = 0
		case '\n':
			rows, row, x = append(rows, string(row)), nil, 0
		case '\x1b':
			if i+2 >= len(runes) || runes[i+1] != '[' || runes[i+2] != 'K' {
				t.Fatalf("the terminal was told what it does not know: %q", string(runes[i:min(i+8, len(runes))]))
			}
			row = row[:min(x, len(row))]
			i += 2
		default:
			if x == columns {
				wrapped = true
				rows, row, x = append(rows, string(row)), nil, 0
			}
			row = append(row[:x], append([]rune{c}, row[min(x+1, len(row)):]...)...)
			x++
		}
	}
	return append(rows, string(row)), wrapped
}

const smallStorm = "run --net loopback --no-trace --linger --loops 3 --connections 300 --interval 250ms --color never"

// TestProgressTerminal has the loops' lines and the progress on one terminal.
func TestProgressTerminal(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS)
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "1")
	term := openTerminal(t, 120)
	code := Main(t.Context(), strings.Fields(smallStorm), term.slave, term.slave)
	text := term.end()
	if code != exitDone {
		t.Errorf("exit code %d", code)
	}
	if want := "loop 3/3: 300 finished, 0 failed, "; !strings.Contains(text, want) {
		t.Errorf("never %q in %q", want, text)
	}
	rows, wrapped := screen(t, text, 120)
	if wrapped {
		t.Errorf("a line is too long:\n%s", strings.Join(rows, "\n"))
	}
	loop := regexp.MustCompile(`^ +[123] +300 +0 +[0-9.]+ +[0-9.]+ +[0-9.]+ +\S+ +\S+$`)
	loops := 0
	for _, row := range rows {
		if loop.MatchString(row) {
			loops++
		}
		if strings.Contains(row, " s: ") {
			t.Errorf("left on the screen: %q", row)
		}
	}
	if loops != 3 || !strings.HasPrefix(rows[0], "3 × 300 connections") || rows[len(rows)-1] != "" {
		t.Errorf("%d lines of loops on the screen:\n%s", loops, strings.Join(rows, "\n"))
	}
}

// TestProgressNarrow has the progress alone on a terminal with little room.
func TestProgressNarrow(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS)
	t.Setenv("TERM", "xterm")
	term := openTerminal(t, 30)
	var stdout bytes.Buffer
	code := Main(t.Context(), strings.Fields(smallStorm+" -o json"), &stdout, term.slave)
	text := term.end()
	if code != exitDone || summary(t, stdout.String()).Totals.Finished != 900 {
		t.Errorf("exit code %d", code)
	}
	rows, wrapped := screen(t, text, 30)
	if wrapped || len(rows) != 1 || rows[0] != "" || !strings.Contains(text, "loop 3/3") {
		t.Errorf("wrapped %t, left %q of %q", wrapped, rows, text)
	}
}

// TestProgressNone: nothing on a pipe, on a terminal that is told nothing, or that can't
// go back.
func TestProgressNone(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS)
	t.Run("pipe", func(t *testing.T) {
		code, _, stderr := finish(t, command(t, worldPlain, strings.Fields(smallStorm)...))
		if code != exitDone || stderr != "" {
			t.Errorf("exit code %d, stderr %q", code, stderr)
		}
	})
	for _, tt := range []struct{ name, term, flags string }{
		{"never", "xterm", " --progress never"},
		{"dumb", "dumb", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("TERM", tt.term)
			term := openTerminal(t, 80)
			var stdout bytes.Buffer
			code := Main(t.Context(), strings.Fields(smallStorm+tt.flags), &stdout, term.slave)
			if text := term.end(); code != exitDone || text != "" {
				t.Errorf("exit code %d, terminal %q", code, text)
			}
		})
	}
}

// TestProgressPlain: whole lines, one at the storm's end at least, with what the trace counts.
func TestProgressPlain(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.BPF)
	code, stdout, stderr := finish(t, command(t, worldPlain, strings.Fields(
		"run --net loopback --loops 2 --connections 200 --linger-watch 1200ms --progress plain -o json")...))
	if code != exitDone || summary(t, stdout).Totals.Finished != 400 {
		t.Errorf("exit code %d", code)
	}
	line := regexp.MustCompile(`^[0-9.]+ s: (setting up|loop [0-9]/2: .* started|watching TIME_WAITs: 400 left, [0-9.]+ s to go|waiting for the last segments)$`)
	for _, l := range strings.Split(strings.TrimSuffix(stderr, "\n"), "\n") {
		if !line.MatchString(l) {
			t.Errorf("a line that is none: %q", l)
		}
	}
	for _, want := range []string{" s: loop 2/2: 200 finished, 0 failed, ", "TIME_WAIT ", " 0 open, 200 started\n", "watching TIME_WAITs: 400 left"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("never %q in\n%s", want, stderr)
		}
	}
}

// TestProgressServe has a server's line on the terminal that its other output goes to.
func TestProgressServe(t *testing.T) {
	testenv.Require(t, testenv.Root) // for a network of its own
	term := openTerminal(t, 80)
	cmd := command(t, worldLoopback, "serve", "--listen", "127.0.0.1:7007")
	cmd.Env = append(cmd.Env, "TERM=xterm")
	cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNET
	cmd.Stdout, cmd.Stderr = term.slave, term.slave
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	term.await(t, " s: 0 accepted, 0 open, 0/s, 0 closed")
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	text := term.end()
	rows, _ := screen(t, text, 80)
	want := []string{"listening on 127.0.0.1:7007", "0 accepted, 0 closed, 0 dropped by the listener", ""}
	if strings.Join(rows, "\n") != strings.Join(want, "\n") {
		t.Errorf("%q leaves %q, want %q", text, rows, want)
	}
}
