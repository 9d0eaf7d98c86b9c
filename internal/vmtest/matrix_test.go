package vmtest

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestWriteMatrix(t *testing.T) {
	good, old := Kernels[1], Kernels[0]
	if good.Refused || !old.Refused {
		t.Fatal("the table of kernels has changed")
	}
	jobs := jobsFor(good, selection{})
	columns := []column{
		{kernel: old, jobs: jobsFor(old, selection{}), err: errors.New("nothing to be had")},
		{kernel: good, jobs: jobs, outcome: &outcome{
			release: "6.1.0-56-cloud-amd64", boot: 8400 * time.Millisecond,
			crashes: []string{"in tracer TestB: BUG: oops"},
			results: []result{
				{job: jobs[0], verdict: success, took: 2 * time.Second},
				{job: jobs[1], verdict: failure, reason: "failed tests: 1", took: 90 * time.Second, tests: []test{
					{name: "TestA", verdict: success}, {name: "TestOracle", verdict: success, output: "oracle: 24 of 24 facts agree\noracle: not witnessed: x (no function f)\n"}, {name: "TestScenarios/a", verdict: success, output: "x_test.go:7: oracle: 24 of 24 facts agree; client retransmit: the oracle missed 1\n"},
					{name: "TestB/x", verdict: failure, reason: "got 1"}, {name: "TestB", verdict: failure},
				}},
				{job: jobs[2], verdict: success, took: time.Second, tests: []test{
					{name: "TestC", verdict: success}, {name: "TestD", verdict: skipped, reason: "not here"},
				}},
			},
		}},
	}
	var b strings.Builder
	if err := writeMatrix(&b, columns); err != nil {
		t.Fatal(err)
	}
	want := `
KERNEL             5.10      6.1
release            -         6.1.0-56
boot               FAIL [1]  ok, 8s [2]
twtrace run        -         ok, 2s
tracer             -         FAIL 1, ok 3, 1m30s [3]
  TestOracle       -         ok, fentry 24 of 24 [4]
  TestScenarios/a  -         ok, fentry 24 of 24 [5]
  TestB/x          -         FAIL [6]
internal/netlab    -         ok 1, skip 1, 1s
  TestD            -         skip [7]
internal/clients   -         -
internal/run       -         -
internal/watch     -         -
internal/fault     -         -
internal/lab       -         -
cmd/twtrace        -         -
loadgen            -         -
internal/clock     -         -
[1] nothing to be had
[2] a boot crashed and was repeated: in tracer TestB: BUG: oops
[3] failed tests: 1
[4] not witnessed: x (no function f)
[5] client retransmit: the oracle missed 1
[6] got 1
[7] not here
`
	if got := "\n" + b.String(); got != want {
		t.Errorf("got%s\nwant%s", got, want)
	}
}
