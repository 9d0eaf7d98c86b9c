package tracer

import (
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf/btf"

	"github.com/twtrace/twtrace/bpf"
	"github.com/twtrace/twtrace/internal/tcp"
)

// probe is a row of what can be attached. Of the rows with the same tracepoint and
// kind the first whose arity fits is taken.
type probe struct {
	tracepoint string
	arity      int    // of the tracepoint's arguments, at least
	program    string // in bpf/probes.bpf.c
	// twin is the second copy of the program, which records what the kernel's
	// recursion guard made the first one skip; "" where interrupts are off
	// and nothing can nest, and where what was skipped shows later.
	twin  string
	facts []tcp.Fact
	// kind is what a program with a twin reports first of all.
	kind Kind
	// forKinds are the kinds that can't be told without this row; nil: all of them.
	forKinds []Kind
	// how says on what the program is attached, and when.
	how attachment
}

type attachment uint8

const (
	always       attachment = iota // from Start to Stop, on a BTF tracepoint
	timeWait                       // the same, where the address of tw_timer_handler is known
	withOwner                      // the same, where the options name processes
	withListener                   // the same, but only as long as a socket listens
	syscall                        // from Start to Stop, on a tracepoint of a system call (tracefs)
	iterator                       // run by Snapshot
)

var (
	timeWaitKinds = []Kind{tcp.KindTWEnter, tcp.KindTWEnd, tcp.KindTWConvert, tcp.KindTWOverflow, tcp.KindState}
	resetKinds    = []Kind{tcp.KindRstSent, tcp.KindTWEnd, tcp.KindTWOverflow}
	dropKinds     = []Kind{tcp.KindListenDrop}
	snapshotKinds = []Kind{tcp.KindSnapshot, tcp.KindListenDrop}
)

var probes = []probe{
	{
		tracepoint: "inet_sock_set_state", arity: 3,
		program: bpf.ProbesProgState, twin: bpf.ProbesProgStateTwin, kind: tcp.KindState,
		facts: []tcp.Fact{tcp.FactState, tcp.FactConnectFail, tcp.FactOwner},
	},
	{
		tracepoint: "timer_start", arity: 1, program: bpf.ProbesProgTwStart,
		facts: []tcp.Fact{tcp.FactTWEnter, tcp.FactTWOverflow}, how: timeWait, forKinds: timeWaitKinds,
	},
	{
		tracepoint: "timer_cancel", arity: 1, program: bpf.ProbesProgTwCancel,
		facts: []tcp.Fact{tcp.FactTWEnd, tcp.FactTWCause}, how: timeWait, forKinds: timeWaitKinds,
	},
	{
		tracepoint: "timer_expire_entry", arity: 1, program: bpf.ProbesProgTwExpire,
		facts: []tcp.Fact{tcp.FactTWEnd}, how: timeWait, forKinds: timeWaitKinds,
	},
	{
		tracepoint: "tcp_send_reset", arity: 3,
		program: bpf.ProbesProgRstSent, twin: bpf.ProbesProgRstSentTwin, kind: tcp.KindRstSent,
		facts: []tcp.Fact{tcp.FactRstSent, tcp.FactRstReason}, forKinds: resetKinds,
	},
	{
		// Until 6.9: full sockets only, and no reason.
		tracepoint: "tcp_send_reset", arity: 2,
		program: bpf.ProbesProgRstSentPlain, twin: bpf.ProbesProgRstSentPlainTwin, kind: tcp.KindRstSent, forKinds: resetKinds,
	},
	{
		tracepoint: "tcp_retransmit_skb", arity: 3,
		program: bpf.ProbesProgRetransmit, twin: bpf.ProbesProgRetransmitTwin, kind: tcp.KindRetransmit,
		facts: []tcp.Fact{tcp.FactRetransmit}, forKinds: []Kind{tcp.KindRetransmit},
	},
	{
		// Before: only those that were sent.
		tracepoint: "tcp_retransmit_skb", arity: 2,
		program: bpf.ProbesProgRetransmitPlain, twin: bpf.ProbesProgRetransmitPlainTwin, kind: tcp.KindRetransmit,
		facts: []tcp.Fact{tcp.FactRetransmit}, forKinds: []Kind{tcp.KindRetransmit},
	},
	{
		tracepoint: "tcp_retransmit_synack", arity: 2,
		program: bpf.ProbesProgSynack, twin: bpf.ProbesProgSynackTwin, kind: tcp.KindSynAckRetransmit,
		facts: []tcp.Fact{tcp.FactRetransmit}, forKinds: []Kind{tcp.KindSynAckRetransmit},
	},
	{
		tracepoint: "tcp_receive_reset", arity: 1,
		program: bpf.ProbesProgRstReceived, twin: bpf.ProbesProgRstReceivedTwin, kind: tcp.KindRstReceived,
		facts: []tcp.Fact{tcp.FactRstReceived}, forKinds: []Kind{tcp.KindRstReceived},
	},
	{
		// Since 5.14.
		tracepoint: "inet_sk_error_report", arity: 1,
		program: bpf.ProbesProgErrorReport, twin: bpf.ProbesProgErrorReportTwin, kind: tcp.KindError,
		facts: []tcp.Fact{tcp.FactError}, forKinds: []Kind{tcp.KindError},
	},
	{tracepoint: "tcp_destroy_sock", arity: 1, program: bpf.ProbesProgDestroyed, how: withOwner},
	{
		// Since 6.12 with the socket; before, a conversion shows at the minisock's end.
		tracepoint: "kfree_skb", arity: 4, program: bpf.ProbesProgTwSegment, kind: tcp.KindTWConvert,
		facts: []tcp.Fact{tcp.FactTWConvert}, how: timeWait, forKinds: []Kind{tcp.KindTWConvert},
	},
	{
		tracepoint: "consume_skb", arity: 1, program: bpf.ProbesProgSkbConsumed, kind: tcp.KindListenDrop,
		facts: []tcp.Fact{tcp.FactListenDrop}, how: withListener, forKinds: dropKinds,
	},
	{
		tracepoint: "kfree_skb", arity: 1, program: bpf.ProbesProgSkbFreed, kind: tcp.KindListenDrop,
		facts: []tcp.Fact{tcp.FactListenDrop}, how: withListener, forKinds: dropKinds,
	},
	{
		tracepoint: "sys_exit_bind", program: bpf.ProbesProgBindExit, kind: tcp.KindBindFailed,
		facts: []tcp.Fact{tcp.FactBindFail}, how: syscall, forKinds: []Kind{tcp.KindBindFailed},
	},
	{
		tracepoint: "task_file", program: bpf.ProbesProgOpenFiles, kind: tcp.KindSnapshot,
		how: iterator, forKinds: snapshotKinds,
	},
	{
		tracepoint: "tcp", program: bpf.ProbesProgExisting, kind: tcp.KindSnapshot,
		facts: []tcp.Fact{tcp.FactSnapshot}, how: iterator, forKinds: snapshotKinds,
	},
}

