package loadgen

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// bindToCPU binds the calling thread to the processor for shard id; without cpus it
// does nothing.
func bindToCPU(cpus []int, id int) error {
	if len(cpus) == 0 {
		return nil
	}
	var set unix.CPUSet
	cpu := cpus[id%len(cpus)]
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("bind the thread to processor %d: %w", cpu, err)
	}
	return nil
}

// AllowedCPUs returns the processors that the calling thread may run on.
func AllowedCPUs() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("sched_getaffinity: %w", err)
	}
	var cpus []int
	for cpu := range len(set) * 64 {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}

// maxTogether bounds the threads that Together chooses.
const maxTogether = 16

// Together returns the processors for a server that is to host the storm p (Plan.Host), a
// thread on each; none if the two had better have threads of their own. They do where it
// is about their not keeping pace with each other, a small accept queue, a server that is
// slow, or attempts that have times, which the server's work would delay; where
// a close() can block; and where a thread's limit on open files is too low for both ends.
func Together(p *Plan, s *ServerPlan) ([]int, error) {
	slow := s.AcceptDelay != 0 || s.Mode != Echo && s.Mode != ResetOnClose || s.Backlog != 0 && s.Backlog < DefaultBacklog
	if slow || p.Rate != 0 || p.MaxRate != 0 || p.Linger > 0 || p.Shards != 0 {
		return nil, nil
	}
	limit, err := fdLimit()
	if err != nil {
		return nil, err
	}
	cpus, err := AllowedCPUs()
	if err != nil {
		return nil, err
	}
	open := p.AtOnce()
	n := min(len(cpus), open, maxTogether)
	// At worst all are accepted by one thread: where the network hands segments to
	// another processor.
	if n == 0 || (open+n-1)/n+open > limit-fdReserve {
		return nil, nil
	}
	return cpus[:n], nil
}

// steerByCPU has the group of SO_REUSEPORT that the listener fd is in, of n listeners of
// which the i-th's thread is bound to cpus[i % len(cpus)], give a SYN to one whose processor
// handles it: to any of them, if there are several. The classic BPF program needs no
// privilege. A SYN on another processor is left to the hash, as all are without it: a
// number that no listener has is not used (reuseport_select_sock).
func steerByCPU(fd, n int, cpus []int) error {
	const (
		ancillary = 0xfffff000 // SKF_AD_OFF and the two below: linux/filter.h
		cpu       = ancillary + 36
		random    = ancillary + 56
	)
	load := func(what uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: what}
	}
	compute := func(operation uint16, k int) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_ALU | operation | unix.BPF_K, K: uint32(k)}
	}
	code := []unix.SockFilter{load(cpu)}
	for i, c := range cpus {
		listeners := (n - i + len(cpus) - 1) / len(cpus)
		choose := []unix.SockFilter{
			load(random), compute(unix.BPF_MOD, listeners), compute(unix.BPF_MUL, len(cpus)), compute(unix.BPF_ADD, i),
			{Code: unix.BPF_RET | unix.BPF_A},
		}
		code = append(code, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: uint8(len(choose)), K: uint32(c)})
		code = append(code, choose...)
	}
	code = append(code, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 31})
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	_, _, e := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF,
		uintptr(unsafe.Pointer(&prog)), unsafe.Sizeof(prog), 0)
	if e != 0 {
		return fmt.Errorf("steer connections to the listeners of their processor: %w", e)
	}
	return nil
}
