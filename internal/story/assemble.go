package story

import (
	"cmp"
	"slices"

	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
)

// Bounds of one story: a socket can have sent any number of segments again, and any number of others
// can have had its four-tuple.
const (
	maxEvents = 512
	maxOthers = 32
)

// The times, ns, within which other events of a four-tuple are of the same connection or follow it: a
// handshake that is sent again takes seconds.
const (
	aroundEnd   = int64(10e9)
	aroundStray = int64(1e9)
)

// socket is the events of one cookie, as they are collected.
type socket struct {
	events  []tcp.Event
	omitted int
	place   place
	// all lives of the cookie are wanted, not one with a port of its own.
	all   bool
	again bool // it was read twice
}

func (k *socket) add(ev *tcp.Event) {
	if !k.all {
		k.place.learn(ev)
	}
	if len(k.events) >= maxEvents {
		k.omitted++
		return
	}
	k.events = append(k.events, *ev)
}

// assembly puts the stories of some connections together.
type assembly struct {
	src      *source
	sockets  map[tcp.Cookie]*socket // asked for
	others   map[tcp.Cookie]*socket // those that they may have to do with
	attempts map[tcp.Cookie]tcp.Attempt
	// subjects are lives of sockets that are asked for, by the four-tuple of either end.
	subjects map[tcp.FourTuple][]*subject
	lives    map[tcp.Cookie][]*timeline.Connection
}

// subject is a connection that is asked for.
type subject struct {
	pick   *pick
	life   *timeline.Connection // nil: there are no events
	strays []tcp.Event
	others int
}

// assemble puts together the stories of picks, in their order; of a cookie with several lives, several.
func (s *source) assemble(list []pick) ([]*Story, error) {
	a := &assembly{
		src: s, sockets: make(map[tcp.Cookie]*socket), others: make(map[tcp.Cookie]*socket),
		attempts: make(map[tcp.Cookie]tcp.Attempt), subjects: make(map[tcp.FourTuple][]*subject),
	}
	for i := range list {
		if c := list[i].cookie; c != 0 {
			where, all := list[i].where()
			a.sockets[c] = &socket{place: where, all: all}
		}
	}
	if err := s.gather(a.sockets); err != nil {
		return nil, err
	}
	subjects := a.find(list)
	if err := a.around(subjects); err != nil {
		return nil, err
	}
	if err := a.rest(subjects); err != nil {
		return nil, err
	}
	return a.stories(subjects), nil
}

// gather reads the events of sockets: first where they most likely are, then again of those whose begin is
// further away.
func (s *source) gather(sockets map[tcp.Cookie]*socket) error {
	for len(sockets) > 0 {
		err := s.scan(func(seg *recording.Segment) bool { return mayHave(seg, sockets) }, func(ev *tcp.Event) error {
			if k := sockets[ev.Cookie]; k != nil && ev.Cookie != 0 {
				k.add(ev)
			}
			return nil
		}, nil)
		if err != nil {
			return err
		}
		again := make(map[tcp.Cookie]*socket)
		for c, k := range sockets {
			if k.place.from != 0 && !k.again && k.calling() {
				*k = socket{place: place{from: k.place.from - longest, port: k.place.port, since: k.place.since}, again: true}
				again[c] = k
			}
		}
		sockets = again
	}
	return nil
}

// calling reports whether the first event of a socket finds it in SYN_SENT.
func (k *socket) calling() bool { return len(k.events) > 0 && k.events[0].Old == tcp.SynSent }

// find returns what is told of: a life for each pick, or all of a cookie's.
func (a *assembly) find(list []pick) []*subject {
	a.lives = livesOf(a.sockets)
	var all []*subject
	for i := range list {
		p := &list[i]
		lives := a.lives[p.cookie]
		if p.cookie == 0 || len(lives) == 0 {
			all = append(all, &subject{pick: p})
			continue
		}
		for _, l := range lives {
			if !p.known || len(lives) == 1 || l.FirstNS <= p.attempt.Closed && lastOf(l) >= p.attempt.Started {
				all = append(all, &subject{pick: p, life: l})
				if p.known {
					break
				}
			}
		}
	}
	return all
}

// livesOf folds sockets into connections, in the order of the stream.
func livesOf(sockets ...map[tcp.Cookie]*socket) map[tcp.Cookie][]*timeline.Connection {
	var all []*tcp.Event
	for _, m := range sockets {
		for _, k := range m {
			for i := range k.events {
				all = append(all, &k.events[i])
			}
		}
	}
	slices.SortFunc(all, func(x, y *tcp.Event) int { return cmp.Compare(x.Seq, y.Seq) })
	lives := make(map[tcp.Cookie][]*timeline.Connection)
	conns := timeline.NewConnections(len(all)+1, func(c *timeline.Connection) {
		one := *c
		lives[c.Cookie] = append(lives[c.Cookie], &one)
	})
	for _, ev := range all {
		conns.Event(ev)
	}
	conns.Finish()
	for _, l := range lives {
		slices.SortFunc(l, func(x, y *timeline.Connection) int { return cmp.Compare(x.FirstSeq, y.FirstSeq) })
	}
	return lives
}

