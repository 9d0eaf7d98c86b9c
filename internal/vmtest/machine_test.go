package vmtest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/twtrace/twtrace/internal/vmtest/guest"
)

func TestRead(t *testing.T) {
	var got []guest.Message
	note := func(m guest.Message) { got = append(got, m) }
	lines := `{"Kind":"up","Text":"6.1"}` + "\n" + `{"Kind":"stdout","Job":"a","Text":"\u0016=== RUN\n"}` + "\n"
	if err := read(strings.NewReader(lines+`{"Kind":"std`), note); err != nil {
		t.Errorf("a line that a crash cut off: %v", err)
	}
	want := []guest.Message{{Kind: guest.Up, Text: "6.1"}, {Kind: guest.Stdout, Job: "a", Text: "\x16=== RUN\n"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if err := read(strings.NewReader(lines+"hello\n"+lines), note); err == nil || !strings.Contains(err.Error(), "hello") {
		t.Errorf("a line that is no message: %v", err)
	}
}

// TestComplaint has lines of real consoles.
func TestComplaint(t *testing.T) {
	for _, tt := range []struct{ console, want string }{
		{"", ""},
		{"[    0.812652] pci 0000:00:01.0: PIIX3: Enabling Passive Release\n", ""},
		{"[   12.5] watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [tracer.test:80]\n", ""},
		{"[   12.5] BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 32s!\n", ""},
		{"[    2.0] fine\n[    3.374914] BUG: kernel NULL pointer dereference, address: 0000000000000300\n[    3.376466] Oops: Oops: 0000 [#1]\n",
			"BUG: kernel NULL pointer dereference, address: 0000000000000300"},
		{"[   18.805161] Oops: double fault: 0000 [#1] PREEMPT SMP NOPTI\n", "Oops: double fault: 0000 [#1] PREEMPT SMP NOPTI"},
		{"[    9.6][  T171] general protection fault, probably for non-canonical address 0x64: 0000 [#1]\n",
			"general protection fault, probably for non-canonical address 0x64: 0000 [#1]"},
		{"[    9.647815] Kernel panic - not syncing: Fatal exception in interrupt\n", "Kernel panic - not syncing: Fatal exception in interrupt"},
	} {
		if got := complaint(tt.console); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.console, got, tt.want)
		}
	}
}

// script is what a boot says, and how it ends.
type script struct {
	messages []guest.Message
	err      error
}

// said are the messages of a test binary, up to its end with the code.
func said(job, output string) []guest.Message {
	return []guest.Message{{Kind: guest.Start, Job: job}, {Kind: guest.Stdout, Job: job, Text: output}}
}

func ended(job, output string, code int) []guest.Message {
	return append(said(job, output), guest.Message{Kind: guest.End, Job: job, Code: code})
}

const (
	passing = "\x16=== RUN   TestGood\n\x16--- PASS: TestGood (0.00s)\n"
	failing = "\x16=== RUN   TestBad\n    x_test.go:1: broken\n\x16--- FAIL: TestBad (0.00s)\n"
	skipper = "\x16=== RUN   TestSkip\n    x_test.go:1: not here\n\x16--- SKIP: TestSkip (0.00s)\n"
)

