package timeline

import "github.com/twtrace/twtrace/internal/tcp"

// MaxFollowed is how many sockets and TIME_WAITs an Owners follows at once if not
// told otherwise: four times the kernel's usual tcp_max_tw_buckets, and about
// 60 MB when full.
const MaxFollowed = 1 << 19

// afterClose is how long a closed socket is remembered, ns of the events' clock:
// its RST and its error are reported after its last state change
// (tcp_disconnect).
const afterClose = int64(1e9)

// Past is what the stream had told of a socket before an event, and with it.
type Past struct {
	// Owner is the process that the connection belongs to, from this event or an earlier one of
	// the same cookie; the zero value: not known.
	Owner tcp.Owner
	// InState is how long the socket had been in the state in which the event found it,
	// nanoseconds; of a TIME_WAIT since it was made, or had received the FIN.
	// Below 0: not known, because the state is older than the trace.
	InState int64
	// Holder is the process that has the port which a bind() wanted (Event.Holder); the
	// zero value: not known.
	Holder tcp.Owner
}

// Owners follows connections through the stream of events. The kernel side knows
// the process of a connection only where that process is at work on it; the end of a
// connection mostly happens elsewhere, in a softirq that interrupted somebody
// else. So what one event tells holds for all that follow of its cookie, which the
// TIME_WAIT shares. A connection is forgotten when it and its TIME_WAIT are over.
//
// It is not safe for use by several goroutines.
type Owners struct {
	limit    int
	sockets  map[socket]followed
	closing  []closing // [closed:] in the order in which they closed
	closed   int
	overflow uint64
}

// socket names what an Owners follows. A full socket and its TIME_WAIT have one
// cookie and live at the same time for a moment, or longer: a socket that was shut
// down, not closed, may be connected again while its TIME_WAIT lasts.
type socket struct {
	cookie tcp.Cookie
	// port is the local port of a TIME_WAIT, 0 of a full socket.
	port uint16
}

type followed struct {
	owner  tcp.Owner
	since  int64  // MonoNS of the last change of state; 0: not known
	closed int64  // MonoNS of the change to CLOSE; 0: open
	part   uint32 // see FirstIn
}

type closing struct {
	socket socket
	at     int64
}

// NewOwners returns an Owners that has seen nothing and follows at most limit
// sockets and TIME_WAITs at once; 0: MaxFollowed.
func NewOwners(limit int) *Owners {
	if limit <= 0 {
		limit = MaxFollowed
	}
	return &Owners{limit: limit, sockets: make(map[socket]followed)}
}

// Overflow is how many sockets and TIME_WAITs were not followed because there was
// no room: events of theirs have no owner and no time.
func (o *Owners) Overflow() uint64 { return o.overflow }

// Event takes the next event of the stream and returns what is known of its socket.
func (o *Owners) Event(ev *tcp.Event) Past {
	o.forget(ev.MonoNS)
	past := Past{InState: -1}
	if ev.Flags&tcp.FlagOwner != 0 {
		past.Owner = ev.Owner
	}
	if ev.Kind == tcp.KindBindFailed {
		past.Holder = o.holder(ev)
	}
	if ev.Cookie == 0 {
		return past // made before the trace, and nobody asked for its cookie
	}
	id := socketOf(ev)
	f, known := o.sockets[id]
	if !known {
		// A TIME_WAIT is made from the full socket, which is still there.
		if full, ok := o.sockets[socket{cookie: ev.Cookie}]; ok {
			f.owner = full.owner
			if ev.Kind == tcp.KindTWEnter {
				past.InState = since(full, ev)
			}
		}
	} else {
		past.InState = since(f, ev)
	}
	if past.Owner != (tcp.Owner{}) {
		f.owner = past.Owner
	}
	past.Owner = f.owner

	switch ev.Kind {
	case tcp.KindState:
		f.since, f.closed = ev.MonoNS, 0
		if ev.New == tcp.Close {
			f.closed = ev.MonoNS
		}
	case tcp.KindTWEnter, tcp.KindTWConvert:
		f.since = ev.MonoNS
	case tcp.KindTWEnd:
		delete(o.sockets, id)
		return past
	case tcp.KindSnapshot:
		past.InState = -1 // a state that was left meanwhile is no state of this event
	default:
		// It is not known when a socket ends that had no state to change: one
		// whose bind() failed. Later events of it bring their owner themselves.
		if !known {
			return past
		}
	}
	if ev.Flags&tcp.FlagLate != 0 && ev.Kind != tcp.KindSnapshot {
		past.InState = -1
		if f.since == ev.MonoNS {
			f.since = 0
		}
	}
	if !known && len(o.sockets) >= o.limit {
		o.overflow++
		return past
	}
	o.sockets[id] = f
	if ev.Kind == tcp.KindState && f.closed != 0 {
		o.closing = append(o.closing, closing{id, f.closed})
	}
	return past
}

// FirstIn reports whether an event that Event was given just now is the first of its socket since part grew. It is
// asked of every event once.
func (o *Owners) FirstIn(part uint32, ev *tcp.Event) bool {
	id := socketOf(ev)
	f, ok := o.sockets[id]
	if !ok || f.part == part {
		return !ok // over, or not followed: whoever reads the part alone must be told
	}
	f.part = part
	o.sockets[id] = f
	return true
}

// holder is whose the socket is that has the port.
func (o *Owners) holder(ev *tcp.Event) tcp.Owner {
	if ev.Holder.Cookie == 0 {
		return tcp.Owner{}
	}
	id := socket{cookie: ev.Holder.Cookie}
	if ev.Holder.State == tcp.TimeWait {
		id.port = ev.Tuple.Local.Port()
	}
	return o.sockets[id].owner
}

// since is how long f was in its state when ev happened. Events of different CPUs
// can come in the wrong order by a moment.
func since(f followed, ev *tcp.Event) int64 {
	if f.since == 0 {
		return -1
	}
	return max(0, ev.MonoNS-f.since)
}

// socketOf tells events of a TIME_WAIT from those of the full socket.
func socketOf(ev *tcp.Event) socket {
	id := socket{cookie: ev.Cookie}
	switch {
	case ev.Kind == tcp.KindTWEnter, ev.Kind == tcp.KindTWConvert, ev.Kind == tcp.KindTWEnd,
		ev.New == tcp.TimeWait: // a snapshot, or an RST that a minisock sent
		id.port = ev.Tuple.Local.Port()
	}
	return id
}

// forget drops the sockets that closed long enough ago and were not opened again.
func (o *Owners) forget(now int64) {
	for o.closed < len(o.closing) && now-o.closing[o.closed].at > afterClose {
		c := o.closing[o.closed]
		o.closed++
		if f, ok := o.sockets[c.socket]; ok && f.closed == c.at {
			delete(o.sockets, c.socket)
		}
	}
	if o.closed > 4096 && o.closed > len(o.closing)/2 {
		o.closing = o.closing[:copy(o.closing, o.closing[o.closed:])]
		o.closed = 0
	}
}
