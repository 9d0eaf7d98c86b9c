package tracer

import (
	"math"
	"strings"
	"testing"
)

func TestOptionsValidate(t *testing.T) {
	for _, tt := range []struct {
		name string
		o    Options
		says []string // none: valid
	}{
		{name: "zero"},
		{name: "all", o: Options{NetNS: make8(1), RingSize: 4096}},
		{name: "large ring", o: Options{RingSize: 1 << 30}},
		{name: "too many namespaces", o: Options{NetNS: append(make8(1), 9)}, says: []string{"8 namespaces, not 9"}},
		{name: "no namespace", o: Options{NetNS: []NetNS{1, 0}}, says: []string{"never 0"}},
		{name: "small ring", o: Options{RingSize: 2048}, says: []string{"not 2048"}},
		{name: "odd ring", o: Options{RingSize: 4097}, says: []string{"not 4097"}},
		{name: "negative ring", o: Options{RingSize: -4096}, says: []string{"not -4096"}},
		{name: "most negative ring", o: Options{RingSize: math.MinInt}, says: []string{"power of two"}},
		{
			name: "every problem at once", o: Options{NetNS: append(make8(0), 1), RingSize: 3},
			says: []string{"8 namespaces, not 9", "never 0", "not 3"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.o.Validate()
			if (err != nil) != (len(tt.says) > 0) {
				t.Fatalf("error %v, want one about %q", err, tt.says)
			}
			for _, s := range tt.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("error %q does not say %q", err, s)
				}
			}
			if err == nil {
				return
			}
			if _, openErr := Open(tt.o); openErr == nil || openErr.Error() != err.Error() {
				t.Errorf("Open: %v, want %v", openErr, err)
			}
		})
	}
}

// make8 is as many namespaces as one trace can be limited to.
func make8(ns NetNS) []NetNS {
	all := make([]NetNS, MaxNetNS)
	for i := range all {
		all[i] = ns
	}
	return all
}
