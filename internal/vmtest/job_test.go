package vmtest

import (
	"strings"
	"testing"
)

func TestJobsFor(t *testing.T) {
	for _, tt := range []struct {
		kernel Kernel
		s      selection
		want   string
	}{
		{Kernel{}, selection{}, "twtrace run, tracer, internal/netlab, internal/clients, internal/run, internal/watch, internal/fault, internal/lab, cmd/twtrace, loadgen, internal/clock"},
		{Kernel{}, selection{packages: []string{"loadgen", "tracer"}}, "tracer, loadgen"},
		{Kernel{Refused: true}, selection{}, "twtrace run"},
	} {
		var names []string
		for _, j := range jobsFor(tt.kernel, tt.s) {
			names = append(names, j.Name)
		}
		if got := strings.Join(names, ", "); got != tt.want {
			t.Errorf("%+v: got %s, want %s", tt, got, tt.want)
		}
	}
}

func TestAnswers(t *testing.T) {
	for _, tt := range []struct {
		name  string
		check func(answer) error
		a     answer
		good  bool
	}{
		{"traced", traces, answer{0, "10 of 10 attempts joined by cookie\n", ""}, true},
		{"traced, with a warning", traces, answer{0, "joined by cookie\n", "twtrace: hm\n"}, false},
		{"failed", traces, answer{1, "joined by cookie\n", ""}, false},
		{"not traced", traces, answer{0, "LOOP\n", ""}, false},
		{"refused", refuses, answer{4, "", "twtrace: kernel 5.10 has no namespace cookies; run --no-trace\n"}, true},
		{"refused in two lines", refuses, answer{4, "", "twtrace: kernel\ntoo old\n"}, false},
		{"refused without a word", refuses, answer{4, "", ""}, false},
		{"refused, and no fault of the kernel's", refuses, answer{4, "", "twtrace: try sudo\n"}, false},
		{"refused after all", refuses, answer{4, "LOOP\n", "twtrace: kernel\n"}, false},
		{"another code", refuses, answer{1, "", "twtrace: kernel\n"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.check(tt.a); (err == nil) != tt.good {
				t.Errorf("%+v: %v", tt.a, err)
			}
		})
	}
}
