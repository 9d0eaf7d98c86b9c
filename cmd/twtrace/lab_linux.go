package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/twtrace/twtrace/internal/lab"
	"github.com/twtrace/twtrace/internal/privilege"
)

// labFlags are the flags of `twtrace lab run` as given.
type labFlags struct {
	all, full     bool
	atOnce        int
	output, color *choice
}

func (a *app) labCommand() *cobra.Command {
	cmd := &cobra.Command{
		Long: "lab is a catalogue of experiments about how Linux ends TCP connections. Each entry is a question with the\n" +
			"claims that are made about its answer; it measures in fresh network namespaces, and says of each\n" +
			"claim whether it holds on this kernel, with evidence.",
		Example: "  twtrace lab list\n" +
			"  sudo twtrace lab run rebind\n" +
			"  sudo twtrace lab run --all -o json > profile.json\n" +
			"  twtrace lab diff old-kernel.json new-kernel.json",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("lab has no command %q: want list, run or diff", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return usagef("say what to do: try `twtrace lab list`")
		},
	}
	cmd.AddCommand(a.labListCommand(), a.labRunCommand(), a.labDiffCommand())
	return cmd
}

func (a *app) labListCommand() *cobra.Command {
	color := newChoice("auto", "auto", "always", "never")
	output := newChoice("text", "text", "json")
	full := false
	cmd := &cobra.Command{
		Use: "list", Short: "List the catalogue", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			if output.value == "json" {
				return a.labListJSON()
			}
			return lab.NewText(a.stdout, useColor(color.value, a.stdout)).List(lab.Catalogue, full)
		},
	}
	cmd.Flags().BoolVar(&full, "full", false, "with the time that each takes at full size")
	cmd.Flags().VarP(output, "output", "o", "form of the result")
	cmd.Flags().Var(color, "color", "colour in text output")
	return cmd
}

func (a *app) labListJSON() error {
	type row struct {
		Schema   string `json:"schema"`
		Name     string `json:"name"`
		Question string `json:"question"`
		Source   string `json:"source"`
		Seconds  int    `json:"seconds"`
	}
	rows := []row{}
	for _, e := range lab.Catalogue {
		rows = append(rows, row{lab.Schema, e.Name, e.Question, e.Source, e.Seconds})
	}
	return a.writeJSON(rows)
}

func (a *app) writeJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

func (a *app) labRunCommand() *cobra.Command {
	f := &labFlags{
		output: newChoice("text", "text", "json"),
		color:  newChoice("auto", "auto", "always", "never"),
	}
	cmd := &cobra.Command{
		Use: "run NAME... | --all", Short: "Run entries, and say whether their claims hold on this kernel",
		Long: "run makes each entry's experiment in network namespaces of its own, entries side by side where nothing is\n" +
			"timed, and prints the answer, claim by claim. Storms are scaled down to a narrow range of ports unless\n" +
			"--full is given: the same share of the ports, the same answers. The exit code is 1 if an answer is not\n" +
			"what the catalogue expects.",
		RunE: func(cmd *cobra.Command, args []string) error { return a.labRun(cmd.Context(), f, args) },
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.BoolVar(&f.all, "all", false, "the whole catalogue")
	fl.BoolVar(&f.full, "full", false, "storms at the size of the original experiments")
	fl.IntVar(&f.atOnce, "at-once", 0, "how many entries run side by side (default: four)")
	fl.VarP(f.output, "output", "o", "form of the result")
	fl.Var(f.color, "color", "colour in text output")
	return cmd
}

// chosen finds entries by name.
func chosen(f *labFlags, names []string) (entries []lab.Entry, err error) {
	switch {
	case f.all && len(names) > 0:
		return nil, usagef("--all is every entry: leave %s out", strings.Join(names, " "))
	case f.all:
		return lab.Catalogue, nil
	case len(names) == 0:
		return nil, usagef("name an entry, or --all: see `twtrace lab list`")
	case f.atOnce < 0:
		return nil, usagef("--at-once must not be negative")
	}
	var unknown []error
	for _, name := range names {
		found := false
		for _, e := range lab.Catalogue {
			if e.Name == name {
				entries, found = append(entries, e), true
			}
		}
		if !found {
			unknown = append(unknown, fmt.Errorf("no entry is called %q", name))
		}
	}
	if err := errors.Join(unknown...); err != nil {
		return nil, usagef("%w: see `twtrace lab list`", err)
	}
	return entries, nil
}

func (a *app) labRun(ctx context.Context, f *labFlags, names []string) error {
	entries, err := chosen(f, names)
	if err != nil {
		return err
	}
	asks := lab.AskedBy(entries)
	if err := lab.Able(ctx, asks); err != nil {
		return privilege.Explain(privilege.Lab(asks&lab.Packets != 0, asks&lab.TimeWaits != 0), err)
	}
	opts := lab.Options{Version: version(), Full: f.full, AtOnce: f.atOnce}
	text := lab.NewText(a.stdout, useColor(f.color.value, a.stdout))
	var textErr error
	if f.output.value == "text" {
		opts.OnAnswer = func(answer *lab.Answer) { textErr = errors.Join(textErr, text.Answer(answer)) }
	}
	answers := lab.Run(ctx, entries, opts)
	if f.output.value == "json" {
		err = a.writeJSON(answers)
	} else {
		err = errors.Join(textErr, text.Rest(answers))
	}
	if err != nil {
		return err
	}
	for i := range answers {
		if answers[i].Error != "" || len(answers[i].Unexpected()) > 0 {
			return errUnexpected
		}
	}
	return nil
}

// errUnexpected: an answer of the lab is not what the catalogue expects.
var errUnexpected = errors.New("an answer is not what the catalogue expects")

func (a *app) labDiffCommand() *cobra.Command {
	output := newChoice("text", "text", "json")
	cmd := &cobra.Command{
		Use: "diff A.json B.json", Short: "Compare two profiles that `lab run -o json` wrote, claim by claim",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usagef("%s takes two files, but got %d", cmd.CommandPath(), len(args))
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			var profiles [2][]lab.Answer
			for i, name := range args {
				text, err := os.ReadFile(name)
				if err != nil {
					return err
				}
				if profiles[i], err = lab.Read(text); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
			list := lab.Diff(profiles[0], profiles[1])
			if output.value == "json" {
				if list == nil {
					list = []lab.Difference{}
				}
				return a.writeJSON(list)
			}
			return lab.WriteDiff(a.stdout, list)
		},
	}
	cmd.Flags().VarP(output, "output", "o", "form of the result")
	return cmd
}
