package story

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/twtrace/twtrace/internal/eventline"
	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
)

// Options say how stories are written.
type Options struct {
	Header *recording.Header
	Time   eventline.TimeMode // of text
	Color  bool               // of text
	// Notes say what of the recording is missing, a sentence each.
	Notes []string

	HZ      int
	Reasons map[uint32]string
	netns   map[tcp.NetNS]string
}

// NewOptions takes from a recording what writing needs.
func NewOptions(h *recording.Header) Options {
	o := Options{Header: h, HZ: h.HZ, Reasons: h.Enums["rst_reason"], netns: make(map[tcp.NetNS]string)}
	for _, n := range h.NetNS {
		o.netns[n.Cookie] = printable(n.Name)
	}
	return o
}

// width is that of a page; no line is longer.
const width = 100

// The widths of columns.
const (
	deltaWidth = 10
	wireWidth  = 19 // between the ends, without their lines
)

// Text writes stories as two columns, an end each, with the segments between them.
type Text struct {
	w    *bufio.Writer
	opts Options
	told int
}

// NewText returns a Text that writes to w.
func NewText(w io.Writer, opts Options) *Text { return &Text{w: bufio.NewWriter(w), opts: opts} }

// Story writes one.
func (t *Text) Story(s *Story) error {
	if t.told > 0 {
		t.line("", "")
	}
	t.told++
	t.head(s)
	t.ladder(s)
	t.foot(s)
	return t.w.Flush()
}

