package export

import (
	"net/netip"
	"slices"
	"time"

	"github.com/twtrace/twtrace/internal/eventline"
	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
)

// eventRow is an event and what the events before told of its socket: a fixed value without pointers, of which a
// million are held to be sorted.
type eventRow struct {
	seq         uint64
	mono        int64
	cookie      tcp.Cookie
	netns       tcp.NetNS
	inState     int64  // below 0: not known
	local, peer uint32 // of eventTable.addrs
	owner       uint32 // of eventTable.owners
	extra       uint32 // of eventTable.extras
	ticks       uint32
	reason      uint32
	localPort   uint16
	peerPort    uint16
	errno       tcp.Errno
	kind        tcp.Kind
	old, next   tcp.State
	substate    tcp.State
	cause       tcp.Cause
	flags       tcp.Flags
}

// eventExtra is what few events have.
type eventExtra struct {
	refusals    tcp.Refusals
	counted     bool // refusals were
	holder      tcp.State
	cookie      tcp.Cookie // of the holder
	addr, owner uint32     // likewise, as in eventRow
}

// eventTable is what the rows of a table refer to.
type eventTable struct {
	addrs  *interned[netip.Addr]
	owners *interned[tcp.Owner]
	extras []eventExtra // the first is of those that have none

	states, kinds, causes, flags *[256][]byte
	errnos                       errnoWords
	reasons                      map[uint32][]byte
	spaces                       map[tcp.NetNS][]byte
	hz                           int
}

// rowsPerGroup is how many events are sorted at a time: small ones make lookups by cookie slow.
const rowsPerGroup = 1 << 20

func newEventTable(j *job) *table[eventRow] {
	e := &eventTable{
		addrs:  newInterned(addrText),
		owners: newInterned(func(o tcp.Owner) string { return o.Comm.String() }),
		states: wordsOf(stateWord), kinds: wordsOf(tcp.Kind.String), causes: wordsOf(tcp.Cause.String),
		flags:  setsOf(j.r.Header().Enums["flag"], uint8(tcp.FlagOwner|tcp.FlagRefusals)),
		errnos: make(errnoWords), reasons: j.reasonWords(), spaces: namespaceNames(j), hz: j.r.Header().HZ,
	}
	e.reset()
	return &table[eventRow]{
		name: TableEvents, schema: eventline.Schema, group: rowsPerGroup,
		columns:    slices.Concat(e.columns(j.clocks), machine[eventRow](j)),
		key:        func(r *eventRow) (tcp.Cookie, int64) { return r.cookie, r.mono },
		timeColumn: "t_ns",
		rare:       func(r eventRow) bool { return r.extra != 0 },
		read:       func(row func(*eventRow) error) error { return e.read(j, row) },
		full:       func() bool { return e.addrs.full() || e.owners.full() || len(e.extras) > maxInterned },
		reset:      e.reset,
	}
}

func (e *eventTable) reset() {
	e.addrs.reset()
	e.owners.reset()
	e.extras = append(e.extras[:0], eventExtra{})
}

func (e *eventTable) read(j *job, row func(*eventRow) error) error {
	owners := timeline.NewOwners(0)
	err := j.scan(func(b *recording.Batch) error {
		var r eventRow
		for i := range b.Events {
			ev := &b.Events[i]
			past := owners.Event(ev)
			e.fill(&r, ev, &past)
			if err := row(&r); err != nil {
				return err
			}
		}
		return nil
	}, recording.TableEvents)
	noteUnfollowed(j, owners)
	return err
}

// noteUnfollowed tells what is missing in events of too many sockets.
func noteUnfollowed(j *job, owners *timeline.Owners) {
	if n := owners.Overflow(); n > 0 {
		j.note("%d sockets without owner and time: more were open at once than are followed (%d)", n, timeline.MaxFollowed)
	}
}

func (e *eventTable) fill(r *eventRow, ev *tcp.Event, past *timeline.Past) {
	*r = eventRow{
		seq: ev.Seq, mono: ev.MonoNS, cookie: ev.Cookie, netns: ev.NetNS, inState: past.InState,
		local: e.addrs.of(ev.Tuple.Local.Addr()), peer: e.addrs.of(ev.Tuple.Peer.Addr()),
		owner: e.owners.of(past.Owner), ticks: ev.Ticks, reason: ev.Reason,
		localPort: ev.Tuple.Local.Port(), peerPort: ev.Tuple.Peer.Port(), errno: ev.Errno,
		kind: ev.Kind, old: ev.Old, next: ev.New, substate: ev.Substate, cause: ev.Cause, flags: ev.Flags,
	}
	if ev.Flags&tcp.FlagRefusals != 0 || ev.Holder.State != tcp.StateNone {
		r.extra = uint32(len(e.extras))
		e.extras = append(e.extras, eventExtra{
			refusals: ev.Refusals, counted: ev.Flags&tcp.FlagRefusals != 0,
			holder: ev.Holder.State, cookie: ev.Holder.Cookie,
			addr: e.addrs.of(ev.Holder.Addr), owner: e.owners.of(past.Holder),
		})
	}
}

