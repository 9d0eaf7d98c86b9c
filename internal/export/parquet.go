package export

import (
	"cmp"
	"fmt"
	"io"
	"slices"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"

	"github.com/twtrace/twtrace/internal/eventline"
	"github.com/twtrace/twtrace/internal/tcp"
)

// ordered is a group whose fields stay in the order of a table's columns.
type ordered struct {
	parquet.Group
	names []string
}

func (o ordered) Fields() []parquet.Field {
	fields := o.Group.Fields()
	at := make(map[string]int, len(o.names))
	for i, name := range o.names {
		at[name] = i
	}
	slices.SortFunc(fields, func(a, b parquet.Field) int { return cmp.Compare(at[a.Name()], at[b.Name()]) })
	return fields
}

// parquetNodes are Parquet's types. Times are of no zone: as times of UTC, DuckDB would cut them to microseconds.
var parquetNodes = map[columnType]parquet.Node{
	number16: parquet.Uint(16),
	number32: parquet.Uint(32),
	number64: parquet.Encoded(parquet.Uint(64), &parquet.DeltaBinaryPacked),
	signed64: parquet.Encoded(parquet.Int(64), &parquet.DeltaBinaryPacked),
	truth:    parquet.Leaf(parquet.BooleanType),
	moment:   parquet.Encoded(parquet.TimestampAdjusted(parquet.Nanosecond, false), &parquet.DeltaBinaryPacked),
	word:     parquet.Encoded(parquet.String(), &parquet.RLEDictionary),
	address:  parquet.Encoded(parquet.String(), &parquet.RLEDictionary),
}

func parquetSchema[R any](t *table[R]) *parquet.Schema {
	root := ordered{Group: make(parquet.Group)}
	for _, c := range t.columns {
		node := parquetNodes[c.typ]
		if c.null {
			node = parquet.Optional(node)
		}
		root.Group[c.name] = node
		root.names = append(root.names, c.name)
	}
	return parquet.NewSchema(t.name, root)
}

// parquetBlock is how many rows are handed to a column at once; they stay in the processor's cache meanwhile.
const parquetBlock = 2048

// parquetOf writes a table sorted by socket and time, a row group for as many rows as are held in memory.
func parquetOf[R any](j *job, t *table[R]) error {
	h := j.r.Header()
	cookie, time := parquet.Ascending("cookie"), parquet.Ascending(t.timeColumn)
	options := []parquet.WriterOption{
		parquet.Compression(&zstd.Codec{Level: zstd.SpeedFastest}),
		parquet.CreatedBy("twtrace", tcp.Printable(h.Twtrace), ""),
		parquet.SortingWriterConfig(parquet.SortingColumns(cookie, time)),
	}
	for _, kv := range [][2]string{
		{"schema", t.schema}, {"recording", h.Schema}, {"host", h.Host}, {"boot_id", h.BootID}, {"kernel", h.Kernel},
		{"started", h.Started.UTC().Format(eventline.Nanoseconds)},
	} {
		options = append(options, parquet.KeyValueMetadata("twtrace."+kv[0], tcp.Printable(kv[1])))
	}
	w := parquet.NewWriter(j.w, append(options, parquetSchema(t))...)
	p := &parquetGroup[R]{table: t, writers: w.ColumnWriters(), block: make([]R, 0, parquetBlock)}
	err := t.blocks(t.group, func(rows []R) error {
		if err := p.write(j, rows); err != nil {
			return err
		}
		return w.Flush()
	})
	if err != nil {
		return err
	}
	return w.Close()
}

// parquetGroup writes row groups.
type parquetGroup[R any] struct {
	table   *table[R]
	writers []*parquet.ColumnWriter
	order   []sortKey
	block   []R
	rare    bool // a row of the block is
	values  [parquetBlock]parquet.Value
}

// sortKey is what a row is sorted by, and which it is.
type sortKey struct {
	cookie tcp.Cookie
	ns     int64
	row    uint32
}

func (p *parquetGroup[R]) write(j *job, rows []R) error {
	p.order = p.order[:0]
	for i := range rows {
		cookie, ns := p.table.key(&rows[i])
		p.order = append(p.order, sortKey{cookie, ns, uint32(i)})
	}
	slices.SortFunc(p.order, func(a, b sortKey) int {
		return cmp.Or(cmp.Compare(a.cookie, b.cookie), cmp.Compare(a.ns, b.ns), cmp.Compare(a.row, b.row))
	})
	for order := range slices.Chunk(p.order, parquetBlock) {
		if err := j.ctx.Err(); err != nil {
			return err
		}
		p.block = p.block[:0]
		for _, k := range order {
			p.block = append(p.block, rows[k.row])
		}
		p.rare = p.table.rare != nil && slices.ContainsFunc(p.block, p.table.rare)
		for i := range p.table.columns {
			if err := p.column(i); err != nil {
				return err
			}
		}
	}
	return nil
}

// column writes a column of the block.
func (p *parquetGroup[R]) column(i int) error {
	c := &p.table.columns[i]
	if c.rare && !p.rare {
		clear(p.values[:len(p.block)])
	} else {
		for k := range p.block {
			v := c.parquet(&p.block[k])
			if c.null && !v.IsNull() {
				v = v.Level(0, 1, i) // else it has the level of none
			}
			p.values[k] = v
		}
	}
	n, err := p.writers[i].WriteRowValues(p.values[:len(p.block)])
	if err == nil && n < len(p.block) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("column %s: %w", c.name, err)
	}
	return nil
}

func (c *column[R]) parquet(r *R) parquet.Value {
	if c.num == nil {
		text := c.text(r)
		if c.null && len(text) == 0 {
			return parquet.NullValue()
		}
		return parquet.ByteArrayValue(text)
	}
	n, ok := c.num(r)
	switch {
	case c.null && !ok:
		return parquet.NullValue()
	case c.typ == truth:
		return parquet.BooleanValue(n != 0)
	case c.typ == number16 || c.typ == number32:
		return parquet.Int32Value(int32(n))
	}
	return parquet.Int64Value(int64(n))
}
