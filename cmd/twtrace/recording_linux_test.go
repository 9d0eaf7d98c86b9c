package main

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/report"
	"github.com/twtrace/twtrace/internal/tcp"
)

// awaitFiles waits until so many files are there, and returns their names, the oldest first.
func awaitFiles(t *testing.T, pattern string, n int) []string {
	t.Helper()
	for deadline := time.Now().Add(pollLimit); ; time.Sleep(5 * time.Millisecond) {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		if len(names) >= n {
			slices.Sort(names)
			return names
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %d files %s, only %q", n, pattern, names)
		}
	}
}

// eventsOf reads all events of a recording.
func eventsOf(t *testing.T, name string) (h *recording.Header, events []tcp.Event, c *recording.Condition) {
	t.Helper()
	r, err := recording.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c, err = r.Scan(recording.Query{}, func(b *recording.Batch) error {
		events = append(events, b.Events...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return r.Header(), events, c
}

func TestTraceRecording(t *testing.T) {
	w := newTraced(t)
	file := filepath.Join(t.TempDir(), "trace.twt")
	before := w.timeWaits(t)
	r := startTrace(t, "--netns", w.path, "-w", file)
	awaitFiles(t, file, 1) // the trace has begun
	w.connect(t, 5)
	r.interrupt()
	if code := r.wait(t); code != exitDone {
		t.Fatalf("exit code %d, stderr %q", code, r.stderr)
	}
	if r.stdout.String() != "" {
		t.Errorf("lines were printed: %q", r.stdout)
	}
	recorded := account(t, r.stderr.String())
	if !strings.Contains(r.stderr.String(), "they are in "+file+"\n") {
		t.Errorf("nothing says where they are: %q", r.stderr)
	}

	var stdout, stderr bytes.Buffer
	if code := Main(t.Context(), []string{"report", file, "-o", "json"}, &stdout, &stderr); code != exitDone || stderr.Len() > 0 {
		t.Fatalf("report: exit code %d, stderr %q", code, &stderr)
	}
	var s report.Trace
	if err := json.Unmarshal(stdout.Bytes(), &s); err != nil {
		t.Fatal(err)
	}
	want := w.timeWaits(t) - before // by the kernel's own count
	if s.Schema != report.TraceSchema || s.Opened != 5 || s.Accepted != 5 || s.TimeWait.Entered != want || want != 5 {
		t.Errorf("opened %d, accepted %d, TIME_WAIT %+v; the kernel counted %d", s.Opened, s.Accepted, s.TimeWait, want)
	}
	if s.Events.Recorded != uint64(recorded) || s.Incomplete() {
		t.Errorf("account %+v, want %d recorded", s.Events, recorded)
	}
	_, events, c := eventsOf(t, file)
	if !c.Complete() || c.Footer.Next != "" {
		t.Errorf("condition %+v", c)
	}
	for i, ev := range events {
		if i > 0 && ev.Seq <= events[i-1].Seq {
			t.Fatalf("event %d follows %d", ev.Seq, events[i-1].Seq)
		}
	}
}

// TestTraceRotation: files of a recording that is rotated chain, belong to who called sudo, and each knows the owners
// of the connections in it, those from before too.
func TestTraceRotation(t *testing.T) {
	w := newTraced(t)
	path := strings.Replace(w.path, "self", strconv.Itoa(os.Getpid()), 1)
	const nobody = 65534
	dir := t.TempDir()
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	cmd := command(t, worldPlain, "trace", "--netns", path, "--no-snapshot", "-w", filepath.Join(dir, "long.twt"),
		"--rotate-age", "100ms", "--keep", "3")
	cmd.Env = append(cmd.Env, "SUDO_UID="+strconv.Itoa(nobody), "SUDO_GID="+strconv.Itoa(nobody))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	awaitFiles(t, filepath.Join(dir, "long-00001.twt"), 1)

	client, server := w.dial(t)
	// A rotation comes with the events that follow: others' connections make some.
	for names := []string{}; len(names) < 3 || names[0] == filepath.Join(dir, "long-00001.twt"); {
		w.connect(t, 1)
		names = awaitFiles(t, filepath.Join(dir, "long-*.twt"), 1)
	}
	client.Close()
	server.Close()
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v, stderr %q", err, &stderr)
	}
	account(t, stderr.String())

	names := awaitFiles(t, filepath.Join(dir, "long-*.twt"), 3)
	if len(names) != 3 {
		t.Errorf("files %q, want three: --keep 3", names)
	}
	ours := netip4(client.LocalAddr())
	var last []tcp.Event
	for i, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if uid := info.Sys().(*syscall.Stat_t).Uid; uid != nobody {
			t.Errorf("%s belongs to user %d", name, uid)
		}
		h, events, c := eventsOf(t, name)
		next := ""
		if i+1 < len(names) {
			next = filepath.Base(names[i+1])
		}
		if !c.Complete() || c.Footer.Next != next || !strings.HasSuffix(name, strconv.Itoa(h.Part)+".twt") {
			t.Errorf("%s: part %d, next %q, condition %+v", name, h.Part, c.Footer.Next, c)
		}
		if len(last) > 0 && len(events) > 0 && events[0].Seq != last[len(last)-1].Seq+1 {
			t.Errorf("%s begins with event %d, and the file before ends with %d", name, events[0].Seq, last[len(last)-1].Seq)
		}
		if len(events) > 0 {
			last = events
		}
	}
	for i := range last {
		if ev := &last[i]; ev.Tuple.Local.String() == ours {
			if ev.Owner.PID != uint32(os.Getpid()) {
				t.Errorf("the first event in its last file of the connection from %s has the owner %+v, want process %d", ours, ev.Owner, os.Getpid())
			}
			return
		}
	}
	t.Errorf("the last file has no event of the connection from %s", ours)
}

func netip4(a net.Addr) string { return a.(*net.TCPAddr).AddrPort().String() }
