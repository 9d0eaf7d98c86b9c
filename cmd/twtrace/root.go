package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/twtrace/twtrace/internal/cgroup"
	"github.com/twtrace/twtrace/internal/doctor"
	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/privilege"
	"github.com/twtrace/twtrace/internal/run"
	"github.com/twtrace/twtrace/internal/watch"
	"github.com/twtrace/twtrace/loadgen"
	"github.com/twtrace/twtrace/tracer"
)

// The exit codes, a promise to callers.
const (
	exitDone       = 0 // also after Ctrl-C
	exitFailed     = 1
	exitUsage      = 2
	exitIncomplete = 3 // done, but events were lost, or not observable with --strict
	exitMachine    = 4 // this machine can't do it
)

// usageError is a wrong use of the command line.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// errIncomplete: the command did its work and said so, but something is missing.
var errIncomplete = errors.New("incomplete")

// app is what every command writes to.
type app struct {
	stdout, stderr io.Writer
	log            *slog.Logger
	// dropPrivilege: the process is the command's own, which gives up what it does
	// not need any more, for good.
	dropPrivilege bool
}

// Main is the whole program: it runs the command that args name until it is done
// or ctx ends, and returns the exit code. It leaves the process its privileges,
// which are the caller's.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return newApp(stdout, stderr).main(ctx, args)
}

func newApp(stdout, stderr io.Writer) *app {
	return &app{stdout: stdout, stderr: stderr, log: slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, attr slog.Attr) slog.Attr {
			if attr.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return attr
		},
	}))}
}

func (a *app) main(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	err := root.ExecuteContext(ctx)
	var passedOn commandExit
	if err != nil && !errors.Is(err, errIncomplete) && !errors.As(err, &passedOn) {
		fmt.Fprintf(a.stderr, "twtrace: %s\n", oneLine(err))
	}
	return exitCode(err)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "twtrace",
		Short: "Record the end of TCP connections: FIN, RST, TIME_WAIT, and why connects fail",
		Long: "twtrace records how Linux ends TCP connections, on BPF tracepoints, and joins it with what\n" +
			"a storm of short connections saw: every failed connect() has a cause with evidence.",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return usagef("a command is missing: try `sudo twtrace run --linger`")
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if errors.Is(err, pflag.ErrHelp) {
			return err
		}
		var value *pflag.InvalidValueError
		if errors.As(err, &value) {
			if want := wants[value.GetFlag().Value.Type()]; want != "" {
				return usagef("--%s %q: want %s: see `%s --help`", value.GetFlag().Name, value.GetValue(), want, cmd.CommandPath())
			}
		}
		return usagef("%w: see `%s --help`", err, cmd.CommandPath())
	})
	root.AddCommand(a.runCommand(), a.traceCommand(), a.serveCommand(), a.doctorCommand(), a.versionCommand(), a.manCommand(), a.clientCommand())
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" {
			// By itself cobra takes a shell that it does not know for a call for help.
			cmd.Args = cobra.ArbitraryArgs
			cmd.RunE = func(cmd *cobra.Command, args []string) error {
				return usagef("no completion for %q: want one of bash, zsh, fish: see `%s --help`", args, cmd.CommandPath())
			}
		}
	}
	return root
}

// exitCode is the table of what an error means to the caller.
func exitCode(err error) int {
	var usage usageError
	var passedOn commandExit
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &passedOn):
		return int(passedOn)
	case errors.Is(err, watch.ErrNoCommand):
		return commandFailure(err)
	case errors.Is(err, errIncomplete):
		return exitIncomplete
	case errors.As(err, &usage), strings.HasPrefix(err.Error(), "unknown command"),
		errors.Is(err, netlab.ErrValue), errors.Is(err, netlab.ErrHostSetting), errors.Is(err, netlab.ErrNoNamespace):
		return exitUsage
	case hint(err) != "":
		return exitMachine
	}
	return exitFailed
}

// hints say what to do where this machine can't do it.
var hints = []struct {
	err  error
	hint string
}{
	{netlab.ErrNotPermitted, "run `sudo twtrace run`, or without namespaces and trace `twtrace run --no-trace --net host`; see `twtrace doctor`"},
	{tracer.ErrNotPermitted, "run with sudo, or without a trace `--no-trace`; see `twtrace doctor`"},
	{privilege.ErrMissing, "run with sudo; see `twtrace doctor`"},
	{tracer.ErrNoBTF, "tracing needs a kernel with CONFIG_DEBUG_INFO_BTF (/sys/kernel/btf/vmlinux): boot one, or run with `--no-trace`"},
	{tracer.ErrTooOld, "tracing needs Linux 5.14 or later: boot one, or run with `--no-trace`"},
	{doctor.ErrCantTrace, "each check says how to fix it; `sudo twtrace doctor` tries what only root may"},
	{cgroup.ErrNoCgroup2, "mount it with `mount -t cgroup2 none DIRECTORY`, or leave --cgroup out"},
	{netlab.ErrNoSetting, "see what there is with `sysctl -a`, or leave it out"},
	{loadgen.ErrNoPortRange, "leave --local-port-range out, or narrow the whole range with `--port-range`"},
	{netlab.ErrNoVeth, "load it with `modprobe veth`, or run with `--net loopback`"},
}

func hint(err error) string {
	for _, h := range hints {
		if errors.Is(err, h.err) {
			return h.hint
		}
	}
	return ""
}

// oneLine is what a person gets to read of an error: what happened, why, and
// what to do.
func oneLine(err error) string {
	text := strings.Join(strings.Fields(strings.ReplaceAll(err.Error(), "\n", "; ")), " ")
	if h := hint(err); h != "" {
		return text + ": " + h
	}
	if errors.Is(err, run.ErrUnreachable) {
		return text + ": check the address and `ip route get` for it"
	}
	return text
}

// version is the module's, as `go install` recorded it.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print twtrace's version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(a.stdout, "twtrace %s\n", version())
			return err
		},
	}
}
