package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// mainAsScripts runs the tests, with the test binary as the command twtrace of the scripts.
func mainAsScripts(m *testing.M) { testscript.Main(m, map[string]func(){"twtrace": main}) }

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"oneline": oneLineOf,
		},
		Condition: func(name string) (bool, error) {
			if name == "namespaces" {
				return os.Geteuid() == 0, nil
			}
			return false, os.ErrInvalid
		},
	})
}

// oneLineOf is the script command `oneline stderr TEXT`: the output is one line of
// twtrace's own, and has the text.
func oneLineOf(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: oneline stdout|stderr TEXT")
	}
	got := ts.ReadFile(args[0])
	if !isOneLine(got) || !strings.Contains(got, args[1]) {
		ts.Fatalf("want one line of twtrace with %q, got:\n%s", args[1], got)
	}
}
