// Package testenv tells a test what the machine it runs on can do.
//
//	func TestPair(t *testing.T) {
//		testenv.Require(t, testenv.NetNS, testenv.Veth)
//		…
//	}
//
// On a machine that lacks one of them the test is skipped, and says what is
// missing. A skip that nobody looks at would hide a test forever, so a machine
// that is known to be able names its capabilities in the environment, and there
// a lack fails the test:
//
//	TWTRACE_REQUIRE=root,netns,veth,bpf go test ./...
//	TWTRACE_REQUIRE=all go test ./...
//
// A capability is a row of one table: its name, and a probe that says what is
// missing. The probes try the thing itself where they can, share no code with
// what they guard, and run once a process.
package testenv
