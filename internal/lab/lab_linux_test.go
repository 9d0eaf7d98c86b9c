package lab

import (
	"testing"

	"github.com/twtrace/twtrace/internal/testenv"
)

// TestEntries runs each entry of the catalogue, scaled, and compares its claims with what is expected of them.
func TestEntries(t *testing.T) {
	for _, e := range Catalogue {
		t.Run(e.Name, func(t *testing.T) {
			testenv.Require(t, testenv.Root, testenv.NetNS, testenv.Veth, testenv.BPF)
			if e.Seconds >= 30 {
				t.Parallel()
			}
			if testing.Short() && e.Seconds >= 10 {
				t.Skip("it takes longer than a test with -short may")
			}
			a := Run(t.Context(), []Entry{e}, Options{Version: "test"})[0]
			if again := a.Unexpected(); a.Error != "" || len(again) > 0 {
				// Others may have had the machine while something was timed: what is not as expected is so twice.
				t.Logf("once more: error %q, unexpected %d: %+v", a.Error, len(again), again)
				a = Run(t.Context(), []Entry{e}, Options{Version: "test"})[0]
			}
			if a.Error != "" {
				t.Fatal(a.Error)
			}
			if a.Answer == "" || len(a.Claims) == 0 {
				t.Errorf("no answer, or no claims: %+v", a)
			}
			for i := range a.Claims {
				c := &a.Claims[i]
				t.Logf("%s: %v; %s", c.Key, c.Holds, c.Evidence.line())
			}
			for _, c := range a.Unexpected() {
				t.Errorf("%s %s, which is not what is expected: %s; %v", c.Key, c.Holds, c.Text, c.Evidence)
			}
			for key, value := range a.Evidence {
				t.Logf("%s: %v", key, value)
			}
		})
	}
}
