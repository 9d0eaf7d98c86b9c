package timeline

import (
	"encoding/binary"
	"testing"

	"github.com/twtrace/twtrace/internal/tcp"
)

var (
	curl  = tcp.Owner{PID: 100, Cgroup: 7, Comm: tcp.Comm{'c', 'u', 'r', 'l'}}
	nginx = tcp.Owner{PID: 200, Cgroup: 8, Comm: tcp.Comm{'n', 'g', 'i', 'n', 'x'}}
)

const (
	ms      = int64(1e6)
	unknown = int64(-1)
)

// told is an event and what has to be known with it.
type told struct {
	ev      tcp.Event
	owner   tcp.Owner
	inState int64
}

func on(port uint16, ev tcp.Event) tcp.Event {
	ev.Tuple = tuple(port)
	return ev
}

func owned(owner tcp.Owner, ev tcp.Event) tcp.Event {
	ev.Owner, ev.Flags = owner, ev.Flags|tcp.FlagOwner
	return ev
}

func late(ev tcp.Event) tcp.Event {
	ev.Flags |= tcp.FlagLate
	return ev
}

func change(at int64, cookie tcp.Cookie, old, new tcp.State) tcp.Event {
	return on(40000, tcp.Event{Kind: tcp.KindState, MonoNS: at, Cookie: cookie, Old: old, New: new})
}

func of(kind tcp.Kind, at int64, cookie tcp.Cookie, state tcp.State) tcp.Event {
	return on(40000, tcp.Event{Kind: kind, MonoNS: at, Cookie: cookie, Old: state, New: state})
}

func enter(at int64, cookie tcp.Cookie) tcp.Event {
	return on(40000, tcp.Event{Kind: tcp.KindTWEnter, MonoNS: at, Cookie: cookie, New: tcp.TimeWait, Substate: tcp.TimeWait})
}

func end(at int64, cookie tcp.Cookie) tcp.Event {
	return on(40000, tcp.Event{Kind: tcp.KindTWEnd, MonoNS: at, Cookie: cookie, Old: tcp.TimeWait, New: tcp.Close})
}

