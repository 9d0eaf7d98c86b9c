package tracer

import (
	"fmt"

	"github.com/cilium/ebpf/btf"

	"github.com/twtrace/twtrace/bpf"
	"github.com/twtrace/twtrace/internal/tcp"
)

// probe is a row of what can be attached. Of the rows with the same tracepoint
// the first whose arity fits is taken.
type probe struct {
	tracepoint string
	arity      int    // of the tracepoint's arguments, at least
	program    string // in bpf/probes.bpf.c
	// twin is the second copy of the program, which records what the kernel's
	// recursion guard made the first one skip; "" where interrupts are off
	// and nothing can nest.
	twin  string
	facts []tcp.Fact
	// kind is what a program with a twin reports.
	kind Kind
	// timeWait rows need the address of tw_timer_handler.
	timeWait bool
}

var probes = []probe{
	{
		tracepoint: "inet_sock_set_state", arity: 3,
		program: bpf.ProbesProgState, twin: bpf.ProbesProgStateTwin, kind: tcp.KindState,
		facts: []tcp.Fact{tcp.FactState, tcp.FactConnectFail},
	},
	{
		tracepoint: "timer_start", arity: 1, program: bpf.ProbesProgTwStart,
		facts: []tcp.Fact{tcp.FactTWEnter, tcp.FactTWOverflow}, timeWait: true,
	},
	{
		tracepoint: "timer_cancel", arity: 1, program: bpf.ProbesProgTwCancel,
		facts: []tcp.Fact{tcp.FactTWEnd, tcp.FactTWCause}, timeWait: true,
	},
	{
		tracepoint: "timer_expire_entry", arity: 1, program: bpf.ProbesProgTwExpire,
		facts: []tcp.Fact{tcp.FactTWEnd}, timeWait: true,
	},
	{
		tracepoint: "tcp_send_reset", arity: 3,
		program: bpf.ProbesProgRstSent, twin: bpf.ProbesProgRstSentTwin, kind: tcp.KindRstSent,
		facts: []tcp.Fact{tcp.FactRstSent, tcp.FactRstReason},
	},
	{
		// Until 6.9: full sockets only, and no reason.
		tracepoint: "tcp_send_reset", arity: 2,
		program: bpf.ProbesProgRstSentPlain, twin: bpf.ProbesProgRstSentPlainTwin, kind: tcp.KindRstSent,
	},
	{
		tracepoint: "tcp_retransmit_skb", arity: 3,
		program: bpf.ProbesProgRetransmit, twin: bpf.ProbesProgRetransmitTwin, kind: tcp.KindRetransmit,
		facts: []tcp.Fact{tcp.FactRetransmit},
	},
	{
		// Before: only those that were sent.
		tracepoint: "tcp_retransmit_skb", arity: 2,
		program: bpf.ProbesProgRetransmitPlain, twin: bpf.ProbesProgRetransmitPlainTwin, kind: tcp.KindRetransmit,
		facts: []tcp.Fact{tcp.FactRetransmit},
	},
	{
		tracepoint: "tcp_retransmit_synack", arity: 2,
		program: bpf.ProbesProgSynack, twin: bpf.ProbesProgSynackTwin, kind: tcp.KindSynAckRetransmit,
		facts: []tcp.Fact{tcp.FactRetransmit},
	},
	{
		tracepoint: "tcp_receive_reset", arity: 1,
		program: bpf.ProbesProgRstReceived, twin: bpf.ProbesProgRstReceivedTwin, kind: tcp.KindRstReceived,
		facts: []tcp.Fact{tcp.FactRstReceived},
	},
}

// choose takes the rows that this kernel has. A tracepoint that it lacks, or
// whose arguments are too few, is left out: Coverage then says so.
func choose(kernel *btf.Spec) []probe {
	var chosen []probe
	taken := make(map[string]bool)
	for _, p := range probes {
		if taken[p.tracepoint] {
			continue
		}
		if n, err := tracepointArity(kernel, p.tracepoint); err != nil || n < p.arity {
			continue
		}
		taken[p.tracepoint] = true
		chosen = append(chosen, p)
	}
	return chosen
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
