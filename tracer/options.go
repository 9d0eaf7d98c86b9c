package tracer

import (
	"errors"
	"fmt"
	"math/bits"

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

// MaxNetNS is how many namespaces one trace can be limited to (MAX_NETNS in bpf/maps.h).
const MaxNetNS = 8

// DefaultRingSize holds 190,000 events, more than half a second of the fastest
// storm two cores can make.
const DefaultRingSize = 16 << 20

// Options say what to trace. The zero value traces every network namespace.
type Options struct {
	// NetNS limits the trace to these network namespaces, in the kernel; empty: all.
	NetNS []NetNS
	// RingSize is the size of the ring between kernel and user space in
	// bytes, a power of two of at least 4096; 0: DefaultRingSize.
	RingSize int
}

// Validate reports every problem at once.
func (o *Options) Validate() error {
	var errs []error
	if len(o.NetNS) > MaxNetNS {
		errs = append(errs, fmt.Errorf("a trace can be limited to %d namespaces, not %d", MaxNetNS, len(o.NetNS)))
	}
	for _, ns := range o.NetNS {
		if ns == 0 {
			errs = append(errs, errors.New("a network namespace's cookie is never 0"))
		}
	}
	if o.RingSize != 0 && (o.RingSize < 4096 || bits.OnesCount(uint(o.RingSize)) != 1) {
		errs = append(errs, fmt.Errorf("the ring's size must be a power of two of at least 4096, not %d", o.RingSize))
	}
	return errors.Join(errs...)
}
