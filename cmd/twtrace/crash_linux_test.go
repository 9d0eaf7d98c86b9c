package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/clock"
	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/report"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/testenv"
)

// killsEnv is how many storms TestKilled kills; 50 take some minutes.
const killsEnv = "TWTRACE_KILLS"

// TestKilled kills a storm that is recorded, at random moments. What had been in the file is still there, with every
// connection that the kernel itself had counted, and report says that it is not the whole.
func TestKilled(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.Veth, testenv.BPF)
	kills := 3
	if text := os.Getenv(killsEnv); text != "" {
		var err error
		if kills, err = strconv.Atoi(text); err != nil {
			t.Fatalf("%s: %v", killsEnv, err)
		}
	}
	counted, worst := 0, time.Duration(0)
	for range kills {
		n, lag := killOnce(t)
		counted += n
		worst = max(worst, lag)
	}
	if counted == 0 {
		t.Error("the kernel counted no connects")
	}
	t.Logf("%d kills, %d connects; no event was missing in a file longer than %v after it happened", kills, counted, worst)
}

// seen is the latest event that was in a file at a moment.
type seen struct{ at, last int64 }

// killOnce records a storm and kills it. It returns how many connects the kernel counted meanwhile, and for how
// long, at most, an event had happened and was not in the file.
func killOnce(t *testing.T) (counted int, lag time.Duration) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "storm.twt")
	cmd := command(t, worldPlain, "run", "--linger", "--connections", "5000", "--loops", "1000000", "-w", file)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // killed
	}()
	defer func() {
		_ = cmd.Process.Kill()
		<-ended
	}()
	// tail waits until the file has an event after a moment, and some attempts.
	var looks []seen
	tail := func(moment int64) {
		t.Helper()
		var last int64
		var attempts int
		look := func(s *recording.Segment) bool {
			switch s.Table {
			case recording.TableEvents:
				last = max(last, s.MaxNS)
			case recording.TableAttempts:
				attempts += s.Count
			}
			return false
		}
		for end := time.Now().Add(pollLimit); ; time.Sleep(time.Millisecond) {
			at := clock.Mono()
			last, attempts = 0, 0
			if r, err := recording.Open(file); err == nil {
				_, err := r.Scan(recording.Query{Want: look}, nil)
				_ = r.Close()
				if last > 0 {
					looks = append(looks, seen{at, last})
				}
				if err == nil && last > moment && attempts > 100 {
					return
				}
			}
			if time.Now().After(end) {
				t.Fatal("nothing is written")
			}
		}
	}
	tail(0)

	from := clock.Mono()
	before := activeOpens(t, cmd.Process.Pid)
	time.Sleep(rand.N(700 * time.Millisecond)) // the moment
	after := activeOpens(t, cmd.Process.Pid)
	to := clock.Mono()
	tail(to)
	time.Sleep(rand.N(50 * time.Millisecond))
	there, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ended

	c, events := readKilled(t, file, there)
	opens := 0
	for i := range events {
		if ev := &events[i]; ev.Kind == tcp.KindState && ev.New == tcp.SynSent && ev.MonoNS >= from && ev.MonoNS <= to {
			opens++
		}
	}
	if opens < after-before {
		t.Errorf("%d connects in the recording, the kernel counted %d", opens, after-before)
	}
	code, stdout, stderr := finish(t, command(t, worldPlain, "report", file))
	text := strings.Join(strings.Fields(stdout), " ") // lines are broken anywhere
	if code != exitIncomplete || !strings.Contains(text, "The recording is truncated") ||
		!strings.Contains(text, fmt.Sprintf("%d events", c.Records[recording.TableEvents])) {
		t.Errorf("report: code %d\n%s%s", code, stdout, stderr)
	}
	slices.SortFunc(events, func(a, b tcp.Event) int { return cmp.Compare(a.MonoNS, b.MonoNS) })
	for _, look := range looks {
		next, _ := slices.BinarySearchFunc(events, look.last+1, func(ev tcp.Event, ns int64) int { return cmp.Compare(ev.MonoNS, ns) })
		if next < len(events) {
			lag = max(lag, time.Duration(look.at-events[next].MonoNS))
		}
	}
	return after - before, lag
}

