package timeline

import (
	"slices"

	"github.com/twtrace/twtrace/internal/tcp"
)

// maxSearching bounds the connect() calls that are followed at a time. More than the
// threads of a program look for a port at once only where the handshake is not done
// within the call, with a peer that is not of this machine: they have a port by then.
const maxSearching = 64

// search is what is known of a connect() that looks for a port. Which one it finds its
// events do not say before the handshake is done; that it found none, as it fails. What
// others find meanwhile it sees taken.
//
// A connection has one only while it looks, or has failed to find any: many connections are open at once, and few look.
type search struct {
	under   bool    // way
	begun   int64   // CLOCK_MONOTONIC ns
	waiting []*conn // failed meanwhile, and want to know whether this one had a port by then
	unknown int     // of those that this one waits for
	freed   portSet // ports that were taken as it began, and were given back since
	census  Census
}

// beginSearch is called as connect() begins to look for a port.
func (j *Joiner) beginSearch(c *conn) {
	if c.search == nil {
		if n := len(j.idle); n > 0 {
			c.search, j.idle = j.idle[n-1], j.idle[:n-1]
		} else {
			c.search = new(search)
		}
	}
	s := c.search
	c.AtConnect = c.path.all
	s.under, s.begun, s.unknown = true, j.now, 0
	s.waiting = s.waiting[:0]
	s.freed.clear()
	s.census.Holdings = append(s.census.Holdings[:0], c.path.holdings...)
	j.searching = append(j.searching, c)
}

// endSearch is called with the first event that shows whether a search came to a port.
func (j *Joiner) endSearch(c *conn, found bool) {
	c.search.under = false
	at := slices.Index(j.searching, c)
	j.searching = slices.Delete(j.searching, at, at+1)
	if found {
		c.counted = true
		j.take(c.path, c.holder, Ports{Open: 1})
	}
	for _, other := range j.searching {
		switch {
		case other.path != c.path:
		case found:
			other.sees(c)
		default:
			other.search.waiting = append(other.search.waiting, c)
			c.search.unknown++
		}
	}
	for _, other := range c.search.waiting {
		other.search.unknown--
		if found {
			other.sees(c)
		}
		j.complete(other)
	}
	c.search.waiting = c.search.waiting[:0]
	if found {
		j.forgetSearch(c)
	}
	if c.gone {
		if found {
			c.counted = false
			j.take(c.path, c.holder, Ports{Open: -1})
		}
		j.leavePath(c.path)
		c.path = nil
	}
}

// forgetSearch is called when nobody refers to a search any more.
func (j *Joiner) forgetSearch(c *conn) {
	if c.search != nil {
		j.idle = append(j.idle, c.search)
		c.search = nil
	}
}

// looks reports whether connect() looks for a port; waits, whether it found none, and it is not known yet what others found.
func (c *conn) looks() bool { return c.search != nil && c.search.under }
func (c *conn) waits() bool { return c.search != nil && c.search.unknown != 0 }

// sees counts the port that another connect() found as taken, unless it was already as this
// one began, and was given back only then.
func (c *conn) sees(other *conn) {
	if port := other.Tuple.Local.Port(); c.search.freed[port] {
		delete(c.search.freed, port)
		return
	}
	c.AtConnect.Open++
	c.search.holding(other.path, other.holder).Open++
}

// holding is the share of a process in the ports as they stood for a search.
func (s *search) holding(p *pathState, holder int) *Holding {
	for len(s.census.Holdings) <= holder {
		s.census.Holdings = append(s.census.Holdings, Holding{Owner: p.holdings[len(s.census.Holdings)].Owner})
	}
	return &s.census.Holdings[holder]
}

// searchLimit is longer than a handshake may take (127 s with tcp_syn_retries = 6).
const searchLimit = int64(3 * 60e9)

// giveUpSearches ends those whose end was lost: else those who wait for them did for ever.
func (j *Joiner) giveUpSearches() {
	for len(j.searching) > 0 {
		c := j.searching[0] // the oldest
		told := c.hasAttempt && j.now-c.Attempt.Closed > attemptDelay
		if !told && j.now-c.search.begun <= searchLimit {
			return
		}
		j.endSearch(c, c.Attempt.Connected != 0)
	}
}

// gaveBack is called when a port of a path is free again, or a TIME_WAIT's is taken by a connect(). Those that look for
// one at the time have counted it as taken, and may have passed it by then. So have those that found none and
// wait for what the others found: if it is this port, they count it already.
func (j *Joiner) gaveBack(p *pathState, port uint16) {
	for _, c := range j.searching {
		c.noteFreed(p, port)
		for _, failed := range c.search.waiting {
			failed.noteFreed(p, port)
		}
	}
}

func (c *conn) noteFreed(p *pathState, port uint16) {
	if c.path != p || port == 0 {
		return
	}
	if c.search.freed == nil {
		c.search.freed = make(portSet)
	}
	c.search.freed[port] = true
}

// portSet may get a whole range: a connect() waits for minutes for a peer that does not answer.
type portSet map[uint16]bool

// clear empties it, and does not keep much room.
func (s *portSet) clear() {
	if len(*s) > 256 {
		*s = nil
	}
	clear(*s)
}

// searchFailed reports whether an event shows that no port was found.
func searchFailed(ev *tcp.Event) bool {
	return ev.New == tcp.Close && ev.Tuple.Local.Port() == 0
}
