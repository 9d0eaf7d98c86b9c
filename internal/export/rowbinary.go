package export

import (
	"bufio"
	"encoding/binary"
)

// clickhouseTypes are ClickHouse's names for the types of columns.
var clickhouseTypes = map[columnType]string{
	number16: "UInt16",
	number32: "UInt32",
	number64: "UInt64",
	signed64: "Int64",
	truth:    "Bool",
	moment:   "DateTime64(9, 'UTC')",
	word:     "LowCardinality(String)",
	address:  "IPv6",
}

func (c *column[R]) clickhouse() string {
	name := clickhouseTypes[c.typ]
	switch {
	case c.null && c.typ == word:
		return "LowCardinality(Nullable(String))"
	case c.null:
		return "Nullable(" + name + ")"
	}
	return name
}

// rowBinaryOf writes ClickHouse's RowBinaryWithNamesAndTypes: RowBinary behind the columns' names and types.
func rowBinaryOf[R any](j *job, t *table[R]) error {
	w := bufio.NewWriterSize(j.w, bufferSize)
	row := binary.AppendUvarint(nil, uint64(len(t.columns)))
	for i := range t.columns {
		row = appendSized(row, []byte(t.columns[i].name))
	}
	for i := range t.columns {
		row = appendSized(row, []byte(t.columns[i].clickhouse()))
	}
	if _, err := w.Write(row); err != nil {
		return err
	}
	err := t.blocks(textBlock, func(rows []R) error {
		for r := range rows {
			row = row[:0]
			for i := range t.columns {
				row = t.columns[i].appendBinary(row, &rows[r])
			}
			if _, err := w.Write(row); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return w.Flush()
}

func appendSized(b, text []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(text))), text...)
}

// appendBinary adds a value; one that may be none is behind a byte that is 1 for none.
func (c *column[R]) appendBinary(b []byte, r *R) []byte {
	if c.num != nil {
		n, ok := c.num(r)
		if c.null {
			if !ok {
				return append(b, 1)
			}
			b = append(b, 0)
		}
		return c.appendFixed(b, n)
	}
	text := c.text(r)
	if c.null {
		if len(text) == 0 {
			return append(b, 1)
		}
		b = append(b, 0)
	}
	if c.typ == address {
		raw := c.raw(r)
		return append(b, raw[:]...)
	}
	return appendSized(b, text)
}

// appendFixed adds a number in its type's width.
func (c *column[R]) appendFixed(b []byte, n uint64) []byte {
	switch c.typ {
	case truth:
		return append(b, byte(n))
	case number16:
		return binary.LittleEndian.AppendUint16(b, uint16(n))
	case number32:
		return binary.LittleEndian.AppendUint32(b, uint32(n))
	}
	return binary.LittleEndian.AppendUint64(b, n)
}
