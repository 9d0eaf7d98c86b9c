package run

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/report"
	"github.com/twtrace/twtrace/internal/testenv"
	"github.com/twtrace/twtrace/loadgen"
)

// TestWitnesses has ss and nstat look at the namespaces of a storm that is over, and compares what they print with the
// report: TIME_WAITs that are left, and each counter of the comparison with the kernel.
func TestWitnesses(t *testing.T) {
	require(t)
	testenv.Require(t, testenv.IPRoute2)
	for name, set := range map[string]func(*Options){
		"client closes":  func(*Options) {},
		"server closes":  func(o *Options) { o.Plan.Close = loadgen.ServerCloses },
		"both close":     func(o *Options) { o.Plan.Close = loadgen.BothClose },
		"linger":         func(o *Options) { o.Plan.Linger = 0 },
		"IPv6":           func(o *Options) { o.Net.IPv6 = true },
		"loopback":       func(o *Options) { o.Net.Kind = netlab.Loopback },
		"few TIME_WAITs": func(o *Options) { o.Net.Sysctls = storm(netlab.Pair, "net.ipv4.tcp_max_tw_buckets=20").Net.Sysctls },
		"few ports": func(o *Options) {
			o.Net.Sysctls = storm(netlab.Pair, "net.ipv4.ip_local_port_range=40000 40149").Net.Sysctls
		},
		"an odd number of ports": func(o *Options) { // each search leaves out one
			o.Net.Sysctls = storm(netlab.Pair, "net.ipv4.ip_local_port_range=40000 40150").Net.Sysctls
		},
	} {
		t.Run(name, func(t *testing.T) {
			opts := storm(netlab.Pair)
			set(&opts)
			var before, after map[string]witness
			look := func() map[string]witness {
				seen, err := testify(t)
				if err != nil {
					t.Error(err) // not Fatal: it is not the test's goroutine
				}
				return seen
			}
			opts.OnStart = func(*report.Summary) { before = look() }
			opts.OnLoop = func(l report.Loop) {
				if l.Loop == loops { // the run goes on, and its namespaces stay, while this looks
					after = look()
				}
			}
			compare(t, do(t, opts), before, after)
		})
	}
}

// compare is of all sides, by name.
func compare(t *testing.T, s *report.Summary, before, after map[string]witness) {
	t.Helper()
	left := 0
	for _, w := range after {
		left += w.timeWaits
	}
	if left != s.TimeWait.Now {
		t.Errorf("the report says that %d TIME_WAITs are left, ss lists %d", s.TimeWait.Now, left)
	}
	for _, row := range s.CrossCheck {
		if row.Counter == timeWaitsNow {
			if n := after[row.Side].timeWaits; uint64(n) != row.Twtrace {
				t.Errorf("%s: %d TIME_WAITs, and ss lists %d", row.Side, row.Twtrace, n)
			}
			continue
		}
		if !strings.HasPrefix(row.Counter, "Tcp") {
			continue // the census, which is no counter of the kernel's
		}
		name := strings.Replace(row.Counter, ".", "", 1) // nstat has TcpExtTW for TcpExt.TW
		n, ok := after[row.Side].counters[name]
		if n -= before[row.Side].counters[name]; !ok || uint64(n) != row.Kernel {
			t.Errorf("%s %s: %d was read, nstat has %d (%t)", row.Side, row.Counter, row.Kernel, n, ok)
		}
	}
}

// witness is what iproute2's tools say of a namespace.
type witness struct {
	timeWaits int              // lines of `ss state time-wait`
	counters  map[string]int64 // of `nstat -az`
}

// testify asks the tools in each namespace of the run that is under way, once no connection there can change any more,
// and names them as the report names its sides.
func testify(t *testing.T) (map[string]witness, error) {
	spaces, err := madeNamespaces()
	defer func() {
		for _, ns := range spaces {
			_ = ns.Close() // a reader's files
		}
	}()
	if err != nil {
		return nil, err
	}
	for _, ns := range spaces {
		if err := quiet(t, ns); err != nil {
			return nil, err
		}
	}
	seen := make(map[string]witness)
	for _, ns := range spaces {
		side := "both"
		if len(spaces) > 1 {
			listening, err := ss(t, ns, "state", "listening", "sport = :7") // echoPort
			if err != nil {
				return nil, err
			}
			if side = "client"; listening > 0 {
				side = "server"
			}
		}
		if seen[side], err = ask(t, ns); err != nil {
			return nil, err
		}
	}
	return seen, nil
}

// quiet waits until all that was opened in a namespace is closed.
func quiet(t *testing.T, ns *netlab.Namespace) error {
	for begun := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		open, err := ss(t, ns, "state", "connected", "exclude", "time-wait")
		if err != nil || open == 0 {
			return err
		}
		if time.Since(begun) > pollLimit {
			return fmt.Errorf("ss lists %d connections that are not closed", open)
		}
	}
}

func ask(t *testing.T, ns *netlab.Namespace) (w witness, err error) {
	if w.timeWaits, err = ss(t, ns, "state", "time-wait"); err != nil {
		return w, err
	}
	out, err := in(t, ns, "nstat", "-a", "-z", "-s", "-j")
	if err != nil {
		return w, err
	}
	var printed struct{ Kernel map[string]int64 }
	if err := json.Unmarshal(out, &printed); err != nil {
		return w, fmt.Errorf("read what nstat printed: %w", err)
	}
	w.counters = printed.Kernel
	return w, nil
}

// madeNamespaces are those that the run holds by a descriptor.
func madeNamespaces() (spaces []*netlab.Namespace, err error) {
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return nil, err
	}
	seen := []string{home}
	paths, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		name, err := os.Readlink(path)
		if err != nil || !strings.HasPrefix(name, "net:[") || slices.Contains(seen, name) {
			continue // closed meanwhile, or something else
		}
		seen = append(seen, name)
		ns, err := netlab.Find(path)
		if err != nil {
			return spaces, err
		}
		spaces = append(spaces, ns)
	}
	if len(spaces) == 0 {
		err = errors.New("the run has no namespaces")
	}
	return spaces, err
}

// ss is how many TCP sockets it lists.
func ss(t *testing.T, ns *netlab.Namespace, filter ...string) (n int, err error) {
	out, err := in(t, ns, "ss", append([]string{"-Htan"}, filter...)...)
	return bytes.Count(out, []byte("\n")), err
}

// in runs a program in a namespace. nstat would read what it noted the last time if it were not told where.
func in(t *testing.T, ns *netlab.Namespace, name string, args ...string) (out []byte, err error) {
	err = ns.Do(func() (err error) {
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Env = append(os.Environ(), "NSTAT_HISTORY="+filepath.Join(t.TempDir(), "history"))
		out, err = cmd.Output()
		return err
	})
	if err != nil {
		err = fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return out, err
}
