package doctor

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"unicode/utf8"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/privilege"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/tracer"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// files are those of a machine, by path; the values are what `sysctl` and `cat`
// print on Debian 13 (Linux 6.12), but for what a test changes.
func files(change map[string]string) fstest.MapFS {
	text := map[string]string{
		"proc/kallsyms": "ffffffff81db9ae0 t veth_newlink\t[veth]\n" +
			"ffffffff82006070 t tw_timer_handler\nffffffff820066c0 T inet_twsk_purge\n" +
			"ffffffff81180000 t __run_timers.part.0\nffffffff81180100 t __mod_timer\n" +
			"ffffffff82010000 T __inet_hash_connect\nffffffff82020000 T tcp_v4_rcv\n" +
			"ffffffff82030000 t tcp_timewait_state_process.cold\nffffffff82040000 T tcp_abort\n" +
			"ffffffff82050000 T tcp_done\nffffffff82060000 d tcp_v6_rcv\n",
		"proc/self/uid_map":                                               "         0          0 4294967295\n",
		"proc/self/timens_offsets":                                        "monotonic           0         0\nboottime            0         0\n",
		"proc/sys/kernel/bpf_stats_enabled":                               "0\n",
		"proc/sys/kernel/kptr_restrict":                                   "0\n",
		"proc/sys/kernel/perf_event_paranoid":                             "3\n",
		"proc/sys/kernel/unprivileged_bpf_disabled":                       "2\n",
		"sys/kernel/tracing/events/syscalls/sys_exit_bind/id":             "654\n",
		"proc/sys/net/core/somaxconn":                                     "4096\n",
		"proc/sys/net/ipv4/ip_local_port_range":                           "32768\t60999\n",
		"proc/sys/net/ipv4/ip_local_reserved_ports":                       "\n",
		"proc/sys/net/ipv4/tcp_abort_on_overflow":                         "0\n",
		"proc/sys/net/ipv4/tcp_fin_timeout":                               "60\n",
		"proc/sys/net/ipv4/tcp_max_syn_backlog":                           "512\n",
		"proc/sys/net/ipv4/tcp_max_tw_buckets":                            "65536\n",
		"proc/sys/net/ipv4/tcp_rfc1337":                                   "0\n",
		"proc/sys/net/ipv4/tcp_syncookies":                                "1\n",
		"proc/sys/net/ipv4/tcp_timestamps":                                "1\n",
		"proc/sys/net/ipv4/tcp_tw_reuse":                                  "2\n",
		"proc/sys/net/ipv6/conf/all/forwarding":                           "0\n",
		"proc/sys/user/max_net_namespaces":                                "15433\n",
		"sys/devices/system/clocksource/clocksource0/current_clocksource": "kvm-clock\n",
		"sys/kernel/btf/vmlinux":                                          strings.Repeat("x", 54321),
		"sys/kernel/security/lockdown":                                    "[none] integrity confidentiality\n",
	}
	maps.Copy(text, change)
	m := make(fstest.MapFS)
	for path, t := range text {
		if t != gone {
			m[path] = &fstest.MapFile{Data: []byte(t)}
		}
	}
	return m
}

// gone is the text of a file that is not there.
const gone = "\x00gone"

// arguments612 are those of Linux 6.12 (KERNEL.md).
var arguments612 = map[string]int{
	"inet_sock_set_state": 3, "timer_start": 2, "timer_cancel": 1, "timer_expire_entry": 2, "tcp_send_reset": 3,
	"tcp_receive_reset": 1, "tcp_retransmit_skb": 2, "tcp_retransmit_synack": 2, "inet_sk_error_report": 1,
	"tcp_destroy_sock": 1, "consume_skb": 2, "kfree_skb": 4,
}