const (
	plain  = "\x1b[0m"
	bold   = "\x1b[1m"
	dim    = "\x1b[2m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	cyan   = "\x1b[36m"
)

func (t *Text) paint(text, color string) string {
	if !t.opts.Color || color == "" || text == "" {
		return text
	}
	return color + text + plain
}

func (t *Text) line(text, color string) {
	_, _ = t.w.WriteString(t.paint(strings.TrimRight(text, " "), color) + "\n") // Flush reports it
}

// labelWidth is that of what comes before the lines of head and foot.
const labelWidth = 10

// note writes a label and text after it, in as many lines as it takes.
func (t *Text) note(label, text, color string) {
	for _, l := range wrap(text, width-labelWidth-2) {
		t.line(fmt.Sprintf("  %-*s%s", labelWidth, label, l), color)
		label = ""
	}
}

func (t *Text) head(s *Story) {
	tuple := s.Tuple()
	title := address(tuple.Local) + " > " + address(tuple.Peer)
	if a := s.Attempt; a != nil {
		which := fmt.Sprintf("  loop %d, attempt %d", a.Loop, a.Index)
		switch {
		case s.Ends[Client].Seen() || s.Ends[Server].Seen():
		case a.LocalPort != 0:
			title = "port " + strconv.Itoa(int(a.LocalPort))
		default:
			title, which = which[2:], ""
		}
		if utf8.RuneCountInString(title+which) <= width {
			title += which
		} else {
			t.line(title, bold)
			title = which
		}
	}
	t.line(title, bold)
	color := ""
	if s.Outcome.Failed {
		color = red
	}
	for _, l := range wrap(s.Outcome.Text, width-2) {
		t.line("  "+l, color)
	}
	for i := range s.Ends {
		if s.Ends[i].Seen() {
			t.note(s.endName(i), t.who(&s.Ends[i]), "")
		}
	}
}

// address is one end's, with ? for what is not known or was never chosen.
func address(a netip.AddrPort) string {
	switch {
	case !a.Addr().IsValid():
		return "?"
	case a.Port() == 0:
		return strings.TrimSuffix(a.String(), "0") + "?"
	}
	return a.String()
}

// who is a socket's cookie, namespace and owner.
func (t *Text) who(e *End) string {
	text := "cookie not known, network namespace "
	if e.Cookie != 0 {
		text = fmt.Sprintf("cookie %d, network namespace ", e.Cookie)
	}
	if name := t.opts.netns[e.NetNS]; name != "" {
		text += name
	} else {
		text += strconv.FormatUint(uint64(e.NetNS), 10)
	}
	if e.Owner.PID != 0 {
		text += fmt.Sprintf(", pid %d", e.Owner.PID)
	}
	if comm := e.Owner.Comm.String(); comm != "" {
		text += " (" + comm + ")"
	}
	return text
}

// ladder writes the columns.
func (t *Text) ladder(s *Story) {
	rows := t.rows(s)
	if len(rows) == 0 {
		return
	}
	times := make([]string, len(rows))
	timeWidth := len(t.timeName())
	for i := range rows {
		times[i] = t.time(rows[i].at, s)
		timeWidth = max(timeWidth, len(times[i]))
	}
	room := width - timeWidth - 1 - deltaWidth - 2 - wireWidth - 4
	c := columns{t: t, time: timeWidth, left: room / 2, right: room - room/2}
	t.line("", "")
	names := [2]string{strings.ToUpper(s.endName(Client)), strings.ToUpper(s.endName(Server))}
	for i := range names {
		if slices.ContainsFunc(s.Missing, func(g Gap) bool { return g.What == sideOf(s.endName(i)) }) {
			names[i] += " (not seen)"
		}
	}
	c.write(t.timeName(), "DELTA", names[Client], strings.Repeat(" ", wireWidth), names[Server], bold, -1)
	last := rows[0].at
	for i := range rows {
		c.row(&rows[i], times[i], rows[i].at-last, i == 0)
		last = rows[i].at
	}
}

// timeName is the heading of the column of times.
func (t *Text) timeName() string {
	if t.opts.Time == eventline.TimeDelta {
		return "SINCE"
	}
	return "TIME"
}

// time is the time of a row. The column beside it has the time since the row before, so that TimeDelta is since
// the story's begin.
func (t *Text) time(ns int64, s *Story) string {
	switch t.opts.Time {
	case eventline.TimeWall:
		return s.wall(ns).Local().Format("15:04:05.000000")
	case eventline.TimeMono:
	case eventline.TimeDelta:
		ns -= s.Begin()
	default:
		ns -= t.opts.Header.StartMonoNS
	}
	return strconv.FormatFloat(float64(ns)/1e9, 'f', 6, 64)
}

// columns writes rows of one story.
type columns struct {
	t                 *Text
	time, left, right int
}

func (c *columns) row(r *row, at string, delta int64, first bool) {
	since := ""
	if !first {
		since = span(delta)
	}
	room := c.left
	if r.end == Server {
		room = c.right
	}
	lines := wrap(r.text, room)
	arrow := strings.Repeat(" ", wireWidth)
	if r.segment != "" {
		arrow = wire(r.segment, r.from)
	}
	for i, l := range lines {
		var cell [2]string
		cell[r.end] = l
		if i > 0 {
			at, since, arrow = "", "", strings.Repeat(" ", wireWidth)
		}
		c.write(at, since, cell[Client], arrow, cell[Server], colorOf(r), r.end)
	}
}

// wire draws a segment from one end to the other.
func wire(segment string, from int) string {
	segment = clip(segment, wireWidth-7)
	dashes := strings.Repeat("-", wireWidth-6-len(segment))
	if from == Client {
		return "--- " + segment + " " + dashes + ">"
	}
	return "<" + dashes + " " + segment + " ---"
}

// write writes one line; colored is the column that has the color, -1: all.
func (c *columns) write(at, since, left, arrow, right, color string, colored int) {
	t := c.t
	pad := func(text string, n int) string {
		return text + strings.Repeat(" ", max(0, n-utf8.RuneCountInString(text)))
	}
	leftColor, rightColor, arrowColor := color, color, color
	if colored == Client {
		rightColor = ""
	}
	if colored == Server {
		leftColor = ""
	}
	bar := "|"
	if colored < 0 {
		bar, arrowColor = " ", ""
	}
	text := fmt.Sprintf("%*s %*s  %s %s%s%s", c.time, at, deltaWidth, since,
		t.paint(pad(left, c.left), leftColor), bar, t.paint(arrow, arrowColor), bar)
	if right != "" {
		text += " " + t.paint(right, rightColor)
	}
	t.line(text, "")
}

func colorOf(r *row) string {
	if r.event == nil {
		return dim
	}
	switch e := r.event; e.Kind {
	case tcp.KindRstSent, tcp.KindRstReceived, tcp.KindError, tcp.KindConnectFailed, tcp.KindBindFailed, tcp.KindListenDrop:
		return red
	case tcp.KindRetransmit, tcp.KindSynAckRetransmit, tcp.KindTWOverflow:
		return yellow
	case tcp.KindTWEnter, tcp.KindTWConvert:
		return cyan
	case tcp.KindTWEnd:
		return green
	case tcp.KindState:
		if e.New == tcp.Close && e.Errno != 0 {
			return red
		}
	}
	return ""
}

// foot says what came of the port, and what was not seen.
func (t *Text) foot(s *Story) {
	begun := false
	note := func(label, text, color string) {
		if !begun {
			t.line("", "")
			begun = true
		}
		t.note(label, text, color)
	}
	for i := range s.Events {
		if e := &s.Events[i]; e.Flags&tcp.FlagRefusals != 0 {
			note("ports", refusals(&e.Refusals), "")
		}
	}
	for i := range s.Ends {
		if e := &s.Ends[i]; e.Seen() {
			if text := t.timeWait(e); text != "" {
				note("TIME_WAIT", s.endName(i)+": "+text, "")
			}
		}
	}
	for _, g := range s.Missing {
		if g.What == endOfTimeWait { // said above
			continue
		}
		note("not seen", g.What+": "+g.Why, yellow)
	}
}

func refusals(r *tcp.Refusals) string {
	var parts []string
	for _, p := range []struct {
		n    uint16
		what string
	}{
		{r.TooYoung, "in a TIME_WAIT too young to be reused"}, {r.NotAllowed, "in a TIME_WAIT that tcp_tw_reuse does not allow"},
		{r.NoTimestamps, "in a TIME_WAIT without timestamps"}, {r.Taken, "of a live connection"},
	} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.what))
		}
	}
	if len(parts) == 0 {
		return "none was tried"
	}
	return "tried in vain: " + strings.Join(parts, ", ")
}

