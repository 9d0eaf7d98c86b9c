package export

import (
	"net/netip"
	"slices"
	"time"

	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
)

// connectionRow is one life of a socket.
type connectionRow = timeline.Connection

// connectionsPerGroup is how many connections are sorted at a time: they have some ten events each.
const connectionsPerGroup = 1 << 17

// maxOpen is how many connections are followed at once, those in TIME_WAIT among them: some 250 MB.
const maxOpen = timeline.MaxFollowed

// connectionTable is what the rows of a table are written with.
type connectionTable struct {
	addrs *interned[netip.Addr]
	comms *interned[tcp.Comm]

	roles                 *[256][]byte
	states, causes, flags *[256][]byte
	errnos                errnoWords
	reasons               map[uint32][]byte
	spaces                map[tcp.NetNS][]byte
	hz                    int
}

func newConnectionTable(j *job) *table[connectionRow] {
	c := &connectionTable{
		addrs: newInterned(addrText), comms: newInterned(tcp.Comm.String),
		roles: wordsOf(timeline.Role.String), states: wordsOf(stateWord), causes: wordsOf(tcp.Cause.String),
		flags:  setsOf(j.r.Header().Enums["flag"], uint8(tcp.FlagOwner|tcp.FlagRefusals|tcp.FlagRescued|tcp.FlagLate)),
		errnos: make(errnoWords), reasons: j.reasonWords(), spaces: namespaceNames(j), hz: j.r.Header().HZ,
	}
	return &table[connectionRow]{
		name: TableConnections, schema: "twtrace.connection/1", group: connectionsPerGroup,
		columns:    slices.Concat(c.columns(j.clocks), machine[connectionRow](j)),
		key:        func(r *connectionRow) (tcp.Cookie, int64) { return r.Cookie, r.FirstNS },
		timeColumn: "first_ns",
		read:       func(row func(*connectionRow) error) error { return readConnections(j, row) },
		full:       func() bool { return c.addrs.full() || c.comms.full() },
		reset: func() {
			c.addrs.reset()
			c.comms.reset()
		},
	}
}

func readConnections(j *job, row func(*connectionRow) error) error {
	var failed error
	connections := timeline.NewConnections(maxOpen, func(c *timeline.Connection) {
		if failed == nil {
			failed = row(c)
		}
	})
	err := j.scan(func(b *recording.Batch) error {
		for i := range b.Events {
			connections.Event(&b.Events[i])
		}
		return failed
	}, recording.TableEvents)
	if err != nil {
		return err
	}
	connections.Finish()
	if n := connections.Overflow(); n > 0 {
		j.missing("%d events are of no connection: more were open at once than are followed (%d)", n, maxOpen)
	}
	return failed
}

// after is a column of a time; 0: not seen.
func after(name, path string, of func(*connectionRow) int64) column[connectionRow] {
	return column[connectionRow]{name: name, path: path, typ: signed64, null: true, num: func(r *connectionRow) (uint64, bool) { return known(of(r)) }}
}

func (c *connectionTable) address(name, path string, of func(*connectionRow) netip.AddrPort) column[connectionRow] {
	return column[connectionRow]{
		name: name, path: path, typ: address, null: true,
		text: func(r *connectionRow) []byte { return c.addrs.texts[c.addrs.of(of(r).Addr())] },
		raw:  func(r *connectionRow) [16]byte { return raw16(of(r).Addr()) },
	}
}

func (c *connectionTable) reasonOf(r *connectionRow) []byte {
	if r.RstSent == 0 {
		return nil
	}
	return c.reasons[r.Reason]
}

// timer is for how long a TIME_WAIT's timer was set.
func (c *connectionTable) timer(r *connectionRow) (uint64, bool) {
	if c.hz <= 0 || !r.TimeWait.Made() {
		return 0, false
	}
	return uint64(time.Duration(r.TimeWait.Ticks) * time.Second / time.Duration(c.hz)), true
}