// able is a machine on which everything works, but for the files that change.
func able(change map[string]string) *Machine {
	return &Machine{
		FS: files(change), Held: privilege.Of(cap.SYS_ADMIN, cap.NET_ADMIN, cap.NET_BIND_SERVICE, cap.SYSLOG, cap.NET_RAW, cap.DAC_READ_SEARCH),
		Release: "6.12.48+deb13-amd64", Arch: "x86_64", CPUs: 4, OpenFiles: 20000, LockedMemory: 8 << 20,
		Trace: func() (tcp.Coverage, error) {
			return tcp.Coverage{tcp.FactState: tcp.Exact, tcp.FactTWEnter: tcp.Exact}, nil
		},
		Attach:    func(ebpf.AttachType, string) error { return nil },
		Rings:     func(int, int) error { return nil },
		Network:   func() error { return nil },
		Arguments: func(name string) (int, error) { return arguments612[name], nil },
	}
}

// refusing is a machine that permits nothing.
func refusing(m *Machine) *Machine {
	eperm := fmt.Errorf("load program: %w", unix.EPERM)
	m.Trace = func() (tcp.Coverage, error) { return nil, fmt.Errorf("%w: %w", tracer.ErrNotPermitted, eperm) }
	m.Attach = func(ebpf.AttachType, string) error { return eperm }
	m.Rings = func(int, int) error { return eperm }
	m.Network = func() error { return fmt.Errorf("make the pair network: %w: %w", netlab.ErrNotPermitted, unix.EPERM) }
	return m
}

// ordinary is the machine of a user without privilege.
func ordinary() *Machine {
	hidden := regexp.MustCompile("(?m)^[0-9a-f]{16}").ReplaceAllString(string(files(nil)["proc/kallsyms"].Data), "0000000000000000")
	m := refusing(able(map[string]string{"proc/kallsyms": hidden}))
	m.Held = privilege.Of()
	return m
}

// bare is an old kernel without BTF, with settings that stand in the way.
func bare() *Machine {
	m := able(map[string]string{
		"sys/kernel/btf/vmlinux":                                          gone,
		"sys/kernel/security/lockdown":                                    "none integrity [confidentiality]\n",
		"proc/kallsyms":                                                   "ffffffff82006070 t tw_timer_handler\n",
		"proc/self/timens_offsets":                                        "monotonic       86400         0\nboottime            0         0\n",
		"proc/sys/net/core/somaxconn":                                     "128\n",
		"proc/sys/net/ipv6/conf/all/forwarding":                           gone,
		"proc/sys/net/ipv4/ip_local_port_range":                           "40000\t40999\n",
		"proc/sys/net/ipv4/ip_local_reserved_ports":                       "39000-40009,40500,50000\n",
		"proc/sys/net/ipv4/tcp_max_tw_buckets":                            "100\n",
		"proc/sys/net/ipv4/tcp_timestamps":                                "0\n",
		"proc/sys/net/ipv4/tcp_tw_recycle":                                "1\n",
		"proc/sys/net/ipv4/tcp_tw_reuse":                                  "0\n",
		"proc/sys/net/ipv4/tcp_rfc1337":                                   gone,
		"proc/sys/net/netfilter/nf_conntrack_max":                         "1000\n",
		"proc/sys/net/netfilter/nf_conntrack_count":                       "950\n",
		"proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait":       "120\n",
		"sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet\n",
	})
	m.Release, m.CPUs, m.OpenFiles, m.LockedMemory = "4.11.0", 1, 256, 64<<10
	m.Trace = func() (tcp.Coverage, error) { return nil, tracer.ErrNoBTF }
	m.Attach = func(ebpf.AttachType, string) error { return tracer.ErrNoBTF }
	m.Arguments = func(string) (int, error) { return 0, tracer.ErrNoBTF }
	m.Rings = func(int, int) error { return unix.ENOMEM }
	return m
}

