package tracer

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/twtrace/twtrace/bpf"
	"github.com/twtrace/twtrace/internal/tcp"
)

// specialise writes the constants and leaves out the programs that were not chosen.
func specialise(spec *ebpf.CollectionSpec, opts Options, syms symbols, chosen []probe) error {
	keep := map[string]bool{bpf.ProbesProgJiffiesNow: true}
	for _, p := range chosen {
		keep[p.program] = true
		if p.twin != "" {
			keep[p.twin] = true
		}
	}
	for name := range spec.Programs {
		if !keep[name] {
			delete(spec.Programs, name)
		}
	}
	if opts.RingSize != 0 {
		spec.Maps[bpf.ProbesMapEvents].MaxEntries = uint32(opts.RingSize)
	} else {
		spec.Maps[bpf.ProbesMapEvents].MaxEntries = DefaultRingSize
	}

	var netns [MaxNetNS]uint64
	for i, ns := range opts.NetNS {
		netns[i] = uint64(ns)
	}
	var table [maxFrames]bpf.ProbesFrame
	copy(table[:], syms.frames)
	for _, c := range []struct {
		name  string
		value any
	}{
		{bpf.ProbesVarNetnsCount, uint32(len(opts.NetNS))},
		{bpf.ProbesVarNetnsFilter, netns},
		{bpf.ProbesVarTwTimerHandlerAddr, syms.twTimerHandler},
		{bpf.ProbesVarFrameCount, uint32(len(syms.frames))},
		{bpf.ProbesVarFrames, table},
	} {
		if err := spec.Variables[c.name].Set(c.value); err != nil {
			return fmt.Errorf("set %s: %w", c.name, err)
		}
	}
	return nil
}

// RstReasons returns this kernel's names for Event.Reason (enum sk_rst_reason,
// Linux 6.10 and later), without their common prefix. They differ between
// kernels. Empty where the kernel gives no reasons.
func (t *Tracer) RstReasons() map[uint32]string { return t.reasons }

func rstReasons(kernel *btf.Spec) map[uint32]string {
	names := make(map[uint32]string)
	var enum *btf.Enum
	if err := kernel.TypeByName("sk_rst_reason", &enum); err == nil {
		for _, v := range enum.Values {
			names[uint32(v.Value)] = strings.TrimPrefix(v.Name, "SK_RST_REASON_")
		}
	}
	return names
}

// loadError says in one line why the kernel refused; a verifier's log stays
// reachable by errors.As.
func loadError(err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w: %w", ErrNotPermitted, err)
	case errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("%w: %w", ErrTooOld, err)
	}
	return fmt.Errorf("load BPF programs: %w", err)
}

// coverage grades each fact by what was chosen.
func coverage(chosen []probe, syms symbols) Coverage {
	c := Coverage{
		tcp.FactState: tcp.NotObservable, tcp.FactConnectFail: tcp.NotObservable,
		tcp.FactRstSent: tcp.NotObservable, tcp.FactRstReason: tcp.NotObservable,
		tcp.FactRstReceived: tcp.NotObservable, tcp.FactTWEnter: tcp.NotObservable,
		tcp.FactTWEnd: tcp.NotObservable, tcp.FactTWCause: tcp.NotObservable,
		tcp.FactTWOverflow: tcp.NotObservable, tcp.FactRetransmit: tcp.NotObservable,
	}
	for _, p := range chosen {
		for _, f := range p.facts {
			c[f] = tcp.Exact
		}
		if p.program == bpf.ProbesProgRstSentPlain {
			c[tcp.FactRstSent] = tcp.Inferred
		}
	}
	// Every cause needs one function of this kernel to be known by.
	known := make(map[uint64]bool)
	for _, f := range syms.frames {
		known[f.Cause] = true
	}
	for _, f := range frames {
		switch {
		case known[uint64(f.cause)]:
		case f.cause == bpf.ProbesTwCauseTW_DONE:
			c[tcp.FactTWOverflow] = tcp.NotObservable
		case c[tcp.FactTWCause] == tcp.Exact:
			c[tcp.FactTWCause] = tcp.Inferred
		}
	}
	return c
}
