package main

import (
	"github.com/twtrace/twtrace/internal/cgroup"
	"github.com/twtrace/twtrace/internal/doctor"
	"github.com/twtrace/twtrace/internal/lab"
	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/privilege"
	"github.com/twtrace/twtrace/internal/run"
	"github.com/twtrace/twtrace/loadgen"
	"github.com/twtrace/twtrace/tracer"
)

const (
	tryFirst   = "sudo twtrace run --linger" // for those who call twtrace without a command
	whereLinux = ""                          // in help, of commands that need Linux
)

var meanings = []meaning{
	{netlab.ErrValue, exitUsage, ""},
	{netlab.ErrHostSetting, exitUsage, ""},
	{netlab.ErrNoNamespace, exitUsage, ""},
	{lab.ErrUnable, exitMachine, "run `sudo twtrace lab`; see `twtrace doctor`"}, // whatever the reason
	{netlab.ErrNotPermitted, exitMachine, "run `sudo twtrace run`, or without namespaces and trace `twtrace run --no-trace --net host`; see `twtrace doctor`"},
	{tracer.ErrNotPermitted, exitMachine, "run with sudo, or without a trace `--no-trace`; see `twtrace doctor`"},
	{privilege.ErrMissing, exitMachine, "run with sudo; see `twtrace doctor`"},
	{tracer.ErrNoBTF, exitMachine, "tracing needs a kernel with CONFIG_DEBUG_INFO_BTF (/sys/kernel/btf/vmlinux): boot one, or run with `--no-trace`"},
	{tracer.ErrTooOld, exitMachine, "tracing needs Linux 5.14 or later: boot one, or run with `--no-trace`"},
	{doctor.ErrCantTrace, exitMachine, "each check says how to fix it; `sudo twtrace doctor` tries what only root may"},
	{cgroup.ErrNoCgroup2, exitMachine, "mount it with `mount -t cgroup2 none DIRECTORY`, or leave --cgroup out"},
	{netlab.ErrNoSetting, exitMachine, "see what there is with `sysctl -a`, or leave it out"},
	{loadgen.ErrNoPortRange, exitMachine, "leave --local-port-range out, or narrow the whole range with `--port-range`"},
	{netlab.ErrNoVeth, exitMachine, "load it with `modprobe veth`, or run with `--net loopback`"},
	{run.ErrUnreachable, exitFailed, "check the address and `ip route get` for it"},
}
