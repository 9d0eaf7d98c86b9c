package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/cilium/ebpf"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/privilege"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/tracer"
)

// check is a row of the table.
type check struct {
	group string
	name  string
	// needed: where it is missing, `twtrace run` ends with exit code 4.
	needed bool
	look   func(*Machine) Finding
}

// The groups, in their order.
const (
	groupKernel     = "KERNEL"
	groupPrivilege  = "PRIVILEGE"
	groupTrace      = "TRACE (loaded, attached, and taken off again)"
	groupTracepoint = "TRACEPOINTS (each by itself)"
	groupLimits     = "LIMITS"
	groupSettings   = "SETTINGS of this network namespace (those that run makes start with the kernel's defaults)"
)

// checks is the table.
func checks() []check {
	list := []check{
		{groupKernel, "kernel", false, kernel},
		{groupKernel, "btf", true, kernelTypes},
		{groupKernel, "lockdown", false, lockdown},
		{groupKernel, "cpus", false, cpus},
		{groupKernel, "clock", false, clockSource},
		{groupKernel, "time-namespace", false, timeNamespace},
		{groupKernel, "ipv6", false, ipv6},
		{groupPrivilege, "user-namespace", false, userNamespace},
		{groupPrivilege, "capabilities", false, capabilities},
	}
	for _, n := range privilege.Needs {
		list = append(list, check{groupPrivilege, "privilege for " + n.Command, n.Command == privilege.RunPair.Command, may(n)})
	}
	list = append(list,
		check{groupPrivilege, "kernel.unprivileged_bpf_disabled", false, unprivilegedBPF},
		check{groupTrace, "trace", true, trace},
		check{groupTrace, "kernel-symbols", false, kernelSymbols},
		check{groupTrace, "ring", true, rings},
		check{groupTrace, "iterators", false, attach(ebpf.AttachTraceIter, "tcp",
			"a snapshot of the sockets that are there already, TIME_WAITs with their time left included",
			"what was there before a trace began is seen only from its next event on")},
		check{groupTrace, "tracefs", false, tracefs},
		check{groupTrace, "fentry", false, fentry},
		check{groupTrace, "kprobes", false, kprobes},
		check{groupTrace, "kernel.bpf_stats_enabled", false, bpfStats},
	)
	for _, t := range tracepoints {
		list = append(list, check{groupTracepoint, t.name, false, t.look})
	}
	list = append(list,
		check{groupLimits, "namespaces", true, namespaces},
		check{groupLimits, "open-files", false, openFiles},
		check{groupLimits, "ports", false, ports},
		check{groupLimits, "conntrack", false, conntrack},
	)
	for _, s := range settings {
		list = append(list, check{groupSettings, s.key, false, s.look})
	}
	return list
}

func ok(found, means string) Finding { return Finding{OK, found, means, ""} }

// refused is the finding for what the kernel did not permit.
func refused(m *Machine, err error, need privilege.Need, means string) Finding {
	f := Finding{Missing, kernelSays(err), means, "sudo twtrace doctor"}
	if missing := m.Held.Missing(need.Must); len(missing) > 0 {
		f.Found += ", without " + privilege.Names(missing)
		return f
	}
	f.Found += ", although this process has " + privilege.Names(need.Must)
	f.Fix = "a container, a system call filter, an LSM or lockdown refuses it: run outside of it"
	if !m.initialUser() {
		f.Found += " in this user namespace"
		f.Fix = outside
	}
	return f
}

// outside is the fix for what only the initial user namespace's capabilities do.
const outside = "run outside of the user namespace (of the rootless container)"

// kernelSays is the kernel's part of an error alone: what was tried is the check's
// own words.
func kernelSays(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	return strings.Join(strings.Fields(err.Error()), " ")
}

func kernel(m *Machine) Finding {
	return ok("Linux "+m.Release+" "+m.Arch,
		"written for 5.14 and later on x86_64 and aarch64; what counts are the checks below, not this number")
}