// TestRunJobs has two jobs, a and b, and boots that end in every way.
func TestRunJobs(t *testing.T) {
	up := []guest.Message{{Kind: guest.Up, Text: "6.1.0"}}
	oops := &crash{words: "BUG: oops", console: "BUG: oops\n"}
	all := func(parts ...[]guest.Message) []guest.Message {
		return slices.Concat(append([][]guest.Message{up}, parts...)...)
	}
	for _, tt := range []struct {
		name    string
		boots   []script
		want    []string // job, verdict, reason
		crashes []string
		err     string
	}{
		{
			name:  "all is well",
			boots: []script{{messages: all(ended("a", passing, 0), ended("b", passing+skipper, 0))}},
			want:  []string{"a ok", "b ok"},
		},
		{
			name:  "a test fails",
			boots: []script{{messages: all(ended("a", passing+failing, 1), ended("b", passing, 0))}},
			want:  []string{"a FAIL failed tests: 1", "b ok"},
		},
		{
			name:  "a test fails, and the exit code says nothing",
			boots: []script{{messages: all(ended("a", passing+failing, 0), ended("b", passing, 0))}},
			want:  []string{"a FAIL failed tests: 1", "b ok"},
		},
		{
			name:  "a binary dies in a test",
			boots: []script{{messages: all(ended("a", passing+"\x16=== RUN   TestDie\npanic: x\n", 2), ended("b", passing, 0))}},
			want:  []string{"a FAIL exit code 2, last heard of in a TestDie", "b ok"},
		},
		{
			name:  "a test fails, and then the binary dies",
			boots: []script{{messages: all(ended("a", failing+"\x16=== RUN   TestDie\npanic: x\n", 2), ended("b", passing, 0))}},
			want:  []string{"a FAIL exit code 2, last heard of in a TestDie", "b ok"},
		},
		{
			name:  "nothing but skips",
			boots: []script{{messages: all(ended("a", skipper, 0), ended("b", "", 0))}},
			want:  []string{"a FAIL no test was run", "b FAIL no test was run"},
		},
		{
			name: "a crash before any test",
			boots: []script{
				{err: oops},
				{messages: up, err: oops},
				{messages: all(ended("a", passing, 0), ended("b", passing, 0))},
			},
			want:    []string{"a ok", "b ok"},
			crashes: []string{"before the first test: BUG: oops", "before the first test: BUG: oops"},
		},
		{
			name:    "never to the tests",
			boots:   []script{{err: oops}, {err: oops}, {err: oops}},
			crashes: []string{"before the first test: BUG: oops", "before the first test: BUG: oops", "before the first test: BUG: oops"},
			err:     "3 boots, none to the tests",
		},
		{
			name: "a crash in the second job: the first is not repeated",
			boots: []script{
				{messages: all(ended("a", passing, 0), said("b", passing+"\x16=== RUN   TestX\n")), err: oops},
				{messages: all(ended("b", passing, 0))},
			},
			want:    []string{"a ok", "b ok"},
			crashes: []string{"in b TestX: BUG: oops"},
		},
		{
			name: "a test that failed before a crash has failed",
			boots: []script{
				{messages: all(said("a", failing)), err: oops},
				{messages: all(ended("a", passing, 0), ended("b", passing, 0))},
			},
			want:    []string{"a FAIL TestBad failed, in a boot that crashed later", "b ok"},
			crashes: []string{"in a TestBad: BUG: oops"},
		},
		{
			name: "a test that crashes the kernel each time",
			boots: []script{
				{messages: all(said("a", passing)), err: oops},
				{messages: all(said("a", passing)), err: oops},
				{messages: all(said("a", passing)), err: oops},
				{messages: all(ended("b", passing, 0))},
			},
			want:    []string{"a FAIL the kernel crashed 3 times, last in a TestGood: BUG: oops", "b ok"},
			crashes: []string{"in a TestGood: BUG: oops", "in a TestGood: BUG: oops", "in a TestGood: BUG: oops"},
		},
		{
			name:  "an end without the jobs",
			boots: []script{{messages: all(ended("a", passing, 0))}},
			want:  []string{"a ok"},
			err:   "1 jobs to do",
		},
		{
			name:  "a job that nobody asked for",
			boots: []script{{messages: all(ended("c", passing, 0))}},
			err:   `starts "c"`,
		},
		{
			name:  "an end without a start",
			boots: []script{{messages: all(ended("a", passing, 0)[2:])}},
			err:   `tells of "a"`,
		},
		{
			name:  "another error is not tried again",
			boots: []script{{messages: up, err: errors.New("no disk")}},
			err:   "no disk",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := 0
			boot := func(_ context.Context, _ []job, handle func(guest.Message)) error {
				if n == len(tt.boots) {
					t.Fatal("one more boot")
				}
				s := tt.boots[n]
				n++
				for _, m := range s.messages {
					handle(m)
				}
				return s.err
			}
			jobs := []job{{Job: guest.Job{Name: "a"}}, {Job: guest.Job{Name: "b"}}}
			o, err := runJobs(t.Context(), boot, jobs, func(result) {})
			var got []string
			for _, r := range o.results {
				got = append(got, strings.TrimSpace(r.job.Name+" "+string(r.verdict)+" "+r.reason))
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("results %q, want %q", got, tt.want)
			}
			if !slices.Equal(o.crashes, tt.crashes) {
				t.Errorf("crashes %q, want %q", o.crashes, tt.crashes)
			}
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			if n != len(tt.boots) {
				t.Errorf("%d boots, want %d", n, len(tt.boots))
			}
		})
	}
}
