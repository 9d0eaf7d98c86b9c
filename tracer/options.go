package tracer

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/twtrace/twtrace/internal/tcp"
)

// The words of the trace, shared with the packages that read recordings.
type (
	// Event is one fact that the kernel side reported.
	Event = tcp.Event
	// NetNS is the cookie of a network namespace.
	NetNS = tcp.NetNS
	// Kind says what an Event reports.
	Kind = tcp.Kind
	// Coverage is how well each fact can be seen.
	Coverage = tcp.Coverage
)

// Limits of the filters (MAX_* in bpf/maps.h and bpf/scope.h).
const (
	MaxNetNS = 8  // namespaces that one trace can be limited to
	MaxPorts = 16 // local ports, and as many remote ports
	MaxTasks = 16 // processes, names and cgroups, each
)

// Options say what to trace. The zero value traces every connection in every
// network namespace. Values of one field are alternatives; an event has to pass
// every field that is set.
type Options struct {
	// NetNS limits the trace to these network namespaces, in the kernel; empty: all.
	NetNS []NetNS
	// Kinds limits the trace to these kinds of events, and the programs that are
	// attached to those that are needed for them; empty: all.
	Kinds []Kind

	// PIDs, Comms and Cgroups limit the trace to the connections of these processes:
	// thread-group ids in the caller's pid namespace, names of up to 15 bytes as in
	// /proc/PID/comm, ids of cgroups (v2) that the socket is in or below. A TIME_WAIT
	// belongs to the process that its connection belonged to.
	PIDs    []uint32
	Comms   []string
	Cgroups []uint64

	// LocalPorts and RemotePorts limit the trace to connections with these ports. A
	// connect() has no local port until the kernel has chosen one, so that
	// with LocalPorts its first event is SYN_SENT > ESTABLISHED.
	LocalPorts, RemotePorts []uint16
	// IPv4Only and IPv6Only limit the trace to one family; both: neither is left
	// out. An IPv6 socket that speaks IPv4 counts as IPv6.
	IPv4Only, IPv6Only bool
	// FailuresOnly leaves out all that is not the failure of a connection:
	// connect() and bind() that failed, errors, drops by a listener, resets that
	// were received, connections closed with an error pending.
	FailuresOnly bool

	// RingSize is the size in bytes of the ring between kernel and user space that each CPU
	// has, a power of two of at least 4096; 0: DefaultRingSize. An event takes 128.
	RingSize int
}

// byOwner: the trace is limited to the connections of some processes.
func (o *Options) byOwner() bool { return len(o.PIDs) > 0 || len(o.Comms) > 0 || len(o.Cgroups) > 0 }

// Validate reports every problem at once.
func (o *Options) Validate() error {
	var errs []error
	for _, l := range []struct {
		what   string
		n, max int
	}{
		{"network namespaces", len(o.NetNS), MaxNetNS},
		{"local ports", len(o.LocalPorts), MaxPorts},
		{"remote ports", len(o.RemotePorts), MaxPorts},
		{"processes", len(o.PIDs), MaxTasks},
		{"names of processes", len(o.Comms), MaxTasks},
		{"cgroups", len(o.Cgroups), MaxTasks},
	} {
		if l.n > l.max {
			errs = append(errs, fmt.Errorf("a trace can be limited to %d %s, not %d", l.max, l.what, l.n))
		}
	}
	for _, ns := range o.NetNS {
		if ns == 0 {
			errs = append(errs, errors.New("a network namespace's cookie is never 0"))
		}
	}
	for _, k := range o.Kinds {
		if k == 0 || int(k) >= tcp.NumKinds {
			errs = append(errs, fmt.Errorf("there is no kind of events with the number %d", k))
		}
	}
	for _, name := range o.Comms {
		if name == "" || len(name) > 15 {
			errs = append(errs, fmt.Errorf("the name of a process has 1 to 15 bytes, not %d as %q", len(name), name))
		}
	}
	if slices.Contains(o.PIDs, 0) {
		errs = append(errs, errors.New("the number of a process is never 0"))
	}
	for _, p := range append(slices.Clone(o.LocalPorts), o.RemotePorts...) {
		if p == 0 {
			errs = append(errs, errors.New("a port is never 0"))
		}
	}
	if o.RingSize != 0 && (o.RingSize < minRing || bits.OnesCount(uint(o.RingSize)) != 1) {
		errs = append(errs, fmt.Errorf("the ring's size must be a power of two of at least %d, not %d", minRing, o.RingSize))
	}
	return errors.Join(errs...)
}
