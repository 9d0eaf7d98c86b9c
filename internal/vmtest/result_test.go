package vmtest

import (
	"slices"
	"strings"
	"testing"
)

func TestParseTests(t *testing.T) {
	output := "\x16=== RUN   TestOne\n" +
		"\x16=== RUN   TestOne/fine\n\x16=== RUN   TestOne/bad\n    one_test.go:7: \n    one_test.go:8: got 1, want 2\n        of 3\n    one_test.go:9: got 1, want 2\n" +
		"\x16=== RUN   TestOne/not here\n    env.go:59: this machine lacks veth\n" +
		"\x16--- FAIL: TestOne (1.50s)\n    \x16--- PASS: TestOne/fine (1.00s)\n    \x16--- FAIL: TestOne/bad (0.00s)\n    \x16--- SKIP: TestOne/not here (0.00s)\n" +
		"\x16=== RUN   TestTwo\n\x16--- PASS: TestTwo (0.00s)\n" +
		"\x16=== RUN   TestThree\npanic: gone\n"
	tests, text, err := parseTests(t.Context(), []byte(output))
	if err != nil {
		t.Fatal(err)
	}
	type row struct {
		name, reason string
		verdict      verdict
	}
	var got []row
	for _, u := range leaves(tests) {
		got = append(got, row{u.name, u.reason, u.verdict})
	}
	want := []row{
		{"TestOne/fine", "", success},
		{"TestOne/bad", "got 1, want 2 | of 3", failure},
		{"TestOne/not here", "this machine lacks veth", skipped},
		{"TestTwo", "", success},
	}
	if !slices.Equal(got, want) { // TestThree has no end
		t.Errorf("got %+v, want %+v", got, want)
	}
	if !strings.Contains(text, "panic: gone") || strings.Contains(text, "\x16") {
		t.Errorf("text is %q", text)
	}
}

func TestLeaves(t *testing.T) {
	tests := []test{
		{name: "A/x", verdict: success}, {name: "A", verdict: failure}, // by itself
		{name: "B/x", verdict: failure}, {name: "B", verdict: failure}, // by its part
		{name: "C/x", verdict: success}, {name: "C", verdict: success},
		{name: "CC", verdict: skipped},
	}
	var got []string
	for _, u := range leaves(tests) {
		got = append(got, u.name)
	}
	if want := []string{"A/x", "A", "B/x", "C/x", "CC"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
