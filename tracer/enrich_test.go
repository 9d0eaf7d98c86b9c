package tracer

import (
	"slices"
	"testing"

	"github.com/twtrace/twtrace/bpf"
)

// TestEnrichmentsNameEveryProgram: one that no row names would never be attached.
func TestEnrichmentsNameEveryProgram(t *testing.T) {
	spec, err := bpf.LoadEnrich()
	if err != nil {
		t.Fatal(err)
	}
	core, err := bpf.LoadProbes()
	if err != nil {
		t.Fatal(err)
	}
	named := make(map[string]bool)
	for _, row := range enrichments {
		for _, name := range row.programs {
			if spec.Programs[name] == nil || named[name] {
				t.Errorf("program %s of %s does not exist, or is another row's too", name, row.fact)
			}
			named[name] = true
		}
		if core.Variables[row.noted] == nil {
			t.Errorf("%s: there is no variable %s", row.fact, row.noted)
		}
	}
	for name := range spec.Programs {
		if !named[name] {
			t.Errorf("no row names program %s", name)
		}
	}
	for name := range spec.Maps {
		if name[0] != '.' && core.Maps[name] != nil && !slices.Contains(sharedMaps, name) {
			t.Errorf("both objects have a map %s, each its own", name)
		}
	}
	for _, name := range sharedMaps {
		if spec.Maps[name] == nil || core.Maps[name] == nil {
			t.Errorf("map %s can't be shared", name)
		}
	}
}
