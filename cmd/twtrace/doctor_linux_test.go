package main

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"github.com/twtrace/twtrace/internal/privilege"
	"github.com/twtrace/twtrace/internal/testenv"
)

// finding is a check of twtrace.doctor/1.
type finding struct{ Check, Status, Found, Means, Fix string }

// examine runs `twtrace doctor` and returns its checks by name.
func examine(t *testing.T, cmd *exec.Cmd) (code int, checks map[string]finding, stderr string) {
	t.Helper()
	code, stdout, stderr := finish(t, cmd)
	var document struct {
		Schema string
		Checks []finding
	}
	if err := json.Unmarshal([]byte(stdout), &document); err != nil || document.Schema != "twtrace.doctor/1" {
		t.Fatalf("%v, schema %q; exit code %d, stderr %q", err, document.Schema, code, stderr)
	}
	checks = make(map[string]finding)
	for _, f := range document.Checks {
		checks[f.Check] = f
	}
	return code, checks, stderr
}

// TestDoctor: where a run can trace, doctor says so, and leaves no trace itself.
func TestDoctor(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.Veth, testenv.BPF)
	links, settings, modules := linkNames(t), hostSettings(t), moduleNames(t)
	code, checks, stderr := examine(t, command(t, worldPlain, "doctor", "-o", "json"))
	if code != exitDone || stderr != "" {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
	for _, name := range []string{
		"btf", "privilege for run", "kernel-symbols", "ring", "namespaces", "inet_sock_set_state", "timer_start", "ports",
	} {
		if f := checks[name]; f.Status != "ok" {
			t.Errorf("%s: %+v", name, f)
		}
	}
	// Before 6.10 some facts are less than exact.
	if f := checks["trace"]; f.Status == "missing" || !strings.HasPrefix(f.Found, "loads and attaches") {
		t.Errorf("%+v", f)
	}
	if f := checks["inet_sock_set_state"]; f.Found != "3 arguments, attaches" { // the same in every kernel, KERNEL.md 2
		t.Errorf("%+v", f)
	}
	if got := linkNames(t); !slices.Equal(got, links) {
		t.Errorf("links %v, before %v", got, links)
	}
	if got := hostSettings(t); !maps.Equal(got, settings) {
		t.Error("a setting of the host has changed")
	}
	if got := moduleNames(t); !slices.Equal(got, modules) {
		t.Errorf("modules %v, before %v", got, modules)
	}
}

func moduleNames(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir("/sys/module")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestDoctorSays has the worlds in which something is missing.
func TestDoctorSays(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.Veth, testenv.BPF)
	hostOnly := slices.Concat(privilege.RunHost.Must, privilege.RunHost.Should)
	for _, tt := range []struct {
		name  string
		world string
		as    func(*exec.Cmd)
		lacks []string          // those that the line on stderr names
		says  map[string]string // of a check, in what it found
	}{
		{
			"nobody", worldPlain, asNobody,
			[]string{"privilege for run", "trace", "ring", "namespaces"},
			map[string]string{
				"trace": "without CAP_BPF, CAP_PERFMON", "namespaces": "without CAP_SYS_ADMIN, CAP_NET_ADMIN",
				"btf": "/sys/kernel/btf/vmlinux", "timer_cancel": "1 argument; only root may attach",
				"capabilities": "none",
			},
		},
		{
			"no BTF", worldNoBTF, func(cmd *exec.Cmd) { cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNS },
			[]string{"btf", "trace"},
			map[string]string{"btf": "none", "timer_cancel": "no BTF", "namespaces": "joined by veth, were made"},
		},
		{
			"trace alone", worldPlain, func(cmd *exec.Cmd) { asUserWith(cmd, hostOnly) },
			[]string{"privilege for run", "namespaces"},
			map[string]string{"trace": "loads and attaches", "privilege for run --net host": "has CAP_BPF"},
		},
		{
			"CAP_BPF alone", worldPlain, func(cmd *exec.Cmd) { asUserWith(cmd, []privilege.Capability{cap.BPF}) },
			[]string{"privilege for run", "trace", "namespaces"},
			map[string]string{"trace": "without CAP_PERFMON", "ring": " MiB"},
		},
		{
			"rootless container", worldPlain, asRootless,
			[]string{"privilege for run", "trace", "ring"},
			map[string]string{"trace": "in this user namespace", "namespaces": "joined by veth, were made"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := command(t, tt.world, "doctor", "-o", "json")
			tt.as(cmd)
			code, checks, stderr := examine(t, cmd)
			if code != exitMachine || !isOneLine(stderr) {
				t.Errorf("exit code %d, stderr %q", code, stderr)
			}
			if want := "can't trace here: " + strings.Join(tt.lacks, ", ") + ": "; !strings.Contains(stderr, want) {
				t.Errorf("stderr does not say %q: %s", want, stderr)
			}
			for check, says := range tt.says {
				if !strings.Contains(checks[check].Found, says) {
					t.Errorf("does not say %q: %+v", says, checks[check])
				}
			}
			for _, name := range tt.lacks {
				if f := checks[name]; f.Status != "missing" || f.Fix == "" {
					t.Errorf("%+v", f)
				}
			}
		})
	}
}