// TestOwners tells lives of connections as the kernel does (tcp_connect,
// tcp_disconnect, tcp_time_wait), and asks what has to be known at each point.
func TestOwners(t *testing.T) {
	for name, life := range map[string][]told{
		"an active close, to the end of its TIME_WAIT": {
			{owned(curl, change(1*ms, 1, tcp.Close, tcp.SynSent)), curl, unknown},
			{change(3*ms, 1, tcp.SynSent, tcp.Established), curl, 2 * ms},
			{of(tcp.KindRetransmit, 4*ms, 1, tcp.Established), curl, 1 * ms},
			{change(10*ms, 1, tcp.Established, tcp.FinWait1), curl, 7 * ms},
			{change(11*ms, 1, tcp.FinWait1, tcp.FinWait2), curl, 1 * ms},
			{enter(15*ms, 1), curl, 4 * ms},
			{change(15*ms+1, 1, tcp.FinWait2, tcp.Close), curl, 4*ms + 1},
			{end(60_015*ms, 1), curl, 60_000 * ms},
			{end(60_016*ms, 1), tcp.Owner{}, unknown},
		},
		"RST and error come after the change to CLOSE": {
			{owned(curl, change(1*ms, 1, tcp.Close, tcp.SynSent)), curl, unknown},
			{change(2*ms, 1, tcp.SynSent, tcp.Established), curl, 1 * ms},
			{change(3*ms, 1, tcp.Established, tcp.Close), curl, 1 * ms},
			{of(tcp.KindRstSent, 3*ms+10, 1, tcp.Close), curl, 10},
			{of(tcp.KindError, 3*ms+20, 1, tcp.Close), curl, 20},
			{of(tcp.KindError, 1004*ms, 1, tcp.Close), tcp.Owner{}, unknown},
		},
		"the same socket is connected again, by another process": {
			{owned(curl, change(1*ms, 1, tcp.Close, tcp.SynSent)), curl, unknown},
			{change(2*ms, 1, tcp.SynSent, tcp.Close), curl, 1 * ms},
			{owned(nginx, change(900*ms, 1, tcp.Close, tcp.SynSent)), nginx, 898 * ms},
			{change(5000*ms, 1, tcp.SynSent, tcp.Established), nginx, 4100 * ms}, // not forgotten for its first CLOSE
		},
		"a connection and an older TIME_WAIT of the same cookie": {
			{owned(curl, change(1*ms, 1, tcp.Close, tcp.SynSent)), curl, unknown},
			{enter(2*ms, 1), curl, 1 * ms},
			{change(2*ms, 1, tcp.FinWait2, tcp.Close), curl, 1 * ms},
			{owned(nginx, on(40001, change(3*ms, 1, tcp.Close, tcp.SynSent))), nginx, 1 * ms},
			{on(40001, change(9*ms, 1, tcp.SynSent, tcp.Established)), nginx, 6 * ms},
			{end(102*ms, 1), curl, 100 * ms},
			{on(40001, change(109*ms, 1, tcp.Established, tcp.CloseWait)), nginx, 100 * ms},
		},
		"older than the trace": {
			{change(1*ms, 1, tcp.Established, tcp.FinWait1), tcp.Owner{}, unknown},
			{change(3*ms, 1, tcp.FinWait1, tcp.FinWait2), tcp.Owner{}, 2 * ms},
		},
		"the snapshot gives the owner, not the time": {
			{owned(curl, of(tcp.KindSnapshot, 1*ms, 1, tcp.Established)), curl, unknown},
			{change(3*ms, 1, tcp.Established, tcp.FinWait1), curl, unknown},
			{change(4*ms, 1, tcp.FinWait1, tcp.FinWait2), curl, 1 * ms},
		},
		"the snapshot takes nothing away": {
			{owned(curl, change(1*ms, 1, tcp.Close, tcp.SynSent)), curl, unknown},
			{of(tcp.KindSnapshot, 2*ms, 1, tcp.SynSent), curl, unknown},
			{change(3*ms, 1, tcp.SynSent, tcp.Established), curl, 2 * ms},
		},
		"a TIME_WAIT of the snapshot": {
			{owned(curl, of(tcp.KindSnapshot, 1*ms, 1, tcp.TimeWait)), curl, unknown},
			{of(tcp.KindRstSent, 2*ms, 1, tcp.TimeWait), curl, unknown},
			{end(3*ms, 1), curl, unknown},
		},
		"a FIN_WAIT2 minisock becomes TIME_WAIT": {
			{owned(curl, change(1*ms, 1, tcp.Close, tcp.SynSent)), curl, unknown},
			{enter(2*ms, 1), curl, 1 * ms},
			{of(tcp.KindTWConvert, 5*ms, 1, tcp.TimeWait), curl, 3 * ms},
			{end(65*ms, 1), curl, 60 * ms},
		},
		"a late event has no time to count from": {
			{owned(curl, change(1*ms, 1, tcp.Close, tcp.SynSent)), curl, unknown},
			{enter(2*ms, 1), curl, 1 * ms},
			{late(of(tcp.KindTWConvert, 5*ms, 1, tcp.TimeWait)), curl, unknown},
			{end(65*ms, 1), curl, unknown},
		},
		"a listener's drops, and what it accepts": {
			{owned(nginx, change(1*ms, 1, tcp.Close, tcp.Listen)), nginx, unknown},
			{of(tcp.KindListenDrop, 2*ms, 1, tcp.Listen), nginx, 1 * ms},
			{owned(nginx, change(3*ms, 2, tcp.Listen, tcp.SynRecv)), nginx, unknown},
			{change(4*ms, 2, tcp.SynRecv, tcp.Established), nginx, 1 * ms},
		},
		"events of different CPUs in the wrong order": {
			{change(2*ms, 1, tcp.SynSent, tcp.Established), tcp.Owner{}, unknown},
			{of(tcp.KindRstReceived, 1*ms, 1, tcp.Established), tcp.Owner{}, 0},
		},
		"without a cookie": {
			{owned(curl, change(1*ms, 0, tcp.Close, tcp.SynSent)), curl, unknown},
			{change(2*ms, 0, tcp.SynSent, tcp.Established), tcp.Owner{}, unknown},
		},
		"a bind() that failed leaves nothing": {
			{owned(curl, of(tcp.KindBindFailed, 1*ms, 1, tcp.Close)), curl, unknown},
			{of(tcp.KindBindFailed, 2*ms, 1, tcp.Close), tcp.Owner{}, unknown},
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := NewOwners(0)
			for i, step := range life {
				if got, want := o.Event(&step.ev), (Past{Owner: step.owner, InState: step.inState}); got != want {
					t.Errorf("event %d, %s: %+v, want %+v", i, step.ev.Kind, got, want)
				}
			}
		})
	}
}

// TestOwnersHolder: whose the port is that a bind() wanted, while its holder lives and as
// a TIME_WAIT has it.
func TestOwnersHolder(t *testing.T) {
	o := NewOwners(0)
	asks := func(at int64, state tcp.State, cookie tcp.Cookie) tcp.Owner {
		ev := owned(curl, of(tcp.KindBindFailed, at, 99, tcp.Close))
		ev.Holder = tcp.Holder{State: state, Cookie: cookie}
		past := o.Event(&ev)
		if past.Owner != curl {
			t.Errorf("bind() is %+v's, want curl's", past.Owner)
		}
		return past.Holder
	}
	for _, ev := range []tcp.Event{
		owned(nginx, change(1*ms, 1, tcp.Close, tcp.Listen)),
		owned(nginx, change(2*ms, 2, tcp.SynRecv, tcp.Established)),
		enter(3*ms, 2),
		change(3*ms, 2, tcp.FinWait2, tcp.Close),
	} {
		o.Event(&ev)
	}
	if got := asks(4*ms, tcp.Listen, 1); got != nginx {
		t.Errorf("a listener is %+v's, want nginx's", got)
	}
	if got := asks(5000*ms, tcp.TimeWait, 2); got != nginx {
		t.Errorf("a TIME_WAIT is %+v's, want nginx's", got)
	}
	for _, cookie := range []tcp.Cookie{0, 3} {
		if got := asks(5001*ms, tcp.Listen, cookie); got != (tcp.Owner{}) {
			t.Errorf("socket %d is %+v's, though nothing is known of it", cookie, got)
		}
	}
	over := end(6000*ms, 2)
	o.Event(&over)
	if got := asks(6001*ms, tcp.TimeWait, 2); got != (tcp.Owner{}) {
		t.Errorf("a TIME_WAIT that is over is %+v's", got)
	}
}

