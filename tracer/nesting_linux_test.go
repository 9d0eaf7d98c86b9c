package tracer

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/tcp"
)

// TestNesting makes programs interrupt each other: segments are handed to the
// other CPU (RPS), whose interrupt runs the socket's side of them on top of whatever
// program is running there. The account has to agree with what the kernel's own
// event tracer counted, which has room for interrupts of each kind, in every run.
func TestNesting(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("one CPU does not interrupt itself")
	}
	many, few := 20, 5
	if os.Getenv("TWTRACE_DISPOSABLE") != "" {
		many, few = 4, 1 // an emulated machine, twenty times slower
	}
	var skipped uint64
	for _, tt := range []struct {
		name string
		runs int
		ring int
	}{
		{"a ring with room", many, 0},
		{"a full ring", few, minRing},
	} {
		for run := range tt.runs {
			t.Run(fmt.Sprintf("%s/%d", tt.name, run+1), func(t *testing.T) {
				skipped += nest(t, tt.ring)
			})
		}
	}
	if !t.Failed() && skipped == 0 {
		t.Error("nothing was skipped: nothing was interrupted")
	}
	t.Logf("%d skipped", skipped)
}

// nest is one run; it returns how many events main programs were skipped for.
func nest(t *testing.T, ring int) uint64 {
	// A port of its own: the event tracer sees every namespace.
	port := uint16(1024 + rand.IntN(20000))
	s := newScene(t, setup{
		port:    port,
		Options: netlab.Options{Kind: netlab.Loopback},
		opts:    Options{RingSize: ring, Kinds: connectionKinds},
	})
	s.busy = true
	spread(s)
	witnesses := make(map[Kind]*witness)
	for kind, w := range map[Kind][2]string{
		tcp.KindState:       {"sock/inet_sock_set_state", "protocol == 6 && "},
		tcp.KindRstReceived: {"tcp/tcp_receive_reset", ""},
		tcp.KindRetransmit:  {"tcp/tcp_retransmit_skb", ""},
	} {
		witnesses[kind] = newWitness(t, w[0], fmt.Sprintf("%s(sport == %d || dport == %d)", w[1], port, port))
	}
	s.storm(2, 1150)
	s.settle()
	for _, w := range witnesses {
		w.stop()
	}
	s.stop()
	checkAccount(t, s.stats, s.events)
	st := s.stats
	for kind, w := range witnesses {
		missing := w.seen - st.ByKind[kind] - st.LostByKind[kind]
		ok := missing == 0 || missing == w.onInit
		if ring != 0 || canPreempt() {
			// What a twin found no room for is among the skipped.
			ok = missing <= w.onInit+st.SkippedRecursion-min(st.Rescued, st.SkippedRecursion)
		}
		if !ok {
			t.Errorf("%v: %d recorded and %d lost, of %d, of which %d on top of process 1", kind, st.ByKind[kind], st.LostByKind[kind],
				w.seen, w.onInit)
		}
	}
	// More can be rescued than were skipped: a twin that lost the note of another namespace's
	// event counts as skipped there what was not.
	if ring == 0 && (st.SkippedRecursion > st.Rescued && !canPreempt() || st.LostRing != 0) {
		t.Errorf("%d skipped, %d rescued; %d lost", st.SkippedRecursion, st.Rescued, st.LostRing)
	}
	t.Logf("%d changes of state, %d on top of process 1; %d lost, %d skipped, %d rescued, %d duplicates",
		witnesses[tcp.KindState].seen, witnesses[tcp.KindState].onInit, st.LostRing, st.SkippedRecursion, st.Rescued, st.Duplicates)
	return st.SkippedRecursion
}

// canPreempt reports whether a task can be preempted in a tracepoint, so that main program
// and twin can both be held up: what comes then is skipped, and said to be (KNOWN_ISSUES.md).
func canPreempt() bool {
	var uts unix.Utsname
	var major int
	_ = unix.Uname(&uts)
	_, err := fmt.Sscanf(unix.ByteSliceToString(uts.Release[:]), "%d.", &major)
	return err == nil && major >= 7
}

// witness counts a tracepoint with the kernel's event tracer, and how often it was hit
// in a softirq on top of a thread of process 1: there are machines whose kernel then runs no
// BPF program (KNOWN_ISSUES.md).
type witness struct {
	all, init    *eventTracer
	seen, onInit uint64 // complete once stop has returned
}

func newWitness(t *testing.T, event, filter string) *witness {
	t.Helper()
	var threads []string
	tasks, err := os.ReadDir("/proc/1/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		threads = append(threads, "common_pid == "+task.Name())
	}
	return &witness{
		all:  newEventTracer(t, event, filter),
		init: newEventTracer(t, event, filter+" && ("+strings.Join(threads, " || ")+")"),
	}
}

func (w *witness) stop() { w.seen, w.onInit = w.all.count(), w.init.count() }

// spread lets every CPU handle what the loopback interface receives (Receive Packet
// Steering).
func spread(s *scene) {
	s.Helper()
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // and ends with its mounts
		failed <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			if err := s.lab.Client().Enter(); err != nil {
				return err
			}
			dir := s.TempDir()
			if err := unix.Mount("sysfs", dir, "sysfs", 0, ""); err != nil {
				return err
			}
			all := strconv.FormatUint(1<<min(runtime.NumCPU(), 32)-1, 16)
			err := os.WriteFile(dir+"/class/net/lo/queues/rx-0/rps_cpus", []byte(all), 0)
			if err := unix.Unmount(dir, 0); err != nil {
				return err
			}
			return err
		}()
	}()
	s.must("hand segments to other CPUs", <-failed)
}

// eventTracer counts a tracepoint with the kernel's event tracer, in a buffer of its own.
type eventTracer struct {
	*testing.T
	dir, event string
}

func newEventTracer(t *testing.T, event, filter string) *eventTracer {
	t.Helper()
	if tracefs() == "" {
		t.Skip("tracefs is not mounted, or not readable")
	}
	dir, err := os.MkdirTemp(tracefs()+"/instances", "twtrace")
	if err != nil {
		t.Fatal(err)
	}
	w := &eventTracer{t, dir, event}
	t.Cleanup(func() {
		w.set("events/"+event+"/enable", "0")
		if err := unix.Rmdir(dir); err != nil {
			t.Error(err)
		}
	})
	w.set("buffer_size_kb", "8192")
	w.set("events/"+event+"/filter", filter)
	w.set("events/"+event+"/enable", "1")
	return w
}

func (w *eventTracer) set(file, value string) {
	w.Helper()
	if err := os.WriteFile(w.dir+"/"+file, []byte(value), 0); err != nil {
		w.Fatal(err)
	}
}

// count ends the counting.
func (w *eventTracer) count() (n uint64) {
	w.Helper()
	w.set("events/"+w.event+"/enable", "0")
	files, err := filepath.Glob(w.dir + "/per_cpu/cpu*/stats")
	if err != nil || len(files) == 0 {
		w.Fatalf("no counts of the event tracer: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			w.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			number, _ := strconv.ParseUint(value, 10, 64)
			switch name {
			case "entries":
				n += number
			case "overrun", "commit overrun", "dropped events":
				if number != 0 {
					w.Fatalf("the event tracer lost events: %s", text)
				}
			}
		}
	}
	return n
}
