package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
	"github.com/twtrace/twtrace/internal/verdict"
)

// Slow is a group of attempts that were connected only after their SYN had been sent again: the first time a second later.
type Slow struct {
	StallSeconds int            `json:"stall_seconds"` // of connect(), to the nearest second
	Cause        verdict.Cause  `json:"cause"`         // of the SYN's loss
	Detail       verdict.Detail `json:"detail"`
	Count        int            `json:"count"`
	Failed       int            `json:"failed"`          // of these, later
	Syns         int            `json:"syn_retransmits"` // of all of them
	Drops        int            `json:"drops"`           // SYNs of theirs that the listener was seen to drop
	FirstSeconds float64        `json:"first_seconds"`   // since the run began
	LastSeconds  float64        `json:"last_seconds"`
	MaxSeconds   float64        `json:"max_seconds"` // the longest connect()
	// Events are those of the first attempts of the group: SYNs that were sent again, and drops.
	Events []uint64 `json:"events"`
}

type slowKey struct {
	seconds int
	cause   verdict.Cause
	detail  verdict.Detail
}

// slow notes an attempt that connected late because its SYN was lost.
func (b *Builder) slowed(t *timeline.Timeline) {
	a := &t.Attempt
	if t.SynRetransmits == 0 || a.Connected == 0 {
		return
	}
	cause, detail := verdict.Stalled(t)
	took := float64(a.Connected-a.Started) / 1e9
	key := slowKey{int(math.Round(took)), cause, detail}
	s := b.slow[key]
	at := float64(a.Started-b.started) / 1e9
	if s == nil {
		s = &Slow{StallSeconds: key.seconds, Cause: cause, Detail: detail, FirstSeconds: at, LastSeconds: at, Events: []uint64{}}
		b.slow[key] = s
	}
	s.Count++
	if a.Failed() {
		s.Failed++
	}
	s.Syns += int(t.SynRetransmits)
	s.FirstSeconds, s.LastSeconds, s.MaxSeconds = min(s.FirstSeconds, at), max(s.LastSeconds, at), max(s.MaxSeconds, took)
	note := func(seq uint64) {
		if len(s.Events) < maxEvents {
			s.Events = append(s.Events, seq)
		}
	}
	for _, step := range t.Events() {
		if step.Kind == tcp.KindRetransmit && step.Old == tcp.SynSent {
			note(step.Seq)
		}
	}
	for i := range t.Peer {
		if p := &t.Peer[i]; p.Kind == tcp.KindListenDrop && p.Substate == tcp.SynSent {
			s.Drops++
			note(p.Seq)
		}
	}
}

func (b *Builder) slows() []Slow {
	all := []Slow{}
	for _, s := range b.slow {
		all = append(all, *s)
	}
	slices.SortFunc(all, func(a, b Slow) int {
		return cmp.Or(cmp.Compare(a.StallSeconds, b.StallSeconds), cmp.Compare(b.Count, a.Count), cmp.Compare(a.Cause, b.Cause), cmp.Compare(a.Detail, b.Detail))
	})
	return all
}

// because is why a SYN was lost.
func (s *Slow) because() string {
	switch {
	case s.Detail == verdict.InTimeWait:
		return "the peer's TIME_WAIT of the same four-tuple answered first, and was ended by an RST"
	case s.Cause == verdict.AcceptQueueFull:
		return "the listener dropped the SYN: its accept queue was full"
	case s.Cause == verdict.SynQueueFull:
		return "the listener dropped the SYN: its SYN queue was full, and there were no cookies"
	case s.Detail == verdict.DroppedOther:
		return "the listener dropped the SYN"
	}
	return "nothing answered the SYN, and no listener was seen to drop it: it, or the answer, was lost on the way"
}

func (t *Text) slow(s *Summary) {
	if len(s.Slow) == 0 {
		return
	}
	n := 0
	for i := range s.Slow {
		n += s.Slow[i].Count
	}
	t.line("")
	t.line("%s  %d attempts connected only after their SYN was sent again", t.bold("SLOW"), n)
	for i := range s.Slow {
		g := &s.Slow[i]
		t.wrap("    ", fmt.Sprintf("%d × %s: %s (%d SYNs sent again, %d drops seen; from %.2f to %.2f s)",
			g.Count, t.red(fmt.Sprintf("%d s", g.StallSeconds)), g.because(), g.Syns, g.Drops, g.FirstSeconds, g.LastSeconds))
	}
	for _, a := range slowAdvice(s) {
		t.wrapHead("    helps ", "          ", a)
	}
}

// slowAdvice is what the failures have not said yet.
func slowAdvice(s *Summary) []string {
	if hasCause(s, verdict.AcceptQueueFull) || hasCause(s, verdict.NeverAccepted) {
		return nil
	}
	for i := range s.Slow {
		if s.Slow[i].Cause == verdict.AcceptQueueFull {
			return []string{queueAdvice(s)}
		}
	}
	return nil
}
