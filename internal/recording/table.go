package recording

import (
	"fmt"
	"net/netip"

	"github.com/twtrace/twtrace/internal/tcp"
)

// Table is a kind of records.
type Table uint8

// The tables of a recording. TableDetails has what few events have, by the event's number; a
// Reader hands it out with the events.
const (
	TableEvents Table = iota + 1
	TableDetails
	TableAttempts
	TableSamples
	numTables
)

var tableNames = [numTables]string{
	TableEvents: "events", TableDetails: "details", TableAttempts: "attempts", TableSamples: "samples",
}

// Tables are all of them.
var Tables = [...]Table{TableEvents, TableDetails, TableAttempts, TableSamples}

func (t Table) String() string {
	if t > 0 && t < numTables {
		return tableNames[t]
	}
	return fmt.Sprintf("table-%d", uint8(t))
}

// FieldType says how a field lies in a record. Numbers are little-endian.
type FieldType string

// The types of fields. An address is IPv6, or IPv4 mapped into it; that there is none, its family says.
const (
	U8      FieldType = "u8"
	U16     FieldType = "u16"
	U32     FieldType = "u32"
	U64     FieldType = "u64"
	I32     FieldType = "i32"
	I64     FieldType = "i64"
	Addr16  FieldType = "addr16"
	Bytes16 FieldType = "bytes16"
)

var typeSizes = map[FieldType]int{U8: 1, U16: 2, U32: 4, U64: 8, I32: 4, I64: 8, Addr16: 16, Bytes16: 16}

// Field is a member of a record, as the header of a recording describes it.
type Field struct {
	Name   string    `json:"name"`
	Type   FieldType `json:"type"`
	Offset int       `json:"offset"`
	// Unit of a number: "ns" (CLOCK_MONOTONIC unless the name says otherwise), "jiffies"; empty: none.
	Unit string `json:"unit,omitempty"`
	// Enum is the name of the table in Header.Enums that the number is a key of.
	Enum string `json:"enum,omitempty"`
}

// TableLayout describes the records of a table.
type TableLayout struct {
	Name       string  `json:"name"`
	ID         Table   `json:"id"`
	RecordSize int     `json:"record_size"`
	Fields     []Field `json:"fields"`
}

// Sample is how things stood at a moment.
type Sample struct {
	Kind   SampleKind
	MonoNS int64
	// RealNS and BootNS are CLOCK_REALTIME and CLOCK_BOOTTIME at MonoNS.
	RealNS, BootNS int64
	// Lost and Skipped are how many events did not fit into the ring, and how many the kernel did not
	// run a program for and no twin recorded, from the begin of the trace.
	Lost, Skipped uint64
	Loop          uint32 // of the storm
	// Of the storm at a SampleTick from its begin, at a SampleLoop of the loop: attempts that were
	// started, that finished, that failed; connections that are open, or that were at most.
	Started, Finished, Failed, Open uint32
	// TimeWait and Ports are TIME_WAITs of all namespaces, and source ports taken; below 0: not known.
	TimeWait, Ports int32
	// DurationNS is how long a loop took.
	DurationNS int64
}

// SampleKind says what a Sample was taken for.
type SampleKind uint8

// The kinds of samples.
const (
	SampleTick SampleKind = iota + 1 // time had passed
	SampleLoop                       // a loop of the storm had ended
	SampleWarm                       // the storm began: latencies count from Sample.MonoNS on
	numSampleKinds
)

var sampleKindNames = [numSampleKinds]string{SampleTick: "tick", SampleLoop: "loop", SampleWarm: "warm"}

func (k SampleKind) String() string {
	if k > 0 && k < numSampleKinds {
		return sampleKindNames[k]
	}
	return fmt.Sprintf("sample-%d", uint8(k))
}

// eventRecord says where the fields of an event lie; likewise the other types for their tables. The tag is
// the field's name and unit or enum in the header.
//
// An event's seq_shift is its number less that of its record in the file: mostly the same in all records, so that it
// costs nothing compressed, where the number itself took five bytes.
type eventRecord struct {
	seqShift, mono, cookie, netns, local, peer, reason, ticks, localPort, peerPort, errno int
	kind, old, next, substate, cause, flags, localFamily, peerFamily                      int
}

