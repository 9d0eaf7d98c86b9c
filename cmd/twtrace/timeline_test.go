package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// storyFile is one of the recordings of package story's tests.
func storyFile(name string) string {
	return filepath.Join("..", "..", "internal", "story", "testdata", name+".twt")
}

func TestTimelineUsage(t *testing.T) {
	testUsage(t, []wrongUse{
		{"timeline", []string{"one recording", "timeline"}},
		{"timeline a b", []string{"one recording"}},
		{"timeline a --cookie x", []string{"--cookie", "whole number"}},
		{"timeline a --port 70000", []string{"--port", "65535"}},
		{"timeline a --errno ENOSUCH", []string{"--errno", "ENOSUCH"}},
		{"timeline a --cause because", []string{"--cause", "port-exhausted", "reused-by-connect"}},
		{"timeline a --pid 0", []string{"--pid", "process number"}},
		{"timeline a --slowest 0", []string{"--slowest"}},
		{"timeline a --limit -1", []string{"--limit"}},
		{"timeline a --time noon", []string{"--time", "relative"}},
	})
}

// TestTimeline has command lines with what they exit with, and what they say.
func TestTimeline(t *testing.T) {
	whole, err := os.ReadFile(storyFile("reuse"))
	if err != nil {
		t.Fatal(err)
	}
	cut := filepath.Join(t.TempDir(), "cut.twt")
	if err := os.WriteFile(cut, whole[:len(whole)*9/10], 0o644); err != nil {
		t.Fatal(err)
	}
	none := filepath.Join(t.TempDir(), "none.twt")
	if err := os.WriteFile(none, []byte("no recording"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args           []string
		code           int
		stdout, stderr string // what they have in them; empty: nothing at all
		count          int    // of stories in text
	}{
		{[]string{storyFile("exhausted"), "--failed"}, exitDone, "port-exhausted, no source port was left for", "", 4},
		{[]string{storyFile("exhausted"), "--failed", "--limit", "1"}, exitDone, "EADDRNOTAVAIL", "1 shown, and there are more: narrow them down", 1},
		{[]string{storyFile("reuse"), "--limit", "2"}, exitDone, "finished", "2 shown of 10 attempts (0 failed)", 2},
		{[]string{storyFile("reuse"), "--slowest", "2"}, exitDone, "finished", "there are more", 2},
		{[]string{storyFile("reuse"), "--failed"}, exitDone, "", "all 10 attempts finished", 0},
		{[]string{storyFile("reuse"), "--port", "9"}, exitDone, "", "no connection", 0},
		{[]string{storyFile("trace"), "--errno", "econnrefused"}, exitDone, "127.0.0.1:9999", "", 1},
		{[]string{storyFile("trace"), "--errno", "111", "--color", "always"}, exitDone, "\x1b[31m", "", 1},
		{[]string{cut}, exitIncomplete, "finished", "truncated", -1},
		{[]string{none}, exitFailed, "", "not a recording", 0},
		{[]string{none + ".missing"}, exitFailed, "", "no such file", 0},
	} {
		t.Run(strings.Join(tt.args[1:], " "), func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := Main(t.Context(), append([]string{"timeline"}, tt.args...), &stdout, &stderr)
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			for what, has := range map[string][2]string{"stdout": {stdout.String(), tt.stdout}, "stderr": {stderr.String(), tt.stderr}} {
				if has[1] == "" && has[0] != "" || !strings.Contains(has[0], has[1]) {
					t.Errorf("%s is %q, want %q", what, has[0], has[1])
				}
			}
			if n := strings.Count(stdout.String(), "DELTA"); tt.count >= 0 && n != tt.count {
				t.Errorf("%d stories, want %d", n, tt.count)
			}
		})
	}
}

// TestTimelineCutJSON: what a recording lacks is in each line.
func TestTimelineCutJSON(t *testing.T) {
	whole, err := os.ReadFile(storyFile("reuse"))
	if err != nil {
		t.Fatal(err)
	}
	cut := filepath.Join(t.TempDir(), "cut.twt")
	if err := os.WriteFile(cut, whole[:len(whole)*9/10], 0o644); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	if code := Main(t.Context(), []string{"timeline", cut, "-o", "json", "--limit", "1"}, &stdout, &stderr); code != exitIncomplete {
		t.Errorf("exit code %d, want %d", code, exitIncomplete)
	}
	var d struct {
		Schema       string
		Completeness struct{ Recording []string }
	}
	if err := json.Unmarshal(stdout.Bytes(), &d); err != nil || d.Schema != "twtrace.timeline/1" || len(d.Completeness.Recording) == 0 {
		t.Errorf("%v: %s", err, stdout.String())
	}
}
