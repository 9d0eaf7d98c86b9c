package export

import (
	"bufio"
	"strings"

	"github.com/twtrace/twtrace/internal/eventline"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
)

// eventLines writes what `twtrace trace -o json` does.
func eventLines(j *job, _ *table[eventRow]) error {
	lines := eventline.NewJSON(j.w, eventline.Options{HZ: j.r.Header().HZ, Reasons: j.reasons()})
	owners := timeline.NewOwners(0)
	err := j.events(func(ev *tcp.Event) error {
		lines.Line(&eventline.Line{Event: ev, Past: owners.Event(ev), Wall: j.clocks.Wall(ev.MonoNS)})
		return lines.Err()
	})
	if err != nil {
		return err
	}
	noteUnfollowed(j, owners)
	return lines.Flush()
}

// linesOf writes an object a line, with all columns but those that are the same in all rows.
func linesOf[R any](j *job, t *table[R]) error {
	w := bufio.NewWriterSize(j.w, bufferSize)
	columns := t.columns[:len(t.columns)-len(machine[R](j))]
	var line []byte
	err := t.blocks(textBlock, func(rows []R) error {
		for r := range rows {
			line = append(append(line[:0], `{"schema":"`...), t.schema...)
			line = append(line, '"')
			inner := ""
			for i := range columns {
				line, inner = columns[i].appendMember(line, inner, &rows[r])
			}
			if inner != "" {
				line = append(line, '}')
			}
			line = append(line, "}\n"...)
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

// appendMember adds a name and a value to an object, in which inner is the inner object that is open.
func (c *column[R]) appendMember(b []byte, inner string, r *R) ([]byte, string) {
	outer, name, nested := strings.Cut(c.path, ".")
	switch {
	case !nested:
		outer, name = "", c.path
		if name == "" {
			name = c.name
		}
	}
	if inner != outer && inner != "" {
		b = append(b, '}')
	}
	switch {
	case inner != outer && outer != "":
		b = append(append(append(b, `,"`...), outer...), `":{`...)
	default:
		b = append(b, ',')
	}
	b = append(append(append(b, '"'), name...), `":`...)
	return c.appendJSON(b, r), outer
}

func (c *column[R]) appendJSON(b []byte, r *R) []byte {
	if c.num == nil {
		text := c.text(r)
		if c.null && len(text) == 0 {
			return append(b, "null"...)
		}
		return appendString(b, text)
	}
	n, ok := c.num(r)
	switch {
	case c.null && !ok:
		return append(b, "null"...)
	case c.typ == moment:
		return append(c.appendNumber(append(b, '"'), n), '"')
	}
	return c.appendNumber(b, n)
}

// appendString adds a text, which is printable.
func appendString(b, text []byte) []byte {
	b = append(b, '"')
	for _, ch := range text {
		if ch == '"' || ch == '\\' {
			b = append(b, '\\')
		}
		b = append(b, ch)
	}
	return append(b, '"')
}
