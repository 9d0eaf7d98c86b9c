package eventline

import (
	"fmt"
	"strings"

	"github.com/twtrace/twtrace/internal/tcp"
)

// words returns what the column EVENT says, in single words.
func (o *Options) words(l *Line) string {
	var b strings.Builder
	ev := l.Event
	if ev.Kind == tcp.KindState {
		b.WriteString(ev.Old.String() + " -> " + ev.New.String())
	} else {
		b.WriteString(ev.Kind.String())
	}
	if int(ev.Kind) < len(details) {
		for _, detail := range details[ev.Kind] {
			if word := detail(o, ev); word != "" {
				b.WriteByte(' ')
				b.WriteString(word)
			}
		}
	}
	if ev.Holder.State != tcp.StateNone {
		b.WriteString(" " + strings.Join(holder(l), " "))
	}
	if ev.Flags&tcp.FlagLate != 0 {
		b.WriteString(" late")
	}
	return b.String()
}

// detail is one word, or "" where the event has nothing to say.
type detail func(*Options, *tcp.Event) string

// details has, per kind, what follows its name.
var details = [tcp.NumKinds][]detail{
	tcp.KindState:            {errno, linger0, noSegment},
	tcp.KindRstSent:          {reason},
	tcp.KindRstReceived:      {},
	tcp.KindTWEnter:          {substate},
	tcp.KindTWEnd:            {cause},
	tcp.KindTWOverflow:       {oldState},
	tcp.KindRetransmit:       {oldState, errno},
	tcp.KindSynAckRetransmit: {},
	tcp.KindError:            {errno},
	tcp.KindTWConvert:        {},
	tcp.KindConnectFailed:    {cause, errno, refusals},
	tcp.KindBindFailed:       {errno},
	tcp.KindListenDrop:       {cause},
	tcp.KindSnapshot:         {snapshotState, timeLeft},
}

func errno(_ *Options, ev *tcp.Event) string    { return strings.ReplaceAll(ev.Errno.String(), " ", "-") }
func cause(_ *Options, ev *tcp.Event) string    { return ev.Cause.String() }
func reason(o *Options, ev *tcp.Event) string   { return o.reason(ev) }
func oldState(_ *Options, ev *tcp.Event) string { return stateWord(ev.Old) }
func substate(_ *Options, ev *tcp.Event) string { return stateWord(ev.Substate) }

func stateWord(s tcp.State) string {
	if s == tcp.StateNone {
		return ""
	}
	return s.String()
}

func linger0(_ *Options, ev *tcp.Event) string {
	if ev.New == tcp.Close && ev.Flags&tcp.FlagLinger0 != 0 {
		return "linger0"
	}
	return ""
}

func noSegment(_ *Options, ev *tcp.Event) string {
	if ev.Flags&tcp.FlagNoSegment != 0 {
		return "no-segment"
	}
	return ""
}

// snapshotState names a FIN_WAIT2 minisock as tw-enter and ss do.
func snapshotState(_ *Options, ev *tcp.Event) string {
	if ev.New == tcp.TimeWait && ev.Substate == tcp.FinWait2 {
		return ev.Substate.String()
	}
	return stateWord(ev.New)
}

func timeLeft(o *Options, ev *tcp.Event) string {
	if left, ok := o.timeLeft(ev); ok {
		return fmt.Sprintf("%.1fs left", left.Seconds())
	}
	return ""
}

// holder says what has the port that a bind() wanted, and whose it is.
func holder(l *Line) []string {
	h, owner := &l.Event.Holder, &l.Past.Holder
	words := []string{"held-by=" + h.State.String(), "on=" + h.Addr.String()}
	if owner.PID != 0 {
		words = append(words, fmt.Sprintf("holder-pid=%d", owner.PID))
	}
	if comm := owner.Comm.String(); comm != "" {
		words = append(words, "holder-comm="+strings.ReplaceAll(comm, " ", `\x20`))
	}
	return words
}

func refusals(_ *Options, ev *tcp.Event) string {
	if ev.Flags&tcp.FlagRefusals == 0 {
		return ""
	}
	var words []string
	for _, r := range refusalsOf(ev) {
		if r.n > 0 {
			words = append(words, fmt.Sprintf("%s=%d", r.name, r.n))
		}
	}
	return strings.Join(words, " ")
}

// refusalsOf names the ports that a connect() tried.
func refusalsOf(ev *tcp.Event) [4]refusal {
	r := &ev.Refusals
	return [4]refusal{
		{"too-young", r.TooYoung}, {"not-allowed", r.NotAllowed}, {"no-timestamps", r.NoTimestamps}, {"taken", r.Taken},
	}
}

type refusal struct {
	name string
	n    uint16
}
