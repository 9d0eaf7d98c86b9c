package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/clock"
	"github.com/twtrace/twtrace/internal/recording"
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
	counted := 0
	var worstLag, worstAge time.Duration
	for range kills {
		n, lag, age := killOnce(t)
		counted += n
		worstLag, worstAge = max(worstLag, lag), max(worstAge, age)
	}
	if counted == 0 {
		t.Error("the kernel counted no connects")
	}
	t.Logf("%d kills, %d connects; at worst an event was seen in the file %v after it happened, and the last was of %v before the kill", kills, counted, worstLag, worstAge)
}

// killOnce records a storm and kills it. It returns how many connects the kernel counted meanwhile, how long it
// took until what had happened at a moment was in the file, and how long before the end of the process the last record was.
func killOnce(t *testing.T) (counted int, lag, age time.Duration) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "storm.twt")
	cmd := command(t, worldPlain, "run", "--linger", "--connections", "5000", "--loops", "1000000", "-w", file)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() {
		_ = cmd.Process.Kill()
		if ended != nil {
			<-ended
		}
	}()
	// tail waits until the file has an event after a moment, and some attempts.
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
			if r, err := recording.Open(file); err == nil {
				_, err := r.Scan(recording.Query{Want: look}, nil)
				_ = r.Close()
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
	lag = time.Duration(clock.Mono() - to)
	time.Sleep(rand.N(50 * time.Millisecond))
	there, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	killed := clock.Mono()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ended
	ended = nil

	c, opens := readKilled(t, file, there, from, to)
	if opens < after-before {
		t.Errorf("%d connects in the recording, the kernel counted %d", opens, after-before)
	}
	code, stdout, stderr := finish(t, command(t, worldPlain, "report", file))
	text := strings.Join(strings.Fields(stdout), " ") // lines are broken anywhere
	if code != exitIncomplete || !strings.Contains(text, "The recording is truncated") ||
		!strings.Contains(text, fmt.Sprintf("%d events", c.Records[recording.TableEvents])) {
		t.Errorf("report: code %d\n%s%s", code, stdout, stderr)
	}
	return after - before, lag, time.Duration(killed - c.LastNS)
}

// readKilled reads what a killed process left, of which there was some before, and counts the connects
// between two moments.
func readKilled(t *testing.T, file string, there []byte, from, to int64) (c *recording.Condition, opens int) {
	t.Helper()
	now, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(now) < len(there) || string(now[:len(there)]) != string(there) {
		t.Errorf("%d bytes were in the file, now it has %d and others", len(there), len(now))
	}
	r, err := recording.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	next := uint64(1)
	c, err = r.Scan(recording.Query{}, func(b *recording.Batch) error {
		for i := range b.Events {
			ev := &b.Events[i]
			if ev.Seq != next {
				t.Errorf("event %d, want %d", ev.Seq, next)
			}
			next = ev.Seq + 1
			if ev.Kind == tcp.KindState && ev.New == tcp.SynSent && ev.MonoNS >= from && ev.MonoNS <= to {
				opens++
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.Footer != nil || c.Complete() || len(c.Damage) > 0 || c.MissingSegments > 0 {
		t.Errorf("condition %+v", c)
	}
	return c, opens
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
	if code != 0 || !strings.Contains(stdout, "JOINED     15000 of 15000") {
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
	if there == 0 || dropped == 0 || !strings.Contains(stdout, fmt.Sprintf("%d recorded", there+dropped)) {
		t.Errorf("%d events in the recording, %d dropped:\n%s", there, dropped, stdout)
	}
}
