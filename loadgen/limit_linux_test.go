package loadgen_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twtrace/twtrace/loadgen"
	"golang.org/x/sys/unix"
)

// TestMaxRate: what begins is counted by the attempts' own times. Each thread may have been held up
// once between being allowed and beginning.
func TestMaxRate(t *testing.T) {
	for _, shards := range []int{1, 3} {
		t.Run(fmt.Sprint(shards, " shards"), func(t *testing.T) {
			s := startServer(t, loadgen.NewServerPlan(localhosts["ipv4"]))
			plan := loadgen.NewPlan(s.Addr())
			plan.Loops, plan.Connections, plan.Shards = 2, 200, shards
			plan.MaxRate = 150
			result, attempts := storm(t.Context(), t, plan)
			all(t, attempts, loadgen.PhaseDone, 0, 0)
			// All but the first, and those before which the machine was slower than the limit.
			if least := uint64(len(attempts) / 2); result.HeldBack < least {
				t.Errorf("%d were held back, want at least %d", result.HeldBack, least)
			}
			var begun []int64
			for i := range attempts {
				begun = append(begun, attempts[i].Started)
				if attempts[i].Intended != attempts[i].Started {
					t.Errorf("attempt %d of a closed loop was intended %d ns before it began", i, attempts[i].Started-attempts[i].Intended)
				}
			}
			slices.Sort(begun)
			n := int(plan.MaxRate) + shards
			for i := n; i < len(begun); i++ {
				if begun[i]-begun[i-n] < 1e9 {
					t.Fatalf("%d attempts began within %v", n+1, time.Duration(begun[i]-begun[i-n]))
				}
			}
		})
	}
}

// TestMaxRateAbove: a limit far above what the storm can do holds nothing back.
func TestMaxRateAbove(t *testing.T) {
	s := startServer(t, loadgen.NewServerPlan(localhosts["ipv4"]))
	plan := loadgen.NewPlan(s.Addr())
	plan.Loops, plan.Connections, plan.MaxRate = 1, 500, 1e7
	result, attempts := storm(t.Context(), t, plan)
	all(t, attempts, loadgen.PhaseDone, 0, 0)
	if result.HeldBack != 0 {
		t.Errorf("%d were held back", result.HeldBack)
	}
}

func TestMaxDuration(t *testing.T) {
	deaf := loadgen.NewServerPlan(localhosts["ipv4"])
	deaf.Bytes = 101 // one more than the client sends: it never replies
	stuck := loadgen.NewPlan(startServer(t, deaf).Addr())
	stuck.Loops, stuck.Connections, stuck.MaxDuration = 3, 50, 300*time.Millisecond
	result, attempts := storm(t.Context(), t, stuck)
	if !result.Canceled || !result.TimeIsUp || len(result.Loops) != 1 || len(attempts) == 0 {
		t.Errorf("in a loop: %d attempts, result %+v", len(attempts), result)
	}
	all(t, attempts, loadgen.PhaseReceive, loadgen.Errno(unix.ECANCELED), loadgen.Cancelled)

	plan := loadgen.NewPlan(startServer(t, loadgen.NewServerPlan(localhosts["ipv4"])).Addr())
	plan.Loops, plan.Connections, plan.MaxDuration, plan.Interval = 2, 10, 500*time.Millisecond, time.Hour
	if result, _ := storm(t.Context(), t, plan); !result.Canceled || !result.TimeIsUp {
		t.Errorf("between loops: %+v", result)
	}
	plan.MaxDuration, plan.Interval = time.Hour, 0
	if result, _ := storm(t.Context(), t, plan); result.Canceled || result.TimeIsUp {
		t.Errorf("done in time: %+v", result)
	}
	plan.Interval = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	plan.OnLoop = func(loadgen.LoopResult) { cancel() }
	if result, _ := storm(ctx, t, plan); !result.Canceled || result.TimeIsUp {
		t.Errorf("stopped by its context: %+v", result)
	}
}

func TestProgress(t *testing.T) {
	s := startServer(t, loadgen.NewServerPlan(localhosts["ipv4"]))
	plan := loadgen.NewPlan(s.Addr())
	plan.Loops, plan.Connections, plan.Shards, plan.Hold = 2, 40, 2, 1000*time.Hour
	plan.Progress = new(loadgen.Progress)
	if now := plan.Progress.Now(); now != (loadgen.ProgressNow{}) {
		t.Errorf("before: %+v", now)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		await(t, "40 open", func() bool { return plan.Progress.Now().All.Open == 40 })
	}()
	storm(ctx, t, plan)
	want := loadgen.ProgressCounts{Started: 40, Failed: 40}
	if now := plan.Progress.Now(); now != (loadgen.ProgressNow{Loop: 1, InLoop: want, All: want}) {
		t.Errorf("stopped: %+v", now)
	}

	plan.Hold = 0
	plan.OnLoop = func(l loadgen.LoopResult) {
		n := int64(40 * l.Loop)
		want := loadgen.ProgressNow{
			Loop: l.Loop, InLoop: loadgen.ProgressCounts{Started: 40, Finished: 40}, All: loadgen.ProgressCounts{Started: n, Finished: n},
		}
		if now := plan.Progress.Now(); now != want {
			t.Errorf("after a loop: %+v, want %+v", now, want)
		}
	}
	storm(t.Context(), t, plan)
}

// inClose reports whether a thread of this process is in a close().
func inClose() bool {
	files, _ := filepath.Glob("/proc/self/task/*/syscall")
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(text), fmt.Sprint(unix.SYS_CLOSE, " ")) {
			return true
		}
	}
	return false
}

// soon fails the test if f does not return, and leaves it behind.
func soon(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s: not done", what)
	}
}

// TestCancelLingering stops a storm whose thread waits in close() for SO_LINGER's time,
// because its peer reads nothing of what is still to be sent.
func TestCancelLingering(t *testing.T) {
	server := loadgen.NewServerPlan(localhosts["ipv4"])
	server.Mode = loadgen.NeverRead
	s := startServer(t, server)
	plan := loadgen.NewPlan(s.Addr())
	plan.Loops, plan.Connections, plan.Bytes, plan.Linger = 1, 20, loadgen.MaxBytes, 5000*time.Second
	plan.Timeout = 100 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		await(t, "a thread in close()", inClose)
	}()
	soon(t, "the storm", func() {
		result, attempts := storm(ctx, t, plan)
		if !result.Canceled || len(attempts) == 0 {
			t.Errorf("%d attempts, result %+v", len(attempts), result)
		}
	})
}

// TestServerCloseLingering: the same of a server that closes first.
func TestServerCloseLingering(t *testing.T) {
	plan := loadgen.NewServerPlan(localhosts["ipv4"])
	plan.Bytes, plan.Close, plan.Linger = 8<<10, loadgen.ServerCloses, 5000*time.Second
	s := startServer(t, plan)
	dial := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
		_ = c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1) })
		return err
	}}
	c, err := dial.DialContext(t.Context(), "tcp4", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(make([]byte, plan.Bytes)); err != nil {
		t.Fatal(err)
	}
	await(t, "the server in close()", inClose)
	soon(t, "Close", func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}
