package timeline

import "github.com/twtrace/twtrace/internal/tcp"

// Of returns the Timeline of an attempt and of the events of its socket, in the order of the stream, as a
// Joiner makes it; AtConnect is not known.
func Of(attempt *tcp.Attempt, events []tcp.Event) *Timeline {
	c := conn{Timeline: Timeline{Attempt: *attempt}}
	for i := range events {
		switch ev := &events[i]; ev.Kind {
		case tcp.KindTWEnter, tcp.KindTWEnd, tcp.KindListenDrop: // no steps of a connection
		case tcp.KindState:
			c.Joined = true
			c.step(ev)
		default:
			c.step(ev)
		}
	}
	return &c.Timeline
}
