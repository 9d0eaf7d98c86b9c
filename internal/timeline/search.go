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
type search struct {
	under   bool    // way
	begun   int64   // CLOCK_MONOTONIC ns
	waiting []*conn // failed meanwhile, and want to know whether this one had a port by then
	unknown int     // of those that this one waits for
}

// beginSearch is called as connect() begins to look for a port.
func (j *Joiner) beginSearch(c *conn) {
	c.AtConnect = j.ports[c.path]
	c.search = search{under: true, begun: j.now, waiting: c.search.waiting[:0]}
	j.searching = append(j.searching, c)
}

// endSearch is called with the first event that shows whether a search came to a port.
func (j *Joiner) endSearch(c *conn, found bool) {
	c.search.under = false
	at := slices.Index(j.searching, c)
	j.searching = slices.Delete(j.searching, at, at+1)
	if found {
		c.counted = true
		j.take(c.path, Ports{Open: 1})
	}
	for _, other := range j.searching {
		switch {
		case other.path != c.path:
		case found:
			other.AtConnect.Open++
		default:
			other.search.waiting = append(other.search.waiting, c)
			c.search.unknown++
		}
	}
	for _, other := range c.search.waiting {
		other.search.unknown--
		if found {
			other.AtConnect.Open++
		}
		j.complete(other.cookie, other)
	}
	c.search.waiting = c.search.waiting[:0]
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

// reuse is called when a connect() takes the port of a TIME_WAIT: those that looked for
// one at the time will count it as the other's.
func (j *Joiner) reuse(p path) {
	for _, c := range j.searching {
		if c.path == p {
			c.AtConnect.TimeWait--
		}
	}
}

// searchFailed reports whether an event shows that no port was found.
func searchFailed(ev *tcp.Event) bool {
	return ev.New == tcp.Close && ev.Tuple.Local.Port() == 0
}
