//go:build !linux

package main

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
)

func TestMain(m *testing.M) { mainAsScripts(m) }

// TestNeedsLinux: whatever a command that needs Linux is given, it says that it does, and what works
// here, in one line.
func TestNeedsLinux(t *testing.T) {
	for _, args := range []string{
		"run", "run --linger --loops 3 -o json", "trace -p 1 -- sleep 5", "trace --no-such-flag=x", "serve --listen :0", "doctor -o json", "client",
	} {
		var stdout, stderr bytes.Buffer
		code := Main(t.Context(), strings.Fields(args), &stdout, &stderr)
		if code != exitMachine || stdout.Len() != 0 {
			t.Errorf("%s: exit code %d, want %d, and stdout %q", args, code, exitMachine, firstLine(stdout.String()))
		}
		for _, s := range []string{strings.Fields(args)[0] + " needs Linux", "works here", "version"} {
			if !isOneLine(stderr.String()) || !strings.Contains(stderr.String(), s) {
				t.Errorf("%s: want one line with %q, got %q", args, s, stderr.String())
			}
		}
		if _, works, _ := strings.Cut(stderr.String(), "works here"); strings.Contains(works, "run") {
			t.Errorf("%s: run does not work here: %q", args, stderr.String())
		}
	}
}

// TestHelpElsewhere: help and completion have every command of Linux.
func TestHelpElsewhere(t *testing.T) {
	for _, args := range []string{"--help", "__complete "} {
		var stdout, stderr bytes.Buffer
		code := Main(t.Context(), strings.Split(args, " "), &stdout, &stderr)
		for _, name := range []string{"run", "trace", "serve", "doctor"} {
			row := regexp.MustCompile(`(?m)^\s*` + name + `\s.*\(on Linux\)$`)
			if code != exitDone || !row.MatchString(stdout.String()) {
				t.Errorf("twtrace %s: exit code %d, and no %s:\n%s", args, code, name, stdout.String())
			}
		}
	}
	var stdout, stderr bytes.Buffer
	if code := Main(t.Context(), []string{"run", "--help"}, &stdout, &stderr); code != exitDone || !strings.Contains(stdout.String(), "needs Linux") {
		t.Errorf("run --help: exit code %d, stdout %q, stderr %q", code, stdout.String(), stderr.String())
	}
}