// TestGolden renders whole machines: go test ./internal/doctor -update.
func TestGolden(t *testing.T) {
	for name, m := range map[string]*Machine{
		"able": able(nil), "ordinary": ordinary(), "bare": bare(),
		"container": refusing(able(map[string]string{"sys/kernel/security/lockdown": gone})),
	} {
		t.Run(name, func(t *testing.T) {
			r := Examine(m)
			for ext, write := range map[string]func(*bytes.Buffer) error{
				".txt":  func(b *bytes.Buffer) error { return r.WriteText(b, false) },
				".json": func(b *bytes.Buffer) error { return r.WriteJSON(b) },
			} {
				var got bytes.Buffer
				if err := write(&got); err != nil {
					t.Fatal(err)
				}
				path := filepath.Join("testdata", name+ext)
				if *update {
					if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got.Bytes(), want) {
					t.Errorf("%s differs; see it with -update and git diff:\n%s", path, got.Bytes())
				}
			}
		})
	}
}

func TestText(t *testing.T) {
	for name, m := range map[string]*Machine{"able": able(nil), "ordinary": ordinary(), "bare": bare()} {
		var plain, colored bytes.Buffer
		r := Examine(m)
		if err := errors.Join(r.WriteText(&plain, false), r.WriteText(&colored, true)); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(plain.String()) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
				t.Errorf("%s: %d columns: %s", name, n, line)
			}
		}
		if strings.Contains(plain.String(), "\x1b") || !strings.Contains(colored.String(), "\x1b[32mok") {
			t.Errorf("%s: colour where none is wanted, or none where it is", name)
		}
	}
	if err := Examine(able(nil)).WriteText(broken{}, false); !errors.Is(err, unix.EPIPE) {
		t.Errorf("a closed pipe: %v", err)
	}
	if err := Examine(able(nil)).WriteJSON(broken{}); !errors.Is(err, unix.EPIPE) {
		t.Errorf("a closed pipe: %v", err)
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, unix.EPIPE }

// TestJSON has the names and statuses that CLI.md promises.
func TestJSON(t *testing.T) {
	var b bytes.Buffer
	if err := Examine(bare()).WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var document struct {
		Schema string
		Checks []map[string]string
	}
	if err := json.Unmarshal(b.Bytes(), &document); err != nil {
		t.Fatal(err)
	}
	if document.Schema != "twtrace.doctor/1" || len(document.Checks) < 30 {
		t.Errorf("%q with %d checks", document.Schema, len(document.Checks))
	}
	seen := make(map[string]bool)
	for _, c := range document.Checks {
		if keys := slices.Sorted(maps.Keys(c)); !slices.Equal(keys, []string{"check", "fix", "found", "means", "status"}) {
			t.Errorf("%v", keys)
		}
		if !slices.Contains([]string{"ok", "limited", "missing"}, c["status"]) || c["found"] == "" || seen[c["check"]] {
			t.Errorf("%v", c)
		}
		seen[c["check"]] = true
	}
}

func TestErr(t *testing.T) {
	for _, tt := range []struct {
		name   string
		m      *Machine
		checks string // that stand in the way; "": none
	}{
		{"able", able(nil), ""},
		{"ordinary", ordinary(), "privilege for run, trace, ring, namespaces"},
		{"bare", bare(), "btf, trace, ring, namespaces"},
		{"no TIME_WAIT", func() *Machine {
			m := able(map[string]string{"proc/kallsyms": gone})
			m.Held = privilege.Of(cap.SYS_ADMIN, cap.NET_ADMIN, cap.NET_BIND_SERVICE)
			return m
		}(), ""},
		{"rootless container", refusing(able(map[string]string{"proc/self/uid_map": "0 1000 1\n"})),
			"privilege for run, trace, ring, namespaces"},
		{"no namespaces", able(map[string]string{"proc/sys/user/max_net_namespaces": "0\n"}), "namespaces"},
	} {
		err := Examine(tt.m).Err()
		if tt.checks == "" {
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		if !errors.Is(err, ErrCantTrace) || !strings.HasSuffix(err.Error(), ": "+tt.checks) {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.checks)
		}
	}
}

