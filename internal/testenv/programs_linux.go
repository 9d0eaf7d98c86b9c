package testenv

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

// Programs returns the BPF programs that a process holds, from its fdinfo
// (bpf_prog_show_fdinfo). The process is a number, or "self".
func Programs(t testing.TB, process string) (ids []ebpf.ProgramID) {
	t.Helper()
	paths, err := filepath.Glob("/proc/" + process + "/fdinfo/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		text, err := os.ReadFile(p)
		if err != nil {
			continue // closed meanwhile: Glob itself had a file open
		}
		for line := range strings.Lines(string(text)) {
			if number, ok := strings.CutPrefix(line, "prog_id:"); ok {
				id, err := strconv.ParseUint(strings.TrimSpace(number), 10, 32)
				if err != nil {
					t.Fatal(err)
				}
				ids = append(ids, ebpf.ProgramID(id))
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// ProgramsLeft returns those of the programs that the kernel still has. It never
// gives a number twice.
func ProgramsLeft(t testing.TB, ids []ebpf.ProgramID) (left []ebpf.ProgramID) {
	t.Helper()
	for _, id := range ids {
		p, err := ebpf.NewProgramFromID(id)
		switch {
		case err == nil:
			left = append(left, id)
			p.Close()
		case !errors.Is(err, os.ErrNotExist):
			t.Fatal(err)
		}
	}
	return left
}
