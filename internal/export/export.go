package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
)

// The tables that a format can write.
const (
	TableEvents      = "events"
	TableAttempts    = "attempts"
	TableConnections = "connections"
)

// Format is a row of Formats: what `export --format` knows.
type Format struct {
	Name, About string
	Tables      []string // that it can write; the first is the default
	Extension   string
	Binary      bool // no text: not for a terminal
	write       func(*job) error
}

// Has reports whether the format can write a table.
func (f *Format) Has(table string) bool { return slices.Contains(f.Tables, table) }

// Formats is everything that a recording can be written as.
var Formats = []Format{
	{Name: "parquet", About: "Apache Parquet, for DuckDB, ClickHouse, Spark, pandas", Tables: tables, Extension: ".parquet", Binary: true, write: byTable(parquetOf, parquetOf, parquetOf)},
	{Name: "jsonl", About: "an object a line; of events the lines of `twtrace trace -o json`", Tables: tables, Extension: ".jsonl", write: byTable(eventLines, linesOf, linesOf)},
	{Name: "csv", About: "RFC 4180, with a header line", Tables: tables, Extension: ".csv", write: byTable(csvOf, csvOf, csvOf)},
	{Name: "rowbinary", About: "ClickHouse's RowBinaryWithNamesAndTypes", Tables: tables, Extension: ".rowbinary", Binary: true, write: byTable(rowBinaryOf, rowBinaryOf, rowBinaryOf)},
	{Name: "pcapng", About: "packets made of state changes, for Wireshark and tshark", Tables: []string{TableEvents}, Extension: ".pcapng", Binary: true, write: writePcapng},
	{Name: "perfetto", About: "tracks of states, for ui.perfetto.dev", Tables: []string{TableEvents}, Extension: ".pftrace", Binary: true, write: writePerfetto},
}

// tables are those that have columns.
var tables = []string{TableEvents, TableAttempts, TableConnections}

// Find returns the format of a name; nil: there is none.
func Find(name string) *Format {
	if i := slices.IndexFunc(Formats, func(f Format) bool { return f.Name == name }); i >= 0 {
		return &Formats[i]
	}
	return nil
}

// Options say what is written of a recording, and how. The zero value writes the format's first table.
type Options struct {
	Table string
	// Progress is told how many bytes of the recording were read, of how many in all; nil: nobody asks.
	Progress func(done, all int64)
	// Note is given a line on what the format does not show; nil: nobody asks.
	Note func(text string)
	// Missing is given a line on what the recording has and the export has not, though it should; nil: nobody asks.
	Missing func(text string)
}

// ErrTable says that a format does not have the table that Options ask for, or that there is no such format.
var ErrTable = errors.New("no such table")

// Write writes a recording to w, and returns how much there was of it. Errors are ErrTable, of the reading and
// of w, and the context's.
func Write(ctx context.Context, r *recording.Reader, format string, w io.Writer, o Options) (*recording.Condition, error) {
	f := Find(format)
	if f == nil {
		return nil, fmt.Errorf("%w: there is no format %q", ErrTable, format)
	}
	if o.Table == "" {
		o.Table = f.Tables[0]
	}
	if !f.Has(o.Table) {
		return nil, fmt.Errorf("%w: %s has no %s", ErrTable, format, o.Table)
	}
	j := &job{ctx: ctx, r: r, w: w, opts: o, passes: 1}
	if err := j.readClocks(); err != nil {
		return nil, err
	}
	if err := f.write(j); err != nil {
		return j.condition, fmt.Errorf("export %s: %w", format, err)
	}
	return j.condition, nil
}

// job is one call of Write, as a format sees it.
type job struct {
	ctx  context.Context
	r    *recording.Reader
	w    io.Writer // not buffered
	opts Options   // Table is set
	// passes is how many times scan will read the recording; set it before the first.
	passes, passed int64
	// condition is that of the last scan.
	condition *recording.Condition
	clocks    *recording.Clocks
}

// scan reads tables of the recording in the order in which they were written.
func (j *job) scan(visit func(*recording.Batch) error, tables ...recording.Table) error {
	size := j.r.Size()
	c, err := j.r.Scan(recording.Query{Tables: tables}, func(b *recording.Batch) error {
		if err := j.ctx.Err(); err != nil {
			return err
		}
		if j.opts.Progress != nil {
			j.opts.Progress(j.passed*size+b.End, j.passes*size)
		}
		return visit(b)
	})
	j.condition = c
	j.passed++
	return err
}

// events reads the events.
func (j *job) events(visit func(*tcp.Event) error) error {
	return j.scan(func(b *recording.Batch) error {
		for i := range b.Events {
			if err := visit(&b.Events[i]); err != nil {
				return err
			}
		}
		return nil
	}, recording.TableEvents)
}

// note tells what is not shown.
func (j *job) note(format string, args ...any) {
	if j.opts.Note != nil {
		j.opts.Note(fmt.Sprintf(format, args...))
	}
}

// missing tells what is not in the export, though it should be.
func (j *job) missing(format string, args ...any) {
	if j.opts.Missing != nil {
		j.opts.Missing(fmt.Sprintf(format, args...))
	}
}

// reasons are the recorded kernel's names for tcp.Event.Reason.
func (j *job) reasons() map[uint32]string {
	names := make(map[uint32]string)
	for n, name := range j.r.Header().Enums["rst_reason"] {
		names[n] = tcp.Printable(name)
	}
	return names
}

// reasonWords are the same as cells of a table.
func (j *job) reasonWords() map[uint32][]byte {
	words := make(map[uint32][]byte)
	for n, name := range j.reasons() {
		words[n] = []byte(name)
	}
	return words
}

// readClocks reads the samples alone.
func (j *job) readClocks() error {
	j.clocks = recording.NewClocks(j.r.Header().Clock)
	_, err := j.r.Scan(recording.Query{Tables: []recording.Table{recording.TableSamples}}, func(b *recording.Batch) error {
		for i := range b.Samples {
			if s := &b.Samples[i]; s.RealNS != 0 {
				j.clocks.Add(s.MonoNS, s.RealNS)
			}
		}
		return j.ctx.Err()
	})
	return err
}
