package run

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/report"
	"github.com/twtrace/twtrace/internal/verdict"
)

// printed is all that a summary prints.
func printed(t *testing.T, s *report.Summary) string {
	t.Helper()
	var b bytes.Buffer
	if err := report.NewText(&b, true).Write(s); err != nil {
		t.Fatal(err)
	}
	if err := s.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// checkRecording compares a run's summary with what its recording gives: the one that it ends with, byte for byte, and,
// with the end cut off, what the records add up to.
func checkRecording(t *testing.T, s *report.Summary, file string) {
	t.Helper()
	r, err := recording.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, c, err := report.FromRecording(r)
	if err != nil {
		t.Fatal(err)
	}
	if !c.Complete() || c.Footer.Stopped != nil {
		t.Errorf("the recording is not complete: %+v", c)
	}
	if diff := cmp.Diff(printed(t, s), printed(t, got)); diff != "" {
		t.Errorf("the report of the recording is another (-run +report):\n%s", diff)
	}
	if n := c.Records[recording.TableAttempts]; n != uint64(s.Totals.Attempts) {
		t.Errorf("%d attempts are recorded, of %d", n, s.Totals.Attempts)
	}
	if n, want := c.Records[recording.TableEvents], s.Events.Recorded+s.Events.Rescued; n < want {
		t.Errorf("%d events are recorded, of %d", n, want)
	}

	if err := os.Truncate(file, c.Bytes-1); err != nil {
		t.Fatal(err)
	}
	cut, err := recording.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer cut.Close()
	again, c, err := report.FromRecording(cut)
	if err != nil {
		t.Fatal(err)
	}
	if c.Footer != nil || c.Cut == 0 {
		t.Errorf("a recording whose end was cut off has %d bytes cut and the footer %v", c.Cut, c.Footer)
	}
	compareReplay(t, s, again)
}

// compareReplay compares what the run added up with what the records add up to. The latter lack what is no
// record: the server's account, the comparison with the kernel, what the storm counted besides attempts.
func compareReplay(t *testing.T, s, again *report.Summary) {
	t.Helper()
	if len(again.Notes) == 0 || again.StoppedBy != report.StoppedByEnd {
		t.Errorf("nothing says that the recording was cut: notes %q, stopped by %q", again.Notes, again.StoppedBy)
	}
	without := cmpopts.IgnoreFields
	opts := cmp.Options{
		// A forecast goes by what had come when it was made, which is another moment for each.
		without(report.Summary{}, "Interrupted", "StoppedBy", "Server", "CrossCheck", "Notes", "Clients", "Forecast"),
		without(report.Totals{}, "PortsSkipped", "HeldBack"),
		without(report.Events{}, "Programs", "Seen", "Recorded", "LostRing", "SkippedRecursion", "Rescued", "LostByKind"),
		// Which of several that failed at once was the first, and the events of which are shown, depends on the order in
		// which attempts and events met.
		cmpopts.IgnoreMapEntries(func(key string, _ any) bool { return volatile[key] }),
		without(report.Failure{}, "Events", "Census", "LastCensus", "Peer"),
		without(report.Slow{}, "Events"),
		// A loop's end is noted between events: those of the same moment may be on either side.
		without(report.Loop{}, "TimeWaitNow", "PortsInUse"),
	}
	if diff := cmp.Diff(noAccount(plain(t, s)), noAccount(plain(t, again)), opts); diff != "" {
		t.Errorf("the records add up to something else (-run +records):\n%s", diff)
	}
}

var volatile = map[string]bool{
	"time_wait": true, "open": true, "last_time_wait": true, "last_open": true, "example_cookie": true, "with_events": true,
}

// noAccount takes back what only the server's account tells.
func noAccount(s *report.Summary) *report.Summary {
	for i := range s.Failures {
		if f := &s.Failures[i]; f.Detail == verdict.InAcceptQueue {
			f.Cause, f.Detail = verdict.TimedOut, ""
		}
		if f := &s.Failures[i]; f.Cause == verdict.TimedOut {
			f.Advice = nil
		}
	}
	return s
}

// plain is a summary as its JSON form gives it back.
func plain(t *testing.T, s *report.Summary) *report.Summary {
	t.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	back, err := report.Decode(text)
	if err != nil {
		t.Fatal(err)
	}
	return back
}

// record has a run recorded, in a file that is gone with the test.
func record(t *testing.T, opts *Options) (file string) {
	t.Helper()
	opts.Record.File = filepath.Join(t.TempDir(), "run.twt")
	return opts.Record.File
}
