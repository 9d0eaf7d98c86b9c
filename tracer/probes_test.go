package tracer

import (
	"bytes"
	"slices"
	"testing"

	"github.com/cilium/ebpf/btf"

	"github.com/twtrace/twtrace/bpf"
	"github.com/twtrace/twtrace/internal/tcp"
)

// TestProbesNameEveryProgram: a program that no row names would be dead code, and
// a row whose program attaches elsewhere would count other events.
func TestProbesNameEveryProgram(t *testing.T) {
	spec, err := bpf.LoadProbes()
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]string{bpf.ProbesProgJiffiesNow: "syscall"}
	for _, p := range probes {
		section := "tp_btf/"
		switch p.how {
		case syscall:
			section = "tracepoint/syscalls/"
		case iterator:
			section = "iter/"
		}
		named[p.program] = section + p.tracepoint
		if p.twin != "" {
			named[p.twin] = section + p.tracepoint
		}
	}
	for name, p := range spec.Programs {
		if named[name] != p.SectionName {
			t.Errorf("program %s is of section %s; the table of probes says %q", name, p.SectionName, named[name])
		}
		delete(named, name)
	}
	for name := range named {
		t.Errorf("program %s does not exist", name)
	}
}

// kernelWith returns the types of a kernel that has these tracepoints with so
// many arguments (btf_trace_NAME, include/trace/bpf_probe.h).
func kernelWith(t *testing.T, arity map[string]int) *btf.Spec {
	t.Helper()
	b, err := btf.NewBuilder(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, n := range arity {
		proto := &btf.FuncProto{Return: &btf.Void{}}
		for range n + 1 { // the first is the tracepoint's own
			proto.Params = append(proto.Params, btf.FuncParam{Type: &btf.Pointer{Target: &btf.Void{}}})
		}
		if _, err := b.Add(&btf.Typedef{Name: "btf_trace_" + name, Type: &btf.Pointer{Target: proto}}); err != nil {
			t.Fatal(err)
		}
	}
	// Neither is a tracepoint, whatever its name says.
	for _, typ := range []btf.Type{
		&btf.Typedef{Name: "btf_trace_no_pointer", Type: &btf.Int{Name: "int", Size: 4}},
		&btf.Typedef{Name: "btf_trace_no_function", Type: &btf.Pointer{Target: &btf.Int{Name: "int", Size: 4}}},
		&btf.Int{Name: "btf_trace_no_typedef", Size: 4},
	} {
		if _, err := b.Add(typ); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := b.Marshal(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func TestChoose(t *testing.T) {
	// Arguments as KERNEL.md's table has them for 5.15 and 6.18.
	v515 := map[string]int{
		"inet_sock_set_state": 3, "timer_start": 3, "timer_cancel": 1, "timer_expire_entry": 2,
		"tcp_send_reset": 2, "tcp_receive_reset": 1,
	}
	v618 := map[string]int{
		"inet_sock_set_state": 3, "timer_start": 2, "timer_cancel": 1, "timer_expire_entry": 2,
		"tcp_send_reset": 3, "tcp_receive_reset": 1,
	}
	for _, tt := range []struct {
		name     string
		kernel   map[string]int
		programs []string
		grades   map[tcp.Fact]tcp.Grade
	}{
		{
			name: "nothing", kernel: nil,
			grades: map[tcp.Fact]tcp.Grade{tcp.FactState: tcp.NotObservable, tcp.FactTWCause: tcp.NotObservable},
		},
		{
			name: "6.18", kernel: v618,
			programs: []string{"state", "tw_start", "tw_cancel", "tw_expire", "rst_sent", "rst_received"},
			grades:   map[tcp.Fact]tcp.Grade{tcp.FactState: tcp.Exact, tcp.FactRstSent: tcp.Exact, tcp.FactRstReason: tcp.Exact, tcp.FactTWCause: tcp.Exact},
		},
		{
			name: "5.15", kernel: v515,
			programs: []string{"state", "tw_start", "tw_cancel", "tw_expire", "rst_sent_plain", "rst_received"},
			grades:   map[tcp.Fact]tcp.Grade{tcp.FactRstSent: tcp.Inferred, tcp.FactRstReason: tcp.NotObservable, tcp.FactTWCause: tcp.Inferred},
		},
		{
			name: "too few arguments", kernel: map[string]int{"inet_sock_set_state": 2, "tcp_send_reset": 1, "tcp_receive_reset": 1},
			programs: []string{"rst_received"},
			grades:   map[tcp.Fact]tcp.Grade{tcp.FactState: tcp.NotObservable, tcp.FactRstReceived: tcp.Exact},
		},
		{
			name: "without timers", kernel: map[string]int{"inet_sock_set_state": 3},
			programs: []string{"state"},
			grades:   map[tcp.Fact]tcp.Grade{tcp.FactTWEnter: tcp.NotObservable, tcp.FactTWOverflow: tcp.NotObservable, tcp.FactConnectFail: tcp.Exact},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			chosen := choose(kernelWith(t, tt.kernel), &Options{Kinds: connectionKinds}, true)
			for _, p := range chosen {
				got = append(got, p.program)
			}
			if !slices.Equal(got, tt.programs) {
				t.Errorf("chose %v, want %v", got, tt.programs)
			}
			grades := coverage(chosen, everyCause(), connectionKinds)
			for fact, want := range tt.grades {
				if grades[fact] != want {
					t.Errorf("%s is %s, want %s", fact, grades[fact], want)
				}
			}
		})
	}
}

// connectionKinds are those that need nothing but BTF tracepoints of TCP and of timers.
var connectionKinds = []Kind{
	tcp.KindState, tcp.KindRstSent, tcp.KindRstReceived, tcp.KindTWEnter, tcp.KindTWEnd, tcp.KindTWOverflow,
	tcp.KindRetransmit, tcp.KindSynAckRetransmit, tcp.KindConnectFailed,
}

// everyCause is a kernel whose symbols show every function.
func everyCause() symbols {
	var s symbols
	for _, f := range frames {
		s.frames = append(s.frames, bpf.ProbesFrame{Cause: uint64(f.cause)})
	}
	return s
}

// TestCoverageOfCauses: a cause whose functions this kernel lacks makes all of
// them guesses, since its events come out under another cause.
func TestCoverageOfCauses(t *testing.T) {
	syms := everyCause()
	purged := uint64(bpf.ProbesCauseCAUSE_PURGED)
	syms.frames = slices.DeleteFunc(syms.frames, func(f bpf.ProbesFrame) bool { return f.Cause == purged })
	if g := coverage(probes, syms, connectionKinds)[tcp.FactTWCause]; g != tcp.Inferred {
		t.Errorf("%s is %s, want %s", tcp.FactTWCause, g, tcp.Inferred)
	}
}

func TestTracepointArity(t *testing.T) {
	kernel := kernelWith(t, map[string]int{"none": 0, "three": 3})
	for name, want := range map[string]int{"none": 0, "three": 3} {
		if n, err := tracepointArity(kernel, name); err != nil || n != want {
			t.Errorf("%s has %d arguments, %v; want %d", name, n, err, want)
		}
	}
	for _, name := range []string{"absent", "no_pointer", "no_function", "no_typedef"} {
		if n, err := tracepointArity(kernel, name); err == nil {
			t.Errorf("%s has %d arguments, want an error", name, n)
		}
	}
}
