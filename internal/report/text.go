package report

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/twtrace/twtrace/internal/tcp"
)

// Text writes a summary for people. Header and Loop write its first parts by
// themselves, for a run that is still going on; Rest writes what follows.
type Text struct {
	w     *bufio.Writer
	color bool
}

// NewText returns a Text that writes to w, in colour if asked to.
func NewText(w io.Writer, color bool) *Text {
	return &Text{w: bufio.NewWriter(w), color: color}
}

// Write writes the whole summary.
func (t *Text) Write(s *Summary) error {
	if err := t.Header(s); err != nil {
		return err
	}
	for _, l := range s.Loops {
		if err := t.Loop(l); err != nil {
			return err
		}
	}
	return t.Rest(s)
}

// Header writes what the run is, from the summary's options alone.
func (t *Text) Header(s *Summary) error {
	o := s.Options
	linger := "off"
	if o.Linger != nil {
		linger = fmt.Sprintf("{1,%g}", *o.Linger)
	}
	flags := ""
	if o.ReusePort {
		flags += ", SO_REUSEPORT"
	}
	if o.ReuseAddr {
		flags += ", SO_REUSEADDR"
	}
	flags += sourceFlags(&o)
	t.wrapHead("", "  ", fmt.Sprintf("%d × %d connections of %d bytes to %s (net %s), %s closes first, SO_LINGER %s%s",
		o.Loops, o.Connections, o.Bytes, s.Target, s.Net, o.Close, linger, flags))
	if o.Together {
		t.wrapHead("", "  ", "each thread is both ends of its connections (--shards 1: a thread for each end)")
	}
	if text := server(&o); text != "" {
		t.wrapHead("", "  ", text)
	}
	if text := clientPIDs(s.Clients); text != "" {
		t.wrapHead("", "  ", text)
	}
	t.wrapHead("", "  ", fmt.Sprintf("Linux %s%s", s.Kernel, t.sysctls(s)))
	t.line("")
	t.line("%s", t.bold(fmt.Sprintf("%4s %9s %8s %9s %12s %12s %10s %9s",
		"LOOP", "FINISHED", "FAILED", "SECONDS", "CONNECT p50", "p99 (ms)", "TIME_WAIT", "PORTS")))
	return t.flush()
}

// sourceFlags says where the connections come from, if the kernel is not left to choose.
func sourceFlags(o *Options) string {
	var b strings.Builder
	if o.Sources > 1 {
		fmt.Fprintf(&b, ", %d sources", o.Sources)
	}
	switch {
	case o.Bind == "port":
		b.WriteString(", address and port bound")
	case o.Bind == "addr" && o.NoPort:
		b.WriteString(", address bound, IP_BIND_ADDRESS_NO_PORT")
	case o.Bind == "addr":
		b.WriteString(", address bound")
	}
	if r := o.LocalPortRange; len(r) == 2 {
		fmt.Fprintf(&b, ", IP_LOCAL_PORT_RANGE %d-%d", r[0], r[1])
	}
	return b.String()
}

// server says what is special about the server, if anything is.
func server(o *Options) string {
	var parts []string
	if o.ServerMode != ServerEcho && o.ServerMode != ServerElsewhere {
		parts = append(parts, o.ServerMode)
	}
	if o.ServerFirst > 0 {
		parts = append(parts, fmt.Sprintf("sends %d bytes first", o.ServerFirst))
	}
	if o.AcceptDelayS > 0 {
		parts = append(parts, fmt.Sprintf("accepts nothing for %g s after every %d accepts", o.AcceptDelayS, o.AcceptEvery))
	}
	if len(parts) == 0 {
		return ""
	}
	if o.ServerMode != ServerElsewhere {
		parts = append(parts, fmt.Sprintf("backlog %d", o.Backlog))
	}
	return "server: " + strings.Join(parts, ", ")
}