// lastOf is when a socket, without its TIME_WAIT, was last heard of.
func lastOf(c *timeline.Connection) int64 {
	if c.ClosedNS != 0 {
		return c.ClosedNS
	}
	return c.LastNS
}

// around looks for what else the four-tuples of the subjects were part of.
func (a *assembly) around(subjects []*subject) error {
	var ports [1 << 16 / 64]uint64
	from, to := int64(1<<63-1), int64(-1<<63)
	var list []*subject
	for _, s := range subjects {
		if s.life == nil || s.life.Tuple.Local.Port() == 0 || s.life.Tuple.Peer.Port() == 0 || s.life.Role == timeline.RoleListener {
			continue
		}
		list = append(list, s)
		t := s.life.Tuple
		a.subjects[t] = append(a.subjects[t], s)
		a.subjects[t.Reverse()] = append(a.subjects[t.Reverse()], s)
		ports[t.Local.Port()/64] |= 1 << (t.Local.Port() % 64)
		ports[t.Peer.Port()/64] |= 1 << (t.Peer.Port() % 64)
		from, to = min(from, s.life.FirstNS-aroundEnd), max(to, s.life.LastNS+aroundEnd)
	}
	if len(list) == 0 {
		return nil
	}
	want := func(seg *recording.Segment) bool {
		if seg.MaxNS < from || seg.MinNS > to {
			return false
		}
		if len(list) > fewKeys {
			return true
		}
		return slices.ContainsFunc(list, func(s *subject) bool {
			t := s.life.Tuple
			return seg.MaxNS >= s.life.FirstNS-aroundEnd && seg.MinNS <= s.life.LastNS+aroundEnd &&
				seg.MayHavePort(t.Local.Port()) && seg.MayHavePort(t.Peer.Port())
		})
	}
	has := func(port uint16) bool { return ports[port/64]>>(port%64)&1 != 0 }
	return a.src.scan(want, func(ev *tcp.Event) error {
		if has(ev.Tuple.Local.Port()) && has(ev.Tuple.Peer.Port()) {
			for _, s := range a.subjects[ev.Tuple] {
				a.near(s, ev)
			}
		}
		return nil
	}, nil)
}

// near takes an event of a subject's four-tuple, or of the reverse one.
func (a *assembly) near(s *subject, ev *tcp.Event) {
	l := s.life
	if ev.Cookie == l.Cookie {
		return
	}
	if ev.Cookie == 0 || ev.Kind == tcp.KindListenDrop {
		if ev.MonoNS >= l.FirstNS-aroundStray && ev.MonoNS <= lastOf(l)+aroundStray && len(s.strays) < maxEvents {
			s.strays = append(s.strays, *ev)
		}
		return
	}
	own := ev.Tuple == l.Tuple && ev.NetNS == l.NetNS
	at := lastOf(l)
	if own {
		at = l.TimeWait.EndedNS // it may have taken the port
	}
	if ev.MonoNS > at+aroundEnd || ev.MonoNS < l.FirstNS-aroundEnd {
		return
	}
	if a.sockets[ev.Cookie] == nil && a.others[ev.Cookie] == nil && s.others < maxOthers {
		s.others++
		a.others[ev.Cookie] = &socket{place: placeOf(ev)}
	}
}

// rest reads the events of the others, and the attempts that are not known yet.
func (a *assembly) rest(subjects []*subject) error {
	if err := a.src.gather(a.others); err != nil {
		return err
	}
	a.lives = livesOf(a.sockets, a.others)
	if a.src.cond.Records[recording.TableAttempts] == 0 {
		return nil
	}
	unknown := make(map[tcp.Cookie]int64) // and since when they can have ended
	for _, s := range subjects {
		switch l := s.life; {
		case s.pick.known || s.pick.cookie == 0:
		case l == nil:
			unknown[s.pick.cookie] = 0
		case l.Role != timeline.RolePassive:
			unknown[l.Cookie] = l.FirstNS - slack
		default:
			if l = a.lifeOf(l.Cookie, l.FirstSeq); l.Peer != 0 {
				unknown[l.Peer] = l.FirstNS - slack
			}
		}
	}
	return a.src.scan(func(seg *recording.Segment) bool {
		for c, since := range unknown {
			if seg.MaxNS >= since && (len(unknown) > fewKeys || seg.MayHaveCookie(c)) {
				return true
			}
		}
		return false
	}, nil, func(at *tcp.Attempt) error {
		if _, ok := unknown[at.Cookie]; ok {
			a.attempts[at.Cookie] = *at
			delete(unknown, at.Cookie)
		}
		return nil
	})
}

