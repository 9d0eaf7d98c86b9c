package vmtest

import (
	"fmt"
	"slices"
	"strings"
)

// Kernel is a row of the matrix.
type Kernel struct {
	// Name is what TWTRACE_VM knows it by.
	Name string
	// Suites are the Debian suites that are asked for it.
	Suites []string
	// Series is the begin of its release, "6.1.". Empty: the newest of the suites.
	Series string
	// Refused says that twtrace can't trace here: it has to say so, with exit code
	// 4, and no other test is run.
	Refused bool
	// CX16 gives the machine's processors CMPXCHG16B. See machine.arguments.
	CX16 bool
}

// Kernels are those that twtrace is run on. What they have in common is Debian's
// cloud flavour, in which a virtual machine needs no driver from a module.
var Kernels = []Kernel{
	// Older than the kernels that twtrace is written for.
	{Name: "5.10", Suites: []string{"bullseye-security", "bullseye"}, Series: "5.10.", Refused: true},
	{Name: "6.1", Suites: []string{"bookworm-security", "bookworm"}, Series: "6.1."},
	{Name: "6.12", Suites: []string{"trixie-security", "trixie"}, Series: "6.12."},
	{Name: "6.18", Suites: []string{"trixie-backports", "trixie"}, Series: "6.18."},
	{Name: "newest", Suites: []string{"sid", "trixie-backports"}, CX16: true},
}

// Choose returns the kernels that a list names, separated by spaces or commas, or
// all of them for "all".
func Choose(list string) ([]Kernel, error) {
	var chosen []Kernel
	for _, name := range strings.FieldsFunc(list, func(r rune) bool { return r == ' ' || r == ',' }) {
		if name == "all" {
			return Kernels, nil
		}
		i := slices.IndexFunc(Kernels, func(k Kernel) bool { return k.Name == name })
		if i < 0 {
			var known []string
			for _, k := range Kernels {
				known = append(known, k.Name)
			}
			return nil, fmt.Errorf("%q is none of all, %s", name, strings.Join(known, ", "))
		}
		if !slices.ContainsFunc(chosen, func(k Kernel) bool { return k.Name == name }) {
			chosen = append(chosen, Kernels[i])
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("%q names no kernel", list)
	}
	return chosen, nil
}
