package vmtest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/twtrace/twtrace/internal/vmtest/guest"
)

// verdict is what became of a test or a job.
type verdict string

const (
	success verdict = "ok"
	failure verdict = "FAIL"
	skipped verdict = "skip"
)

// test is one test of a test binary.
type test struct {
	name    string
	verdict verdict
	reason  string // of a skip, or the begin of a failure's words; one line
	output  string
}

// What tracer's tests log about internal/oracle.
var (
	testimony    = regexp.MustCompile(`oracle: (\d+ of \d+) facts agree(?:; (.*))?`)
	notWitnessed = regexp.MustCompile(`oracle: (not witnessed: .*)`)
)

// oracle returns how many facts the oracle agreed on, and what there is to say besides.
func (t test) oracle() (facts string, words []string) {
	if m := testimony.FindStringSubmatch(t.output); m != nil {
		facts, words = m[1], m[2:]
	}
	if m := notWitnessed.FindStringSubmatch(t.output); m != nil {
		words = append(words, m[1])
	}
	return facts, slices.DeleteFunc(words, func(w string) bool { return w == "" })
}

// result is what became of a job.
type result struct {
	job     job
	verdict verdict
	reason  string // of a failure; one line
	output  string // what its tests don't tell
	took    time.Duration
	tests   []test // of a test binary, in the order in which they began
}

// count is how many leaves among the tests have the verdict: a test that is made
// of others is not counted beside them.
func (r result) count(v verdict) int {
	n := 0
	for _, t := range leaves(r.tests) {
		if t.verdict == v {
			n++
		}
	}
	return n
}

// leaves returns the tests that are not made of others. A test that failed by
// itself, none of those below it having failed, counts as one.
func leaves(tests []test) []test {
	return slices.DeleteFunc(slices.Clone(tests), func(t test) bool {
		inside, bad := false, false
		for _, u := range tests {
			if strings.HasPrefix(u.name, t.name+"/") {
				inside = true
				bad = bad || u.verdict == failure
			}
		}
		return inside && (t.verdict != failure || bad)
	})
}

// fail adds tests that have failed before.
func (r *result) fail(before []test) {
	for _, t := range before {
		r.verdict = failure
		if r.reason == "" {
			r.reason = t.name + " failed, in a boot that crashed later"
		}
		i := slices.IndexFunc(r.tests, func(u test) bool { return u.name == t.name })
		if i < 0 {
			r.tests = append(r.tests, t)
		} else if r.tests[i].verdict != failure {
			r.tests[i] = t
		}
	}
}

// recording is a job that runs.
type recording struct {
	job            string
	start          time.Time
	stdout, stderr bytes.Buffer
}

func (r *recording) write(m guest.Message) {
	if m.Kind == guest.Stderr {
		r.stderr.WriteString(m.Text)
	} else {
		r.stdout.WriteString(m.Text)
	}
}

var running = regexp.MustCompile(`(?m)^\x16?=== (?:RUN|CONT|NAME) +(\S.*)$`)

// where names the test that a test binary was last heard of in.
func (r *recording) where() string {
	if all := running.FindAllStringSubmatch(r.stdout.String(), -1); len(all) > 0 {
		return "in " + r.job + " " + all[len(all)-1][1]
	}
	return "in " + r.job
}

// result judges the job by how it ended.
func (r *recording) result(ctx context.Context, j job, end guest.Message) (result, error) {
	res := result{job: j, verdict: success, took: time.Since(r.start).Round(time.Second)}
	fail := func(format string, args ...any) {
		res.verdict = failure
		if res.reason == "" {
			res.reason = fmt.Sprintf(format, args...)
		}
	}
	if j.check != nil {
		res.output = r.stdout.String() + r.stderr.String()
		if end.Text != "" {
			fail("%s", end.Text)
		} else if err := j.check(answer{end.Code, r.stdout.String(), r.stderr.String()}); err != nil {
			fail("%v", err)
		}
		return res, nil
	}
	var err error
	res.tests, res.output, err = parseTests(ctx, r.stdout.Bytes())
	if err != nil {
		return res, fmt.Errorf("%s: %w", j.Name, err)
	}
	// A test binary exits with 1 if a test failed, and its tests have said all.
	n := res.count(failure)
	switch {
	case end.Text != "":
		fail("%s %s", r.where(), end.Text)
	case end.Code > 1 || end.Code != 0 && n == 0:
		fail("exit code %d, last heard of %s", end.Code, r.where())
	case n > 0:
		fail("failed tests: %d", n)
		res.output = ""
	case res.count(success) == 0:
		fail("no test was run")
	}
	return res, nil
}

// parseTests reads what a test binary printed under -test.v=test2json, by the
// program that defines the format. text is the same for a person.
func parseTests(ctx context.Context, output []byte) (tests []test, text string, err error) {
	cmd := exec.CommandContext(ctx, "go", "tool", "test2json")
	// A test's end is told when the next line of its kind has come, and a crash can
	// have cut that off.
	const last = "\n\x16FAIL\n"
	cmd.Stdin = io.MultiReader(bytes.NewReader(output), strings.NewReader(last))
	var errs bytes.Buffer
	cmd.Stderr = &errs
	events, err := cmd.Output()
	if err != nil {
		return nil, "", fmt.Errorf("go tool test2json: %w: %s", err, errs.String())
	}
	var all strings.Builder
	outputs := make(map[string]*strings.Builder)
	var began []string
	for dec := json.NewDecoder(bytes.NewReader(events)); ; {
		var e struct{ Action, Test, Output string }
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, "", fmt.Errorf("read test2json: %w", err)
		}
		switch e.Action {
		case "output":
			all.WriteString(e.Output)
			if outputs[e.Test] == nil {
				outputs[e.Test] = new(strings.Builder)
			}
			outputs[e.Test].WriteString(e.Output)
		case "run":
			began = append(began, e.Test)
		case "pass", "fail", "skip":
			if e.Test == "" {
				continue
			}
			t := test{name: e.Test, verdict: map[string]verdict{"pass": success, "fail": failure, "skip": skipped}[e.Action]}
			if b := outputs[e.Test]; b != nil {
				t.output = b.String()
			}
			if t.verdict != success {
				t.reason = reasonOf(t.verdict, t.output)
			}
			tests = append(tests, t)
		}
	}
	slices.SortStableFunc(tests, func(a, b test) int {
		return cmp.Compare(slices.Index(began, a.name), slices.Index(began, b.name))
	})
	return tests, strings.TrimSuffix(all.String(), "\nFAIL\n"), nil
}

var (
	chatter = regexp.MustCompile(`^\s*(===|---) `)
	place   = regexp.MustCompile(`^\s*[\w.-]+\.go:\d+: `)
)

// reasonOf finds, in one line, what the test itself said last: of a skip that is
// the reason. A failure's words can't be told from what is logged, but come before
// what is logged because of it, so there are some of the first.
func reasonOf(v verdict, output string) string {
	var said []string
	for line := range strings.Lines(output) {
		line = strings.TrimRight(line, "\n")
		if chatter.MatchString(line) {
			continue
		}
		// Without a place it is a panic, or goes on with the line before.
		line = strings.TrimSpace(place.ReplaceAllString(line, ""))
		if line == "" || slices.Contains(said, line) {
			continue
		}
		const most = 160
		if r := []rune(line); len(r) > most {
			line = string(r[:most]) + "…"
		}
		said = append(said, line)
	}
	if v == failure {
		return strings.Join(said[:min(3, len(said))], " | ")
	}
	return strings.Join(said[max(0, len(said)-1):], "")
}