func kernelTypes(m *Machine) Finding {
	const means = "programs are fitted to this kernel by its own types"
	_, err := m.Arguments(tracepoints[0].name)
	if errors.Is(err, tracer.ErrNoBTF) {
		return Finding{Missing, "none", means + ": without them nothing can be traced",
			"boot a kernel with CONFIG_DEBUG_INFO_BTF=y, or run with --no-trace"}
	}
	info, statErr := fs.Stat(m.FS, "sys/kernel/btf/vmlinux")
	if statErr != nil {
		return ok("in the kernel's image", means)
	}
	return ok(fmt.Sprintf("/sys/kernel/btf/vmlinux, %.1f MB", float64(info.Size())/1e6), means)
}

func lockdown(m *Machine) Finding {
	text, err := m.read("sys/kernel/security/lockdown")
	if err != nil {
		return ok("unknown: "+kernelSays(fileError(err))+" (/sys/kernel/security/lockdown; is securityfs mounted?)",
			"where a kernel is locked down it may refuse fentry and kprobes; tracepoints are enough for twtrace")
	}
	// none [integrity] confidentiality
	_, mode, _ := strings.Cut(text, "[")
	mode, _, _ = strings.Cut(mode, "]")
	switch mode {
	case "confidentiality":
		return Finding{Limited, mode, "BPF programs may not read the kernel's memory (security/lockdown): tracing may be refused",
			"boot with lockdown=integrity, or without"}
	case "integrity":
		return ok(mode, "a kernel that is locked down may refuse fentry and kprobes; tracepoints are enough for twtrace")
	}
	return ok(mode, "not locked down")
}

// fileError takes the path out of an error.
func fileError(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}

func cpus(m *Machine) Finding {
	if m.CPUs == 1 {
		return Finding{Limited, "1", "client, server, and the trace's drain take turns: connect times are those of the queue", ""}
	}
	return ok(fmt.Sprint(m.CPUs), "client, server, the kernel's softirqs and the trace's drain share them")
}

func clockSource(m *Machine) Finding {
	name, err := m.read("sys/devices/system/clocksource/clocksource0/current_clocksource")
	if err != nil {
		return ok("unknown", "each event and each attempt is stamped with CLOCK_MONOTONIC")
	}
	for _, fast := range []string{"tsc", "kvm-clock", "hyperv_clocksource", "arch_sys_counter"} {
		if strings.HasPrefix(name, fast) {
			return ok(name, "CLOCK_MONOTONIC is read without a system call")
		}
	}
	return Finding{Limited, name, "reading CLOCK_MONOTONIC is slow with this clock source: the storm and the trace slow down with it",
		"see /sys/devices/system/clocksource/clocksource0/available_clocksource for a better one (tsc)"}
}

func timeNamespace(m *Machine) Finding {
	text, err := m.read("proc/self/timens_offsets")
	if err != nil {
		return ok("none in this kernel", "event times and attempt times are of one clock")
	}
	for line := range strings.Lines(text) {
		// monotonic   86400   0
		if f := strings.Fields(line); len(f) == 3 && f[0] == "monotonic" && (f[1] != "0" || f[2] != "0") {
			return Finding{Limited, fmt.Sprintf("CLOCK_MONOTONIC is off by %s s", f[1]),
				"events have the host's time, attempts this namespace's: the two can't be joined by time",
				"run outside of the time namespace"}
		}
	}
	return ok("the host's", "event times and attempt times are of one clock")
}

func ipv6(m *Machine) Finding {
	if _, err := fs.Stat(m.FS, "proc/sys/net/ipv6"); err != nil {
		return Finding{Limited, "none", "`twtrace run -6` can't run", "boot without ipv6.disable=1, with CONFIG_IPV6"}
	}
	return ok("there", "`twtrace run -6` is the storm over IPv6")
}

func userNamespace(m *Machine) Finding {
	if m.initialUser() {
		return ok("the initial one", "capabilities count everywhere")
	}
	return Finding{Limited, "not the initial one", "capabilities count only for what is made in it: `twtrace run --no-trace` works, and nothing can be traced",
		outside}
}