// readKilled reads what a killed process left, of which there was some before.
func readKilled(t *testing.T, file string, there []byte) (c *recording.Condition, events []tcp.Event) {
	t.Helper()
	now, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(now) < len(there) || string(now[:len(there)]) != string(there) {
		t.Errorf("%d bytes were in the file, now it has %d and others", len(there), len(now))
	}
	_, events, c = eventsOf(t, file)
	for i := range events {
		if events[i].Seq != uint64(i+1) {
			t.Fatalf("event %d, want %d", events[i].Seq, i+1)
		}
	}
	if c.Footer != nil || c.Complete() || len(c.Damage) > 0 || c.MissingSegments > 0 {
		t.Errorf("condition %+v", c)
	}
	return c, events
}

// activeOpens is how many connects the kernel counted (Tcp ActiveOpens) in the namespaces of a process's threads that
// are not in ours.
func activeOpens(t *testing.T, pid int) int {
	t.Helper()
	ours, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	all, seen := 0, map[string]bool{ours: true}
	for _, task := range tasks {
		ns, err := os.Readlink(filepath.Join(task, "ns/net"))
		if err != nil || seen[ns] {
			continue // the thread has ended, or it is counted
		}
		text, err := os.ReadFile(filepath.Join(task, "net/snmp"))
		if err != nil {
			continue
		}
		seen[ns] = true
		all += snmpField(t, string(text), "Tcp:", "ActiveOpens")
	}
	if len(seen) == 1 {
		t.Fatal("no thread is in another namespace")
	}
	return all
}

// snmpField is a number of /proc/net/snmp, which has a line of names and one of values.
func snmpField(t *testing.T, text, group, name string) int {
	t.Helper()
	var names []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != group {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i := range names {
			if names[i] == name && i < len(fields) {
				n, err := strconv.Atoi(fields[i])
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
		}
	}
	t.Fatalf("no %s %s", group, name)
	return 0
}

// TestRunOnFullDisk: the disk is full in the middle of a storm, which goes on, and says so once.
func TestRunOnFullDisk(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.Veth, testenv.BPF)
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Skipf("fsopen: %v", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "size", "700k"); err != nil {
		t.Fatal(err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		t.Fatal(err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0) // mounted nowhere: it is gone with the last who has it
	if err != nil {
		t.Fatal(err)
	}
	disk := os.NewFile(uintptr(mount), "disk")
	defer disk.Close()

	cmd := command(t, worldPlain, "run", "--linger", "--connections", "5000", "--loops", "3", "-w", "/proc/self/fd/3/storm.twt")
	cmd.ExtraFiles = []*os.File{disk}
	code, stdout, stderr := finish(t, cmd)
	if code != exitIncomplete || !strings.Contains(stdout, "JOINED     15000 of 15000") {
		t.Errorf("code %d\n%s", code, stdout)
	}
	if n := strings.Count(stderr, "the recording ends here"); n != 1 || !strings.Contains(stderr, unix.ENOSPC.Error()) {
		t.Errorf("said %d times: %s", n, stderr)
	}
	r, err := recording.Open(fmt.Sprintf("/proc/self/fd/%d/storm.twt", mount))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c, err := r.Check()
	if err != nil {
		t.Fatal(err)
	}
	if !c.Complete() || c.Footer.Stopped == nil {
		t.Fatalf("condition %+v", c)
	}
	there, dropped := c.Records[recording.TableEvents], c.Footer.Stopped.Dropped["events"]
	var s report.Summary
	if err := json.Unmarshal(c.Footer.Summary, &s); err != nil {
		t.Fatal(err)
	}
	if there == 0 || dropped == 0 || there+dropped != s.Events.Recorded+s.Events.Rescued {
		t.Errorf("%d events in the recording, %d dropped:\n%s", there, dropped, stdout)
	}
}
