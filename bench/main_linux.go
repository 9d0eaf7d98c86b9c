// Command bench compares twtrace's storm with the same storm in C (bench/cref), and
// with other tools where they are installed, and prints tables.
//
//	make bench                          # the tables that take minutes
//	make bench BENCH="shape fin"        # some
//	make bench BENCH=classic            # the classic collapse, ten minutes a round
//
// In each round of a table every row is run once, in a new random order, each in fresh
// network namespaces, so that what else the machine does falls on all alike. A ratio is
// the median of the rounds' ratios, never a ratio of medians.
//
// Nothing but Go, make, root and a C compiler is needed. Rows that need what is not
// installed are left out, which is said.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process, and what it started with it
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// options are the flags as given.
type options struct {
	rounds  int // 0: as many as the table says
	rows    string
	quiet   float64 // percent
	json    string
	from    string
	twtrace string
	tables  []table
}

// run is the whole program; it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(stderr, "bench:", err)
		return 2
	}
	do := func() error { return measure(ctx, o, stdout, stderr) }
	if o.from != "" {
		do = func() error { return again(o, stdout) }
	}
	if err := do(); err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	return 0
}

func parse(args []string, stderr io.Writer) (o options, err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.rounds, "rounds", 0, "how often each row is measured (default: what the table says, 7 mostly)")
	flags.StringVar(&o.rows, "rows", "", "only the rows whose name has this in it, and those that they are compared with")
	flags.Float64Var(&o.quiet, "quiet", 100, "leave measurements out of the tables during which other programs used more than so many `PERCENT` of the processors")
	flags.StringVar(&o.json, "json", "", "write every measurement to `FILE`")
	flags.StringVar(&o.from, "from", "", "measure nothing: print the tables of a `FILE` that -json wrote")
	flags.StringVar(&o.twtrace, "twtrace", "./twtrace", "the program to measure")
	flags.Usage = func() {
		fmt.Fprintln(stderr, "usage: bench [flags] [TABLE...]")
		flags.PrintDefaults()
		fmt.Fprintln(stderr, "tables (those with * when none is named):")
		for _, t := range tables(fullShapes()) {
			fmt.Fprintf(stderr, "  %s%-11s %s\n", map[bool]string{true: " ", false: "*"}[t.onRequest], t.name, t.title)
		}
	}
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if o.rounds < 0 {
		return o, fmt.Errorf("-rounds %d: want 1 or more", o.rounds)
	}
	o.tables, err = choose(tables(fullShapes()), flags.Args(), o.rows)
	return o, err
}

// choose returns the tables of these names, and in them the rows that have part in
// their name.
func choose(all []table, names []string, part string) (chosen []table, err error) {
	for _, name := range names {
		if !slices.ContainsFunc(all, func(t table) bool { return t.name == name }) {
			return nil, fmt.Errorf("there is no table %q: see bench -help", name)
		}
	}
	for _, t := range all {
		if len(names) == 0 && t.onRequest || len(names) > 0 && !slices.Contains(names, t.name) {
			continue
		}
		if t.rows = pick(t.rows, part); len(t.rows) > 0 {
			chosen = append(chosen, t)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no row has %q in its name", part)
	}
	return chosen, nil
}

// pick returns the rows with part in their name, and those that they refer to.
func pick(rows []row, part string) (picked []row) {
	wanted := make(map[string]bool)
	for _, r := range rows {
		if strings.Contains(r.name, part) {
			wanted[r.name], wanted[r.base], wanted[r.fixed] = true, true, true
		}
	}
	for _, r := range rows {
		if wanted[r.name] {
			picked = append(picked, r)
		}
	}
	return picked
}

// schema names the form of a document.
const schema = "twtrace.bench/1"

// document is what -json writes.
type document struct {
	Schema       string        `json:"schema"`
	Machine      machine       `json:"machine"`
	Commands     []command     `json:"commands"`
	LeftOut      []string      `json:"left_out"`
	Measurements []measurement `json:"measurements"`
}

// command is what a row ran.
type command struct {
	Table   string `json:"table"`
	Row     string `json:"row"`
	Command string `json:"command"`
}

func measure(ctx context.Context, o options, stdout, stderr io.Writer) (err error) {
	rig, err := newRig(o.twtrace)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rig.close()) }()
	doc := document{Schema: schema, Machine: thisMachine(ctx), LeftOut: []string{}}
	fmt.Fprintf(stdout, "%s\n", doc.Machine)
	for _, t := range o.tables {
		var missing []string
		t.rows, missing = rig.able(t.rows)
		doc.LeftOut = append(doc.LeftOut, missing...)
		if o.rounds > 0 {
			t.rounds = o.rounds
		}
		for _, r := range t.rows {
			doc.Commands = append(doc.Commands, command{t.name, r.name, r.command})
		}
		var measured []measurement
		if len(t.rows) > 0 {
			measured, err = t.measure(ctx, rig, stderr)
		}
		doc.Measurements = append(doc.Measurements, measured...)
		t.write(stdout, measured, missing, o.quiet/100)
		if err != nil {
			break
		}
	}
	if o.json != "" {
		text, encodeErr := json.MarshalIndent(doc, "", "  ")
		err = errors.Join(err, encodeErr, os.WriteFile(o.json, append(text, '\n'), 0o644))
	}
	return err
}

// again prints tables of what was measured before.
func again(o options, stdout io.Writer) error {
	text, err := os.ReadFile(o.from)
	if err != nil {
		return err
	}
	var doc document
	if err := json.Unmarshal(text, &doc); err != nil {
		return fmt.Errorf("%s: %w", o.from, err)
	}
	if doc.Schema != schema {
		return fmt.Errorf("%s is of schema %q, not %s", o.from, doc.Schema, schema)
	}
	fmt.Fprintf(stdout, "%s\n", doc.Machine)
	for _, t := range o.tables {
		measured := slices.DeleteFunc(slices.Clone(doc.Measurements), func(m measurement) bool { return m.Table != t.name })
		// What was left out then has no command.
		t.rows = slices.DeleteFunc(t.rows, func(r row) bool {
			return !slices.ContainsFunc(doc.Commands, func(c command) bool { return c.Table == t.name && c.Row == r.name })
		})
		if len(t.rows) > 0 {
			t.write(stdout, measured, nil, o.quiet/100)
		}
	}
	return nil
}

// measure runs the rows of a table, round by round.
func (t *table) measure(ctx context.Context, rig *rig, progress io.Writer) (all []measurement, err error) {
	for round := 1; round <= t.rounds; round++ {
		for turn, i := range rig.random.Perm(len(t.rows)) {
			r := &t.rows[i]
			start := time.Now()
			m, err := rig.one(ctx, r)
			if ctx.Err() != nil {
				return all, errors.New("interrupted")
			}
			if err != nil {
				return all, fmt.Errorf("table %s, %s: %w", t.name, r.name, err)
			}
			m.Table, m.Row, m.Round, m.Turn = t.name, r.name, round, turn+1
			all = append(all, m)
			fmt.Fprintf(progress, "%s %d/%d: %s: %.0f/s, %.1f s\n", t.name, round, t.rounds, r.name, m.PerSecond, time.Since(start).Seconds())
		}
	}
	return all, nil
}