func capabilities(m *Machine) Finding {
	held, lacking := m.Held.List()
	found := privilege.Names(held)
	switch {
	case len(held) == 0:
		return ok("none", "`twtrace run --no-trace --net host` and `twtrace serve` need none")
	case len(lacking) == 0:
		found = "all"
	case len(lacking) < len(held):
		found = "all but " + privilege.Names(lacking)
	}
	return ok(found, "`twtrace run` and `twtrace serve` drop all of them once they are under way")
}

// may is the check of what a command needs.
func may(n privilege.Need) func(*Machine) Finding {
	return func(m *Machine) Finding {
		if len(n.Must) == 0 {
			return ok("needs no capability", "")
		}
		needs := "needs " + privilege.Names(n.Must)
		if missing := m.lacks(n.Must); len(missing) > 0 {
			f := Finding{Missing, "without " + privilege.Names(missing), needs, "sudo twtrace " + n.Command}
			if n.Command == privilege.RunPairNoTrace.Command {
				f.Fix += ", or without root, where user namespaces are allowed: unshare -r twtrace " + n.Command
			}
			if len(n.Should) > 0 {
				f.Means += ", and " + privilege.Names(n.Should) + " or " + n.Loses
			}
			if c := included(n); c != "" {
				f.Means += " (CAP_SYS_ADMIN includes " + c + ")"
			}
			return f
		}
		if n.Traces && !m.initialUser() {
			return Finding{Missing, "has them in this user namespace alone", needs, outside}
		}
		if missing := m.lacks(n.Should); len(missing) > 0 {
			return Finding{Limited, "without " + privilege.Names(missing), n.Loses + " then", "sudo twtrace " + n.Command}
		}
		all := slices.Concat(n.Must, n.Should)
		if len(m.Held.Missing(all)) > 0 {
			return ok(needs, "") // what it has not is not asked for here
		}
		return ok("has "+privilege.Names(all), "")
	}
}

// lacks is those of caps that this process has not and this kernel asks for: it may show its symbols' addresses, for which
// CAP_SYSLOG is, to everybody.
func (m *Machine) lacks(caps []privilege.Capability) []privilege.Capability {
	missing := m.Held.Missing(caps)
	if address, found, err := m.symbol(twTimerHandler); err != nil || !found || address == 0 {
		return missing
	}
	return slices.DeleteFunc(missing, func(c privilege.Capability) bool { return c == cap.SYSLOG })
}

// included names those of a command's capabilities that CAP_SYS_ADMIN includes.
func included(n privilege.Need) string {
	if n.Command == privilege.RunHost.Command {
		return privilege.Names(n.Must)
	}
	return ""
}

func unprivilegedBPF(m *Machine) Finding {
	means := map[string]string{
		"0": "who has no privilege may load some types of programs, though none that twtrace is made of",
		"1": "who has no privilege may load nothing, until the next boot",
		"2": "who has no privilege may load nothing, unless root changes it back",
	}
	v, err := m.sysctl("kernel.unprivileged_bpf_disabled")
	if err != nil {
		return ok("no such setting", "")
	}
	return ok(v, means[v])
}

// trace is the one check that says whether a trace can be made.
func trace(m *Machine) Finding {
	coverage, err := m.Trace()
	switch {
	case errors.Is(err, tracer.ErrNotPermitted):
		return refused(m, err, privilege.RunHost, "nothing can be traced like this; as root this check loads and attaches everything for real")
	case errors.Is(err, tracer.ErrNoBTF):
		return Finding{Missing, "this kernel has no BTF", "nothing can be traced", "boot a kernel with CONFIG_DEBUG_INFO_BTF=y, or run with --no-trace"}
	case errors.Is(err, tracer.ErrTooOld):
		return Finding{Missing, kernelSays(err), "nothing can be traced", "boot Linux 5.14 or later, or run with --no-trace"}
	case err != nil:
		return Finding{Missing, kernelSays(err), "nothing can be traced", "run with --no-trace, and report this"}
	}
	byGrade := make(map[tcp.Grade][]string)
	for fact, grade := range coverage {
		byGrade[grade] = append(byGrade[grade], string(fact))
	}
	f := Finding{Status: OK, Found: fmt.Sprintf("loads and attaches; %d facts exact", len(byGrade[tcp.Exact]))}
	for _, g := range []tcp.Grade{tcp.Inferred, tcp.NotObservable} {
		if names := byGrade[g]; len(names) > 0 {
			slices.Sort(names)
			f.Status = Limited
			f.Found += fmt.Sprintf(", %d %s", len(names), g)
			f.Means += fmt.Sprintf("%s: %s. ", g, strings.Join(names, ", "))
		}
	}
	f.Means = strings.TrimSpace(f.Means)
	if f.Status == OK {
		f.Means = "every fact of a trace can be seen itself"
	}
	return f
}