type detailRecord struct {
	seq, cgroup, holderCookie, holderAddr, comm, pid                     int
	tooYoung, notAllowed, noTimestamps, taken, holderState, holderFamily int
}

type attemptRecord struct {
	cookie, started, intended, connected, firstByte, closed, loop, index, localPort, shard, errno, phase, flags int
}

type sampleRecord struct {
	mono, real, boot, lost, skipped, duration, loop, started, finished, failed, open, timeWait, ports, kind int
}

// member is a field with the place in a layout that is to get its offset.
type member struct {
	Field
	at *int
}

func (l *eventRecord) members() []member {
	return []member{
		{Field{Name: "seq_shift", Type: I64}, &l.seqShift},
		{Field{Name: "mono_ns", Type: I64, Unit: "ns"}, &l.mono},
		{Field{Name: "cookie", Type: U64}, &l.cookie},
		{Field{Name: "netns", Type: U64}, &l.netns},
		{Field{Name: "local_addr", Type: Addr16}, &l.local},
		{Field{Name: "peer_addr", Type: Addr16}, &l.peer},
		{Field{Name: "reason", Type: U32, Enum: "rst_reason"}, &l.reason},
		{Field{Name: "ticks", Type: U32, Unit: "jiffies"}, &l.ticks},
		{Field{Name: "local_port", Type: U16}, &l.localPort},
		{Field{Name: "peer_port", Type: U16}, &l.peerPort},
		{Field{Name: "errno", Type: U16, Enum: "errno"}, &l.errno},
		{Field{Name: "kind", Type: U8, Enum: "kind"}, &l.kind},
		{Field{Name: "old_state", Type: U8, Enum: "state"}, &l.old},
		{Field{Name: "new_state", Type: U8, Enum: "state"}, &l.next},
		{Field{Name: "substate", Type: U8, Enum: "state"}, &l.substate},
		{Field{Name: "cause", Type: U8, Enum: "cause"}, &l.cause},
		{Field{Name: "flags", Type: U8, Enum: "flag"}, &l.flags},
		{Field{Name: "local_family", Type: U8}, &l.localFamily},
		{Field{Name: "peer_family", Type: U8}, &l.peerFamily},
	}
}

func (l *detailRecord) members() []member {
	return []member{
		{Field{Name: "seq", Type: U64}, &l.seq},
		{Field{Name: "cgroup", Type: U64}, &l.cgroup},
		{Field{Name: "holder_cookie", Type: U64}, &l.holderCookie},
		{Field{Name: "holder_addr", Type: Addr16}, &l.holderAddr},
		{Field{Name: "comm", Type: Bytes16}, &l.comm},
		{Field{Name: "pid", Type: U32}, &l.pid},
		{Field{Name: "refused_too_young", Type: U16}, &l.tooYoung},
		{Field{Name: "refused_not_allowed", Type: U16}, &l.notAllowed},
		{Field{Name: "refused_no_timestamps", Type: U16}, &l.noTimestamps},
		{Field{Name: "refused_taken", Type: U16}, &l.taken},
		{Field{Name: "holder_state", Type: U8, Enum: "state"}, &l.holderState},
		{Field{Name: "holder_family", Type: U8}, &l.holderFamily},
	}
}

func (l *attemptRecord) members() []member {
	return []member{
		{Field{Name: "cookie", Type: U64}, &l.cookie},
		{Field{Name: "started_ns", Type: I64, Unit: "ns"}, &l.started},
		{Field{Name: "intended_ns", Type: I64, Unit: "ns"}, &l.intended},
		{Field{Name: "connected_ns", Type: I64, Unit: "ns"}, &l.connected},
		{Field{Name: "first_byte_ns", Type: I64, Unit: "ns"}, &l.firstByte},
		{Field{Name: "closed_ns", Type: I64, Unit: "ns"}, &l.closed},
		{Field{Name: "loop", Type: U32}, &l.loop},
		{Field{Name: "index", Type: U32}, &l.index},
		{Field{Name: "local_port", Type: U16}, &l.localPort},
		{Field{Name: "shard", Type: U16}, &l.shard},
		{Field{Name: "errno", Type: U16, Enum: "errno"}, &l.errno},
		{Field{Name: "phase", Type: U8, Enum: "phase"}, &l.phase},
		{Field{Name: "flags", Type: U8, Enum: "attempt_flag"}, &l.flags},
	}
}

