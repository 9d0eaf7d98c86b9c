package tracer

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/bpf"
	"github.com/twtrace/twtrace/internal/tcp"
)

// failureKinds are what FailuresOnly leaves, state changes among them only those that
// end a connection with an error.
var failureKinds = []Kind{
	tcp.KindState, tcp.KindRstReceived, tcp.KindError, tcp.KindConnectFailed, tcp.KindBindFailed, tcp.KindListenDrop,
	tcp.KindSnapshot,
}

// kinds are those that the options ask for. A conversion is known by where the
// minisock began, and sometimes by how it ended.
func (o *Options) kinds() (wanted []Kind) {
	for k := Kind(1); int(k) < tcp.NumKinds; k++ {
		asked := len(o.Kinds) == 0 || slices.Contains(o.Kinds, k) ||
			(k == tcp.KindTWEnter || k == tcp.KindTWEnd) && slices.Contains(o.Kinds, tcp.KindTWConvert)
		if asked && (!o.FailuresOnly || slices.Contains(failureKinds, k)) {
			wanted = append(wanted, k)
		}
	}
	return wanted
}

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
	if err := sizeRings(spec, opts.RingSize); err != nil {
		return err
	}

	if err := setScope(spec, &opts); err != nil {
		return err
	}
	var (
		kinds   uint32
		table   [maxFrames]bpf.ProbesFrame
		locals  [MaxPorts]uint16
		remotes [MaxPorts]uint16
		pids    [MaxTasks]uint32
		cgroups [MaxTasks]uint64
		comms   [MaxTasks][16]byte
		family  uint8
		pidns   unix.Stat_t
	)
	for _, k := range opts.kinds() {
		kinds |= 1 << k
	}
	copy(table[:], syms.frames)
	copy(locals[:], opts.LocalPorts)
	copy(remotes[:], opts.RemotePorts)
	copy(pids[:], opts.PIDs)
	copy(cgroups[:], opts.Cgroups)
	for i, name := range opts.Comms {
		copy(comms[i][:], name)
	}
	switch {
	case opts.IPv4Only && !opts.IPv6Only:
		family = unix.AF_INET
	case opts.IPv6Only && !opts.IPv4Only:
		family = unix.AF_INET6
	}
	if err := unix.Stat("/proc/self/ns/pid", &pidns); err != nil {
		return fmt.Errorf("ask for the pid namespace: %w", err)
	}
	return set(spec, []constant{
		{bpf.ProbesVarKinds, kinds},
		{bpf.ProbesVarLportCount, uint32(len(opts.LocalPorts))},
		{bpf.ProbesVarLportFilter, locals},
		{bpf.ProbesVarRportCount, uint32(len(opts.RemotePorts))},
		{bpf.ProbesVarRportFilter, remotes},
		{bpf.ProbesVarFamilyFilter, family},
		{bpf.ProbesVarFailuresOnly, opts.FailuresOnly},
		{bpf.ProbesVarPidCount, uint32(len(opts.PIDs))},
		{bpf.ProbesVarPidFilter, pids},
		{bpf.ProbesVarCommCount, uint32(len(opts.Comms))},
		{bpf.ProbesVarCommFilter, comms},
		{bpf.ProbesVarCgroupCount, uint32(len(opts.Cgroups))},
		{bpf.ProbesVarCgroupFilter, cgroups},
		{bpf.ProbesVarPidns, uint32(pidns.Ino)},
		{bpf.ProbesVarTwTimerHandlerAddr, syms.twTimerHandler},
		{bpf.ProbesVarFrameCount, uint32(len(syms.frames))},
		{bpf.ProbesVarFrames, table},
	})
}

// setScope writes the namespaces that the trace is limited to (bpf/scope.h).
func setScope(spec *ebpf.CollectionSpec, opts *Options) error {
	var netns [MaxNetNS]uint64
	for i, ns := range opts.NetNS {
		netns[i] = uint64(ns)
	}
	return set(spec, []constant{
		{bpf.ProbesVarNetnsCount, uint32(len(opts.NetNS))},
		{bpf.ProbesVarNetnsFilter, netns},
	})
}

// constant is one that programs are loaded with.
type constant struct {
	name  string
	value any
}