// timeWait tells of a TIME_WAIT's length and end; "": there was none.
func (t *Text) timeWait(e *End) string {
	w := &e.TimeWait
	switch {
	case w.Overflowed:
		return "none was made, because there were too many (tcp_max_tw_buckets)"
	case !w.Made():
		return ""
	}
	var text string
	switch {
	case w.EndedNS == 0:
		text = "not over when the recording ends"
	case w.EnteredNS == 0:
		text = "from before the trace, ended: " + words(w.Cause)
	default:
		text = span(w.EndedNS - w.EnteredNS)
		if t.opts.HZ > 0 {
			text += " (its timer was set for " + t.ticks(w.Ticks) + ")"
		}
		text += ", ended: " + words(w.Cause)
	}
	if e.Successor != 0 {
		text += fmt.Sprintf("; the port went to the socket with cookie %d (see --cookie %d)", e.Successor, e.Successor)
	}
	return text
}

// wrap cuts text into lines of at most n characters, between words where it can.
func wrap(text string, n int) []string {
	n = max(n, 8)
	var lines []string
	for line := ""; ; {
		word, rest, more := strings.Cut(text, " ")
		switch {
		case line == "":
			line = word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) <= n:
			line += " " + word
		default:
			lines = append(lines, line)
			line = word
		}
		for utf8.RuneCountInString(line) > n {
			cut := []rune(line)
			lines = append(lines, string(cut[:n]))
			line = string(cut[n:])
		}
		if !more {
			return append(lines, line)
		}
		text = rest
	}
}

func clip(text string, n int) string {
	if len(text) > n {
		return text[:n]
	}
	return text
}

// printable is text of a file without what could upset a terminal.
func printable(text string) string {
	quoted := strconv.QuoteToGraphic(text)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

// wall is the time of day of a moment of the story.
func (s *Story) wall(monoNS int64) time.Time { return s.clock.Wall(monoNS) }
