package main

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/testenv"
)

// worldOwnAddress: with addresses of its own besides loopback's, in a network namespace of its own.
const worldOwnAddress = "own address"

// ownAddresses are those of worldOwnAddress: of a laboratory's, and of the public Internet's.
var ownAddresses = []string{"198.18.5.5/32", "203.0.113.5/32"}

func addOwnAddresses() error {
	if err := loopbackUp(); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, text := range ownAddresses {
		addr, err := netlink.ParseAddr(text)
		if err == nil {
			err = netlink.AddrAdd(lo, addr)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// TestGuard: in a namespace where nothing leaves loopback, whatever the target is.
func TestGuard(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS)
	run := func(t *testing.T, args string) (int, string, string) {
		cmd := command(t, worldOwnAddress, strings.Fields("run --no-trace --loops 1 --connections 5 -o json "+args)...)
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNET
		return finish(t, cmd)
	}
	for _, target := range []string{"127.0.0.1:9", "127.255.0.3:9", "[::1]:9", "[::ffff:127.0.0.9]:9"} {
		t.Run(target, func(t *testing.T) {
			code, stdout, stderr := run(t, "--target "+target)
			if code != exitDone || stderr != "" || summary(t, stdout).Totals.Attempts != 5 {
				t.Errorf("exit code %d, stderr %q", code, stderr)
			}
		})
	}
	for _, tt := range []struct {
		target, allow, flags string
		says                 []string
	}{
		// The host's own address is neither loopback nor of a namespace made for the run.
		{"198.18.5.5:9", "198.18.5.5", "", []string{"198.18.5.5", "connections=5", "at_once=5", "no limit", "--max-rate", "--max-duration"}},
		{"203.0.113.5:9", "203.0.113.5", "", []string{"no limit"}},
		{"[::ffff:198.18.5.5]:9", "198.18.5.5", "--concurrency 2", []string{"at_once=2"}},
		{"198.18.5.5:9", "198.18.5.5", "--max-rate 5000 --max-duration 5s", []string{"5000 at most", "for=5s"}},
		{"198.18.5.5:9", "198.18.5.5", "--rate 500", []string{"500 (--rate)"}},
	} {
		t.Run(tt.target+tt.flags, func(t *testing.T) {
			code, stdout, stderr := run(t, "--target "+tt.target+" "+tt.flags)
			if code != exitUsage || stdout != "" || !strings.Contains(stderr, "--yes-i-may-load") {
				t.Errorf("without consent: exit code %d, stderr %q", code, stderr)
			}
			code, stdout, stderr = run(t, "--target "+tt.target+" --yes-i-may-load "+tt.allow+" "+tt.flags)
			if code != exitDone || strings.Count(stderr, "\n") != 1 || summary(t, stdout).Totals.Attempts != 5 {
				t.Errorf("exit code %d, stderr %q", code, stderr)
			}
			for _, s := range tt.says {
				if !strings.Contains(stderr, s) {
					t.Errorf("stderr does not say %q: %s", s, stderr)
				}
			}
		})
	}
}

// TestPublic: a run towards the public Internet has a limit by default. Nothing is sent.
func TestPublic(t *testing.T) {
	for _, tt := range []struct {
		addr string
		want bool
	}{
		{"8.8.8.8", true},
		{"2606:4700::1111", true},
		{"10.1.2.3", false},
		{"172.31.0.1", false},
		{"192.168.1.1", false},
		{"fd00::1", false},
		{"169.254.1.1", false},
		{"fe80::1%2", false},
		{"100.64.0.1", false},
		{"198.19.255.1", false},
		{"127.0.0.1", false},
		{"::1", false},
		{"0.0.0.0", false},
	} {
		if got := isPublic(netip.MustParseAddr(tt.addr)); got != tt.want {
			t.Errorf("isPublic(%s) = %t", tt.addr, got)
		}
	}
	for args, want := range map[string]float64{
		"":                publicMaxRate,
		"--max-rate 50":   50,
		"--max-rate 0":    0,
		"--rate 20000":    0,
		"--rate 10-20000": 0,
	} {
		f, cmd := newApp(new(bytes.Buffer), new(bytes.Buffer)).newRunCommand()
		if err := cmd.ParseFlags(strings.Fields("--target 8.8.8.8:9 --yes-i-may-load 8.8.8.8 " + args)); err != nil {
			t.Fatal(err)
		}
		f.given = cmd.Flags().Changed
		opts, err := f.options(t.Context())
		if err != nil || opts.Plan.MaxRate != want {
			t.Errorf("%q: max-rate %g, want %g (%v)", args, opts.Plan.MaxRate, want, err)
		}
	}
}

func TestSameHost(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"192.0.2.1", "192.0.2.1", true},
		{"192.0.2.1", "192.0.2.2", false},
		{"", "", false},
		{"2001:DB8:0::1", "2001:db8::1", true},
		{"[2001:db8::1]", "2001:db8::1", true},
		{"::ffff:192.0.2.1", "192.0.2.1", true},
		{"fe80::1%eth0", "fe80::1%eth1", false},
		{"Example.COM", "example.com.", true},
		{"example.com", "www.example.com", false},
	} {
		if got := sameHost(tt.a, tt.b); got != tt.want {
			t.Errorf("sameHost(%q, %q) = %t", tt.a, tt.b, got)
		}
	}
}