func (t *Text) sysctls(s *Summary) string {
	var b strings.Builder
	if lo, hi, ports, ok := portRange(s); ok {
		fmt.Fprintf(&b, ", ports %d-%d (%d)", lo, hi, ports)
	}
	for _, key := range []string{SysctlReuse, SysctlStamps, SysctlBuckets, SysctlFin} {
		if v := s.Sysctls[key]; v != "" {
			fmt.Fprintf(&b, ", %s %s", key[strings.LastIndexByte(key, '.')+1:], v)
		}
	}
	return b.String()
}

// Loop writes the line of one loop.
func (t *Text) Loop(l Loop) error {
	failed := fmt.Sprintf("%8d", l.Failed)
	if l.Failed > 0 {
		failed = t.red(failed)
	}
	median, p99 := "-", "-"
	if l.ConnectUS != (Quantiles{}) { // else none was connected
		median, p99 = millis(l.ConnectUS.P50), millis(l.ConnectUS.P99)
	}
	t.line("%4d %9d %s %9.2f %12s %12s %10s %9s", l.Loop, l.Finished, failed, l.Seconds,
		median, p99, orUnseen(l.TimeWaitNow), orUnseen(l.PortsInUse))
	return t.flush()
}

func millis(us int64) string { return fmt.Sprintf("%.3f", float64(us)/1000) }

func orUnseen(n *int) string {
	if n == nil {
		return "-"
	}
	return fmt.Sprint(*n)
}

// Rest writes everything after the loops.
func (t *Text) Rest(s *Summary) error {
	tot := s.Totals
	t.line("%s", strings.Repeat("-", 80))
	t.line(" all %9d %8d %9.2f   %.0f connections a second, %d open at once", tot.Finished, tot.Failed, tot.Seconds, tot.PerSecond, tot.MostOpen)
	t.latencies(s)
	t.clients(s)
	t.limits(s)
	for _, n := range s.Notes {
		t.line("")
		t.wrap("", n)
	}
	t.failures(s)
	t.slow(s)
	t.account(s)
	return t.flush()
}

// limits says what kept the run from doing more.
func (t *Text) limits(s *Summary) {
	if most := s.Options.MaxRate; most > 0 {
		t.line("at most %g connections a second: %d of %d attempts were held back", most, s.Totals.HeldBack, s.Totals.Attempts)
	}
	if s.StoppedBy == StoppedByMaxDuration {
		t.line("%s", t.red(fmt.Sprintf("stopped after %g s (--max-duration) before it was done: the numbers are of what was done", s.Options.MaxDurationS)))
	} else if s.StoppedBy == StoppedByEnd {
		t.line("%s", t.red("the recording ends before the run: the numbers are of what it holds"))
	} else if s.Interrupted {
		t.line("%s", t.red("stopped before it was done: the numbers are of what was done"))
	}
}

type latencyRow struct {
	name string
	q    Quantiles
}

func rate(o *Options) string {
	if o.RateTo == 0 || o.RateTo == o.Rate {
		return fmt.Sprintf("%g connections a second", o.Rate)
	}
	return fmt.Sprintf("%g to %g connections a second in each loop", o.Rate, o.RateTo)
}

// latencies is what the attempts waited for, all loops together.
func (t *Text) latencies(s *Summary) {
	l := &s.Totals.Latencies
	rows := []latencyRow{{"connect", l.ConnectUS}, {"first byte", l.FirstByteUS}, {"exchange", l.ExchangeUS}}
	t.line("")
	if open := s.Totals.OpenLoop; open != nil {
		rows = append([]latencyRow{{"start lag", open.StartLagUS}}, rows...)
		defer t.wrap("           ", fmt.Sprintf("open loop, %s: times count from when each was due; %d of %d began more than a millisecond later",
			rate(&s.Options), open.Late, s.Totals.Attempts))
	}
	t.line("%s  %11s %9s %9s %9s %9s %9s", t.bold("LATENCY  (ms)"), "p50", "p90", "p99", "p99.9", "p99.99", "max")
	for _, row := range rows {
		if row.q == (Quantiles{}) {
			continue
		}
		t.line("           %-11s %5s %9s %9s %9s %9s %9s", row.name, millis(row.q.P50), millis(row.q.P90), millis(row.q.P99),
			millis(row.q.P999), millis(row.q.P9999), millis(row.q.Max))
	}
}

