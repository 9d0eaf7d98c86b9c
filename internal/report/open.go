package report

import (
	"time"

	"github.com/twtrace/twtrace/internal/tcp"
)

// openEvery is how far apart the moments are at which open connections are counted.
const openEvery = int64(10 * time.Millisecond)

// openCount counts the connections that were open at once, in a loop that is over: how
// many more there were at a moment than at the one before. It takes 1.4 MB an hour.
type openCount struct {
	begun, last int64 // CLOCK_MONOTONIC ns: before the loop, of the last close()
	change      []int32
}

// add takes a connection that is closed again.
func (o *openCount) add(a *tcp.Attempt) {
	o.at(a.Connected, 1)
	o.at(a.Closed, -1)
	o.last = max(o.last, a.Closed)
}

// at notes a change for the first moment that is not before monoNS.
func (o *openCount) at(monoNS int64, change int32) {
	moment := int(max(monoNS-o.begun+openEvery-1, 0) / openEvery)
	for len(o.change) <= moment {
		o.change = append(o.change, 0)
	}
	o.change[moment] += change
}

// most returns the most that were open at one of the moments, and begins the next loop.
func (o *openCount) most() int {
	open, most := 0, 0
	for _, change := range o.change {
		open += int(change)
		most = max(most, open)
	}
	o.begun, o.change = max(o.begun, o.last), o.change[:0]
	return most
}
