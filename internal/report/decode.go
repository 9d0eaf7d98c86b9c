package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// Decode reads the JSON form of a summary, so that it is written again byte for byte, as JSON and as text.
func Decode(text []byte) (*Summary, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber() // evidence may be cookies, which a float64 does not hold
	s := new(Summary)
	if err := dec.Decode(s); err != nil {
		return nil, fmt.Errorf("read a summary: %w", err)
	}
	if s.Schema != Schema {
		return nil, fmt.Errorf("read a summary: it is %q, and this twtrace reads %q", s.Schema, Schema)
	}
	for i := range s.Failures {
		for key, v := range s.Failures[i].Evidence {
			s.Failures[i].Evidence[key] = evidenceValue(key, v)
		}
	}
	return s, nil
}

// evidenceValue gives a number the type that it had: seconds are fractions, all others whole.
func evidenceValue(key string, v any) any {
	n, ok := v.(json.Number)
	if !ok {
		return v
	}
	if !strings.HasSuffix(key, "_seconds") {
		if whole, err := strconv.ParseUint(n.String(), 10, 64); err == nil {
			return whole
		}
	}
	if f, err := n.Float64(); err == nil {
		return f
	}
	return v
}