func (l *sampleRecord) members() []member {
	return []member{
		{Field{Name: "mono_ns", Type: I64, Unit: "ns"}, &l.mono},
		{Field{Name: "real_ns", Type: I64, Unit: "ns since 1970"}, &l.real},
		{Field{Name: "boot_ns", Type: I64, Unit: "ns of CLOCK_BOOTTIME"}, &l.boot},
		{Field{Name: "lost", Type: U64}, &l.lost},
		{Field{Name: "skipped", Type: U64}, &l.skipped},
		{Field{Name: "duration_ns", Type: I64, Unit: "ns"}, &l.duration},
		{Field{Name: "loop", Type: U32}, &l.loop},
		{Field{Name: "started", Type: U32}, &l.started},
		{Field{Name: "finished", Type: U32}, &l.finished},
		{Field{Name: "failed", Type: U32}, &l.failed},
		{Field{Name: "open", Type: U32}, &l.open},
		{Field{Name: "time_wait", Type: I32}, &l.timeWait},
		{Field{Name: "ports", Type: I32}, &l.ports},
		{Field{Name: "kind", Type: U8, Enum: "sample"}, &l.kind},
	}
}

// layouts is where everything lies in the records of one recording.
type layouts struct {
	event   eventRecord
	detail  detailRecord
	attempt attemptRecord
	sample  sampleRecord
	size    [numTables]int
}

func (l *layouts) members(t Table) []member {
	switch t {
	case TableEvents:
		return l.event.members()
	case TableDetails:
		return l.detail.members()
	case TableAttempts:
		return l.attempt.members()
	case TableSamples:
		return l.sample.members()
	}
	return nil
}

// own is the layout that this version writes: fields in the order of their lists, without a gap,
// and a size that is a multiple of eight.
func own() *layouts {
	l := new(layouts)
	for t := TableEvents; t < numTables; t++ {
		at := 0
		for _, m := range l.members(t) {
			*m.at = at
			at += typeSizes[m.Type]
		}
		l.size[t] = (at + 7) &^ 7
	}
	return l
}

// describe is what the header says about a layout.
func (l *layouts) describe() []TableLayout {
	var tables []TableLayout
	for t := TableEvents; t < numTables; t++ {
		d := TableLayout{Name: t.String(), ID: t, RecordSize: l.size[t]}
		for _, m := range l.members(t) {
			m.Offset = *m.at
			d.Fields = append(d.Fields, m.Field)
		}
		tables = append(tables, d)
	}
	return tables
}

// maxRecordSize bounds what a header may ask a reader to believe.
const maxRecordSize = 4096

// read takes the layout from a header. What it does not know it passes over; what this version
// needs must be there, in the type that it knows.
func (l *layouts) read(tables []TableLayout) error {
	for _, d := range tables {
		if d.ID == 0 || d.ID >= numTables {
			continue // of a later version
		}
		if d.RecordSize < 1 || d.RecordSize > maxRecordSize || l.size[d.ID] != 0 {
			return fmt.Errorf("table %s: records of %d bytes", d.Name, d.RecordSize)
		}
		l.size[d.ID] = d.RecordSize
		fields := make(map[string]Field)
		for _, f := range d.Fields {
			fields[f.Name] = f
		}
		for _, m := range l.members(d.ID) {
			f, ok := fields[m.Name]
			if !ok || f.Type != m.Type || f.Offset < 0 || f.Offset > d.RecordSize-typeSizes[m.Type] {
				return fmt.Errorf("table %s: field %s of type %s is missing", d.Name, m.Name, m.Type)
			}
			*m.at = f.Offset
		}
	}
	for t := TableEvents; t < numTables; t++ {
		if l.size[t] == 0 {
			return fmt.Errorf("table %s is missing", t)
		}
	}
	return nil
}

// needsDetail reports whether an event has something for TableDetails.
func needsDetail(ev *tcp.Event) bool {
	return ev.Flags&(tcp.FlagOwner|tcp.FlagRefusals) != 0 || ev.Holder.State != tcp.StateNone
}

// family tells which addresses a record has: 0 none, 4, 6.
func family(a netip.Addr) byte {
	switch {
	case a.Is4():
		return 4
	case a.Is6():
		return 6
	}
	return 0
}
