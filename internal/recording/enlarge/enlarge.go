// Package enlarge makes a long recording out of a real one, by repeating it: each time as other connections,
// later, from other ports. It is for measuring what reads recordings.
package enlarge

import (
	"errors"
	"math"
	"net/netip"

	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
)

// The source ports that are shifted, the default range of Linux: a service's port stays as it is.
const (
	lowPort  = 32768
	highPort = 60999
	stride   = 7919 // ports from one repetition to the next
)

// ErrEmpty says that there is no event to repeat.
var ErrEmpty = errors.New("the recording has no events")

// extent is how far the numbers of a recording go.
type extent struct {
	seq                  uint64
	minNS, maxNS         int64
	minCookie, maxCookie tcp.Cookie
	minLoop, maxLoop     uint32
}

// Events writes a recording over and over to w, until n events are written, the last time as much of it
// as is needed for them. It holds no more of it than a batch.
func Events(w *recording.Writer, r *recording.Reader, n uint64) error {
	e, err := measure(r)
	if err != nil {
		return err
	}
	errEnough := errors.New("enough")
	written := uint64(0)
	for round := uint64(0); ; round++ {
		s := e.shift(round)
		_, err := r.Scan(recording.Query{}, func(b *recording.Batch) error {
			if left := n - written; uint64(len(b.Events)) > left {
				b.Events = b.Events[:left]
			}
			s.batch(b)
			w.Events(b.Events)
			w.Attempts(b.Attempts)
			for _, sample := range b.Samples {
				w.Sample(sample)
			}
			written += uint64(len(b.Events))
			if written == n {
				return errEnough
			}
			return nil
		})
		if errors.Is(err, errEnough) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func measure(r *recording.Reader) (*extent, error) {
	e := &extent{minNS: math.MaxInt64, minCookie: math.MaxUint64, minLoop: math.MaxUint32}
	time := func(ns int64) { e.minNS, e.maxNS = min(e.minNS, ns), max(e.maxNS, ns) }
	cookie := func(c tcp.Cookie) {
		if c != 0 {
			e.minCookie, e.maxCookie = min(e.minCookie, c), max(e.maxCookie, c)
		}
	}
	_, err := r.Scan(recording.Query{}, func(b *recording.Batch) error {
		for i := range b.Events {
			e.seq = max(e.seq, b.Events[i].Seq)
			time(b.Events[i].MonoNS)
			cookie(b.Events[i].Cookie)
		}
		for i := range b.Attempts {
			a := &b.Attempts[i]
			e.minLoop, e.maxLoop = min(e.minLoop, a.Loop), max(e.maxLoop, a.Loop)
			time(a.Started)
			time(a.Closed)
			cookie(a.Cookie)
		}
		return nil
	})
	if err == nil && e.seq == 0 {
		err = ErrEmpty
	}
	return e, err
}

// shift is what a repetition adds.
type shift struct {
	seq    uint64
	ns     int64
	cookie tcp.Cookie
	loop   uint32
	port   uint16
}

func (e *extent) shift(round uint64) shift {
	var cookies tcp.Cookie
	if e.maxCookie > 0 {
		cookies = e.maxCookie - e.minCookie + 1
	}
	var loops uint32
	if e.minLoop <= e.maxLoop {
		loops = e.maxLoop - e.minLoop + 1
	}
	return shift{
		seq: round * e.seq, ns: int64(round) * (e.maxNS - e.minNS + 1), cookie: tcp.Cookie(round) * cookies,
		loop: uint32(round) * loops, port: uint16(round * stride % (highPort - lowPort + 1)),
	}
}

func (s *shift) batch(b *recording.Batch) {
	for i := range b.Events {
		ev := &b.Events[i]
		ev.Seq += s.seq
		s.at(&ev.MonoNS)
		s.of(&ev.Cookie)
		s.of(&ev.Holder.Cookie)
		ev.Tuple.Local = s.end(ev.Tuple.Local)
		ev.Tuple.Peer = s.end(ev.Tuple.Peer)
	}
	for i := range b.Attempts {
		a := &b.Attempts[i]
		for _, ns := range []*int64{&a.Started, &a.Intended, &a.Connected, &a.FirstByte, &a.Closed} {
			s.at(ns)
		}
		s.of(&a.Cookie)
		a.Loop += s.loop
		a.LocalPort = s.of16(a.LocalPort)
	}
	for i := range b.Samples {
		m := &b.Samples[i]
		s.at(&m.MonoNS)
		s.at(&m.RealNS)
		s.at(&m.BootNS)
		m.Loop += s.loop
	}
}

// at shifts a time, unless there is none.
func (s *shift) at(ns *int64) {
	if *ns != 0 {
		*ns += s.ns
	}
}

func (s *shift) of(c *tcp.Cookie) {
	if *c != 0 {
		*c += s.cookie
	}
}

func (s *shift) of16(port uint16) uint16 {
	if port < lowPort || port > highPort {
		return port
	}
	return lowPort + uint16((uint32(port-lowPort)+uint32(s.port))%(highPort-lowPort+1))
}

func (s *shift) end(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr(), s.of16(a.Port()))
}
