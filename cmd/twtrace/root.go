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

// commandExit is the exit code of the command that was traced, to be passed on, or what a shell
// says of one that could not be run.
type commandExit struct {
	code int
	err  error // nil: it was run
}

func (c commandExit) Error() string {
	if c.err != nil {
		return c.err.Error()
	}
	return fmt.Sprintf("the command ended with exit code %d", c.code)
}

func (c commandExit) Unwrap() error { return c.err }

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
	if err != nil && !isSaid(err) {
		fmt.Fprintf(a.stderr, "twtrace: %s\n", oneLine(err))
	}
	return exitCode(err)
}

// isSaid: an exit code is all that there is left to say.
func isSaid(err error) bool {
	var command commandExit
	return errors.Is(err, errIncomplete) || errors.As(err, &command) && command.err == nil
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
			return usagef("a command is missing: try `" + tryFirst + "`")
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
	root.AddCommand(a.linuxCommands()...)
	root.AddCommand(a.reportCommand(), a.timelineCommand(), a.exportCommand(), a.versionCommand(), a.manCommand())
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

// linuxCommands is the table of the commands that need Linux. On every system they are in help
// and completion; elsewhere that is all they do, but for saying so (commands_other.go).
func (a *app) linuxCommands() (cmds []*cobra.Command) {
	for _, row := range []struct {
		use, short string
		hidden     bool
		make       func() *cobra.Command
	}{
		{"run", "Run a storm of short connections, trace it, and say why what failed did so", false, a.runCommand},
		{"trace [flags] [-- COMMAND ARGS]", "Watch the TCP connections of this machine, an event a line", false, a.traceCommand},
		{"serve", "Run the storm's server alone, for a `twtrace run --target` elsewhere", false, a.serveCommand},
		{"lab", "Experiments about how Linux ends connections: what is claimed, and what holds on this kernel", false, a.labCommand},
		{"doctor", "Say what this machine lets twtrace see and do, and what to change", false, a.doctorCommand},
		{"client", "One client process of `twtrace run --clients`", true, a.clientCommand}, // clients.Command
	} {
		cmd := row.make()
		cmd.Use, cmd.Short, cmd.Hidden = row.use, row.short+whereLinux, row.hidden
		cmds = append(cmds, cmd)
	}
	return cmds
}

// meaning is what an error means to the caller. The tables of them, one for Linux and one for
// all other systems, are called meanings.
type meaning struct {
	err  error
	code int
	hint string // what to do
}

// meaningOf returns the first row that fits; without one the command has failed.
func meaningOf(err error) meaning {
	for _, m := range meanings {
		if errors.Is(err, m.err) {
			return m
		}
	}
	return meaning{code: exitFailed}
}

// exitCode is what an error means to the caller, in a number.
func exitCode(err error) int {
	var usage usageError
	var command commandExit
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &command):
		return command.code
	case errors.Is(err, errIncomplete):
		return exitIncomplete
	case errors.As(err, &usage), strings.HasPrefix(err.Error(), "unknown command"):
		return exitUsage
	}
	return meaningOf(err).code
}

// oneLine is what a person gets to read of an error: what happened, why, and
// what to do.
func oneLine(err error) string {
	text := strings.Join(strings.Fields(strings.ReplaceAll(err.Error(), "\n", "; ")), " ")
	if hint := meaningOf(err).hint; hint != "" {
		return text + ": " + hint
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