// stories makes them of all that was read.
func (a *assembly) stories(subjects []*subject) []*Story {
	var list []*Story
	for _, s := range subjects {
		list = append(list, a.story(s))
	}
	return list
}

func (a *assembly) story(sub *subject) *Story {
	s := &Story{clock: a.src.wall, byAttempt: sub.pick.known}
	if ev := sub.pick.alone; ev != nil {
		s.Ends[Client] = End{JoinedBy: Alone, Connection: timeline.Connection{
			NetNS: ev.NetNS, Tuple: ev.Tuple, Owner: ev.Owner, FirstSeq: ev.Seq, LastSeq: ev.Seq, Events: 1,
			FirstNS: ev.MonoNS, LastNS: ev.MonoNS, Errno: ev.Errno,
		}}
		s.Events = []Event{{Event: *ev, End: Client}}
	}
	attempt, known := sub.pick.attempt, sub.pick.known
	if sub.life != nil {
		own := a.lifeOf(sub.life.Cookie, sub.life.FirstSeq)
		at := Client
		if own.Role == timeline.RolePassive || own.Role == timeline.RoleListener {
			at = Server
		}
		other := a.peerOf(own)
		if other != nil && own.Role == timeline.RoleUnknown && other.Role == timeline.RoleActive {
			at = Server
		}
		a.add(s, at, own, ByCookie)
		if other != nil {
			a.add(s, 1-at, other, ByFourTuple)
		}
		for _, ev := range sub.strays {
			end := 1 - at
			if ev.Tuple == own.Tuple && ev.NetNS == own.NetNS {
				end = at
			}
			s.Events = append(s.Events, Event{Event: ev, End: end, Stray: true})
		}
		slices.SortStableFunc(s.Events, func(x, y Event) int { return cmp.Compare(x.Seq, y.Seq) })
	}
	if !known {
		cookie := sub.pick.cookie
		if s.Ends[Client].Seen() {
			cookie = s.Ends[Client].Cookie
		}
		attempt, known = a.attempts[cookie]
	}
	if known {
		s.Attempt = &attempt
	}
	from, to := s.span()
	s.Lost = a.src.lostDuring(from, to)
	s.Outcome = outcome(s, &a.src.env)
	s.Missing = a.src.gaps(s)
	return s
}

// lifeOf finds a life again, folded anew with those that it has to do with.
func (a *assembly) lifeOf(c tcp.Cookie, first uint64) *timeline.Connection {
	lives := a.lives[c]
	for _, l := range lives {
		if l.FirstSeq == first {
			return l
		}
	}
	return lives[0]
}

// peerOf finds the life that is the other end of one.
func (a *assembly) peerOf(own *timeline.Connection) *timeline.Connection {
	if own.Peer == 0 {
		return nil
	}
	for _, l := range a.lives[own.Peer] {
		if l.Tuple == own.Tuple.Reverse() && l.Peer == own.Cookie {
			return l
		}
	}
	return nil
}

// add gives a story one of its ends, and its events.
func (a *assembly) add(s *Story, end int, life *timeline.Connection, how string) {
	s.Ends[end] = End{Connection: *life, JoinedBy: how}
	s.onlyLife[end] = len(a.lives[life.Cookie]) == 1
	k := a.sockets[life.Cookie]
	if k == nil {
		k = a.others[life.Cookie]
	}
	s.Omitted += k.omitted
	lives := a.lives[life.Cookie]
	for i := range k.events {
		if ev := &k.events[i]; lifeAt(lives, ev) == life {
			s.Events = append(s.Events, Event{Event: *ev, End: end})
		}
	}
}

// lifeAt says which life of a cookie an event is of: that of the TIME_WAIT's port, or the latest that had begun.
func lifeAt(lives []*timeline.Connection, ev *tcp.Event) *timeline.Connection {
	var latest *timeline.Connection
	for _, l := range lives {
		if l.FirstSeq > ev.Seq {
			break
		}
		latest = l
		if (ev.Kind == tcp.KindTWEnd || ev.Kind == tcp.KindTWConvert || ev.New == tcp.TimeWait && ev.Kind != tcp.KindTWEnter) &&
			l.TimeWait.Made() && l.Tuple.Local.Port() == ev.Tuple.Local.Port() && l.LastSeq >= ev.Seq {
			return l
		}
	}
	return latest
}

// span is when the connection was, without its TIME_WAIT, which may be long.
func (s *Story) span() (from, to int64) {
	from, to = s.Begin(), 0
	for i := range s.Ends {
		if s.Ends[i].Seen() {
			to = max(to, lastOf(&s.Ends[i].Connection))
		}
	}
	if s.Attempt != nil {
		to = max(to, s.Attempt.Closed)
	}
	return from, to
}