// TestLimits: what the caps did is in the summary, as text and as JSON.
func TestLimits(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS)
	const base = "run --net loopback --no-trace --max-rate 400 --max-duration 1s --loops 1000 --connections 100"
	code, stdout, stderr := finish(t, command(t, worldPlain, strings.Fields(base+" -o json")...))
	var d struct {
		Interrupted bool
		StoppedBy   string `json:"stopped_by"`
		Options     struct {
			MaxRate     float64 `json:"max_rate"`
			MaxDuration float64 `json:"max_duration_seconds"`
		}
		Totals struct {
			Attempts int
			HeldBack int `json:"held_back"`
		}
	}
	if err := json.Unmarshal([]byte(stdout), &d); err != nil || code != exitDone {
		t.Fatalf("exit code %d, %v, stderr %q", code, err, stderr)
	}
	if !d.Interrupted || d.StoppedBy != "max-duration" || d.Options.MaxRate != 400 || d.Options.MaxDuration != 1 ||
		d.Totals.HeldBack == 0 || d.Totals.Attempts == 0 {
		t.Errorf("%+v", d)
	}
	code, stdout, _ = finish(t, command(t, worldPlain, strings.Fields(base)...))
	for _, want := range []string{"at most 400 connections a second", "were held back", "stopped after 1 s (--max-duration)"} {
		if code != exitDone || !strings.Contains(stdout, want) {
			t.Errorf("exit code %d, never %q in\n%s", code, want, stdout)
		}
	}
}

// TestStop sends SIGINT in each shape that a run can be in: it ends with a report and without
// a hang. That the shape was reached is read from the progress.
func TestStop(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.Veth, testenv.BPF)
	for _, tt := range []struct {
		name, args string
		at         string // stop when the progress says this
	}{
		{"setting up", "--sources 2000", "setting up"},
		{"connections are held", "--loops 1 --connections 2000 --hold 1000s", " 2000 open"},
		{"between loops", "--loops 2 --connections 100 --interval 1000s", "loop 1/2: 100 finished"},
		{"watching", "--loops 1 --connections 100 --linger-watch 1000s", "watching TIME_WAITs"},
		{"nobody accepts", "--server never-accept --loops 1 --connections 500", " 500 open"},
		{"close() waits", "--server never-read --linger=5000 --bytes 1048576 --loops 1 --connections 50 --timeout 100ms", " 50 open"},
		{"few ports", "--tw-reuse 0 --port-range 40000-43999 --loops 1000", "loop 2/1000"},
		{"held back", "--loops 1 --connections 1000 --max-rate 1", "loop 1/1"},
		{"not due", "--loops 1 --connections 1000 --rate 0.01", "loop 1/1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := command(t, worldPlain, strings.Fields("run --progress auto -o json "+tt.args)...)
			term := openTerminal(t, 200)
			cmd.Env = append(cmd.Env, "TERM=xterm")
			var stdout bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, term.slave
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			term.await(t, tt.at)
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
			defer time.AfterFunc(pollLimit, func() { _ = cmd.Process.Kill() }).Stop()
			if err := cmd.Wait(); err != nil {
				t.Errorf("%v; terminal %q", err, term.end())
			}
			if !summary(t, stdout.String()).Interrupted {
				t.Errorf("it does not say that it was interrupted")
			}
		})
	}
}

// TestStopAgain: who reads no output keeps a run from ending; the second SIGINT ends it.
func TestStopAgain(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
		t.Fatal(err)
	}
	cmd := command(t, worldPlain, strings.Fields("run --net loopback --no-trace --linger --loops 100000 --connections 1")...)
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	full := func() bool {
		n, err := unix.IoctlGetInt(int(r.Fd()), unix.TIOCINQ)
		return err != nil || n > 4096-100
	}
	for deadline := time.Now().Add(pollLimit); !full() && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
	}
	interrupted := endBySignals(t, cmd)
	if interrupted < 2 {
		t.Errorf("it ended after %d signals, with its output unread", interrupted)
	}
}

// endBySignals sends SIGINT every now and then until the process has ended by it, and returns how often.
func endBySignals(t *testing.T, cmd *exec.Cmd) (n int) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait() // ProcessState has it
	}()
	deadline := time.After(pollLimit)
	for {
		if err := cmd.Process.Signal(os.Interrupt); err == nil {
			n++
		}
		select {
		case <-done:
			status := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if !status.Signaled() || status.Signal() != unix.SIGINT {
				t.Errorf("it ended with %v", cmd.ProcessState)
			}
			return n
		case <-deadline:
			_ = cmd.Process.Kill()
			<-done
			t.Fatal("it never ended")
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// TestDuration: a loop of an open loop is as long as it takes at its rate, one loop unless more
// are asked for.
func TestDuration(t *testing.T) {
	for args, want := range map[string][2]int{
		"--rate 100 --duration 2s":           {1, 200},
		"--rate 100-300 --duration 2s":       {1, 400},
		"--rate 0.5 --duration 1m --loops 3": {3, 30},
	} {
		f, cmd := newApp(new(bytes.Buffer), new(bytes.Buffer)).newRunCommand()
		if err := cmd.ParseFlags(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		f.given = cmd.Flags().Changed
		opts, err := f.options(t.Context())
		if err != nil || opts.Plan.Loops != want[0] || opts.Plan.Connections != want[1] {
			t.Errorf("%s: %d × %d, want %v (%v)", args, opts.Plan.Loops, opts.Plan.Connections, want, err)
		}
	}
}
