package eventline

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"unicode/utf8"

	"github.com/twtrace/twtrace/internal/tcp"
)

// Text writes the columns TIME PID COMM LADDR LPORT RADDR RPORT EVENT MS.
// A column grows with the widest value that it has met.
type Text struct {
	w     *bufio.Writer
	opts  Options
	width [len(columns) - 2]int
	line  []byte
	event []byte
	last  int64 // MonoNS of the line before, for TimeDelta
	begun bool
}

// columns are those of tcpstates. The widths fit 100 columns for IPv4: the
// addresses of most hosts are shorter than 15 characters, which leaves room for longer
// names. EVENT and MS share the rest, since long events mostly have short times.
var columns = [...]struct {
	name  string
	width int
	right bool
}{
	{"TIME", 10, true}, {"PID", 5, true}, {"COMM", 7, false},
	{"LADDR", 11, false}, {"LPORT", 5, true}, {"RADDR", 11, false}, {"RPORT", 5, true},
	{"EVENT", eventWidth, false}, {"MS", 0, true},
}

const eventWidth = 31

// widest is the longest IPv6 address. A longer name of a process (16 bytes that are not
// printable) is written out and leaves the other lines as they are.
const widest = 39

// NewText returns a Text that writes to w.
func NewText(w io.Writer, opts Options) *Text {
	t := &Text{w: bufio.NewWriterSize(w, bufferSize), opts: opts}
	for i := range t.width {
		t.width[i] = columns[i].width
	}
	return t
}

// bufferSize holds some hundred lines, so that a burst costs few writes.
const bufferSize = 64 << 10

// Header writes the names of the columns.
func (t *Text) Header() {
	t.line = t.line[:0]
	for i := range t.width {
		t.column(i, columns[i].name)
	}
	t.event = append(t.event[:0], "EVENT"...)
	t.end("MS", bold)
}

// Line adds a line.
func (t *Text) Line(l *Line) {
	ev, owner := l.Event, &l.Past.Owner
	t.line = t.line[:0]
	var buf [64]byte
	t.column(0, string(t.time(buf[:0], l)))
	t.column(1, number(uint64(owner.PID)))
	t.column(2, orDash(owner.Comm.String()))
	t.column(3, addr(ev.Tuple.Local))
	t.column(4, number(uint64(ev.Tuple.Local.Port())))
	t.column(5, addr(ev.Tuple.Peer))
	t.column(6, number(uint64(ev.Tuple.Peer.Port())))
	t.event = append(t.event[:0], t.opts.words(l)...)
	in := "-"
	if l.Past.InState >= 0 {
		in = strconv.FormatFloat(float64(l.Past.InState)/1e6, 'f', 3, 64)
	}
	t.end(in, color(ev.Kind))
	t.last, t.begun = ev.MonoNS, true
}

// Flush writes what is buffered and returns the first error of any write.
func (t *Text) Flush() error {
	if err := t.w.Flush(); err != nil {
		return fmt.Errorf("write events: %w", err)
	}
	return nil
}

// column adds one of the columns before EVENT.
func (t *Text) column(i int, value string) {
	n := utf8.RuneCountInString(value)
	if n <= widest {
		t.width[i] = max(t.width[i], n)
	}
	if columns[i].right {
		t.line = spaces(t.line, t.width[i]-n)
	}
	t.line = append(t.line, value...)
	if !columns[i].right {
		t.line = spaces(t.line, t.width[i]-n)
	}
	t.line = append(t.line, ' ')
}

// end adds EVENT and MS, which share a width, and writes the line.
func (t *Text) end(in, color string) {
	fill := max(1, eventWidth-utf8.RuneCount(t.event)-len(in))
	if t.opts.Color && color != "" {
		t.line = append(t.line, color...)
		t.line = append(t.line, t.event...)
		t.line = append(t.line, plain...)
	} else {
		t.line = append(t.line, t.event...)
	}
	t.line = spaces(t.line, fill)
	t.line = append(t.line, in...)
	t.line = append(t.line, '\n')
	_, _ = t.w.Write(t.line) // Flush reports it
}

func (t *Text) time(b []byte, l *Line) []byte {
	ns := l.Event.MonoNS
	switch t.opts.Time {
	case TimeWall:
		return l.Wall.Local().AppendFormat(b, "15:04:05.000000")
	case TimeRelative:
		ns -= t.opts.Start
	case TimeDelta:
		ns -= t.last
		if !t.begun {
			ns = 0
		}
	case TimeMono:
	}
	return strconv.AppendFloat(b, float64(ns)/1e9, 'f', 6, 64)
}

func spaces(b []byte, n int) []byte {
	for range n {
		b = append(b, ' ')
	}
	return b
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// number is a number of which 0 means that it is not known.
func number(n uint64) string {
	if n == 0 {
		return "-"
	}
	return strconv.FormatUint(n, 10)
}

func addr(a netip.AddrPort) string {
	if !a.Addr().IsValid() {
		return "-"
	}
	return a.Addr().String()
}

const (
	plain  = "\x1b[0m"
	bold   = "\x1b[1m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	cyan   = "\x1b[36m"
	dim    = "\x1b[2m"
)

func color(k tcp.Kind) string {
	if int(k) < len(colors) {
		return colors[k]
	}
	return ""
}

// colors are of EVENT: red what failed, yellow what may, cyan and green the life of
// a TIME_WAIT.
var colors = [tcp.NumKinds]string{
	tcp.KindRstSent: red, tcp.KindRstReceived: red, tcp.KindError: red,
	tcp.KindConnectFailed: red, tcp.KindBindFailed: red, tcp.KindListenDrop: red,
	tcp.KindRetransmit: yellow, tcp.KindSynAckRetransmit: yellow, tcp.KindTWOverflow: yellow,
	tcp.KindTWEnter: cyan, tcp.KindTWConvert: cyan, tcp.KindTWEnd: green,
	tcp.KindSnapshot: dim,
}
