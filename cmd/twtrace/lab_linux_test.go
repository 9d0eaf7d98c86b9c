package main

import (
	"slices"
	"testing"

	"kernel.org/pub/linux/libs/security/libcap/cap"

	"github.com/twtrace/twtrace/internal/lab"
	"github.com/twtrace/twtrace/internal/privilege"
	"github.com/twtrace/twtrace/internal/testenv"
)

// labNeed is what privilege says of entries.
func labNeed(asks lab.Asks) privilege.Need {
	return privilege.Lab(asks&lab.Packets != 0, asks&lab.TimeWaits != 0)
}

// TestLabNeeds: entries find what is expected with what their rows ask for, and with no more.
func TestLabNeeds(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.Veth, testenv.BPF)
	const seconds = 5 // the rest of the catalogue was measured by hand
	byAsks := make(map[lab.Asks][]string)
	for _, e := range lab.Catalogue {
		if e.Seconds <= seconds {
			byAsks[e.Asks] = append(byAsks[e.Asks], e.Name)
		}
	}
	if len(byAsks) < 3 {
		t.Fatalf("%v: the test does not see what it is for", byAsks)
	}
	for asks, names := range byAsks {
		need := labNeed(asks)
		t.Run(privilege.Names(need.Must), func(t *testing.T) {
			args := slices.Concat([]string{"lab", "run", "-o", "json"}, names)
			cmd := command(t, worldPlain, args...)
			asUserWith(cmd, need.Must)
			code, stdout, stderr := finish(t, cmd)
			if code == exitFailed { // what is not as expected is so twice: others may have had the machine
				t.Logf("once more: %s", stderr)
				cmd = command(t, worldPlain, args...)
				asUserWith(cmd, need.Must)
				code, stdout, stderr = finish(t, cmd)
			}
			answers, err := lab.Read([]byte(stdout))
			if err != nil || code != exitDone || len(answers) != len(names) {
				t.Errorf("exit code %d, %d answers of %d: %v; stderr %q", code, len(answers), len(names), err, stderr)
			}
			for i := range answers {
				for _, c := range answers[i].Claims {
					if c.Holds == lab.NotObservable {
						t.Errorf("%s %s is not observable: %v", answers[i].Name, c.Key, c.Evidence)
					}
				}
			}
		})
	}
}

// TestLabLacks: what is missing is named before anything is measured.
func TestLabLacks(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.Veth, testenv.BPF)
	must := privilege.LabAll.Must
	for i, c := range must {
		name := privilege.Names([]privilege.Capability{c})
		t.Run(name, func(t *testing.T) {
			if c == cap.SYSLOG && addressesForAll(t) {
				t.Skip("this kernel shows its symbols' addresses to everybody")
			}
			cmd := command(t, worldPlain, "lab", "run", "--all")
			asUserWith(cmd, slices.Concat(must[:i], must[i+1:], privilege.LabAll.Should))
			code, stdout, stderr := finish(t, cmd)
			wantLack(t, code, stdout, stderr, "has no "+name+")", "sudo twtrace lab", "twtrace doctor")
		})
	}
}
