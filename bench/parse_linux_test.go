package main

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

// The reports are what the programs printed here: ab 2.3 <$Revision: 1903618 $>, wrk
// 4.1.0, cref and twtrace themselves, shortened.
func TestParse(t *testing.T) {
	for _, tt := range []struct {
		name  string
		parse func([]byte) ([]loop, error)
		text  string
		want  []loop // nil: an error
	}{
		{"cref", parseCref, "1 10000 0 0.426286\n2 8232 1768 15.385000\n", []loop{{10000, 0, 0.426286}, {8232, 1768, 15.385}}},
		{"cref, nothing", parseCref, "", nil},
		{"cref, a loop is missing", parseCref, "1 10000 0 0.426286\n3 8232 1768 15.385000\n", nil},
		{"cref, cut off", parseCref, "1 10000 0\n", nil},
		{"twtrace", parseTwtrace, `{"schema": "twtrace.summary/1", "loops": [{"loop": 1, "attempts": 5, "finished": 4, "failed": 1, "seconds": 0.5}]}`,
			[]loop{{4, 1, 0.5}}},
		{"twtrace, another schema", parseTwtrace, `{"schema": "twtrace.doctor/1", "loops": [{"finished": 4}]}`, nil},
		{"twtrace, no loop", parseTwtrace, `{"schema": "twtrace.summary/1"}`, nil},
		{"twtrace, no JSON", parseTwtrace, "twtrace: no", nil},
		{"ab", parseAB, abReport, []loop{{99997, 3, 16.207}}},
		{"ab, nothing", parseAB, "Benchmarking 198.19.0.1 (be patient)...apr_socket_connect(): Connection refused (111)\n", nil},
		{"wrk", parseWrk, wrkReport, []loop{{29975, 0, 4.13}}},
		{"wrk, errors", parseWrk, "  12 requests in 900.50ms, 1.37MB read\n  Socket errors: connect 1, read 2, write 3, timeout 4\n", []loop{{12, 10, 0.9005}}},
		{"wrk, nothing", parseWrk, "unable to connect to 198.19.0.1:http Connection refused\n", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.parse([]byte(tt.text))
			if !reflect.DeepEqual(got, tt.want) || (err == nil) != (tt.want != nil) {
				t.Errorf("%v, %v; want %v", got, err, tt.want)
			}
		})
	}
}

const abReport = `Server Software:        nginx/1.22.1
Concurrency Level:      1000
Time taken for tests:   16.207 seconds
Complete requests:      100000
Failed requests:        3
   (Connect: 0, Receive: 0, Length: 3, Exceptions: 0)
Total transferred:      24000000 bytes
`

const wrkReport = `Running 4s test @ http://198.19.0.1/
  1 threads and 1000 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    73.52ms   28.54ms 261.19ms   70.90%
    Req/Sec     7.31k     1.64k   10.33k    65.00%
  29975 requests in 4.13s, 6.86MB read
Requests/sec:   7258.35
Transfer/sec:      1.66MB
`

func TestListeners(t *testing.T) {
	// As the kernel prints them: 127.0.0.1:7 and 0.0.0.0:7 listen, the third is established.
	const text = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0007 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 120381 1 0000000000000000 100 0 0 10 0
   1: 00000000:0007 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 120382 1 0000000000000000 100 0 0 10 0
   2: 0100007F:0007 0100007F:B3A2 01 00000000:00000000 00:00000000 00000000     0        0 120385 1 0000000000000000 20 4 30 10 -1
`
	for port, want := range map[int]int{7: 2, 70: 0, 0xB3A2: 0} {
		if got := listeners(text, port); got != want {
			t.Errorf("port %d: %d listeners, want %d", port, got, want)
		}
	}
}

func TestParseBusy(t *testing.T) {
	got, err := parseBusy("cpu  1 20 300 4000 50000 600000 7000000 80000000 9 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
	// proc(5): user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice
	if want := (1 + 20 + 300 + 600000 + 7000000 + 80000000) * 10 * time.Millisecond; err != nil || got != want {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	for _, bad := range []string{"", "intr 1 2 3 4 5 6 7 8 9", "cpu 1 2 3", "cpu a b c d e f g h i j"} {
		if _, err := parseBusy(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestParseFlags(t *testing.T) {
	for _, tt := range []struct {
		args   string
		tables string // "": an error
		rows   int    // of the first
	}{
		{"-twtrace /nowhere", "shape cores fin concurrency trace record memory tools", 6},
		{"-twtrace /nowhere classic fin", "fin classic", 3},
		{"-twtrace /nowhere -rows loopback shape", "shape", 3},
		{"-twtrace /nowhere -rows traced", "trace record memory", 4},
		{"-twtrace /nowhere shapes", "", 0},
		{"-twtrace /nowhere -rows Java", "", 0},
		{"-rounds -1", "", 0},
		{"-wrong", "", 0},
	} {
		var stderr strings.Builder
		o, err := parse(strings.Fields(tt.args), &stderr)
		var names []string
		for _, c := range o.tables {
			names = append(names, c.name)
		}
		if got := strings.Join(names, " "); got != tt.tables || (err == nil) != (tt.tables != "") {
			t.Errorf("%s: tables %q, %v; want %q", tt.args, got, err, tt.tables)
			continue
		}
		if err == nil && len(o.tables[0].rows) != tt.rows {
			t.Errorf("%s: %d rows of the first, want %d", tt.args, len(o.tables[0].rows), tt.rows)
		}
	}
}
