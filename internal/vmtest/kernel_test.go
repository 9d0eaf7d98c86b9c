package vmtest

import (
	"strings"
	"testing"
)

func TestChoose(t *testing.T) {
	for _, tt := range []struct {
		list string
		want string // names; or what the error says
		bad  bool
	}{
		{list: "6.1", want: "6.1"},
		{list: "6.12 6.1", want: "6.12 6.1"},
		{list: "6.1, 6.12,newest", want: "6.1 6.12 newest"},
		{list: "6.1 6.12 6.1", want: "6.1 6.12"},
		{list: "all", want: "5.10 6.1 6.12 6.18 newest"},
		{list: "6.2", want: `"6.2" is none of all, 5.10, 6.1`, bad: true},
		{list: " ", want: "names no kernel", bad: true},
	} {
		t.Run(tt.list, func(t *testing.T) {
			kernels, err := Choose(tt.list)
			if tt.bad {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error %v, want one that says %q", err, tt.want)
				}
				return
			}
			var names []string
			for _, k := range kernels {
				names = append(names, k.Name)
			}
			if got := strings.Join(names, " "); err != nil || got != tt.want {
				t.Errorf("%q and %v, want %q", got, err, tt.want)
			}
		})
	}
}
