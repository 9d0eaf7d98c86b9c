package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// loop is one loop of a storm, by whoever ran it.
type loop struct {
	Finished int     `json:"finished"`
	Failed   int     `json:"failed"`
	Seconds  float64 `json:"seconds"`
}

// parseTwtrace reads the loops in what `twtrace run -o json` prints.
func parseTwtrace(text []byte) ([]loop, error) {
	var summary struct {
		Schema string
		Loops  []loop
	}
	if err := json.Unmarshal(text, &summary); err != nil {
		return nil, fmt.Errorf("twtrace's summary: %w", err)
	}
	if summary.Schema != "twtrace.summary/1" || len(summary.Loops) == 0 {
		return nil, fmt.Errorf("twtrace's summary (%q) has no loops", summary.Schema)
	}
	return summary.Loops, nil
}

// parseCref reads a line a loop: number, finished, failed, seconds.
func parseCref(text []byte) (loops []loop, err error) {
	for line := range strings.Lines(string(text)) {
		var number int
		var l loop
		if n, err := fmt.Sscan(line, &number, &l.Finished, &l.Failed, &l.Seconds); n != 4 || number != len(loops)+1 {
			return nil, fmt.Errorf("cref's line %q is no loop: %w", line, err)
		}
		loops = append(loops, l)
	}
	if len(loops) == 0 {
		return nil, fmt.Errorf("cref printed no loop")
	}
	return loops, nil
}

var (
	abSeconds  = regexp.MustCompile(`(?m)^Time taken for tests: +([0-9.]+) seconds$`)
	abComplete = regexp.MustCompile(`(?m)^Complete requests: +([0-9]+)$`)
	abFailed   = regexp.MustCompile(`(?m)^Failed requests: +([0-9]+)$`)
	wrkTotal   = regexp.MustCompile(`(?m)^ *([0-9]+) requests in ([0-9.]+)(ms|s|m),`)
	wrkErrors  = regexp.MustCompile(`(?m)^ *Socket errors: connect ([0-9]+), read ([0-9]+), write ([0-9]+), timeout ([0-9]+)$`)
)

// parseAB reads ApacheBench's report. A request is a connection, unless -k is given.
func parseAB(text []byte) ([]loop, error) {
	var l loop
	var complete int
	for _, field := range []struct {
		re *regexp.Regexp
		to any
	}{{abSeconds, &l.Seconds}, {abComplete, &complete}, {abFailed, &l.Failed}} {
		m := field.re.FindSubmatch(text)
		if m == nil {
			return nil, fmt.Errorf("ab's report has no line like %v", field.re)
		}
		if _, err := fmt.Sscan(string(m[1]), field.to); err != nil {
			return nil, fmt.Errorf("ab's report: %w", err)
		}
	}
	l.Finished = complete - l.Failed
	return []loop{l}, nil
}

// parseWrk reads wrk's report. It leaves the line of errors out when there are none.
func parseWrk(text []byte) ([]loop, error) {
	m := wrkTotal.FindSubmatch(text)
	if m == nil {
		return nil, fmt.Errorf("wrk's report has no line like %v", wrkTotal)
	}
	var l loop
	var err error
	if l.Finished, err = strconv.Atoi(string(m[1])); err != nil {
		return nil, fmt.Errorf("wrk's report: %w", err)
	}
	if l.Seconds, err = strconv.ParseFloat(string(m[2]), 64); err != nil {
		return nil, fmt.Errorf("wrk's report: %w", err)
	}
	l.Seconds *= map[string]float64{"ms": 0.001, "s": 1, "m": 60}[string(m[3])]
	if m := wrkErrors.FindSubmatch(text); m != nil {
		for _, field := range m[1:] {
			n, err := strconv.Atoi(string(field))
			if err != nil {
				return nil, fmt.Errorf("wrk's report: %w", err)
			}
			l.Failed += n
		}
	}
	return []loop{l}, nil
}