// TestChecks has one machine for each way a check can come out.
func TestChecks(t *testing.T) {
	const (
		ipv4      = "proc/sys/net/ipv4/"
		conntrack = "proc/sys/net/netfilter/nf_conntrack_"
		modules   = "lib/modules/6.12.48+deb13-amd64/modules.dep"
	)
	rootless := map[string]string{"proc/self/uid_map": "         0       1000          1\n"}
	noVeth := strings.ReplaceAll(string(files(nil)["proc/kallsyms"].Data), "veth_newlink", "other")
	noAbort := strings.ReplaceAll(string(files(nil)["proc/kallsyms"].Data), "tcp_abort", "other")
	for _, tt := range []struct {
		check   string
		change  map[string]string
		machine func(*Machine)
		status  Status
		says    []string // of found, means and fix together
	}{
		{"lockdown", nil, nil, OK, []string{"none", "not locked down"}},
		{"lockdown", map[string]string{"sys/kernel/security/lockdown": "none [integrity] confidentiality"}, nil, OK, []string{"integrity", "fentry"}},
		{"lockdown", map[string]string{"sys/kernel/security/lockdown": gone}, nil, OK, []string{"unknown", "securityfs"}},
		{"btf", map[string]string{"sys/kernel/btf/vmlinux": gone}, nil, OK, []string{"in the kernel's image"}},
		{"capabilities", nil, func(m *Machine) { m.Held = 1<<63 - 1 }, OK, []string{"all", "drop"}},
		{"capabilities", nil, func(m *Machine) { m.Held = 1<<63 - 1 - 1<<24 }, OK, []string{"all but CAP_SYS_RESOURCE"}},
		{"capabilities", nil, func(m *Machine) { m.Held = 0 }, OK, []string{"none", "--no-trace --net host"}},
		{"privilege for run", nil, func(m *Machine) { m.Held = privilege.Of(cap.SYS_ADMIN, cap.SYSLOG) }, Missing,
			[]string{"without CAP_NET_ADMIN, CAP_NET_BIND_SERVICE", "sudo twtrace run"}},
		{"privilege for run --net host", nil, func(m *Machine) { m.Held = privilege.Of(cap.BPF, cap.PERFMON, cap.SYSLOG) }, OK,
			[]string{"has CAP_BPF, CAP_PERFMON, CAP_SYSLOG"}},
		{"privilege for run --net host",
			map[string]string{"proc/kallsyms": "0000000000000000 t tw_timer_handler\n"},
			func(m *Machine) { m.Held = privilege.Of(cap.BPF, cap.PERFMON) }, Limited,
			[]string{"without CAP_SYSLOG", "TIME_WAIT is not observable"}},
		// kptr_restrict 0 and perf_event_paranoid 1 show the addresses to everybody.
		{"privilege for run --net host", nil, func(m *Machine) { m.Held = privilege.Of(cap.BPF, cap.PERFMON) }, OK, nil},
		{"privilege for lab run --all", nil, nil, OK, []string{"has CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_BIND_SERVICE, CAP_NET_RAW, CAP_SYSLOG, CAP_DAC_READ_SEARCH"}},
		{"privilege for lab run --all", nil, func(m *Machine) { m.Held &^= privilege.Of(cap.NET_RAW, cap.SYSLOG) }, Missing,
			[]string{"without CAP_NET_RAW\n", "sudo twtrace lab run --all"}},
		{"privilege for lab run --all",
			map[string]string{"proc/kallsyms": "0000000000000000 t tw_timer_handler\n"},
			func(m *Machine) { m.Held &^= privilege.Of(cap.SYSLOG) }, Missing, []string{"without CAP_SYSLOG"}},
		{"privilege for lab run --all", nil, func(m *Machine) { m.Held &^= privilege.Of(cap.DAC_READ_SEARCH) }, Limited,
			[]string{"without CAP_DAC_READ_SEARCH", "slab"}},
		{"privilege for lab run --all", rootless, nil, Missing, []string{"in this user namespace alone"}},
		{"privilege for serve", nil, func(m *Machine) { m.Held = 0 }, OK, []string{"no capability"}},
		{"privilege for run", rootless, nil, Missing, []string{"in this user namespace alone", "outside"}},
		{"privilege for run --no-trace", rootless, nil, OK, nil},
		{"privilege for run --no-trace", nil, func(m *Machine) { m.Held = 0 }, Missing, []string{"unshare -r twtrace run --no-trace"}},
		{"user-namespace", nil, nil, OK, []string{"initial"}},
		{"user-namespace", rootless, nil, Limited, []string{"run --no-trace` works", "outside"}},
		{"trace", rootless, func(m *Machine) { refusing(m) }, Missing, []string{"in this user namespace", "outside of the user namespace"}},
		{"kernel.unprivileged_bpf_disabled", map[string]string{"proc/sys/kernel/unprivileged_bpf_disabled": "1\n"}, nil, OK, []string{"next boot"}},
		{"trace", nil, func(m *Machine) {
			m.Trace = func() (tcp.Coverage, error) {
				return tcp.Coverage{tcp.FactState: tcp.Exact, tcp.FactTWEnd: tcp.NotObservable, tcp.FactRstSent: tcp.Inferred,
					tcp.FactTWEnter: tcp.NotObservable}, nil
			}
		}, Limited, []string{"1 facts exact, 1 inferred, 2 not observable", "not observable: time-wait-end, time-wait-enter"}},
		{"trace", nil, func(m *Machine) {
			m.Trace = func() (tcp.Coverage, error) { return nil, fmt.Errorf("%w: no helper", tracer.ErrTooOld) }
		}, Missing, []string{"too old", "5.14"}},
		{"trace", nil, func(m *Machine) {
			m.Trace = func() (tcp.Coverage, error) { return nil, fmt.Errorf("load: %w", unix.E2BIG) }
		}, Missing, []string{"argument list too long", "--no-trace"}},
		{"kernel-symbols", nil, nil, OK, []string{"8 of 8"}},
		{"kernel-symbols", map[string]string{"proc/kallsyms": noAbort}, nil, Limited, []string{"7 of 8", "destroyed"}},
		{"kernel-symbols", map[string]string{"proc/kallsyms": gone}, nil, Limited, []string{"CONFIG_KALLSYMS"}},
		{"kernel-symbols", map[string]string{"proc/kallsyms": "ffffffff82050000 T tcp_done\n"}, nil, Limited, []string{"no tw_timer_handler"}},
		{"kernel-symbols", map[string]string{"proc/kallsyms": "no number\n"}, nil, Limited, []string{"no tw_timer_handler"}},
		{"ring", nil, func(m *Machine) { m.LockedMemory = ^uint64(0) }, OK, []string{"4 × 4 MiB; RLIMIT_MEMLOCK", "RLIMIT_MEMLOCK unlimited"}},
		{"ring", nil, func(m *Machine) { m.Rings = func(int, int) error { return unix.ENOMEM } }, Missing, []string{"cannot allocate memory"}},
		{"tracefs", nil, nil, OK, []string{"/sys/kernel/tracing", "bind()"}},
		{"tracefs", map[string]string{
			"sys/kernel/tracing/events/syscalls/sys_exit_bind/id": gone, "sys/kernel/debug/tracing/events/syscalls/sys_exit_bind/id": "654\n",
		}, nil, OK, []string{"/sys/kernel/debug/tracing"}},
		{"tracefs", map[string]string{"sys/kernel/tracing/events/syscalls/sys_exit_bind/id": gone}, nil, Limited, []string{"not mounted", "not observable"}},
		{"iterators", nil, func(m *Machine) { m.Attach = func(ebpf.AttachType, string) error { return ebpf.ErrNotSupported } }, Limited,
			[]string{"not supported", "next event"}},
		{"fentry", nil, func(m *Machine) { m.Attach = func(ebpf.AttachType, string) error { return unix.EPERM } }, Limited,
			[]string{"operation not permitted, although", "lockdown is none", "tracepoints are enough"}},
		{"fentry", map[string]string{"sys/kernel/security/lockdown": gone},
			func(m *Machine) { m.Attach = func(ebpf.AttachType, string) error { return unix.EPERM } }, Limited,
			[]string{"lockdown may be why"}},
		{"kernel.bpf_stats_enabled", map[string]string{"proc/sys/kernel/bpf_stats_enabled": "1\n"}, nil, OK, []string{"takes the time"}},
		{"tcp_retransmit_skb", nil, nil, Limited, []string{"2 arguments, attaches", "only those that could be sent"}},
		{"tcp_send_reset", nil, nil, OK, []string{"3 arguments, attaches"}},
		{"tcp_send_reset", nil, func(m *Machine) { m.Arguments = func(string) (int, error) { return 2, nil } }, Limited, []string{"before 6.10"}},
		{"timer_cancel", nil, func(m *Machine) { m.Arguments = func(string) (int, error) { return 0, unix.ENOENT } }, Limited,
			[]string{"has none", "not observable"}},
		{"timer_cancel", nil, func(m *Machine) { m.Attach = func(ebpf.AttachType, string) error { return unix.EPERM } }, Limited,
			[]string{"1 argument, does not attach: operation not permitted", "not observable"}},
		{"namespaces", map[string]string{"proc/kallsyms": noVeth}, nil, Missing, []string{"no veth", "CONFIG_VETH", "--net loopback"}},
		{"namespaces", map[string]string{"proc/kallsyms": noVeth, modules: "kernel/drivers/net/veth.ko.xz:\n"}, func(m *Machine) {
			m.Network = func() error { panic("it would load the module") }
		}, OK, []string{"not loaded", "not tried"}},
		{"namespaces", nil, func(m *Machine) { m.Network = func() error { return netlab.ErrNoVeth } }, Missing, []string{"modprobe veth"}},
		{"namespaces", nil, func(m *Machine) { m.Network = func() error { return unix.ENOSPC } }, Missing, []string{"no space left", "--net host"}},
		{"open-files", nil, nil, OK, []string{"RLIMIT_NOFILE 20000", "take 1 of them"}},
		{"open-files", nil, func(m *Machine) { m.OpenFiles = 1064 }, OK, []string{"take 10 of them"}},         // 64 are kept back
		{"ports", nil, nil, OK, []string{"28232 (net.ipv4.ip_local_port_range 32768-60999)", "470 a second"}}, // 28232/60
		{"ports", map[string]string{ipv4 + "tcp_tw_reuse": "1\n", ipv4 + "tcp_tw_reuse_delay": "1000\n"}, nil, OK,
			[]string{"470 a second", "with tcp_tw_reuse 28232 a second"}},
		{"ports", map[string]string{ipv4 + "ip_local_port_range": "1024\t65535\n", ipv4 + "ip_local_reserved_ports": "80,2000-2009,65535\n"}, nil, OK,
			[]string{"64501 (", "11 of them in net.ipv4.ip_local_reserved_ports", "1075 a second"}},
		{"ports", map[string]string{ipv4 + "ip_local_port_range": "one\n"}, nil, Limited, []string{`"one"`}},
		{"ports", map[string]string{ipv4 + "ip_local_port_range": gone}, nil, Limited, []string{"does not exist"}},
		{"conntrack", nil, nil, OK, []string{"none"}},
		{"conntrack", map[string]string{conntrack + "max": "262144\n", conntrack + "count": "5\n", conntrack + "tcp_timeout_time_wait": "120\n"}, nil, OK,
			[]string{"5 of 262144 entries, kept 120 s", "2184 closed connections a second"}},
		{"conntrack", map[string]string{conntrack + "max": "1000\n", conntrack + "count": "950\n"}, nil, Limited, []string{"nf_conntrack_max=4000"}},
		{"net.ipv4.tcp_tw_reuse", nil, nil, OK, []string{"loopback addresses only", "tcp_tw_reuse=1"}},
		{"net.ipv4.tcp_tw_reuse", map[string]string{ipv4 + "tcp_tw_reuse": "0\n"}, nil, Limited, []string{"never"}},
		{"net.ipv4.tcp_tw_reuse", map[string]string{ipv4 + "tcp_tw_reuse": "1\n"}, nil, OK, []string{"timestamps"}},
		{"net.ipv4.tcp_tw_reuse", map[string]string{ipv4 + "tcp_tw_reuse": "9\n"}, nil, Limited, []string{"not a value"}},
		{"net.ipv4.tcp_tw_reuse_delay", nil, nil, OK, []string{"no such setting", "6.14"}},
		{"net.ipv4.tcp_tw_reuse_delay", map[string]string{ipv4 + "tcp_tw_reuse_delay": "1000\n"}, nil, OK, []string{"1000", "milliseconds"}},
		{"net.ipv4.tcp_timestamps", map[string]string{ipv4 + "tcp_timestamps": "0\n"}, nil, Limited, []string{"ever reused"}},
		{"net.ipv4.tcp_tw_recycle", nil, nil, OK, []string{"gone since 4.12"}},
		{"net.ipv4.tcp_tw_recycle", map[string]string{ipv4 + "tcp_tw_recycle": "1\n"}, nil, Limited, []string{"NAT"}},
		{"net.ipv4.tcp_max_tw_buckets", nil, nil, OK, []string{"65536", "TCPTimeWaitOverflow"}},
		{"net.ipv4.tcp_max_tw_buckets", map[string]string{ipv4 + "tcp_max_tw_buckets": "28231\n"}, nil, Limited, []string{"less than the 28232 ports"}},
		{"net.ipv4.tcp_fin_timeout", nil, nil, OK, []string{"FIN_WAIT2", "not the length of TIME_WAIT"}},
		{"net.ipv4.tcp_rfc1337", map[string]string{ipv4 + "tcp_rfc1337": "1\n"}, nil, OK, []string{"ETIMEDOUT"}},
		{"net.ipv4.tcp_rfc1337", map[string]string{ipv4 + "tcp_rfc1337": gone}, nil, Limited, []string{"no such setting"}},
		{"net.ipv4.tcp_syncookies", map[string]string{ipv4 + "tcp_syncookies": "0\n"}, nil, OK, []string{"drops SYNs"}},
		{"net.ipv4.tcp_syncookies", map[string]string{ipv4 + "tcp_syncookies": gone}, nil, OK, []string{"CONFIG_SYN_COOKIES"}},
		{"net.core.somaxconn", map[string]string{"proc/sys/net/core/somaxconn": "128\n"}, nil, Limited, []string{"somaxconn=4096"}},
		{"net.ipv4.tcp_abort_on_overflow", map[string]string{ipv4 + "tcp_abort_on_overflow": "1\n"}, nil, OK, []string{"ECONNRESET"}},
		{"ipv6", map[string]string{"proc/sys/net/ipv6/conf/all/forwarding": gone}, nil, Limited, []string{"-6"}},
		{"clock", map[string]string{"sys/devices/system/clocksource/clocksource0/current_clocksource": gone}, nil, OK, []string{"unknown"}},
	} {
		m := able(tt.change)
		if tt.machine != nil {
			tt.machine(m)
		}
		for _, c := range checks() {
			if c.name != tt.check {
				continue
			}
			f := c.look(m)
			text := f.Found + "\n" + f.Means + "\n" + f.Fix
			if f.Status != tt.status {
				t.Errorf("%s: %s, want %s: %s", tt.check, f.Status, tt.status, text)
			}
			for _, s := range tt.says {
				if !strings.Contains(text, s) {
					t.Errorf("%s does not say %q: %s", tt.check, s, text)
				}
			}
			tt.check = ""
		}
		if tt.check != "" {
			t.Errorf("there is no check %s", tt.check)
		}
	}
}
