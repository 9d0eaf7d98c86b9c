package export

import (
	"slices"

	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
)

// attemptRow is an attempt: a value without pointers.
type attemptRow = tcp.Attempt

func newAttemptTable(j *job) *table[attemptRow] {
	return &table[attemptRow]{
		name: TableAttempts, schema: "twtrace.attempt/1", group: rowsPerGroup,
		columns:    slices.Concat(attemptColumns(j), machine[attemptRow](j)),
		key:        func(a *attemptRow) (tcp.Cookie, int64) { return a.Cookie, a.Started },
		timeColumn: "started_ns",
		read: func(row func(*attemptRow) error) error {
			return j.scan(func(b *recording.Batch) error {
				for i := range b.Attempts {
					if err := row(&b.Attempts[i]); err != nil {
						return err
					}
				}
				return nil
			}, recording.TableAttempts)
		},
		full:  func() bool { return false },
		reset: func() {},
	}
}

func attemptColumns(j *job) []column[attemptRow] {
	phases := wordsOf(tcp.Phase.String)
	flags := setsOf(j.r.Header().Enums["attempt_flag"], 0)
	errnos := make(errnoWords)
	at := func(name string, of func(*attemptRow) int64) column[attemptRow] {
		return column[attemptRow]{name: name, typ: signed64, null: true, num: func(a *attemptRow) (uint64, bool) { return known(of(a)) }}
	}
	return []column[attemptRow]{
		{name: "cookie", typ: number64, num: func(a *attemptRow) (uint64, bool) { return always(a.Cookie) }},
		{name: "time", typ: moment, num: func(a *attemptRow) (uint64, bool) { return always(j.clocks.WallNS(a.Started)) }},
		{name: "started_ns", typ: signed64, num: func(a *attemptRow) (uint64, bool) { return always(a.Started) }},
		at("intended_ns", func(a *attemptRow) int64 { return a.Intended }),
		at("connected_ns", func(a *attemptRow) int64 { return a.Connected }),
		at("first_byte_ns", func(a *attemptRow) int64 { return a.FirstByte }),
		at("closed_ns", func(a *attemptRow) int64 { return a.Closed }),
		{name: "loop", typ: number32, num: func(a *attemptRow) (uint64, bool) { return always(a.Loop) }},
		{name: "index", typ: number32, num: func(a *attemptRow) (uint64, bool) { return always(a.Index) }},
		{name: "client", typ: number16, num: func(a *attemptRow) (uint64, bool) { return always(uint16(a.Client())) }},
		{name: "shard", typ: number16, num: func(a *attemptRow) (uint64, bool) { return always(a.Shard & (1<<tcp.ShardBits - 1)) }},
		{name: "local_port", typ: number16, null: true, num: func(a *attemptRow) (uint64, bool) { return known(a.LocalPort) }},
		{name: "phase", typ: word, text: func(a *attemptRow) []byte { return phases[a.Phase] }},
		{name: "errno", typ: word, null: true, text: func(a *attemptRow) []byte { return errnos.of(a.Errno) }},
		{name: "flags", typ: word, null: true, text: func(a *attemptRow) []byte { return flags[a.Flags] }},
	}
}
