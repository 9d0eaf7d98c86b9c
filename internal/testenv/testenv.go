package testenv

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Cap is something that a machine can do for a test, by the name that
// TWTRACE_REQUIRE knows it by.
type Cap string

const (
	// Root is CAP_SYS_ADMIN and CAP_NET_ADMIN in effect.
	Root Cap = "root"
	// NetNS is the making of network namespaces.
	NetNS Cap = "netns"
	// Veth is the making of veth links inside them.
	Veth Cap = "veth"
	// BPF is CAP_BPF and CAP_PERFMON in effect (or CAP_SYS_ADMIN, which
	// includes them) and a kernel that publishes its BTF.
	BPF Cap = "bpf"
	// Fentry is the attaching of BPF programs to kernel functions, which lockdown
	// refuses.
	Fentry Cap = "fentry"
	// CC is a C compiler (cc, gcc or clang) that builds programs, with the C library's headers.
	CC Cap = "cc"
	// DuckDB is node with the module @duckdb/node-api, in a directory that NODE_PATH names.
	DuckDB Cap = "duckdb"
	// Tshark is Wireshark's tshark, which reads captures.
	Tshark Cap = "tshark"
	// IPRoute2 is iproute2's ss and nstat, which ask the kernel themselves.
	IPRoute2 Cap = "iproute2"
)

// row is one capability. Its probe returns nil, or what is missing.
type row struct {
	name  Cap
	probe func() error
}

var table = []row{
	{Root, sync.OnceValue(probeRoot)},
	{NetNS, sync.OnceValue(probeNetNS)},
	{Veth, sync.OnceValue(probeVeth)},
	{BPF, sync.OnceValue(probeBPF)},
	{Fentry, sync.OnceValue(probeFentry)},
	{CC, sync.OnceValue(probeCC)},
	{DuckDB, sync.OnceValue(probeDuckDB)},
	{Tshark, sync.OnceValue(probeTshark)},
	{IPRoute2, sync.OnceValue(probeIPRoute2)},
}

// requireEnv names the capabilities that this machine is known to have,
// separated by commas, or "all".
const requireEnv = "TWTRACE_REQUIRE"

// Require skips the test if the machine lacks one of caps, and fails it if
// TWTRACE_REQUIRE names one that it lacks. A name in TWTRACE_REQUIRE that is no
// capability fails the test too. It panics if caps has one that is not in this
// package.
func Require(t testing.TB, caps ...Cap) {
	t.Helper()
	require(t, table, os.Getenv(requireEnv), caps)
}

func require(t testing.TB, table []row, env string, caps []Cap) {
	t.Helper()
	required, err := parseRequired(table, env)
	if err != nil {
		t.Fatal(err)
	}
	var lacks []string
	fail := false
	for _, c := range caps {
		err := probe(table, c)
		if err == nil {
			continue
		}
		lack := fmt.Sprintf("%s: %v", c, err)
		if required(c) {
			fail = true
			lack += fmt.Sprintf(" (and %s says that this machine has it)", requireEnv)
		}
		lacks = append(lacks, lack)
	}
	switch {
	case fail:
		t.Fatalf("this machine lacks %s", strings.Join(lacks, "; "))
	case len(lacks) > 0:
		t.Skipf("this machine lacks %s", strings.Join(lacks, "; "))
	}
}

func probe(table []row, c Cap) error {
	for _, row := range table {
		if row.name == c {
			return row.probe()
		}
	}
	panic(fmt.Sprintf("testenv: %q is no capability", c))
}

// parseRequired reads the value of TWTRACE_REQUIRE.
func parseRequired(table []row, list string) (required func(Cap) bool, err error) {
	var known, named []Cap
	for _, row := range table {
		known = append(known, row.name)
	}
	for name := range strings.SplitSeq(list, ",") {
		switch c := Cap(strings.TrimSpace(name)); {
		case c == "":
		case c == "all":
			named = append(named, known...)
		case slices.Contains(known, c):
			named = append(named, c)
		default:
			return nil, fmt.Errorf("%s: %q is none of all, %v", requireEnv, c, known)
		}
	}
	return func(c Cap) bool { return slices.Contains(named, c) }, nil
}