// timeLeft is for how long a TIME_WAIT's timer still runs.
func (e *eventTable) timeLeft(r *eventRow) (uint64, bool) {
	armed := r.kind == tcp.KindTWEnter || r.kind == tcp.KindSnapshot && r.next == tcp.TimeWait
	if !armed || e.hz <= 0 {
		return 0, false
	}
	return uint64(time.Duration(r.ticks) * time.Second / time.Duration(e.hz)), true
}

func (e *eventTable) reasonOf(r *eventRow) []byte {
	if r.kind != tcp.KindRstSent {
		return nil
	}
	return e.reasons[r.reason]
}

// refused is a column of ports that a connect() tried in vain.
func (e *eventTable) refused(name string, n func(*tcp.Refusals) uint16) column[eventRow] {
	return column[eventRow]{name: name, typ: number16, null: true, rare: true, num: func(r *eventRow) (uint64, bool) {
		x := &e.extras[r.extra]
		return uint64(n(&x.refusals)), x.counted
	}}
}

// columns are in the order of a JSON line.
func (e *eventTable) columns(c *recording.Clocks) []column[eventRow] {
	owner := func(r *eventRow) *tcp.Owner { return &e.owners.values[r.owner] }
	extra := func(r *eventRow) *eventExtra { return &e.extras[r.extra] }
	return []column[eventRow]{
		{name: "seq", typ: number64, num: func(r *eventRow) (uint64, bool) { return always(r.seq) }},
		{name: "time", typ: moment, num: func(r *eventRow) (uint64, bool) { return always(c.WallNS(r.mono)) }},
		{name: "t_ns", typ: signed64, num: func(r *eventRow) (uint64, bool) { return always(r.mono) }},
		{name: "kind", typ: word, text: func(r *eventRow) []byte { return e.kinds[r.kind] }},
		{name: "cookie", typ: number64, num: func(r *eventRow) (uint64, bool) { return always(r.cookie) }},
		{name: "netns", typ: number64, num: func(r *eventRow) (uint64, bool) { return always(r.netns) }},
		{name: "netns_name", typ: word, null: true, text: func(r *eventRow) []byte { return e.spaces[r.netns] }},
		{name: "pid", typ: number32, null: true, num: func(r *eventRow) (uint64, bool) { return known(owner(r).PID) }},
		{name: "comm", typ: word, null: true, text: func(r *eventRow) []byte { return e.owners.texts[r.owner] }},
		{name: "cgroup_id", typ: number64, null: true, num: func(r *eventRow) (uint64, bool) { return known(owner(r).Cgroup) }},
		e.address("local_addr", func(r *eventRow) uint32 { return r.local }),
		{name: "local_port", typ: number16, num: func(r *eventRow) (uint64, bool) { return always(r.localPort) }},
		e.address("peer_addr", func(r *eventRow) uint32 { return r.peer }),
		{name: "peer_port", typ: number16, num: func(r *eventRow) (uint64, bool) { return always(r.peerPort) }},
		{name: "old_state", typ: word, null: true, text: func(r *eventRow) []byte { return e.states[r.old] }},
		{name: "new_state", typ: word, null: true, text: func(r *eventRow) []byte { return e.states[r.next] }},
		{name: "cause", typ: word, null: true, text: func(r *eventRow) []byte { return e.causes[r.cause] }},
		{name: "reason", typ: word, null: true, text: e.reasonOf},
		{name: "errno", typ: word, null: true, text: func(r *eventRow) []byte { return e.errnos.of(r.errno) }},
		{name: "in_state_ns", typ: signed64, null: true, num: func(r *eventRow) (uint64, bool) { return uint64(r.inState), r.inState >= 0 }},
		{name: "substate", typ: word, null: true, text: func(r *eventRow) []byte { return e.states[r.substate] }},
		{name: "time_left_ns", typ: signed64, null: true, num: e.timeLeft},
		{name: "flags", typ: word, null: true, text: func(r *eventRow) []byte { return e.flags[r.flags] }},
		e.refused("refused_too_young", func(r *tcp.Refusals) uint16 { return r.TooYoung }),
		e.refused("refused_not_allowed", func(r *tcp.Refusals) uint16 { return r.NotAllowed }),
		e.refused("refused_no_timestamps", func(r *tcp.Refusals) uint16 { return r.NoTimestamps }),
		e.refused("refused_taken", func(r *tcp.Refusals) uint16 { return r.Taken }),
		{name: "holder_state", typ: word, null: true, rare: true, text: func(r *eventRow) []byte { return e.states[extra(r).holder] }},
		{name: "holder_cookie", typ: number64, null: true, rare: true, num: func(r *eventRow) (uint64, bool) { return known(extra(r).cookie) }},
		e.address("holder_addr", func(r *eventRow) uint32 { return extra(r).addr }),
		{name: "holder_pid", typ: number32, null: true, rare: true, num: func(r *eventRow) (uint64, bool) { return known(e.owners.values[extra(r).owner].PID) }},
		{name: "holder_comm", typ: word, null: true, rare: true, text: func(r *eventRow) []byte { return e.owners.texts[extra(r).owner] }},
	}
}

func (e *eventTable) address(name string, of func(*eventRow) uint32) column[eventRow] {
	return column[eventRow]{
		name: name, typ: address, null: true,
		text: func(r *eventRow) []byte { return e.addrs.texts[of(r)] },
		raw:  func(r *eventRow) [16]byte { return raw16(e.addrs.values[of(r)]) },
	}
}
