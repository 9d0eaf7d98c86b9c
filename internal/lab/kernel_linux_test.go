package lab

import (
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/testenv"
)

// entry gives a test the session of an entry of its own.
func entry(t *testing.T, f func(*Session) error) {
	t.Helper()
	a := Run(t.Context(), []Entry{{Name: "test", run: f}}, Options{Version: "test"})[0]
	if a.Error != "" {
		t.Fatal(a.Error)
	}
}

// TestMinisocks compares what ss lists.
func TestMinisocks(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.Veth, testenv.IPRoute2)
	const n = 5
	entry(t, func(s *Session) error {
		l, err := s.Network(netlab.Pair)
		if err != nil {
			return err
		}
		to := netip.AddrPortFrom(l.ServerAddr(), serverPort)
		q, err := s.NewSearcher(l, to)
		if err != nil {
			return err
		}
		if _, err := q.fill(n, to); err != nil {
			return err
		}
		if err := s.TimeWaits(l.Client(), n); err != nil {
			return err
		}
		list, err := s.Minisocks(l.Client())
		if err != nil {
			return err
		}
		var got []string
		for _, m := range list {
			if m.State != tcp.TimeWait || m.Left <= 0 {
				t.Errorf("%+v", m)
			}
			got = append(got, m.Local.String()+" "+m.Peer.String())
		}
		var out []byte
		err = l.Client().Do(func() (err error) {
			out, err = exec.CommandContext(t.Context(), "ss", "-Htn", "state", "time-wait").Output()
			return err
		})
		if err != nil {
			return err
		}
		var want []string
		for line := range strings.Lines(string(out)) {
			f := strings.Fields(line)
			want = append(want, f[2]+" "+f[3])
		}
		slices.Sort(got)
		slices.Sort(want)
		if len(got) != n || !slices.Equal(got, want) {
			t.Errorf("TIME_WAITs are %v, and ss lists %v", got, want)
		}
		return nil
	})
}

// TestTake: the share of the ports that is asked for is taken, one parity first, in a range of any length.
func TestTake(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS)
	const n = 2*window + 30
	entry(t, func(s *Session) error {
		l, _, err := s.searchNet(n, "tcp_tw_reuse=0")
		if err != nil {
			return err
		}
		to := netip.AddrPortFrom(l.ServerAddr(), serverPort)
		q, err := s.NewSearcher(l, to)
		if err != nil {
			return err
		}
		taken := 0
		for _, want := range []int{0, 7, n / 2, n - 1, n} {
			if err := q.Do(func() error { return q.Take(l, n, taken, want, How{}, to) }); err != nil {
				return err
			}
			taken = want
			list, err := s.Minisocks(l.Client())
			if err != nil {
				return err
			}
			first := 0
			for _, m := range list {
				if m.Local.Port()%2 == classicLow%2 {
					first++
				}
			}
			if len(list) != want || want <= n/2 && first != want {
				t.Errorf("%d ports are taken, %d of the first parity, want %d", len(list), first, want)
			}
		}
		if span, err := l.Client().Sysctl("net.ipv4.ip_local_port_range"); err != nil || span != "32768 33797" {
			t.Errorf("the range is %q, %v afterwards", span, err)
		}
		return nil
	})
}