func (t *Text) failures(s *Summary) {
	if len(s.Failures) == 0 {
		return
	}
	t.line("")
	t.line("%s  %d of %d attempts, %d unexplained", t.bold("FAILURES"), s.Totals.Failed, s.Totals.Attempts, s.Unexplained)
	for _, f := range s.Failures {
		t.line("")
		t.line("  %d × %s() %s: %s", f.Count, call(f.Phase), f.Errno, t.red(named(&f)))
		t.wrap("    ", proof(s, &f))
		t.censuses(&f)
		t.bindHolders(&f)
		if len(f.Events) > 0 {
			t.wrap("    ", fmt.Sprintf("events %s of the trace: %s",
				strings.Trim(fmt.Sprint(f.Events[:min(3, len(f.Events))]), "[]"), f.Evidence["example_states"]))
		}
		for i, a := range f.Advice {
			head := "          "
			if i == 0 {
				head = "    helps "
			}
			t.wrapHead(head, "          ", a)
		}
	}
}

// call is the system call of a phase.
func call(phase string) string {
	switch phase {
	case tcp.PhaseReceive.String():
		return "recv"
	default:
		return phase
	}
}

func (t *Text) account(s *Summary) {
	tw := s.TimeWait
	t.line("")
	if s.Options.Trace {
		t.item("TIME_WAIT", "%d entered (%d as FIN_WAIT2), %d skipped (bucket limit)%s",
			tw.Entered, tw.FinWait2, tw.Overflowed, sides(s))
		t.line("           ended: %d expired, %d reused by connect, %d replaced by SYN, %d killed by RST,",
			tw.Expired, tw.ReusedByConnect, tw.ReplacedBySyn, tw.KilledByRst)
		t.line("           %d purged, %d destroyed%s; %d left now", tw.Purged, tw.Destroyed, unknown(tw.UnknownEnd), tw.Now)
		if l := tw.ExpiredSeconds; l != nil {
			t.line("           %d expired after %.2f to %.2f s (median %.2f)", l.Count, l.Min, l.Max, l.P50)
		}
		t.item("SEGMENTS", "%d connections sent a SYN; %d FIN, %d RST", s.Segments.Conversations, s.Segments.Fins, s.Segments.Rsts)
		t.item("RST", "%d sent, %d received%s", s.Resets.Sent, s.Resets.Received, reasons(s.Resets.Reasons))
	}
	if r := s.Retransmits; r != (Retransmits{}) {
		t.item("RETRANSMIT", "%d SYN, %d SYN+ACK, %d other segments", r.Syn, r.SynAck, r.Other)
	}
	t.serverAccount(s)
	t.forecast(s)
	if !s.Options.Trace {
		t.item("TRACE", "none: the run was not traced, so causes come from error numbers alone")
		return
	}
	t.crossCheck(s)
	e := s.Events
	t.item("JOINED", "%d of %d attempts that called connect() joined by cookie", s.Joined.ByCookie, s.Joined.Attempts)
	t.item("EVENTS", "%d seen = %d recorded + %d lost in the ring + %d skipped (%d of them rescued)",
		e.Seen, e.Recorded, e.LostRing, e.SkippedRecursion, e.Rescued)
	if lost := e.Lost(); lost > 0 {
		t.line("           %s", t.red(fmt.Sprintf("%d events are missing: what is said above is incomplete", lost)))
	}
	t.coverage(s)
}

