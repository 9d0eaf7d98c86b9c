package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
)

// wrongUse is a command line that is to be refused, and what is to be said of it.
type wrongUse struct {
	args string
	says []string
}

// TestUsage has wrong command lines of what works on every system.
func TestUsage(t *testing.T) {
	testUsage(t, []wrongUse{
		{"version now", []string{"now"}},
		{"completion bash now", []string{"now"}},
		{"completion tcsh", []string{"tcsh"}},
		{"man", []string{"DIRECTORY"}},
		{"man a b", []string{"DIRECTORY"}},
		{"fly", []string{`"fly"`}},
		{"--no-such-flag", []string{"--no-such-flag"}},
	})
}

// testUsage asks of each: exit code 2, nothing on stdout, and exactly one line on stderr,
// which names the flag or its subject, and says what is wanted.
func testUsage(t *testing.T, table []wrongUse) {
	for _, tt := range table {
		t.Run(tt.args, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			// Should it be taken for right, it must not load anything.
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			code := Main(ctx, strings.Fields(tt.args), &stdout, &stderr)
			if code != exitUsage || stdout.Len() != 0 {
				t.Errorf("exit code %d, want %d, and stdout %q", code, exitUsage, firstLine(stdout.String()))
			}
			if !isOneLine(stderr.String()) {
				t.Errorf("stderr is not one line: %q", stderr.String())
			}
			for _, s := range tt.says {
				if !strings.Contains(stderr.String(), s) {
					t.Errorf("stderr does not say %q: %s", s, stderr.String())
				}
			}
		})
	}
}

func isOneLine(s string) bool {
	return strings.HasPrefix(s, "twtrace: ") && strings.Count(s, "\n") == 1 && strings.HasSuffix(s, "\n")
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