// twTimerHandler is the function of a TIME_WAIT's timer (net/ipv4/inet_timewait_sock.c).
const twTimerHandler = "tw_timer_handler"

// causes are the functions by which the end of a TIME_WAIT is told: the nearest of
// them on the stack below timer_cancel. One of a row is enough, since compilers
// inline them differently.
var causes = []struct {
	cause     string
	functions []string
}{
	{"expired", []string{"__run_timers", "expire_timers", "__run_timer_base"}},
	{"rearmed", []string{"__mod_timer"}},
	{"reused by connect", []string{
		"__inet_hash_connect", "inet_hash_connect", "__inet_check_established", "__inet6_check_established",
		"inet6_hash_connect", "tcp_v4_connect", "tcp_v6_connect",
	}},
	{"replaced by SYN", []string{"tcp_v4_rcv", "tcp_v6_rcv"}},
	{"killed by RST", []string{"tcp_timewait_state_process"}},
	{"purged", []string{"inet_twsk_purge", "tcp_twsk_purge"}},
	{"destroyed", []string{"tcp_abort"}},
	{"skipped", []string{"tcp_done"}},
}

func kernelSymbols(m *Machine) Finding {
	const means = "a TIME_WAIT is known by its timer's function, and the cause of its end by the functions on the stack"
	address, found, err := m.symbol(twTimerHandler)
	if err != nil {
		return Finding{Limited, kernelSays(fileError(err)), means + ": TIME_WAIT is not observable", "mount /proc, with CONFIG_KALLSYMS in the kernel"}
	}
	if !found {
		return Finding{Limited, "no " + twTimerHandler, means + ": TIME_WAIT is not observable", "report this kernel"}
	}
	var unknown []string
	for _, c := range causes {
		if _, found, _ := m.symbol(c.functions...); !found {
			unknown = append(unknown, c.cause)
		}
	}
	names := fmt.Sprintf("%s and %d of %d causes", twTimerHandler, len(causes)-len(unknown), len(causes))
	if address == 0 {
		kptr, _ := m.sysctl("kernel.kptr_restrict")
		paranoid, _ := m.sysctl("kernel.perf_event_paranoid")
		f := Finding{Limited, names + ", their addresses hidden (no CAP_SYSLOG; kernel.kptr_restrict " + kptr +
			", kernel.perf_event_paranoid " + paranoid + ")", means + ": TIME_WAIT is not observable", "sudo twtrace doctor"}
		if !m.initialUser() {
			f.Fix = outside
		}
		return f
	}
	if len(unknown) > 0 {
		return Finding{Limited, names, means + "; not told from others here: " + strings.Join(unknown, ", "), "report this kernel"}
	}
	return ok(names, means)
}

func rings(m *Machine) Finding {
	each := tracer.DefaultRingSize(m.CPUs)
	size := fmt.Sprintf("%d × %d MiB", m.CPUs, each>>20)
	limit := "unlimited"
	if m.LockedMemory < 1<<62 {
		limit = fmt.Sprintf("%d KiB", m.LockedMemory>>10)
	}
	found := size + "; RLIMIT_MEMLOCK " + limit
	const means = "events wait there for twtrace; since 5.11 they count for the memory cgroup, before for RLIMIT_MEMLOCK"
	err := m.Rings(m.CPUs, each)
	if errors.Is(err, os.ErrPermission) && (len(m.Held.Missing(privilege.RunHost.Must)) > 0 || !m.initialUser()) {
		f := refused(m, err, privilege.RunHost, means)
		f.Found = found + ": " + f.Found
		return f
	}
	if err != nil {
		return Finding{Missing, found + ": " + kernelSays(err), means, "raise the memory limit of this cgroup, and `ulimit -l unlimited` before Linux 5.11"}
	}
	return ok(found, means)
}

