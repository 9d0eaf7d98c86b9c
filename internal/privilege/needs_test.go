package privilege

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"

	"kernel.org/pub/linux/libs/security/libcap/cap"
)

func TestMissing(t *testing.T) {
	for _, tt := range []struct {
		held    Held
		need    Need
		missing string
	}{
		{Of(), RunPair, "CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_BIND_SERVICE"},
		{Of(), RunHostNoTrace, ""},
		{Of(cap.BPF), RunHost, "CAP_PERFMON"},
		{Of(cap.PERFMON), RunHost, "CAP_BPF"},
		// capabilities(7): CAP_BPF and CAP_PERFMON were split off CAP_SYS_ADMIN.
		{Of(cap.SYS_ADMIN), RunHost, ""},
		{Of(cap.BPF, cap.PERFMON, cap.NET_ADMIN), RunPair, "CAP_SYS_ADMIN, CAP_NET_BIND_SERVICE"},
		{Of(cap.SYS_ADMIN, cap.NET_ADMIN, cap.NET_BIND_SERVICE), Lab(false, false), ""},
		{Of(cap.SYS_ADMIN, cap.NET_ADMIN, cap.NET_BIND_SERVICE), Lab(true, false), "CAP_NET_RAW"},
		{Of(cap.SYS_ADMIN, cap.NET_ADMIN), LabAll, "CAP_NET_BIND_SERVICE, CAP_NET_RAW, CAP_SYSLOG"},
		// Capability number 0 is one like any other.
		{Of(cap.SYS_ADMIN), Need{Must: []Capability{cap.CHOWN}}, "CAP_CHOWN"},
		{Of(cap.CHOWN), Need{Must: []Capability{cap.CHOWN, cap.BPF}}, "CAP_BPF"},
	} {
		if got := Names(tt.held.Missing(tt.need.Must)); got != tt.missing {
			t.Errorf("%s with %s: missing %q, want %q", tt.need.Command, listed(tt.held), got, tt.missing)
		}
	}
}

func TestMissingShould(t *testing.T) {
	// kernel/kallsyms.c asks for CAP_SYSLOG itself.
	if got := Names(Of(cap.SYS_ADMIN).Missing(RunPair.Should)); got != "CAP_SYSLOG" {
		t.Errorf("CAP_SYS_ADMIN is taken for enough: missing %q", got)
	}
}

// listed names what a set has.
func listed(h Held) string {
	in, _ := h.List()
	return Names(in)
}

func TestList(t *testing.T) {
	set := Of(cap.BPF, cap.NET_ADMIN, cap.CHOWN)
	in, out := set.List()
	if want := []Capability{cap.CHOWN, cap.NET_ADMIN, cap.BPF}; !slices.Equal(in, want) {
		t.Errorf("has %v, want %v", in, want)
	}
	if len(in)+len(out) != int(cap.MaxBits()) || slices.ContainsFunc(out, set.Has) {
		t.Errorf("has %v, has not %v", in, out)
	}
}

func TestExplain(t *testing.T) {
	refused := fmt.Errorf("make a network namespace: %w", syscall.EPERM)
	for _, tt := range []struct {
		need Need
		err  error
		text string // of a thread without capabilities
	}{
		{RunPair, nil, ""},
		{RunPair, errors.New("no such luck"), "no such luck"},
		{
			RunPair, refused, "make a network namespace: operation not permitted " +
				"(this process has no CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_BIND_SERVICE)",
		},
		{ServeLowPort, syscall.EACCES, "permission denied (this process has no CAP_NET_BIND_SERVICE)"},
		{ServeLowPort, syscall.EADDRINUSE, "address already in use"},
		{RunHostNoTrace, refused, refused.Error()}, // something else refuses it
	} {
		err := Without(func() error { return Explain(tt.need, tt.err) })
		if tt.err == nil {
			if err != nil {
				t.Errorf("%s: %v", tt.need.Command, err)
			}
			continue
		}
		if err == nil || err.Error() != tt.text {
			t.Errorf("%s: %q, want %q", tt.need.Command, err, tt.text)
		}
		if !errors.Is(err, tt.err) {
			t.Errorf("%s: %v is not %v any more", tt.need.Command, err, tt.err)
		}
		if got, want := errors.Is(err, ErrMissing), err != nil && err.Error() != tt.err.Error(); got != want {
			t.Errorf("%s: is ErrMissing: %v, want %v", tt.need.Command, got, want)
		}
	}
}

// TestExplainHolder: who has all that is needed was refused for another reason.
func TestExplainHolder(t *testing.T) {
	held, err := Effective()
	if err != nil {
		t.Fatal(err)
	}
	if missing := held.Missing(RunPair.Must); len(missing) > 0 {
		t.Skipf("this process has no %s", Names(missing))
	}
	if err := Explain(RunPair, syscall.EPERM); errors.Is(err, ErrMissing) || !errors.Is(err, syscall.EPERM) {
		t.Errorf("%v", err)
	}
}
