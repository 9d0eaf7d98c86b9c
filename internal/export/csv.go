package export

import (
	"bufio"
	"bytes"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/twtrace/twtrace/internal/eventline"
)

// textBlock is how many rows the formats without row groups hold.
const textBlock = 1024

// bufferSize is what is written at once.
const bufferSize = 256 << 10

// csvOf writes a table as RFC 4180 has it, with a header line.
func csvOf[R any](j *job, t *table[R]) error {
	w := bufio.NewWriterSize(j.w, bufferSize)
	var line []byte
	for i := range t.columns {
		line = append(separate(line, i), t.columns[i].name...)
	}
	line = append(line, "\r\n"...)
	if _, err := w.Write(line); err != nil {
		return err
	}
	err := t.blocks(textBlock, func(rows []R) error {
		for r := range rows {
			line = line[:0]
			for i := range t.columns {
				line = t.columns[i].appendCell(separate(line, i), &rows[r])
			}
			line = append(line, "\r\n"...)
			if _, err := w.Write(line); err != nil {
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

func separate(line []byte, i int) []byte {
	if i > 0 {
		line = append(line, ',')
	}
	return line
}

// appendCell adds a value; nothing for none.
func (c *column[R]) appendCell(b []byte, r *R) []byte {
	if c.num == nil {
		return appendQuoted(b, c.text(r))
	}
	n, ok := c.num(r)
	if c.null && !ok {
		return b
	}
	return c.appendNumber(b, n)
}

// appendNumber adds a number as text.
func (c *column[R]) appendNumber(b []byte, n uint64) []byte {
	switch c.typ {
	case moment:
		return time.Unix(0, int64(n)).UTC().AppendFormat(b, eventline.Nanoseconds)
	case truth:
		return strconv.AppendBool(b, n != 0)
	case signed64:
		return strconv.AppendInt(b, int64(n), 10)
	}
	return strconv.AppendUint(b, n, 10)
}

// appendQuoted adds a text, which is printable. What a spreadsheet would take for the begin of a formula is written
// as \xNN, as are other bytes that a process's name should not have; so is the semicolon, at which some
// spreadsheets would begin another cell.
func appendQuoted(b, text []byte) []byte {
	if !bytes.ContainsAny(text, "=+-@＝＋－＠;,\"") {
		return append(b, text...)
	}
	quote := bytes.ContainsAny(text, ",\"")
	if quote {
		b = append(b, '"')
	}
	begun := false
	for len(text) > 0 {
		r, n := utf8.DecodeRune(text)
		switch {
		case r == ';', !begun && r < utf8.RuneSelf && bytes.ContainsRune([]byte("=+-@"), r):
			b = fmt.Appendf(b, `\x%02x`, r)
		case !begun && bytes.ContainsRune([]byte("＝＋－＠"), r):
			b = fmt.Appendf(b, `\u%04x`, r)
		case r == '"':
			b = append(b, `""`...)
		default:
			b = append(b, text[:n]...)
		}
		begun = begun || r != ' '
		text = text[n:]
	}
	if quote {
		b = append(b, '"')
	}
	return b
}
