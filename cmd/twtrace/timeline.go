package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/twtrace/twtrace/internal/eventline"
	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/report"
	"github.com/twtrace/twtrace/internal/story"
	"github.com/twtrace/twtrace/internal/tcp"
)

// timelineFlags are the flags of `twtrace timeline` as given.
type timelineFlags struct {
	query               story.Query
	slowest, limit      int
	time, output, color *choice
	given               func(flag string) bool
}

func (a *app) timelineCommand() *cobra.Command {
	f := &timelineFlags{
		time:   newChoice(eventline.TimeModes[0], eventline.TimeModes[:]...),
		output: newChoice("text", "text", "json"),
		color:  newChoice("auto", "auto", "always", "never"),
	}
	cmd := &cobra.Command{
		Use:   "timeline FILE",
		Short: "Tell of single connections of a recording: both ends, step by step",
		Long: "timeline prints connections out of a recording (`twtrace run -w FILE`, `twtrace trace -w FILE`), each with\n" +
			"its two ends side by side, the segments between them, what became of its TIME_WAIT and its port, why it\n" +
			"failed, and what of it was not seen. It needs neither privilege nor Linux.\n\n" +
			"Without a filter it prints the first connections, in the order in which they were begun. Values of one\n" +
			"filter are alternatives; a connection has to pass every filter that is given. A connection failed if its\n" +
			"attempt did; in a recording of `trace`, which knows of no attempts, if connect() or bind() did, if the kernel\n" +
			"closed an end with an error, or if an RST came of something else than SO_LINGER {1,0}.\n\n" +
			"An arrow stands where an event tells of a segment: SYN, FIN and RST where they are sent if that end was\n" +
			"seen, SYN+ACK and ACK where they arrive. DELTA is the time since the line before.",
		Example: "  twtrace timeline storm.twt --failed           # the first connections that failed, and why\n" +
			"  twtrace timeline storm.twt --slowest 5        # whose connect() took longest\n" +
			"  twtrace timeline storm.twt --port 40001       # all that used this port, one after the other\n" +
			"  twtrace timeline storm.twt --cause reused-by-connect --limit 3\n" +
			"  twtrace timeline storm.twt --errno ECONNRESET --limit 0 -o json",
		Args: oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.given = cmd.Flags().Changed
			return a.timeline(cmd.Context(), f, args[0])
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.Var(newList("N", "a socket's cookie, a whole number", &f.query.Cookies, parseCookie), "cookie", "the connection of this socket")
	fl.Var(newList("PORT", "a port from 1 to 65535", &f.query.Ports, parsePort), "port", "connections with this port at either end")
	fl.Var(newList("NAME", "", &f.query.Errnos, parseErrno), "errno", "connections that failed with this error (ECONNRESET)")
	fl.Var(newList("NAME", "", &f.query.Causes, story.ParseCause), "cause", "connections with this cause: of a failure, of a TIME_WAIT's end, of a dropped\nsegment:"+causeNames())
	fl.Var(newList("PID", "a process number", &f.query.PIDs, parseUint32), "pid", "connections of these processes")
	fl.BoolVar(&f.query.Failed, "failed", false, "only connections that failed")
	fl.IntVar(&f.slowest, "slowest", 0, "the `N` whose connect() took longest, from when they were due, longest first")
	fl.IntVar(&f.limit, "limit", 10, "print at most `N` connections (0: all)")
	fl.Var(f.time, "time", "what the column TIME shows: seconds since the recording began, the time of day, seconds\nof CLOCK_MONOTONIC, or (delta) seconds since the connection began")
	fl.VarP(f.output, "output", "o", "form of the result")
	fl.Var(f.color, "color", "colour in text output")
	return cmd
}

// causeNames lists all causes, a few on a line.
func causeNames() string {
	text := ""
	for i, name := range story.CauseNames() {
		sep := " "
		if i%5 == 0 {
			sep = "\n"
		}
		text += sep + name
	}
	return text
}

func (a *app) timeline(ctx context.Context, f *timelineFlags, name string) error {
	switch {
	case f.limit < 0 || f.slowest < 0 || f.slowest == 0 && f.given("slowest"):
		return usagef("--limit and --slowest take a number of connections")
	case f.slowest > 0 && (!f.given("limit") || f.limit == 0 || f.slowest < f.limit):
		f.limit = f.slowest
	}
	f.query.Slowest, f.query.Limit = f.slowest > 0, f.limit
	r, err := recording.Open(name)
	if err != nil {
		return err
	}
	defer r.Close()
	opts := story.NewOptions(r.Header())
	opts.Time = eventline.TimeMode(slices.Index(eventline.TimeModes[:], f.time.value))
	opts.Color = useColor(f.color.value, a.stdout)
	var write func(*story.Story) error
	result, err := story.Read(ctx, r, f.query, func(c *recording.Condition) {
		opts.Notes = timelineNotes(c)
		if f.output.value == "json" {
			write = story.NewJSON(a.stdout, opts).Story
		} else {
			write = story.NewText(a.stdout, opts).Story
		}
	}, func(s *story.Story) error { return write(s) })
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil // Ctrl-C: what was printed is whole
	}
	if err != nil {
		return err
	}
	for _, note := range opts.Notes {
		a.log.Warn(note)
	}
	a.timelineEnd(f, result)
	if len(opts.Notes) > 0 {
		return errIncomplete
	}
	return nil
}

// timelineNotes says what a recording lacks.
func timelineNotes(c *recording.Condition) []string {
	notes := report.Gaps(c)
	if c.Footer == nil {
		notes = append([]string{"The recording is truncated: twtrace was killed, still writes it, or the file was cut."}, notes...)
	}
	return notes
}

// timelineEnd says how much more there is, or what to try.
func (a *app) timelineEnd(f *timelineFlags, result *story.Result) {
	if result.Unfollowed {
		a.log.Warn("too many connections fit a part of the filters for all to be looked at: narrow it down by --port, --cookie or --errno")
	}
	switch {
	case result.Told == 0:
		fmt.Fprintf(a.stderr, "no connection: %s\n", nothingTold(f, result))
	case result.More:
		all := ""
		if result.Attempts > 0 && f.query.Empty() {
			all = fmt.Sprintf(" of %d attempts (%d failed)", result.Attempts, result.Failed)
		}
		fmt.Fprintf(a.stderr, "%d shown%s, and there are more: narrow them down by --failed, --slowest N, --port, --errno, --cause, --cookie or --pid, or see all with --limit 0\n",
			result.Told, all)
	}
}

func nothingTold(f *timelineFlags, result *story.Result) string {
	c := result.Condition
	switch {
	case c.Records[recording.TableEvents]+c.Records[recording.TableAttempts] == 0:
		return "the recording has no events and no attempts"
	case f.query.Failed && result.Attempts > 0 && result.Failed == 0:
		return fmt.Sprintf("all %d attempts finished; leave --failed out to see them", result.Attempts)
	case !f.query.Empty():
		return "none passes all filters: leave one out, or see what there is with `twtrace report` and `twtrace timeline` without filters"
	}
	return "the recording has only listeners, and sockets that were there and did nothing"
}

func parseCookie(text string) (tcp.Cookie, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err == nil && n == 0 {
		err = strconv.ErrRange
	}
	return tcp.Cookie(n), err
}

// parseErrno reads an error by its name, or "errno N" by its number.
func parseErrno(text string) (tcp.Errno, error) {
	if n, err := strconv.ParseUint(strings.TrimPrefix(text, "errno "), 10, 16); err == nil && n > 0 {
		return tcp.Errno(n), nil
	}
	return tcp.ParseErrno(text)
}