// TestOwnersForget: nothing is left of what is over, however much there was.
func TestOwnersForget(t *testing.T) {
	o := NewOwners(0)
	at := int64(0)
	for cookie := tcp.Cookie(1); cookie <= 20_000; cookie++ {
		at += ms
		o.Event(&tcp.Event{Kind: tcp.KindState, MonoNS: at, Cookie: cookie, Old: tcp.Close, New: tcp.SynSent})
		ev := enter(at, cookie)
		o.Event(&ev)
		o.Event(&tcp.Event{Kind: tcp.KindState, MonoNS: at, Cookie: cookie, Old: tcp.FinWait2, New: tcp.Close})
		ev = end(at, cookie)
		o.Event(&ev)
	}
	if n := len(o.sockets); n > 1001 { // those of the last second
		t.Errorf("%d sockets are remembered", n)
	}
	if n := len(o.closing); n > 10_000 {
		t.Errorf("%d closed sockets are queued", n)
	}
	o.Event(&tcp.Event{Kind: tcp.KindState, MonoNS: at + 2*afterClose, Cookie: 1, Old: tcp.Close, New: tcp.SynSent})
	if n := len(o.sockets); n != 1 {
		t.Errorf("%d sockets are remembered, want the one that is open", n)
	}
}

func TestOwnersOverflow(t *testing.T) {
	o := NewOwners(2)
	for i, tt := range []struct {
		told
		overflow uint64
	}{
		{told{owned(curl, change(1*ms, 1, tcp.Close, tcp.SynSent)), curl, unknown}, 0},
		{told{owned(curl, change(2*ms, 2, tcp.Close, tcp.SynSent)), curl, unknown}, 0},
		{told{owned(curl, change(3*ms, 3, tcp.Close, tcp.SynSent)), curl, unknown}, 1}, // its own event tells
		{told{change(4*ms, 3, tcp.SynSent, tcp.Established), tcp.Owner{}, unknown}, 2}, // the next does not
		{told{change(5*ms, 1, tcp.SynSent, tcp.Close), curl, 4 * ms}, 2},
		{told{change(2000*ms, 3, tcp.Established, tcp.FinWait1), tcp.Owner{}, unknown}, 2}, // room again
	} {
		if got, want := o.Event(&tt.ev), (Past{Owner: tt.owner, InState: tt.inState}); got != want {
			t.Errorf("event %d: %+v, want %+v", i, got, want)
		}
		if o.Overflow() != tt.overflow {
			t.Errorf("event %d: overflow %d, want %d", i, o.Overflow(), tt.overflow)
		}
	}
}

// FuzzOwners feeds any stream: memory stays within the limit, and no time runs
// backwards.
func FuzzOwners(f *testing.F) {
	f.Add([]byte{1, 1, 7, 2, 32, 1, 1, 7, 2, 1, 0, 1}, uint8(4))
	f.Fuzz(func(t *testing.T, data []byte, limit uint8) {
		o := NewOwners(int(limit))
		bound := int(limit)
		if bound == 0 {
			bound = MaxFollowed
		}
		at := int64(1)
		for ; len(data) >= 6; data = data[6:] {
			at += int64(binary.LittleEndian.Uint16(data[4:])) * ms
			ev := tcp.Event{
				MonoNS: at, Kind: tcp.Kind(data[0]), Cookie: tcp.Cookie(data[1] % 16),
				Old: tcp.State(data[2] >> 4), New: tcp.State(data[2] & 15), Flags: tcp.Flags(data[3]),
			}
			ev.Tuple = tuple(uint16(data[0]))
			if ev.Flags&tcp.FlagOwner != 0 {
				ev.Owner = curl
			}
			past := o.Event(&ev)
			if past.InState < -1 || past.InState > at {
				t.Fatalf("%+v in state for %d ns after %d", ev, past.InState, at)
			}
			if ev.Flags&tcp.FlagOwner != 0 && past.Owner != curl {
				t.Fatalf("%+v lost its owner", ev)
			}
			if len(o.sockets) > bound {
				t.Fatalf("%d sockets, limit %d", len(o.sockets), bound)
			}
		}
	})
}
