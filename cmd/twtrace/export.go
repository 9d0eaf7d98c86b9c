package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/twtrace/twtrace/internal/export"
	"github.com/twtrace/twtrace/internal/progress"
	"github.com/twtrace/twtrace/internal/recording"
)

// exportFlags are the flags of `twtrace export` as given.
type exportFlags struct {
	format, output, table string
	follow                *choice
}

func (a *app) exportCommand() *cobra.Command {
	f := &exportFlags{follow: newProgressChoice()}
	var formats bytes.Buffer
	for _, format := range export.Formats {
		fmt.Fprintf(&formats, "  %-10s %s (%s)\n", format.Name, format.About, strings.Join(format.Tables, ", "))
	}
	cmd := &cobra.Command{
		Use:   "export FILE --format FORMAT",
		Short: "Write a recording in a form that other tools read",
		Long: "export writes what is in a recording as another tool reads it, on any system and without privilege:\n\n" +
			formats.String() + "\n" +
			"In brackets are the tables that each can write with --table, the first if none is given. If the recording was cut\n" +
			"short or is damaged, what is there is written, what is missing is said, and the exit code is 3.",
		Example: "  twtrace export storm.twt --output storm.parquet\n" +
			"  twtrace export storm.twt --format csv --table attempts | head\n" +
			"  twtrace export storm.twt --format jsonl | jq 'select(.errno)'",
		Args: oneFile,
		RunE: func(cmd *cobra.Command, args []string) error { return a.export(cmd.Context(), f, args[0]) },
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVar(&f.format, "format", "", "`FORMAT` to write, one of "+formatNames()+"\n(default: by the extension of --output)")
	fl.StringVar(&f.output, "output", "-", "write to `PATH`, which is there once it is whole; -: standard output")
	fl.StringVar(&f.table, "table", "", "`TABLE` to write (default: the format's first)")
	fl.Var(f.follow, "progress", progressHelp)
	return cmd
}

func formatNames() string {
	var names []string
	for _, f := range export.Formats {
		names = append(names, f.Name)
	}
	return strings.Join(names, ", ")
}

// choose returns the format that the flags ask for.
func (f *exportFlags) choose() (*export.Format, error) {
	if f.format == "" {
		for i := range export.Formats {
			if format := &export.Formats[i]; strings.EqualFold(filepath.Ext(f.output), format.Extension) {
				return format, nil
			}
		}
		return nil, usagef("--format is missing: want one of %s", formatNames())
	}
	format := export.Find(f.format)
	if format == nil {
		return nil, usagef("--format %s: want one of %s", f.format, formatNames())
	}
	return format, nil
}

func (a *app) export(ctx context.Context, f *exportFlags, name string) error {
	format, err := f.choose()
	if err != nil {
		return err
	}
	if f.table != "" && !format.Has(f.table) {
		return usagef("--table %s: %s writes %s", f.table, format.Name, strings.Join(format.Tables, ", "))
	}
	if f.output == "" {
		return usagef("--output: want a PATH, or - for standard output")
	}
	toStdout := f.output == "-"
	if toStdout && format.Binary && isTerminal(a.stdout) {
		return usagef("%s is not for a terminal: write to a file with --output PATH, or into a pipe", format.Name)
	}
	if toStdout && f.follow.value == "auto" && isTerminal(a.stdout) {
		f.follow.value = "never" // the lines themselves tell
	}
	r, err := recording.Open(name)
	if err != nil {
		return err
	}
	defer r.Close()
	write := func(to io.Writer) error { return a.exportTo(ctx, r, format, to, f) }
	if toStdout {
		return write(a.stdout)
	}
	return replaceFile(f.output, name, write)
}

// exportTo writes, shows how far it is, and says what was not there.
func (a *app) exportTo(ctx context.Context, r *recording.Reader, format *export.Format, to io.Writer, f *exportFlags) error {
	shown, follower, end := a.follow(f.follow.value)
	left := false
	condition, err := export.Write(ctx, r, format.Name, to, export.Options{
		Table: f.table, Progress: follower.reading(time.Now()),
		Note: func(text string) { shown.log.Warn(text) },
		Missing: func(text string) {
			left = true
			shown.log.Warn(text)
		},
	})
	end()
	if ctx.Err() != nil {
		return fmt.Errorf("export %s: stopped before it was done", format.Name)
	}
	if err != nil {
		return err
	}
	if condition.Footer == nil {
		a.log.Warn("The recording has no end: what wrote it was killed or still writes, or the file was cut. What is there was exported.")
	}
	a.gaps(condition)
	if condition.Lost+condition.Skipped > 0 {
		a.log.Warn(fmt.Sprintf("%d events were lost in the ring and %d skipped by the kernel while it was recorded.", condition.Lost, condition.Skipped))
	}
	if left || !condition.Complete() || condition.Footer.Stopped != nil || condition.Lost+condition.Skipped > 0 {
		return errIncomplete
	}
	return nil
}

// progressAfter is how long a command may take before it says how far it is.
const progressAfter = time.Second

// reading returns what is to be told how far the reading of a file is that begun then; nil: nothing.
func (f *follower) reading(begun time.Time) func(done, all int64) {
	if f == nil {
		return nil
	}
	next := begun.Add(progressAfter)
	return func(done, all int64) {
		now := time.Now()
		if now.Before(next) {
			return
		}
		next = now.Add(f.every)
		f.show(progress.Reading{Elapsed: now.Sub(begun), Done: done, All: all}.Line)
	}
}

// replaceFile has write make a file that is there, under its name, only when it is whole; so errIncomplete is no error. A name
// that is of no file, but of a device or a pipe, is written to as it is.
func replaceFile(name, source string, write func(io.Writer) error) error {
	if target, err := filepath.EvalSymlinks(name); err == nil {
		name = target
	}
	old, err := os.Stat(name)
	if err == nil && !old.Mode().IsRegular() {
		return writeFile(name, os.O_WRONLY, write)
	}
	if from, errFrom := os.Stat(source); err == nil && errFrom == nil && os.SameFile(old, from) {
		return usagef("--output %s is the recording itself", name)
	}
	part := fmt.Sprintf("%s.%08x.part", name, rand.Uint32())
	if err = writeFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, write); err != nil && !errors.Is(err, errIncomplete) {
		return errors.Join(err, removeIfThere(part))
	}
	if renamed := os.Rename(part, name); renamed != nil {
		return errors.Join(renamed, removeIfThere(part))
	}
	return err
}

func removeIfThere(name string) error {
	if err := os.Remove(name); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func writeFile(name string, flags int, write func(io.Writer) error) error {
	file, err := os.OpenFile(name, flags, 0o666)
	if err != nil {
		return err // names the file
	}
	if flags&os.O_CREATE != 0 {
		if err := giveToCaller(file); err != nil {
			return errors.Join(err, file.Close())
		}
	}
	err = write(file)
	return errors.Join(err, file.Close())
}
