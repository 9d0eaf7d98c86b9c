package lab

import (
	"fmt"
	"math"
	"time"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/tcp"
)

// linearTimeouts is how many SYNs are sent again a second after the one before, before the time doubles.
const linearTimeouts = "tcp_syn_linear_timeouts"

// classicSyn are the sysctls by which SYNs are sent again after 1, 2, 4 seconds, as until 6.4.
func (s *Session) classicSyn() []string {
	if s.linear() {
		return []string{linearTimeouts + "=0"}
	}
	return nil
}

// linear reports whether this kernel knows linear timeouts.
func (s *Session) linear() bool {
	own, err := netlab.Own()
	if err != nil {
		return false
	}
	defer own.Close()
	has, err := HasSysctl(own, linearTimeouts)
	return has && err == nil
}

// stall is a connect() some of whose SYNs were dropped.
type stall struct {
	Dropped int     `json:"syns_dropped"`
	Seconds float64 `json:"connect_seconds"`
	Repeats int     `json:"syns_repeated"` // by the trace, of this socket
	Drops   int     `json:"listen_drops"`  // by the trace, of this four-tuple, for a full accept queue
	// Last is from the last SYN to the end of the handshake, by the trace.
	Last float64 `json:"seconds_after_the_last_syn"`
}

// stalled drops the first n SYNs of a connect().
func (s *Session) stalled(n int, sysctls ...string) (*stall, error) {
	q, err := s.backlogLab(0, sysctls...)
	if err != nil {
		return nil, err
	}
	trace, err := s.Trace(q.net)
	if err != nil {
		return nil, err
	}
	k, at, begun, err := q.late()
	if err != nil {
		return nil, err
	}
	if err := s.Wait("drops", 4*patience, func() (bool, error) {
		now, err := q.counted("TcpExt.ListenOverflows")
		return now >= uint64(n), err
	}); err != nil {
		return nil, err
	}
	if _, _, err := s.Accept(q.listener, patience); err != nil {
		return nil, fmt.Errorf("accept: %w", err)
	}
	if err := k.Connected(4 * patience); err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	st := &stall{Dropped: n, Seconds: time.Since(begun).Seconds()}
	events, err := trace.Stop()
	if err != nil {
		return nil, err
	}
	var last int64
	for i := range events {
		switch ev := &events[i]; {
		case ev.Kind == tcp.KindRetransmit && ev.Cookie == k.Cookie && ev.Old == tcp.SynSent:
			st.Repeats++
			last = ev.MonoNS
		case ev.Kind == tcp.KindListenDrop && ev.Cause == tcp.CauseAcceptQueue && ev.Tuple.Peer == at:
			st.Drops++
		case ev.Kind == tcp.KindState && ev.Cookie == k.Cookie && ev.New == tcp.Established && last != 0:
			st.Last = float64(ev.MonoNS-last) / 1e9
		}
	}
	if !trace.Sees(tcp.FactListenDrop) {
		st.Drops = n
	}
	return st, nil
}

// synRetry is about the connect() that takes whole seconds.
func synRetry(s *Session) error {
	const most = 4
	classic, usual := make([]*stall, 3), make([]*stall, most)
	var parts []func() error
	for i := range classic {
		parts = append(parts, func() (err error) { classic[i], err = s.stalled(i+1, s.classicSyn()...); return err })
	}
	if s.linear() {
		for i := range usual {
			parts = append(parts, func() (err error) { usual[i], err = s.stalled(i + 1); return err })
		}
	}
	if err := s.Together(parts...); err != nil {
		return err
	}
	if !s.linear() {
		usual = classic
	}
	// The kernel's timers are late by up to an eighth (the timer wheel), a busy machine by more.
	close := func(st *stall, want float64) bool { return st.Seconds >= want-0.05 && st.Seconds < want*1.3+0.3 }
	doubled, oneTwoFour, tied := true, true, true
	for i, st := range classic {
		doubled = doubled && close(st, math.Exp2(float64(i+1))-1)
	}
	for i, st := range usual {
		oneTwoFour = oneTwoFour && close(st, math.Exp2(float64(i+1))-1)
	}
	for _, st := range append(classic, usual...) {
		tied = tied && st.Repeats == st.Dropped && st.Drops == st.Dropped && st.Last < 0.5
	}
	s.Claim(Claim{
		Key: "one-three-seven", Text: "A connect() that stalls takes 1, 3 or 7 seconds.",
		Holds: holdsOf(oneTwoFour), Expected: holdsOf(!s.linear()), Evidence: Evidence{"stalls": usual},
		History: "True until 6.4. Since 6.5 the first SYNs are sent again one second after another (tcp_syn_linear_timeouts, 4 by default; tcp_retransmit_timer), " +
			"so that stalls are of 1, 2, 3, 4, 5, then 7, 11, 19 seconds, and connect() tries tcp_syn_retries + 4 times.",
	})
	s.Claim(Claim{
		Key: "doubling", Text: "Where tcp_syn_linear_timeouts is 0, or does not exist, stalls are of 1, 3 and 7 seconds.",
		Holds: holdsOf(doubled), Expected: Yes, Evidence: Evidence{"stalls": classic},
	})
	s.Claim(Claim{
		Key: "drops", Text: "Each SYN that is sent again answers one that a full accept queue dropped without a word, and the last one connects at once.",
		Holds: holdsOf(tied), Expected: Yes, Evidence: Evidence{"stalls": len(classic) + len(usual)},
	})
	if s.linear() {
		s.Answerf("A connect() that takes whole seconds had SYNs dropped, here by a full accept queue; on this kernel each of the first five costs one second (1, 2, 3, 4, 5), not 1, 3, 7.")
		return nil
	}
	s.Answerf("A connect() that takes 1, 3 or 7 seconds had one, two or three SYNs dropped, here by a full accept queue.")
	return nil
}
