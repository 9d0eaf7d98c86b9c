package recording

import (
	"encoding/binary"
	"net/netip"

	"github.com/twtrace/twtrace/internal/tcp"
)

var le = binary.LittleEndian

// put writes an event into a record, which is the row-th of its file.
func (l *eventRecord) put(b []byte, row uint64, ev *tcp.Event) {
	le.PutUint64(b[l.seqShift:], ev.Seq-row)
	le.PutUint64(b[l.mono:], uint64(ev.MonoNS))
	le.PutUint64(b[l.cookie:], uint64(ev.Cookie))
	le.PutUint64(b[l.netns:], uint64(ev.NetNS))
	putAddr(b[l.local:], ev.Tuple.Local.Addr())
	putAddr(b[l.peer:], ev.Tuple.Peer.Addr())
	le.PutUint32(b[l.reason:], ev.Reason)
	le.PutUint32(b[l.ticks:], ev.Ticks)
	le.PutUint16(b[l.localPort:], ev.Tuple.Local.Port())
	le.PutUint16(b[l.peerPort:], ev.Tuple.Peer.Port())
	le.PutUint16(b[l.errno:], uint16(ev.Errno))
	b[l.kind] = byte(ev.Kind)
	b[l.old] = byte(ev.Old)
	b[l.next] = byte(ev.New)
	b[l.substate] = byte(ev.Substate)
	b[l.cause] = byte(ev.Cause)
	b[l.flags] = byte(ev.Flags)
	b[l.localFamily] = family(ev.Tuple.Local.Addr())
	b[l.peerFamily] = family(ev.Tuple.Peer.Addr())
}

func (l *eventRecord) get(b []byte, row uint64, ev *tcp.Event, names *renumbering) {
	*ev = tcp.Event{
		Seq: le.Uint64(b[l.seqShift:]) + row, MonoNS: int64(le.Uint64(b[l.mono:])),
		Cookie: tcp.Cookie(le.Uint64(b[l.cookie:])), NetNS: tcp.NetNS(le.Uint64(b[l.netns:])),
		Tuple: tcp.FourTuple{
			Local: netip.AddrPortFrom(getAddr(b[l.local:], b[l.localFamily]), le.Uint16(b[l.localPort:])),
			Peer:  netip.AddrPortFrom(getAddr(b[l.peer:], b[l.peerFamily]), le.Uint16(b[l.peerPort:])),
		},
		Reason: le.Uint32(b[l.reason:]), Ticks: le.Uint32(b[l.ticks:]),
		Kind: tcp.Kind(names.kind[b[l.kind]]), Cause: tcp.Cause(names.cause[b[l.cause]]),
		Old: tcp.State(names.state[b[l.old]]), New: tcp.State(names.state[b[l.next]]),
		Substate: tcp.State(names.state[b[l.substate]]),
		Flags:    tcp.Flags(names.flags[b[l.flags]]), Errno: tcp.Errno(le.Uint16(b[l.errno:])),
	}
}

func (l *detailRecord) put(b []byte, ev *tcp.Event) {
	le.PutUint64(b[l.seq:], ev.Seq)
	le.PutUint64(b[l.cgroup:], ev.Owner.Cgroup)
	le.PutUint64(b[l.holderCookie:], uint64(ev.Holder.Cookie))
	putAddr(b[l.holderAddr:], ev.Holder.Addr)
	copy(b[l.comm:], ev.Owner.Comm[:])
	le.PutUint32(b[l.pid:], ev.Owner.PID)
	le.PutUint16(b[l.tooYoung:], ev.Refusals.TooYoung)
	le.PutUint16(b[l.notAllowed:], ev.Refusals.NotAllowed)
	le.PutUint16(b[l.noTimestamps:], ev.Refusals.NoTimestamps)
	le.PutUint16(b[l.taken:], ev.Refusals.Taken)
	b[l.holderState] = byte(ev.Holder.State)
	b[l.holderFamily] = family(ev.Holder.Addr)
}

// get adds what is in the record to the event that it is of.
func (l *detailRecord) get(b []byte, ev *tcp.Event, names *renumbering) {
	ev.Owner = tcp.Owner{PID: le.Uint32(b[l.pid:]), Cgroup: le.Uint64(b[l.cgroup:]), Comm: tcp.Comm(b[l.comm : l.comm+16])}
	ev.Refusals = tcp.Refusals{
		TooYoung: le.Uint16(b[l.tooYoung:]), NotAllowed: le.Uint16(b[l.notAllowed:]),
		NoTimestamps: le.Uint16(b[l.noTimestamps:]), Taken: le.Uint16(b[l.taken:]),
	}
	ev.Holder = tcp.Holder{
		State: tcp.State(names.state[b[l.holderState]]), Cookie: tcp.Cookie(le.Uint64(b[l.holderCookie:])),
		Addr: getAddr(b[l.holderAddr:], b[l.holderFamily]),
	}
}

