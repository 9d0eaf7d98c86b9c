package tracer

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/twtrace/twtrace/bpf"
)

// twTimerHandler is the function of a TIME_WAIT minisock's timer
// (net/ipv4/inet_timewait_sock.c), by which it is known from all other timers.
const twTimerHandler = "tw_timer_handler"

// frames says what a kernel function means as the nearest known one below
// timer_cancel of a TIME_WAIT minisock. Several functions of a row's cause are
// callers of one another: compilers inline them differently.
var frames = []struct {
	function string
	cause    bpf.ProbesCause
}{
	{"expire_timers", bpf.ProbesCauseCAUSE_EXPIRED},
	{"__run_timers", bpf.ProbesCauseCAUSE_EXPIRED},
	{"__run_timer_base", bpf.ProbesCauseCAUSE_EXPIRED},
	{"__mod_timer", bpf.ProbesCauseCAUSE_REARMED},
	{"__inet_check_established", bpf.ProbesCauseCAUSE_REUSED_BY_CONNECT},
	{"__inet6_check_established", bpf.ProbesCauseCAUSE_REUSED_BY_CONNECT},
	{"__inet_hash_connect", bpf.ProbesCauseCAUSE_REUSED_BY_CONNECT},
	{"inet_hash_connect", bpf.ProbesCauseCAUSE_REUSED_BY_CONNECT},
	{"inet6_hash_connect", bpf.ProbesCauseCAUSE_REUSED_BY_CONNECT},
	{"tcp_v4_connect", bpf.ProbesCauseCAUSE_REUSED_BY_CONNECT},
	{"tcp_v6_connect", bpf.ProbesCauseCAUSE_REUSED_BY_CONNECT},
	{"tcp_timewait_state_process", bpf.ProbesCauseCAUSE_KILLED_BY_RST},
	{"tcp_v4_rcv", bpf.ProbesCauseCAUSE_REPLACED_BY_SYN},
	{"tcp_v6_rcv", bpf.ProbesCauseCAUSE_REPLACED_BY_SYN},
	{"inet_twsk_purge", bpf.ProbesCauseCAUSE_PURGED},
	{"tcp_twsk_purge", bpf.ProbesCauseCAUSE_PURGED},
	{"tcp_abort", bpf.ProbesCauseCAUSE_DESTROYED},
	// Of a full socket: tcp_time_wait() ends with it, and is itself gone from the
	// stack by then (a tail call).
	{"tcp_done", bpf.ProbesCauseCAUSE_DONE},
}

// maxFrames is MAX_FRAMES of bpf/maps.h. A function can have several symbols
// (.part.0, .cold), each a range of its own.
const maxFrames = 32

// ErrNoKallsyms says that /proc/kallsyms shows no addresses, so that a TIME_WAIT's timer
// can't be told from others.
var ErrNoKallsyms = errors.New("kernel symbol addresses are hidden")

// symbols is what the tracer needs of /proc/kallsyms.
type symbols struct {
	twTimerHandler uint64
	frames         []bpf.ProbesFrame // by address
}

// readSymbols reads kernel symbols. Addresses are 0 for who may not see them
// (kptr_restrict); the error is then ErrNoKallsyms.
func readSymbols() (symbols, error) {
	f, err := os.Open("/proc/kallsyms")
	if err != nil {
		return symbols{}, fmt.Errorf("%w: %w", ErrNoKallsyms, err)
	}
	defer f.Close()
	return parseSymbols(f)
}

func parseSymbols(r io.Reader) (symbols, error) {
	wanted := make(map[string]bpf.ProbesCause, len(frames))
	for _, f := range frames {
		wanted[f.function] = f.cause
	}

	var (
		syms  symbols
		found []bpf.ProbesFrame
		addrs []uint64
	)
	scan := bufio.NewScanner(r)
	for scan.Scan() {
		// ffffffff8141cc50 t __run_timers [module]
		addrText, rest, ok := bytes.Cut(scan.Bytes(), []byte(" "))
		if !ok || len(rest) < 3 {
			continue
		}
		addr, err := strconv.ParseUint(string(addrText), 16, 64)
		if err != nil || addr == 0 {
			continue
		}
		addrs = append(addrs, addr)
		if c := rest[0]; c != 't' && c != 'T' && c != 'w' && c != 'W' {
			continue
		}
		name, _, _ := bytes.Cut(rest[2:], []byte("\t"))
		function := stripSuffix(string(name))
		if function == twTimerHandler && string(name) == function {
			syms.twTimerHandler = addr
		}
		if cause, ok := wanted[function]; ok {
			found = append(found, bpf.ProbesFrame{Start: addr, Cause: uint64(cause)})
		}
	}
	if err := scan.Err(); err != nil {
		return symbols{}, fmt.Errorf("read /proc/kallsyms: %w", err)
	}
	if syms.twTimerHandler == 0 {
		return symbols{}, ErrNoKallsyms
	}

	// A function reaches to the next symbol.
	slices.Sort(addrs)
	for i := range found {
		next, _ := slices.BinarySearch(addrs, found[i].Start+1)
		found[i].End = found[i].Start + 1<<16
		if next < len(addrs) {
			found[i].End = min(found[i].End, addrs[next])
		}
	}
	slices.SortFunc(found, func(a, b bpf.ProbesFrame) int {
		if a.Start < b.Start {
			return -1
		}
		return 1
	})
	if len(found) > maxFrames {
		return symbols{}, fmt.Errorf("this kernel has %d symbols for the %d functions that end a TIME_WAIT, more than %d", len(found), len(frames), maxFrames)
	}
	syms.frames = found
	return syms, nil
}

// stripSuffix removes what compilers add to the name of a function that they
// split or cloned: __run_timers.part.0, tcp_v4_rcv.cold.
func stripSuffix(name string) string {
	base, _, _ := strings.Cut(name, ".")
	return base
}
