package main

import (
	"errors"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/report"
)

// reportFlags are the flags of `twtrace report` as given.
type reportFlags struct {
	form, color *choice
	output      string
}

func (a *app) reportCommand() *cobra.Command {
	f := &reportFlags{
		form:  newChoice("text", "text", "json"),
		color: newChoice("auto", "auto", "always", "never"),
	}
	cmd := &cobra.Command{
		Use:   "report FILE",
		Short: "Print the summary of a recording",
		Long: "report prints what a recorded run printed (`twtrace run -w FILE`), from the recording alone, on any\n" +
			"system and without privilege; of a recorded trace (`twtrace trace -w FILE`) what it came to. All of the\n" +
			"file is read and checked. If the recording was cut short, the summary is made of what is there, and says so.",
		Example: "  sudo twtrace run -w storm.twt\n" +
			"  twtrace report storm.twt\n" +
			"  twtrace report storm.twt -o json --output summary.json",
		Args: oneFile,
		RunE: func(_ *cobra.Command, args []string) error { return a.report(f, args[0]) },
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.VarP(f.form, "format", "o", "form of the result")
	fl.StringVar(&f.output, "output", "", "write the result to `PATH` (default: standard output)")
	fl.Var(f.color, "color", "colour in text output")
	return cmd
}

// oneFile asks for a recording.
func oneFile(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usagef("%s takes one recording, but got %d arguments: see `%s --help`", cmd.CommandPath(), len(args), cmd.CommandPath())
	}
	return nil
}

func (a *app) report(f *reportFlags, name string) (err error) {
	if f.output == "text" || f.output == "json" {
		return usagef("--output %s is a file of that name: write ./%s if you mean it, or `-o %s` for the form", f.output, f.output, f.output)
	}
	r, err := recording.Open(name)
	if err != nil {
		return err
	}
	defer r.Close()
	to, color := a.stdout, useColor(f.color.value, a.stdout)
	if f.output != "" {
		file, err := os.Create(f.output)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		to, color = file, f.color.value == "always"
	}
	if r.Header().Command == recording.CommandTrace {
		return a.reportTrace(r, f, to, color)
	}
	s, c, err := report.FromRecording(r)
	if err != nil {
		return err
	}
	if c.Footer != nil { // else the summary says it
		a.gaps(c)
	}
	if f.form.value == "json" {
		err = s.WriteJSON(to)
	} else {
		err = report.NewText(to, color).Write(s)
	}
	if err != nil {
		return err
	}
	if !c.Complete() || c.Footer.Stopped != nil || s.Options.Trace && s.Incomplete(false) {
		return errIncomplete
	}
	return nil
}

// gaps says what is missing of a recording.
func (a *app) gaps(c *recording.Condition) {
	for _, g := range report.Gaps(c) {
		a.log.Warn(g)
	}
}

// reportTrace prints what a recorded trace came to.
func (a *app) reportTrace(r *recording.Reader, f *reportFlags, to io.Writer, color bool) error {
	s, c, err := report.TraceFromRecording(r)
	if err != nil {
		return err
	}
	if f.form.value == "json" {
		err = s.WriteJSON(to)
	} else {
		err = report.NewText(to, color).Trace(s)
	}
	if err != nil {
		return err
	}
	if !c.Complete() || c.Footer.Stopped != nil || s.Incomplete() {
		return errIncomplete
	}
	return nil
}