func (l *attemptRecord) put(b []byte, a *tcp.Attempt) {
	le.PutUint64(b[l.cookie:], uint64(a.Cookie))
	le.PutUint64(b[l.started:], uint64(a.Started))
	le.PutUint64(b[l.intended:], uint64(a.Intended))
	le.PutUint64(b[l.connected:], uint64(a.Connected))
	le.PutUint64(b[l.firstByte:], uint64(a.FirstByte))
	le.PutUint64(b[l.closed:], uint64(a.Closed))
	le.PutUint32(b[l.loop:], a.Loop)
	le.PutUint32(b[l.index:], a.Index)
	le.PutUint16(b[l.localPort:], a.LocalPort)
	le.PutUint16(b[l.shard:], a.Shard)
	le.PutUint16(b[l.errno:], uint16(a.Errno))
	b[l.phase] = byte(a.Phase)
	b[l.flags] = byte(a.Flags)
}

func (l *attemptRecord) get(b []byte, a *tcp.Attempt, names *renumbering) {
	*a = tcp.Attempt{
		Cookie:  tcp.Cookie(le.Uint64(b[l.cookie:])),
		Started: int64(le.Uint64(b[l.started:])), Intended: int64(le.Uint64(b[l.intended:])),
		Connected: int64(le.Uint64(b[l.connected:])), FirstByte: int64(le.Uint64(b[l.firstByte:])),
		Closed: int64(le.Uint64(b[l.closed:])), Loop: le.Uint32(b[l.loop:]), Index: le.Uint32(b[l.index:]),
		LocalPort: le.Uint16(b[l.localPort:]), Shard: le.Uint16(b[l.shard:]), Errno: tcp.Errno(le.Uint16(b[l.errno:])),
		Phase: tcp.Phase(names.phase[b[l.phase]]), Flags: tcp.AttemptFlags(names.attemptFlags[b[l.flags]]),
	}
}

func (l *sampleRecord) put(b []byte, s *Sample) {
	le.PutUint64(b[l.mono:], uint64(s.MonoNS))
	le.PutUint64(b[l.real:], uint64(s.RealNS))
	le.PutUint64(b[l.boot:], uint64(s.BootNS))
	le.PutUint64(b[l.lost:], s.Lost)
	le.PutUint64(b[l.skipped:], s.Skipped)
	le.PutUint64(b[l.duration:], uint64(s.DurationNS))
	le.PutUint32(b[l.loop:], s.Loop)
	le.PutUint32(b[l.started:], s.Started)
	le.PutUint32(b[l.finished:], s.Finished)
	le.PutUint32(b[l.failed:], s.Failed)
	le.PutUint32(b[l.open:], s.Open)
	le.PutUint32(b[l.timeWait:], uint32(s.TimeWait))
	le.PutUint32(b[l.ports:], uint32(s.Ports))
	b[l.kind] = byte(s.Kind)
}

func (l *sampleRecord) get(b []byte, s *Sample, names *renumbering) {
	*s = Sample{
		Kind: SampleKind(names.sample[b[l.kind]]), MonoNS: int64(le.Uint64(b[l.mono:])),
		RealNS: int64(le.Uint64(b[l.real:])), BootNS: int64(le.Uint64(b[l.boot:])),
		Lost: le.Uint64(b[l.lost:]), Skipped: le.Uint64(b[l.skipped:]), DurationNS: int64(le.Uint64(b[l.duration:])),
		Loop: le.Uint32(b[l.loop:]), Started: le.Uint32(b[l.started:]), Finished: le.Uint32(b[l.finished:]),
		Failed: le.Uint32(b[l.failed:]), Open: le.Uint32(b[l.open:]),
		TimeWait: int32(le.Uint32(b[l.timeWait:])), Ports: int32(le.Uint32(b[l.ports:])),
	}
}

func putAddr(b []byte, a netip.Addr) {
	if a.IsValid() {
		raw := a.As16()
		copy(b, raw[:])
		return
	}
	clear(b[:16])
}

func getAddr(b []byte, family byte) netip.Addr {
	switch family {
	case 4:
		return netip.AddrFrom4([4]byte(b[12:16]))
	case 6:
		return netip.AddrFrom16([16]byte(b))
	}
	return netip.Addr{}
}
