package privilege

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// Capability is one of capabilities(7).
type Capability = cap.Value

// Need is what a command asks of its caller, measured by running it with every
// smaller set (Linux 6.18, as an ordinary user with ambient capabilities, and with
// the same as file capabilities).
type Need struct {
	Command string
	// Must are the capabilities without which the kernel refuses.
	Must []Capability
	// Should are those without which less is seen, and Loses says what.
	Should []Capability
	Loses  string
	// Traces: it loads programs, for which the capabilities have to be those of the
	// initial user namespace. The network is made with those of any.
	Traces bool
}

// What CAP_SYSLOG is for: without it /proc/kallsyms hides addresses
// (kernel/kallsyms.c, kallsyms_show_value, unless kernel.kptr_restrict is 0 and
// kernel.perf_event_paranoid at most 1), so that a TIME_WAIT's timer can't be told
// from other timers.
const losesTimeWait = "TIME_WAIT is not observable"

// The rows of Needs. CAP_SYS_ADMIN makes network namespaces and enters them, and
// includes CAP_BPF and CAP_PERFMON. CAP_NET_ADMIN sets up links and settings in
// them. CAP_NET_BIND_SERVICE is for the server's port there, which is 7. On the
// host's own network the server takes a port that anybody may have.
var (
	RunPair = Need{
		Command: "run",
		Must:    []Capability{cap.SYS_ADMIN, cap.NET_ADMIN, cap.NET_BIND_SERVICE},
		Should:  []Capability{cap.SYSLOG}, Loses: losesTimeWait, Traces: true,
	}
	RunPairNoTrace = Need{
		Command: "run --no-trace",
		Must:    []Capability{cap.SYS_ADMIN, cap.NET_ADMIN, cap.NET_BIND_SERVICE},
	}
	RunHost = Need{
		Command: "run --net host",
		Must:    []Capability{cap.BPF, cap.PERFMON},
		Should:  []Capability{cap.SYSLOG}, Loses: losesTimeWait, Traces: true,
	}
	Trace = Need{
		Command: "trace",
		Must:    []Capability{cap.BPF, cap.PERFMON},
		Should:  []Capability{cap.SYSLOG}, Loses: losesTimeWait, Traces: true,
	}
	RunHostNoTrace = Need{Command: "run --no-trace --net host"}
	// The whole catalogue. /proc/slabinfo is root's alone.
	LabAll = Need{
		Command: "lab run --all",
		Must:    Lab(true, true).Must,
		Should:  []Capability{cap.DAC_READ_SEARCH}, Loses: "what a TIME_WAIT costs in slab is not observable", Traces: true,
	}
	Serve        = Need{Command: "serve"}
	ServeLowPort = Need{
		Command: "serve --listen ADDRESS:80",
		Must:    []Capability{cap.NET_BIND_SERVICE},
	}
)

// Needs is every row, in the order in which doctor shows them.
var Needs = []Need{RunPair, RunPairNoTrace, RunHost, RunHostNoTrace, Trace, LabAll, Serve, ServeLowPort}

// Lab is what entries of the lab ask: those that capture or send packets themselves
// CAP_NET_RAW, and those that are about what a trace says of TIME_WAIT CAP_SYSLOG.
// Without it they would run, and find what is not so.
func Lab(packets, timeWaits bool) Need {
	n := Need{Command: "lab run", Must: []Capability{cap.SYS_ADMIN, cap.NET_ADMIN, cap.NET_BIND_SERVICE}, Traces: true}
	if packets {
		n.Must = append(n.Must, cap.NET_RAW)
	}
	if timeWaits {
		n.Must = append(n.Must, cap.SYSLOG)
	}
	return n
}

// included says which capability does for another as well
// (include/linux/capability.h, bpf_capable and perfmon_capable).
var included = map[Capability]Capability{cap.BPF: cap.SYS_ADMIN, cap.PERFMON: cap.SYS_ADMIN}

// Held is a set of capabilities, a bit for each by its number.
type Held uint64

// Of returns the set of caps.
func Of(caps ...Capability) (h Held) {
	for _, c := range caps {
		h |= 1 << c
	}
	return h
}

// Effective returns what the calling thread has in effect.
func Effective() (h Held, err error) {
	set, err := cap.GetPID(0)
	if err != nil {
		return 0, fmt.Errorf("capget: %w", err)
	}
	for c := range cap.MaxBits() {
		on, err := set.GetFlag(cap.Effective, c)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", c, err)
		}
		if on {
			h |= Of(c)
		}
	}
	return h, nil
}

// Has reports whether c is in the set, by itself or by one that includes it.
func (h Held) Has(c Capability) bool { return h&Of(withIncluding(c)...) != 0 }

// withIncluding returns c, and the capability that includes it.
func withIncluding(c Capability) []Capability {
	if by, ok := included[c]; ok {
		return []Capability{c, by}
	}
	return []Capability{c}
}

// Missing returns those of caps that the set does not have.
func (h Held) Missing(caps []Capability) []Capability {
	return slices.DeleteFunc(slices.Clone(caps), h.Has)
}

// List returns all of the set, in the kernel's order, and the rest of those that this
// kernel knows.
func (h Held) List() (in, out []Capability) {
	for c := range cap.MaxBits() {
		if h&Of(c) != 0 {
			in = append(in, c)
		} else {
			out = append(out, c)
		}
	}
	return in, out
}

// Names spells capabilities as the kernel does: "CAP_BPF, CAP_PERFMON".
func Names(caps []Capability) string {
	names := make([]string, len(caps))
	for i, c := range caps {
		names[i] = strings.ToUpper(c.String())
	}
	return strings.Join(names, ", ")
}

// ErrMissing says that the kernel refused something for the lack of a capability.
var ErrMissing = errors.New("a capability is missing")

// missingError keeps the text of what was refused and adds what is missing.
type missingError struct {
	err     error
	missing []Capability
}

func (e *missingError) Error() string {
	return fmt.Sprintf("%v (this process has no %s)", e.err, Names(e.missing))
}

func (e *missingError) Unwrap() []error { return []error{ErrMissing, e.err} }

// Explain returns err itself unless the kernel refused something (EPERM, EACCES)
// and the process has not all that the command must have. The error then names
// what is missing, and errors.Is finds ErrMissing besides what it found before.
func Explain(n Need, err error) error {
	if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EACCES) {
		return err
	}
	held, heldErr := Effective()
	if heldErr != nil {
		return err
	}
	missing := held.Missing(n.Must)
	if len(missing) == 0 {
		return err
	}
	return &missingError{err, missing}
}