// choose takes the rows that this kernel has and the kinds ask for. A tracepoint that
// it lacks, or whose arguments are too few, is left out: Coverage then says so.
func choose(kernel *btf.Spec, opts *Options, symbolsKnown bool) []probe {
	kinds := opts.kinds()
	type place struct {
		tracepoint string
		kind       Kind
	}
	var chosen []probe
	taken := make(map[place]bool)
	for _, p := range probes {
		at := place{p.tracepoint, p.kind}
		if taken[at] || !p.isFor(kinds) || !p.exists(kernel) || p.how == timeWait && !symbolsKnown ||
			p.how == withOwner && !opts.byOwner() {
			continue
		}
		taken[at] = true
		chosen = append(chosen, p)
	}
	return chosen
}

// isFor reports whether one of the kinds needs the row.
func (p *probe) isFor(kinds []Kind) bool {
	return p.forKinds == nil || slices.ContainsFunc(p.forKinds, func(k Kind) bool { return slices.Contains(kinds, k) })
}

func (p *probe) exists(kernel *btf.Spec) bool {
	switch p.how {
	case syscall:
		return tracefs() != ""
	case iterator:
		var ctx *btf.Struct
		return kernel.TypeByName("bpf_iter__"+p.tracepoint, &ctx) == nil
	}
	n, err := tracepointArity(kernel, p.tracepoint)
	return err == nil && n >= p.arity
}

// tracefs is where the numbers of classic tracepoints can be read, or "".
func tracefs() string {
	for _, dir := range []string{"/sys/kernel/tracing", "/sys/kernel/debug/tracing"} {
		if _, err := os.Stat(dir + "/events/syscalls/sys_exit_bind/id"); err == nil {
			return dir
		}
	}
	return ""
}

// tracepointArity is the number of arguments of a kernel tracepoint, from the
// type btf_trace_NAME (include/trace/bpf_probe.h), whose first parameter is
// the tracepoint's own.
func tracepointArity(kernel *btf.Spec, name string) (int, error) {
	var def *btf.Typedef
	if err := kernel.TypeByName("btf_trace_"+name, &def); err != nil {
		return 0, fmt.Errorf("tracepoint %s: %w", name, err)
	}
	ptr, ok := def.Type.(*btf.Pointer)
	if !ok {
		return 0, fmt.Errorf("tracepoint %s: BTF has %v, not a pointer", name, def.Type)
	}
	proto, ok := ptr.Target.(*btf.FuncProto)
	if !ok {
		return 0, fmt.Errorf("tracepoint %s: BTF has %v, not a function", name, ptr.Target)
	}
	return len(proto.Params) - 1, nil
}
