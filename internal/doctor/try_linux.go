package doctor

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/privilege"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/tracer"
)

// ThisMachine is the machine that the process runs on.
func ThisMachine() (*Machine, error) {
	held, err := privilege.Effective()
	if err != nil {
		return nil, err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	var files, memory unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return nil, fmt.Errorf("getrlimit RLIMIT_NOFILE: %w", err)
	}
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &memory); err != nil {
		return nil, fmt.Errorf("getrlimit RLIMIT_MEMLOCK: %w", err)
	}
	types := sync.OnceValues(btf.LoadKernelSpec) // parsed once, if at all
	return &Machine{
		FS: os.DirFS("/"), Held: held,
		Release: unix.ByteSliceToString(uts.Release[:]), Arch: unix.ByteSliceToString(uts.Machine[:]),
		CPUs: runtime.NumCPU(), OpenFiles: files.Max, LockedMemory: memory.Max,
		Trace: tryTrace,
		Attach: func(t ebpf.AttachType, target string) error {
			kernel, err := types()
			if err != nil {
				return fmt.Errorf("%w: %w", tracer.ErrNoBTF, err)
			}
			return tryAttach(kernel, t, target)
		},
		Arguments: func(tracepoint string) (int, error) {
			kernel, err := types()
			if err != nil {
				return 0, fmt.Errorf("%w: %w", tracer.ErrNoBTF, err)
			}
			return arguments(kernel, tracepoint)
		},
		Rings:   tryRings,
		Network: tryNetwork,
	}, nil
}

// tryTrace traces a namespace that does not exist, so that nothing is recorded.
func tryTrace() (tcp.Coverage, error) {
	t, err := tracer.Open(tracer.Options{NetNS: []tracer.NetNS{math.MaxUint64}})
	if err != nil {
		return nil, err
	}
	err = t.Start()
	return t.Coverage(), errors.Join(err, t.Close())
}

// tryAttach loads a program that does nothing.
func tryAttach(kernel *btf.Spec, t ebpf.AttachType, target string) (err error) {
	program, err := ebpf.NewProgramWithOptions(&ebpf.ProgramSpec{
		Name: "twtrace_doctor", Type: ebpf.Tracing, AttachType: t, AttachTo: target, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	}, ebpf.ProgramOptions{KernelTypes: kernel, LogDisabled: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, program.Close()) }()
	if t == ebpf.AttachTraceIter {
		iter, err := link.AttachIter(link.IterOptions{Program: program})
		if err != nil {
			return fmt.Errorf("attach: %w", err)
		}
		return iter.Close()
	}
	l, err := link.AttachTracing(link.TracingOptions{Program: program})
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	return l.Close()
}

// arguments counts the parameters of btf_trace_NAME (include/trace/bpf_probe.h), of
// which the first is the tracepoint's own.
func arguments(kernel *btf.Spec, tracepoint string) (int, error) {
	var def *btf.Typedef
	if err := kernel.TypeByName("btf_trace_"+tracepoint, &def); err != nil {
		return 0, err
	}
	ptr, ok := def.Type.(*btf.Pointer)
	if !ok {
		return 0, fmt.Errorf("BTF has %v, not a pointer", def.Type)
	}
	proto, ok := ptr.Target.(*btf.FuncProto)
	if !ok {
		return 0, fmt.Errorf("BTF has %v, not a function", ptr.Target)
	}
	return len(proto.Params) - 1, nil
}

func tryRings(n, size int) error {
	const slot = 128
	rings, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "twtrace_doctor", Type: ebpf.Array, Flags: unix.BPF_F_MMAPABLE,
		KeySize: 4, ValueSize: slot, MaxEntries: uint32(n * size / slot),
	})
	if err != nil {
		return err
	}
	return rings.Close()
}

func tryNetwork() error {
	lab, err := netlab.New(netlab.Options{Kind: netlab.Pair})
	if err != nil {
		return err
	}
	return lab.Close()
}
