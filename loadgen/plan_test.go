package loadgen_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/twtrace/twtrace/loadgen"
)

func TestValidate(t *testing.T) {
	good := loadgen.NewPlan(netip.MustParseAddrPort("[fe80::1%2]:80"))
	if err := good.Validate(); err != nil {
		t.Errorf("NewPlan: %v", err)
	}
	goodServer := loadgen.NewServerPlan(netip.MustParseAddrPort("0.0.0.0:0"))
	if err := goodServer.Validate(); err != nil {
		t.Errorf("NewServerPlan: %v", err)
	}

	bad := loadgen.Plan{
		Target: netip.MustParseAddrPort("[fe80::1%eth0]:80"), Concurrency: -1, Bytes: -1,
		ServerFirst: 1<<20 + 1, Linger: time.Millisecond, Hold: -1, MaxRate: -1, Shards: -1, Close: 7, Part: 2, Parts: 2,
		Bind: 7, Sources: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, LocalPorts: loadgen.PortRange{Low: 2, High: 1},
	}
	contrary := loadgen.NewPlan(netip.MustParseAddrPort("127.0.0.1:7"))
	contrary.Bind, contrary.NoPort = loadgen.BindPort, true
	fast := loadgen.NewPlan(netip.MustParseAddrPort("127.0.0.1:7"))
	fast.Rate, fast.RateTo, fast.MaxRate = 1000, 2000, 1500
	badServer := loadgen.ServerPlan{
		Bytes: 1<<20 + 1, First: -1, Close: 7, Linger: -2, Backlog: -1, AcceptDelay: -1, Shards: 1 << 20, Concurrency: -1,
		Mode: 9,
	}
	for name, c := range map[string]struct {
		err   error
		words []string
	}{
		"plan": {bad.Validate(), []string{"zone", "loops", "connections", "concurrency", "bytes", "server-first", "linger", "max-rate", "hold", "max-duration", "shards", "close",
			"part must be 0 to 1", "bind must be", "source 127.0.0.1", "local port range 2-1"}},
		"rates":   {fast.Validate(), []string{"a rate of 2000 is above the max-rate of 1500"}},
		"binding": {contrary.Validate(), []string{"needs a source", "no-port"}},
		"server":  {badServer.Validate(), []string{"listen", "bytes", "server-first", "close", "linger", "backlog", "accept-delay", "shards", "concurrency", "server must be"}},
	} {
		if c.err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		for _, word := range c.words {
			if !strings.Contains(c.err.Error(), word) {
				t.Errorf("%s: %q does not say what is wrong with %s", name, c.err, word)
			}
		}
	}
}

// TestPassiveServer: a server that waits for the client for ever can't close first.
func TestPassiveServer(t *testing.T) {
	for _, mode := range []loadgen.ServerMode{loadgen.Echo, loadgen.ResetOnClose, loadgen.NeverRead, loadgen.NeverAccept} {
		if got, err := loadgen.ParseServerMode(mode.String()); err != nil || got != mode {
			t.Errorf("ParseServerMode(%q) = %v, %v", mode, got, err)
		}
		p := loadgen.NewServerPlan(netip.MustParseAddrPort("127.0.0.1:0"))
		p.Mode, p.Close = mode, loadgen.ServerCloses
		passive := mode == loadgen.NeverRead || mode == loadgen.NeverAccept
		if err := p.Validate(); (err != nil) != passive {
			t.Errorf("%s that closes first: %v", mode, err)
		}
	}
	if _, err := loadgen.ParseServerMode("deaf"); err == nil {
		t.Error("there is no deaf server")
	}
}

func TestParseCloser(t *testing.T) {
	for _, c := range []loadgen.Closer{loadgen.ClientCloses, loadgen.ServerCloses, loadgen.BothClose} {
		if got, err := loadgen.ParseCloser(c.String()); err != nil || got != c {
			t.Errorf("ParseCloser(%q) = %v, %v", c, got, err)
		}
	}
	if _, err := loadgen.ParseCloser("nobody"); err == nil {
		t.Error("nobody can close")
	}
}

func TestParseBinding(t *testing.T) {
	for _, b := range []loadgen.Binding{loadgen.BindNone, loadgen.BindAddr, loadgen.BindPort} {
		if got, err := loadgen.ParseBinding(b.String()); err != nil || got != b {
			t.Errorf("ParseBinding(%q) = %v, %v", b, got, err)
		}
	}
	if _, err := loadgen.ParseBinding("all"); err == nil {
		t.Error("all can be bound")
	}
}
