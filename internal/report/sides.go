package report

import (
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
)

// AddSide adds what the kernel's events of one namespace add up to.
func (s *Summary) AddSide(name string, t *timeline.Totals) {
	tw := &s.TimeWait
	tw.Entered += int(t.TWEnter)
	tw.FinWait2 += int(t.TWFinWait2)
	tw.Expired += int(t.TWEnd[tcp.CauseExpired])
	tw.ReusedByConnect += int(t.TWEnd[tcp.CauseReusedByConnect])
	tw.ReplacedBySyn += int(t.TWEnd[tcp.CauseReplacedBySyn])
	tw.KilledByRst += int(t.TWEnd[tcp.CauseKilledByRst])
	tw.Purged += int(t.TWEnd[tcp.CausePurged])
	tw.Destroyed += int(t.TWEnd[tcp.CauseDestroyed])
	tw.UnknownEnd += int(t.TWEnd[tcp.CauseUnknown])
	tw.Overflowed += int(t.TWOverflow)
	if tw.Sides == nil {
		tw.Sides = make(map[string]SideTimeWait)
	}
	tw.Sides[name] = SideTimeWait{Entered: int(t.TWEnter), Overflowed: int(t.TWOverflow)}
	s.Segments.Conversations += int(t.ActiveOpens - t.ConnectFailed)
	s.Segments.Fins += int(t.FinSent)
	s.Segments.Rsts += int(t.RstSent)
	s.Resets.Sent += int(t.RstSent)
	s.Resets.Received += int(t.RstReceived)
	s.Retransmits.Syn += int(t.SynRetransmits)
	s.Retransmits.SynAck += int(t.SynAckRetransmits)
	s.Retransmits.Other += int(t.Retransmits)
}

// AddResets adds why RSTs were sent, by the kernel's number and its names of these.
func (s *Summary) AddResets(counts map[uint32]int, names map[uint32]string) {
	if s.Resets.Reasons == nil {
		s.Resets.Reasons = make(map[string]int)
	}
	for reason, n := range counts {
		if name := names[reason]; name != "" {
			s.Resets.Reasons[name] += n
		}
	}
}
