package story

import (
	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
)

// Query says which connections to tell of. What is empty asks for nothing; of several values one has
// to fit, of several fields all.
type Query struct {
	Cookies []tcp.Cookie
	Ports   []uint16 // of either end
	Errnos  []tcp.Errno
	Causes  []Cause
	PIDs    []uint32
	Failed  bool
	// Slowest asks for those whose connect() took longest, longest first.
	Slowest bool
	// Limit is how many to tell of; 0: all.
	Limit int
}

// Empty reports whether every connection is asked for.
func (q *Query) Empty() bool {
	return len(q.Cookies)+len(q.Ports)+len(q.Errnos)+len(q.Causes)+len(q.PIDs) == 0 && !q.Failed && !q.Slowest
}

// The ends of a connection, as indices.
const (
	Client = 0 // that which called connect(); of a connection whose beginning was not seen, any
	Server = 1
)

// Story is one connection.
type Story struct {
	Ends    [2]End
	Attempt *tcp.Attempt // nil: none is known
	Events  []Event      // in the order of the stream
	// Omitted is how many more events there are, of a connection that has very many.
	Omitted int
	Outcome Outcome
	Missing []Gap
	// Lost is how many events were lost or skipped while it lasted, of any connection.
	Lost uint64

	clock     *recording.Clocks
	byAttempt bool    // it was found by its attempt
	onlyLife  [2]bool // of the end's cookie
}

// The ways of joining.
const (
	ByCookie    = "cookie"
	ByFourTuple = "four-tuple"
	Alone       = "alone" // a bind() that failed, of a socket without a cookie: all there is of it
)

// End is one end of a connection.
type End struct {
	timeline.Connection
	// JoinedBy is how it came into the story; empty: it was not seen.
	JoinedBy string
}

// Seen reports whether there are events of the end's socket.
func (e *End) Seen() bool { return e.JoinedBy != "" }

// Event is an event of one end.
type Event struct {
	tcp.Event
	End int
	// Stray: it has no cookie, and is joined by four-tuple and time.
	Stray bool
}

// Gap is something that was not seen.
type Gap struct {
	What string `json:"what"`
	Why  string `json:"why"`
}

// Tuple is the connection's four-tuple as the client has it.
func (s *Story) Tuple() tcp.FourTuple {
	if c := &s.Ends[Client]; c.Seen() {
		return c.Tuple
	}
	return s.Ends[Server].Tuple.Reverse()
}

// Begin is the first moment of the story, CLOCK_MONOTONIC ns.
func (s *Story) Begin() int64 {
	begin := int64(0)
	if a := s.Attempt; a != nil {
		begin = a.Intended
	}
	if len(s.Events) > 0 && (begin == 0 || s.Events[0].MonoNS < begin) {
		begin = s.Events[0].MonoNS
	}
	return begin
}

// Result is what a Read came to.
type Result struct {
	Told int
	// More: there are more that were asked for.
	More bool
	// Attempts and Failed are how many the recording has, if they were counted; of Failed -1: they were not.
	Attempts uint64
	Failed   int
	// Unfollowed: more fitted a part of the query than are followed; those that came first were looked at.
	Unfollowed bool
	Condition  *recording.Condition
}
