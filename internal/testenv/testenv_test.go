package testenv

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
)

// recorder is a test that notes how it was ended. Like the real one, it ends its
// goroutine.
type recorder struct {
	testing.TB
	outcome, message string
}

func (r *recorder) Helper() {}

func (r *recorder) Skipf(format string, args ...any) {
	r.outcome, r.message = "skip", fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.outcome, r.message = "fail", fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (r *recorder) Fatal(args ...any) {
	r.outcome, r.message = "fail", fmt.Sprint(args...)
	runtime.Goexit()
}

func TestRequire(t *testing.T) {
	table := []row{
		{"able", func() error { return nil }},
		{"unable", func() error { return errors.New("no such luck") }},
		{"cursed", func() error { return errors.New("a spell") }},
	}
	for _, tt := range []struct {
		env     string
		caps    []Cap
		outcome string
		says    []string
	}{
		{"", nil, "run", nil},
		{"", []Cap{"able"}, "run", nil},
		{"all", []Cap{"able"}, "run", nil},
		{"", []Cap{"able", "unable"}, "skip", []string{"unable: no such luck"}},
		{"", []Cap{"unable", "cursed"}, "skip", []string{"unable: no such luck", "cursed: a spell"}},
		{"able", []Cap{"unable"}, "skip", []string{"no such luck"}},
		{"unable", []Cap{"unable"}, "fail", []string{"no such luck", "TWTRACE_REQUIRE"}},
		{"able, unable", []Cap{"cursed", "unable"}, "fail", []string{"a spell", "no such luck"}},
		{"all", []Cap{"able", "cursed"}, "fail", []string{"a spell"}},
		{"abel", []Cap{"able"}, "fail", []string{"abel", "able unable cursed"}},
	} {
		t.Run(fmt.Sprintf("%s/%v", tt.env, tt.caps), func(t *testing.T) {
			r := &recorder{outcome: "run"}
			done := make(chan struct{})
			go func() {
				defer close(done)
				require(r, table, tt.env, tt.caps)
			}()
			<-done
			if r.outcome != tt.outcome {
				t.Fatalf("outcome %s (%s), want %s", r.outcome, r.message, tt.outcome)
			}
			for _, s := range tt.says {
				if !strings.Contains(r.message, s) {
					t.Errorf("message %q does not say %q", r.message, s)
				}
			}
		})
	}
}

func TestRequireUnknown(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic for a capability that does not exist")
		}
	}()
	Require(t, "levitation")
}

// TestProbes shows in -v what this machine can do. Which answers are right is
// known only to who set TWTRACE_REQUIRE.
func TestProbes(t *testing.T) {
	for _, row := range table {
		t.Run(string(row.name), func(t *testing.T) {
			Require(t, row.name)
			t.Log("yes")
		})
	}
}