// attach is the check of one kind of program that twtrace can do without.
func attach(t ebpf.AttachType, target, gives, otherwise string) func(*Machine) Finding {
	return func(m *Machine) Finding {
		switch err := m.Attach(t, target); {
		case err == nil:
			return ok("loads and attaches ("+target+")", gives)
		case errors.Is(err, os.ErrPermission):
			f := refused(m, err, privilege.RunHost, otherwise)
			f.Status = Limited
			return f
		default:
			return Finding{Limited, kernelSays(err), otherwise, ""}
		}
	}
}

// tracefs is where the numbers of the tracepoints of system calls are read: bind() that
// failed shows at no other.
func tracefs(m *Machine) Finding {
	const missing = "a bind() that failed is not observable"
	for _, dir := range []string{"sys/kernel/tracing", "sys/kernel/debug/tracing"} {
		switch _, err := m.read(dir + "/events/syscalls/sys_exit_bind/id"); {
		case err == nil:
			return ok("/"+dir, "a bind() that failed is seen where the system call returns")
		case errors.Is(err, fs.ErrPermission):
			return Finding{Limited, "/" + dir + ": " + kernelSays(fileError(err)), missing, "sudo twtrace doctor"}
		}
	}
	return Finding{Limited, "not mounted, or without system calls (CONFIG_FTRACE_SYSCALLS)", missing, "sudo mount -t tracefs tracefs /sys/kernel/tracing"}
}

// functionFacts are those that no tracepoint shows.
const functionFacts = string(tcp.FactRefusals) + " (why a connect() could not take a port, port by port), " +
	string(tcp.FactBindOwner) + " (what holds the port that a bind() wanted)"

func fentry(m *Machine) Finding {
	const target = "inet_twsk_alloc"
	f := attach(ebpf.AttachTraceFExit, target,
		"kernel functions can be seen as well: "+functionFacts+", and each TIME_WAIT that is skipped",
		"tracepoints are enough for all else; not observable: "+functionFacts)(m)
	if f.Status != OK && len(m.Held.Missing(privilege.RunHost.Must)) == 0 && m.initialUser() {
		f.Fix = ""
		if l := lockdown(m); strings.HasPrefix(l.Found, "unknown") {
			f.Found += "; lockdown may be why: its state can't be read"
		} else {
			f.Found += "; lockdown is " + l.Found
		}
	}
	return f
}

func kprobes(*Machine) Finding {
	return ok("not used", "they lost events under load where tracepoints and fentry lost none")
}

func bpfStats(m *Machine) Finding {
	v, err := m.sysctl("kernel.bpf_stats_enabled")
	if err != nil {
		return ok("no such setting", "")
	}
	if v == "0" {
		f := ok(v, "what a program costs is not measured, which itself would cost time in each")
		f.Fix = "to measure: sudo sysctl -w kernel.bpf_stats_enabled=1"
		return f
	}
	return ok(v, "the kernel takes the time of each program, which costs some in each")
}

// tracepoint is a row of what the trace stands on.
type tracepoint struct {
	name  string
	full  int // arguments with which it gives all that it gives
	gives string
	less  string // what is missing with fewer arguments
}

var tracepoints = []tracepoint{
	{"inet_sock_set_state", 3, "every change of state, and connects that fail", ""},
	{"timer_start", 1, "TIME_WAIT begins", ""},
	{"timer_cancel", 1, "TIME_WAIT ends early, and why", ""},
	{"timer_expire_entry", 1, "TIME_WAIT expires", ""},
	{"tcp_send_reset", 3, "RSTs sent, and why", "no reason, and only those of full sockets (before 6.10)"},
	{"tcp_receive_reset", 1, "RSTs received", ""},
	{"tcp_retransmit_skb", 3, "segments sent again", "only those that could be sent"},
	{"tcp_retransmit_synack", 2, "SYN+ACKs sent again", ""},
	{"inet_sk_error_report", 1, "errors that a socket gets", ""},
	{"tcp_destroy_sock", 1, "sockets that end", ""},
	{"consume_skb", 1, "SYNs that a full accept queue drops", ""},
	{"kfree_skb", 3, "segments that are dropped, and why", "no reason"},
}