func (t *Text) serverAccount(all *Summary) {
	s := all.Server
	if s == nil {
		t.item("SERVER", "not known what it accepted")
		return
	}
	never := "not known how many connected but were never accepted: it had other clients"
	if notReported(all) > 0 {
		never = "not known how many connected but were never accepted: a client was killed"
	}
	if s.NeverAccepted != nil {
		never = fmt.Sprintf("%d connected but never accepted", *s.NeverAccepted)
		if s.LastAckDropped > 0 {
			never += fmt.Sprintf(" (of %d the listener dropped the last ACK)", s.LastAckDropped)
		}
	}
	whose := ""
	if s.Elsewhere {
		whose = " (by its own account, of all its clients during the run)"
	}
	t.item("SERVER", "%d accepted, %d closed, %s%s", s.Accepted, s.Closed, never, whose)
}

func sides(s *Summary) string {
	if len(s.TimeWait.Sides) < 2 {
		return ""
	}
	return fmt.Sprintf("; client %d, server %d", s.TimeWait.Sides["client"].Entered, s.TimeWait.Sides["server"].Entered)
}

func unknown(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(", %d for a reason not known", n)
}

func reasons(counts map[string]int) string {
	if len(counts) == 0 {
		return ""
	}
	names := make([]string, 0, len(counts))
	for name := range counts {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if counts[a] != counts[b] {
			return counts[b] - counts[a]
		}
		return strings.Compare(a, b)
	})
	var b strings.Builder
	for _, name := range names {
		fmt.Fprintf(&b, ", %d %s", counts[name], name)
	}
	return " (" + b.String()[2:] + ")"
}

func (t *Text) crossCheck(s *Summary) {
	if len(s.CrossCheck) == 0 {
		t.item("KERNEL", "its counters were not compared")
		return
	}
	agree := 0
	for _, c := range s.CrossCheck {
		if c.Agrees {
			agree++
		}
	}
	t.item("KERNEL", "%d of %d counters of the kernel agree", agree, len(s.CrossCheck))
	for _, c := range s.CrossCheck {
		if !c.Agrees {
			t.wrap("           ", t.red(fmt.Sprintf("%s %s: kernel %d, twtrace %d", c.Side, c.Counter, c.Kernel, c.Twtrace)))
		}
	}
}

func (t *Text) coverage(s *Summary) {
	for _, grade := range []tcp.Grade{tcp.Inferred, tcp.NotObservable} {
		var facts []string
		for f, g := range s.Coverage {
			if g == grade {
				facts = append(facts, string(f))
			}
		}
		if len(facts) > 0 {
			slices.Sort(facts)
			t.item("COVERAGE", "%s: %s", grade, strings.Join(facts, ", "))
		}
	}
}

func (t *Text) line(format string, args ...any) { fmt.Fprintf(t.w, format+"\n", args...) }

func (t *Text) flush() error {
	if err := t.w.Flush(); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// width is what text is wrapped to.
const width = 100

func (t *Text) wrap(indent, text string) { t.wrapHead(indent, indent, text) }

// item writes an entry of the account under its name.
func (t *Text) item(name, format string, args ...any) {
	t.wrapHead(t.bold(name)+strings.Repeat(" ", 11-len(name)), "           ", fmt.Sprintf(format, args...))
}

// columns is the width of a line on a terminal, which shows no colour codes.
func columns(line string) int {
	return utf8.RuneCountInString(paints.Replace(line))
}

// wrapHead writes text in lines of at most width columns; the first begins with
// head, the others with indent.
func (t *Text) wrapHead(head, indent, text string) {
	line, empty := head, true
	for _, word := range strings.Fields(text) {
		if !empty && columns(line)+1+columns(word) > width {
			t.line("%s", line)
			line, empty = indent, true
		}
		if !empty {
			line += " "
		}
		line += word
		empty = false
	}
	t.line("%s", line)
}

const (
	bold  = "\x1b[1m"
	red   = "\x1b[31m"
	plain = "\x1b[0m"
)

var paints = strings.NewReplacer(bold, "", red, "", plain, "")

func (t *Text) bold(s string) string { return t.paint(bold, s) }
func (t *Text) red(s string) string  { return t.paint(red, s) }

func (t *Text) paint(code, s string) string {
	if !t.color {
		return s
	}
	return code + s + plain
}
