package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/cgroup"
	"github.com/twtrace/twtrace/internal/eventline"
	"github.com/twtrace/twtrace/internal/privilege"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/watch"
	"github.com/twtrace/twtrace/tracer"
)

// traceFlags are the flags of `twtrace trace` as given.
type traceFlags struct {
	trace                tracer.Options
	netns                string
	cgroups              []string
	snapshot, noSnapshot bool
	duration             time.Duration
	max                  uint64
	time, output, color  *choice
	strict               bool
	write                string
	rotateSize           string
	rotateAge            time.Duration
	keep                 int
	given                func(flag string) bool // on the command line, be it empty
}

func (a *app) traceCommand() *cobra.Command {
	f := &traceFlags{
		time:   newChoice(eventline.TimeModes[0], eventline.TimeModes[:]...),
		output: newChoice("text", "text", "json"),
		color:  newChoice("auto", "auto", "always", "never"),
	}
	cmd := &cobra.Command{
		Long: "trace prints what the kernel does to TCP connections, one event a line: every change of state, RST,\n" +
			"retransmission, failed connect() and bind(), and the whole life of every TIME_WAIT. It begins with the\n" +
			"sockets that exist already, and ends with Ctrl-C and an account of what was recorded and what was lost.\n\n" +
			"Values of one filter are alternatives; a connection has to pass every filter that is given. It watches\n" +
			"the network namespace that it is started in unless --netns says otherwise.\n\n" +
			"With -- COMMAND the trace begins before the command and ends with it, and its exit code is passed on\n" +
			"(127 if there is no such command, 128+N if signal N ended it). The command runs where twtrace does;\n" +
			"what it writes to its standard output goes to standard error. All connections of the namespace are\n" +
			"traced, not the command's alone: add --comm or -D to see fewer.",
		Example: "  sudo twtrace trace                            # everything in this network namespace\n" +
			"  sudo twtrace trace --failures                 # only what failed\n" +
			"  sudo twtrace trace -D 443,8443 -o json        # by destination port, JSON lines\n" +
			"  sudo twtrace trace --kind tw-enter,tw-end     # the life of each TIME_WAIT\n" +
			"  sudo twtrace trace --netns /run/netns/web -- sleep 10",
		Args: func(cmd *cobra.Command, args []string) error {
			switch dash := cmd.ArgsLenAtDash(); {
			case dash < 0 && len(args) > 0, dash > 0:
				return usagef("trace takes no argument, but got %q: write a command to run as `-- COMMAND`", args[0])
			case dash == 0 && len(args) == 0:
				return usagef("a command is missing after --")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			f.given = cmd.Flags().Changed
			return a.trace(cmd.Context(), f, args)
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.VarP(newList("PID", "a process number", &f.trace.PIDs, parseUint32), "pid", "p", "connections of these processes")
	fl.Var(newList("NAME", "a name of up to 15 bytes", &f.trace.Comms, parseText), "comm", "connections of processes with this name")
	fl.VarP(newList("PORT", "a port from 1 to 65535", &f.trace.LocalPorts, parsePort), "localport", "L", "connections with this local port")
	fl.VarP(newList("PORT", "a port from 1 to 65535", &f.trace.RemotePorts, parsePort), "remoteport", "D", "connections with this remote port")
	fl.BoolVarP(&f.trace.IPv4Only, "ipv4", "4", false, "IPv4 only")
	fl.BoolVarP(&f.trace.IPv6Only, "ipv6", "6", false, "IPv6 only")
	fl.StringVar(&f.netns, "netns", "", "the network namespace that a file stands for, `PATH` like /proc/PID/ns/net or\n/run/netns/NAME, or all (default: the one that twtrace is started in)")
	fl.Var(newList("PATH", "the path of a cgroup", &f.cgroups, parseText), "cgroup", "connections of sockets in or below this cgroup (v2)")
	fl.BoolVar(&f.trace.FailuresOnly, "failures", false, "only connections that failed")
	fl.Var(newList("LIST", "", &f.trace.Kinds, tcp.ParseKind), "kind", "only these kinds of events:"+kindNames())
	fl.DurationVar(&f.duration, "duration", 0, "stop after this time (default: at Ctrl-C)")
	fl.Uint64Var(&f.max, "max", 0, "stop after `N` events (default: none)")
	fl.BoolVar(&f.snapshot, "snapshot", true, "begin with the sockets that exist already")
	fl.BoolVar(&f.noSnapshot, "no-snapshot", false, "begin with what happens from now on")
	fl.StringVarP(&f.write, "write", "w", "", "keep the events in `FILE`, a recording, instead of printing lines: twtrace report, timeline and export read it")
	fl.StringVar(&f.rotateSize, "rotate-size", "", "with -w: begin another file after this `SIZE` (100MB, 1GiB); files are named FILE-00001 and so on, before the extension")
	fl.DurationVar(&f.rotateAge, "rotate-age", 0, "with -w: begin another file after this time")
	fl.IntVar(&f.keep, "keep", 0, "with --rotate-size or --rotate-age: remove the oldest files, so that there are at most `N` (default: keep all)")
	fl.Var(f.time, "time", "what the column TIME shows: seconds since the start, the time of day, seconds of\nCLOCK_MONOTONIC, or seconds since the line before")
	fl.BoolVar(&f.strict, "strict", false, "exit 3 if anything was lost or not observable")
	fl.VarP(f.output, "output", "o", "form of the result")
	fl.Var(f.color, "color", "colour in text output")
	return cmd
}

// kindNames lists all kinds, a few on a line.
func kindNames() string {
	text := ""
	for k := tcp.Kind(1); int(k) < tcp.NumKinds; k++ {
		sep := " "
		if k%5 == 1 {
			sep = "\n"
		}
		text += sep + k.String()
	}
	return text
}

func (a *app) trace(ctx context.Context, f *traceFlags, args []string) error {
	opts, err := f.options()
	if err != nil {
		return err
	}
	if len(args) > 0 {
		opts.Command = exec.Command(args[0], args[1:]...)
		opts.Command.Stdin, opts.Command.Stdout, opts.Command.Stderr = os.Stdin, a.stderr, a.stderr
	}
	var stopped atomic.Bool
	if opts.Record, err = f.recording(a, &stopped); err != nil {
		return err
	}
	opts.Writer = func(start watch.Start) eventline.Writer {
		if len(start.NotObservable) > 0 {
			a.log.Warn("not observable on this kernel", "what", joinText(start.NotObservable))
		}
		if f.write != "" {
			return nil
		}
		lines := eventline.Options{
			Start: start.MonoNS, HZ: start.HZ, Reasons: start.Reasons, Cgroup: cgroupNames(),
			Time:  eventline.TimeMode(slices.Index(eventline.TimeModes[:], f.time.value)),
			Color: useColor(f.color.value, a.stdout),
		}
		if f.output.value == "json" {
			return eventline.NewJSON(a.stdout, lines)
		}
		return eventline.NewText(a.stdout, lines)
	}
	// By itself Go ends a process that writes to a closed stdout, and the command
	// with it would be nobody's. Caught, not ignored: the command inherits what is ignored.
	pipe := make(chan os.Signal, 1) // the signal is dropped; write() fails with EPIPE
	signal.Notify(pipe, unix.SIGPIPE)
	defer signal.Stop(pipe)

	if a.dropPrivilege {
		opts.OnReady = func(stats func() error) error {
			later := append(slices.Clone(privilege.Attach), privilege.ReadStats(stats))
			if f.rotates() {
				later = append(later, privilege.MakeFiles(filepath.Dir(f.write), giveToCaller)...)
			}
			return privilege.Drop(later...)
		}
	}
	account, err := watch.Run(ctx, opts)
	if err != nil {
		err = privilege.Explain(privilege.Trace, err)
		if errors.Is(err, watch.ErrNoCommand) {
			return commandExit{commandFailure(err), err}
		}
		return err
	}
	if !account.Unwritten {
		a.traceAccount(account, &opts)
	}
	switch {
	case account.Exit != 0:
		return commandExit{code: account.Exit}
	case stopped.Load(), account.Incomplete(f.strict):
		return errIncomplete
	}
	return nil
}

// options turns flags into what package watch takes, or says what is wrong with them.
func (f *traceFlags) options() (watch.Options, error) {
	opts := watch.Options{
		Tracer: f.trace, NetNS: f.netns, Snapshot: f.snapshot && !f.noSnapshot, Duration: f.duration, Max: f.max,
	}
	if f.netns == "" && f.given("netns") {
		return opts, usagef("--netns: want a PATH or all")
	}
	if f.duration < 0 {
		return opts, usagef("--duration must not be negative")
	}
	if !opts.Snapshot && slices.Equal(f.trace.Kinds, []tcp.Kind{tcp.KindSnapshot}) {
		return opts, usagef("--kind snapshot and --no-snapshot leave nothing to trace")
	}
	if len(f.cgroups) > 0 {
		tree, err := cgroup.Mounted()
		if err != nil {
			return opts, fmt.Errorf("--cgroup: %w", err)
		}
		for _, path := range f.cgroups {
			id, err := tree.ID(path)
			if err != nil {
				return opts, usagef("--cgroup %w", err)
			}
			opts.Tracer.Cgroups = append(opts.Tracer.Cgroups, id)
		}
	}
	if err := opts.Tracer.Validate(); err != nil {
		return opts, usageError{err}
	}
	return opts, nil
}

// rotates reports whether a recording may have several files.
func (f *traceFlags) rotates() bool { return f.rotateSize != "" || f.rotateAge > 0 }

// recording is where events are to be kept.
func (f *traceFlags) recording(a *app, stopped *atomic.Bool) (watch.Recording, error) {
	r := watch.Recording{File: f.write, Options: a.recording(stopped), Twtrace: version(), Asked: os.Args[1:]}
	if f.write == "" {
		if f.given("write") {
			return r, usagef("--write: want the name of a file")
		}
		if f.rotates() || f.keep != 0 {
			return r, usagef("--rotate-size, --rotate-age and --keep are about the files of a recording: name it with -w")
		}
		return r, nil
	}
	if f.given("output") {
		return r, usagef("-w keeps the events and prints no lines: leave -o out, and see them with `twtrace export %s --format jsonl`", f.write)
	}
	if f.rotateAge < 0 || f.keep < 0 || f.keep > 0 && !f.rotates() {
		return r, usagef("--keep N needs --rotate-size or --rotate-age, and none of them is negative")
	}
	if f.rotateSize != "" {
		n, err := humanize.ParseBytes(f.rotateSize)
		if err != nil || n < minRotateSize || n > math.MaxInt64 {
			return r, usagef("--rotate-size %s: want a size of at least %s, as 100MB or 1GiB", f.rotateSize, humanize.Bytes(minRotateSize))
		}
		r.Options.RotateSize = int64(n)
	}
	r.Options.RotateAge, r.Options.Keep = f.rotateAge, f.keep
	return r, nil
}

// minRotateSize is some segments and what each file begins with.
const minRotateSize = 1_000_000

// cgroupNames returns what eventline asks for the names of cgroups; nil where there
// is no cgroup v2.
func cgroupNames() func(uint64) (path, container string) {
	tree, err := cgroup.Mounted()
	if err != nil {
		return nil
	}
	return func(id uint64) (string, string) {
		path := tree.Path(id)
		return path, cgroup.Container(path)
	}
}

// traceAccount prints the closing lines as tcpdump does.
func (a *app) traceAccount(account *watch.Account, opts *watch.Options) {
	var notes []string
	if account.Along > 0 {
		notes = append(notes, fmt.Sprintf("%d more read for owners and times", account.Along))
	}
	if account.AfterEnd > 0 {
		notes = append(notes, fmt.Sprintf("%d more after --max", account.AfterEnd))
	}
	note := ""
	if len(notes) > 0 {
		note = " (" + strings.Join(notes, ", ") + ")"
	}
	fmt.Fprintf(a.stderr, "%d events recorded%s\n", account.Recorded, note)
	fmt.Fprintf(a.stderr, "%d events lost in the ring\n", account.Lost)
	fmt.Fprintf(a.stderr, "%d events skipped by the kernel (%d of them rescued)\n", account.Skipped, account.Rescued)
	if account.Unfollowed > 0 {
		fmt.Fprintf(a.stderr, "%d sockets without owner and time: more were open at once than are followed (%d)\n",
			account.Unfollowed, watch.MaxFollowed)
	}
	if n := len(account.Files); n > 0 {
		more := ""
		if n > 1 {
			more = fmt.Sprintf(" and %d more", n-1)
		}
		fmt.Fprintf(a.stderr, "they are in %s%s\n", account.Files[0], more)
	}
	if account.Recorded == 0 {
		fmt.Fprintf(a.stderr, "hint: %s\n", nothingHint(opts))
	}
}

// nothingHint says what to try where there was nothing to see.
func nothingHint(opts *watch.Options) string {
	t := &opts.Tracer
	switch {
	case len(t.PIDs)+len(t.Comms)+len(t.Cgroups)+len(t.LocalPorts)+len(t.RemotePorts)+len(t.Kinds) > 0,
		t.IPv4Only, t.IPv6Only, t.FailuresOnly:
		return "no event passed the filters: leave one out, or see what there is without them"
	case opts.NetNS == "":
		return "nothing happened in this network namespace; containers have their own: try --netns all"
	}
	return "nothing happened: is this the right network namespace? try --netns all"
}

// commandFailure is what a shell's exit code says of a command that could not be run (sh(1p), 2.8.2).
func commandFailure(err error) int {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return 127
	}
	return 126
}