func (t tracepoint) look(m *Machine) Finding {
	n, err := m.Arguments(t.name)
	if errors.Is(err, tracer.ErrNoBTF) {
		return Finding{Missing, "unknown: this kernel has no BTF", t.gives, ""}
	}
	if err != nil {
		return Finding{Limited, "this kernel has none", t.gives + ": not observable", ""}
	}
	f := ok(fmt.Sprintf("%d arguments", n), t.gives)
	if n == 1 {
		f.Found = "1 argument"
	}
	if n < t.full {
		f.Status = Limited
		f.Means += ": " + t.less
	}
	switch err := m.Attach(ebpf.AttachTraceRawTp, t.name); {
	case err == nil:
		f.Found += ", attaches"
	case errors.Is(err, os.ErrPermission) && len(m.Held.Missing(privilege.RunHost.Must)) > 0:
		f.Status = Limited
		f.Found += "; only root may attach"
	default:
		f.Status = Limited
		f.Found += ", does not attach: " + kernelSays(err)
		f.Means = t.gives + ": not observable"
	}
	return f
}

// vethFunction is one of drivers/net/veth.c: its name among the kernel's symbols
// says that veth is built in or loaded, so that trying it loads nothing.
const vethFunction = "veth_newlink"

func namespaces(m *Machine) Finding {
	const means = "`twtrace run` makes two network namespaces joined by veth, so that nothing of the host changes"
	limit, err := m.sysctl("user.max_net_namespaces")
	if err != nil {
		limit = "unknown"
	}
	found := "user.max_net_namespaces " + limit
	if limit == "0" {
		return Finding{Missing, found, means, "sudo sysctl -w user.max_net_namespaces=1000, or run with --net host"}
	}
	if _, there, err := m.symbol(vethFunction); err == nil && !there {
		modules, err := m.read("lib/modules/" + m.Release + "/modules.dep")
		if err == nil && strings.Contains(modules, "/veth.ko") {
			return ok(found+"; veth is a module that is not loaded", means+"; not tried, since that loads the module, as the first run will")
		}
		return Finding{Missing, found + "; this kernel has no veth", means, "boot a kernel with CONFIG_VETH, or run with --net loopback"}
	}
	switch err := m.Network(); {
	case err == nil:
		return ok("two, joined by veth, were made; "+found, means)
	case errors.Is(err, netlab.ErrNotPermitted):
		f := refused(m, err, privilege.RunPairNoTrace, means)
		f.Found += "; " + found
		return f
	case errors.Is(err, netlab.ErrNoVeth):
		return Finding{Missing, "no veth; " + found, means, "sudo modprobe veth, or run with --net loopback"}
	default:
		return Finding{Missing, kernelSays(err) + "; " + found, means, "run with --net host"}
	}
}

// classic is the default storm's size, connections at once.
const classic = 10000

func openFiles(m *Machine) Finding {
	found := fmt.Sprintf("RLIMIT_NOFILE %d (hard; Go raises the soft limit to it)", m.OpenFiles)
	means := fmt.Sprintf("no limit to a storm: it counts for each table of open files, and each thread of a storm has its own, "+
		"so that %d connections at once take %d of them", classic, max(1, threads(classic, m.OpenFiles)))
	if m.OpenFiles < 1024 {
		return Finding{Limited, found, means, "ulimit -n 20000"}
	}
	return ok(found, means)
}

// threads is how many threads hold n connections; each keeps some descriptors for
// itself.
func threads(n int, limit uint64) int {
	const reserve = 64
	room := max(1, int(min(limit, 1<<20))-reserve)
	return (n + room - 1) / room
}