// columns are in the order of a JSON line.
func (c *connectionTable) columns(at *recording.Clocks) []column[connectionRow] {
	type row = connectionRow
	local := func(r *row) netip.AddrPort { return r.Tuple.Local }
	peer := func(r *row) netip.AddrPort { return r.Tuple.Peer }
	return []column[row]{
		{name: "cookie", typ: number64, num: func(r *row) (uint64, bool) { return always(r.Cookie) }},
		{name: "time", typ: moment, num: func(r *row) (uint64, bool) { return always(at.WallNS(r.FirstNS)) }},
		{name: "first_ns", typ: signed64, num: func(r *row) (uint64, bool) { return always(r.FirstNS) }},
		{name: "last_ns", typ: signed64, num: func(r *row) (uint64, bool) { return always(r.LastNS) }},
		{name: "first_seq", typ: number64, num: func(r *row) (uint64, bool) { return always(r.FirstSeq) }},
		{name: "last_seq", typ: number64, num: func(r *row) (uint64, bool) { return always(r.LastSeq) }},
		{name: "events", typ: number32, num: func(r *row) (uint64, bool) { return always(uint32(r.Events)) }},
		{name: "netns", typ: number64, num: func(r *row) (uint64, bool) { return always(r.NetNS) }},
		{name: "netns_name", typ: word, null: true, text: func(r *row) []byte { return c.spaces[r.NetNS] }},
		{name: "pid", typ: number32, null: true, num: func(r *row) (uint64, bool) { return known(r.Owner.PID) }},
		{name: "comm", typ: word, null: true, text: func(r *row) []byte { return c.comms.texts[c.comms.of(r.Owner.Comm)] }},
		{name: "cgroup_id", typ: number64, null: true, num: func(r *row) (uint64, bool) { return known(r.Owner.Cgroup) }},
		{name: "role", typ: word, text: func(r *row) []byte { return c.roles[r.Role] }},
		c.address("local_addr", "local.addr", local),
		{name: "local_port", path: "local.port", typ: number16, num: func(r *row) (uint64, bool) { return always(local(r).Port()) }},
		c.address("peer_addr", "peer.addr", peer),
		{name: "peer_port", path: "peer.port", typ: number16, num: func(r *row) (uint64, bool) { return always(peer(r).Port()) }},
		{name: "peer_cookie", typ: number64, null: true, num: func(r *row) (uint64, bool) { return known(r.Peer) }},
		{name: "successor_cookie", typ: number64, null: true, num: func(r *row) (uint64, bool) { return known(r.Successor) }},
		{name: "state", typ: word, null: true, text: func(r *row) []byte { return c.states[r.State] }},
		after("opened_ns", "", func(r *row) int64 { return r.OpenedNS }),
		after("established_ns", "", func(r *row) int64 { return r.EstablishedNS }),
		after("fin_sent_ns", "", func(r *row) int64 { return r.FinSentNS }),
		after("fin_received_ns", "", func(r *row) int64 { return r.FinReceivedNS }),
		after("closed_ns", "", func(r *row) int64 { return r.ClosedNS }),
		{name: "flags", typ: word, null: true, text: func(r *row) []byte { return c.flags[r.ClosedBy] }},
		{name: "rst_sent", typ: number32, num: func(r *row) (uint64, bool) { return always(uint32(r.RstSent)) }},
		{name: "rst_received", typ: number32, num: func(r *row) (uint64, bool) { return always(uint32(r.RstReceived)) }},
		{name: "retransmits", typ: number32, num: func(r *row) (uint64, bool) { return always(uint32(r.Retransmits)) }},
		{name: "reason", typ: word, null: true, text: c.reasonOf},
		{name: "cause", typ: word, null: true, text: func(r *row) []byte { return c.causes[r.Cause] }},
		{name: "errno", typ: word, null: true, text: func(r *row) []byte { return c.errnos.of(r.Errno) }},
		{name: "tw_substate", path: "time_wait.substate", typ: word, null: true, text: func(r *row) []byte { return c.states[r.TimeWait.Substate] }},
		after("tw_entered_ns", "time_wait.entered_ns", func(r *row) int64 { return r.TimeWait.EnteredNS }),
		after("tw_converted_ns", "time_wait.converted_ns", func(r *row) int64 { return r.TimeWait.ConvertedNS }),
		after("tw_ended_ns", "time_wait.ended_ns", func(r *row) int64 { return r.TimeWait.EndedNS }),
		{name: "tw_cause", path: "time_wait.cause", typ: word, null: true, text: func(r *row) []byte { return c.causes[r.TimeWait.Cause] }},
		{name: "tw_timer_ns", path: "time_wait.timer_ns", typ: signed64, null: true, num: c.timer},
		{name: "tw_overflowed", path: "time_wait.overflowed", typ: truth, num: func(r *row) (uint64, bool) { return yes(r.TimeWait.Overflowed) }},
		{name: "snapshot", typ: truth, num: func(r *row) (uint64, bool) { return yes(r.Snapshot) }},
		{name: "complete", typ: truth, num: func(r *row) (uint64, bool) { return yes(r.Complete()) }},
	}
}