func set(spec *ebpf.CollectionSpec, constants []constant) error {
	for _, c := range constants {
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
	case !mayLoad(): // what was tried first, of which the library then thinks that the kernel has it not
		return fmt.Errorf("%w: %w", ErrNotPermitted, unix.EPERM)
	case errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("%w: %w", ErrTooOld, err)
	}
	return fmt.Errorf("load BPF programs: %w", err)
}

// mayLoad asks for something that takes CAP_BPF and nothing else: what is refused
// without it can look like a feature that the kernel lacks.
func mayLoad() bool {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return !errors.Is(err, os.ErrPermission)
	}
	return m.Close() == nil
}

// factKinds says for which kinds a fact matters: a trace that does not ask for them
// has nothing to say of it.
var factKinds = map[tcp.Fact][]Kind{
	tcp.FactState:       nil,
	tcp.FactOwner:       nil,
	tcp.FactConnectFail: {tcp.KindState, tcp.KindConnectFailed},
	tcp.FactRefusals:    {tcp.KindConnectFailed},
	tcp.FactBindOwner:   {tcp.KindBindFailed},
	tcp.FactRstSent:     {tcp.KindRstSent},
	tcp.FactRstReason:   {tcp.KindRstSent},
	tcp.FactRstReceived: {tcp.KindRstReceived},
	tcp.FactTWEnter:     {tcp.KindTWEnter},
	tcp.FactTWEnd:       {tcp.KindTWEnd},
	tcp.FactTWCause:     {tcp.KindTWEnd},
	tcp.FactTWOverflow:  {tcp.KindTWOverflow},
	tcp.FactTWConvert:   {tcp.KindTWConvert},
	tcp.FactRetransmit:  {tcp.KindRetransmit, tcp.KindSynAckRetransmit},
	tcp.FactError:       {tcp.KindError},
	tcp.FactBindFail:    {tcp.KindBindFailed},
	tcp.FactListenDrop:  {tcp.KindListenDrop},
	tcp.FactSnapshot:    {tcp.KindSnapshot},
}

// coverage grades each fact by what was chosen.
func coverage(chosen []probe, syms symbols, kinds []Kind) Coverage {
	c := make(Coverage)
	for f, of := range factKinds {
		if of == nil || slices.ContainsFunc(of, func(k Kind) bool { return slices.Contains(kinds, k) }) {
			c[f] = tcp.NotObservable
		}
	}
	grade := func(f tcp.Fact, g tcp.Grade) {
		if _, asked := c[f]; asked {
			c[f] = g
		}
	}
	for _, p := range chosen {
		for _, f := range p.facts {
			grade(f, tcp.Exact)
		}
		if p.program == bpf.ProbesProgRstSentPlain {
			grade(tcp.FactRstSent, tcp.Inferred)
		}
	}
	// Data for a FIN_WAIT2 minisock is answered by RST, which the kernel then does not
	// show: such an end looks like a replacement by SYN.
	everyRst := slices.ContainsFunc(chosen, func(p probe) bool { return p.program == bpf.ProbesProgRstSent })
	if !everyRst && c[tcp.FactTWCause] == tcp.Exact {
		c[tcp.FactTWCause] = tcp.Inferred
	}
	// Without the kernel's word, a conversion shows at the minisock's end.
	if c[tcp.FactTWConvert] == tcp.NotObservable && c[tcp.FactTWEnd] == tcp.Exact {
		c[tcp.FactTWConvert] = tcp.Inferred
	}
	// Every cause needs one function of this kernel to be known by.
	known := make(map[uint64]bool)
	for _, f := range syms.frames {
		known[f.Cause] = true
	}
	for _, f := range frames {
		switch {
		case known[uint64(f.cause)]:
		case f.cause == bpf.ProbesCauseCAUSE_DONE:
			grade(tcp.FactTWOverflow, tcp.NotObservable)
		case c[tcp.FactTWCause] == tcp.Exact:
			c[tcp.FactTWCause] = tcp.Inferred
		}
	}
	// Known by what did not happen, unless the enrichment sees it itself.
	if c[tcp.FactTWOverflow] == tcp.Exact {
		c[tcp.FactTWOverflow] = tcp.Inferred
	}
	return c
}
