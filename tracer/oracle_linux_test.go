package tracer

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/oracle"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/testenv"
)

// theOracle is attached once and stays: what it counts is asked for by namespace.
var theOracle = sync.OnceValues(oracle.Open)

// evidence is what the oracle counts in the namespaces of a scene.
type evidence struct {
	*oracle.Oracle
	missed map[oracle.Fact]uint64 // before the scene
	counts map[*netlab.Namespace]*oracle.Counts
}

// summon begins to count, where the kernel lets it (it does not under lockdown).
func (s *scene) summon() {
	s.Helper()
	o, err := theOracle()
	if err != nil {
		if !errors.Is(err, os.ErrPermission) {
			s.Fatalf("the oracle: %v", err)
		}
		return // TestOracle says so
	}
	s.witness = &evidence{o, make(map[oracle.Fact]uint64), make(map[*netlab.Namespace]*oracle.Counts)}
	for _, row := range testimony {
		s.witness.missed[row.fact], err = o.Missed(row.fact)
		s.must("the oracle", err)
	}
	for _, ns := range s.traced {
		netns := ns.Cookie() // still known when the namespace is gone
		s.must("the oracle", o.Watch(netns))
		s.Cleanup(func() { s.must("the oracle", o.Unwatch(netns)) })
	}
}

// testimony is how the facts of the oracle name the events of the trace.
var testimony = []struct {
	fact  oracle.Fact
	grade tcp.Fact // compared only where the trace says that it is exact
	match func(*scene, *Event) bool
	// maybe are events that can be the fact, and the trace can't tell.
	maybe func(*scene, *Event) bool
}{
	{fact: oracle.StateChange, grade: tcp.FactState, match: of(tcp.KindState, tcp.CauseNone)},
	{fact: oracle.FinSent, grade: tcp.FactState, match: change(
		move{tcp.Established, tcp.FinWait1}, move{tcp.SynRecv, tcp.FinWait1}, move{tcp.CloseWait, tcp.LastAck})},
	{fact: oracle.FinReceived, grade: tcp.FactState, match: finReceived, maybe: overflownInFinWait2},
	{fact: oracle.RstSent, grade: tcp.FactRstSent, match: of(tcp.KindRstSent, tcp.CauseNone)},
	{fact: oracle.RstReceived, grade: tcp.FactRstReceived, match: of(tcp.KindRstReceived, tcp.CauseNone)},
	{fact: oracle.Retransmit, grade: tcp.FactRetransmit, match: func(_ *scene, ev *Event) bool {
		return ev.Kind == tcp.KindRetransmit && ev.Errno == 0
	}},
	{fact: oracle.SynAckRetransmit, grade: tcp.FactRetransmit, match: of(tcp.KindSynAckRetransmit, tcp.CauseNone)},
	{fact: oracle.ErrorReport, grade: tcp.FactError, match: of(tcp.KindError, tcp.CauseNone)},
	{fact: oracle.MadeFinWait2, grade: tcp.FactTWEnter, match: func(_ *scene, ev *Event) bool {
		return ev.Kind == tcp.KindTWEnter && ev.Substate == tcp.FinWait2
	}},
	{fact: oracle.MadeTimeWait, grade: tcp.FactTWEnter, match: func(_ *scene, ev *Event) bool {
		return ev.Kind == tcp.KindTWEnter && ev.Substate == tcp.TimeWait
	}},
	{fact: oracle.Overflow, grade: tcp.FactTWOverflow, match: of(tcp.KindTWOverflow, tcp.CauseNone)},
	{fact: oracle.Converted, grade: tcp.FactTWConvert, match: of(tcp.KindTWConvert, tcp.CauseNone)},
	{fact: oracle.Expired, grade: tcp.FactTWEnd, match: of(tcp.KindTWEnd, tcp.CauseExpired)},
	{fact: oracle.Reused, grade: tcp.FactTWEnd, match: of(tcp.KindTWEnd, tcp.CauseReusedByConnect)},
	{fact: oracle.Replaced, grade: tcp.FactTWCause, match: of(tcp.KindTWEnd, tcp.CauseReplacedBySyn)},
	{fact: oracle.Killed, grade: tcp.FactTWCause, match: of(tcp.KindTWEnd, tcp.CauseKilledByRst)},
	{fact: oracle.Purged, grade: tcp.FactTWEnd, match: of(tcp.KindTWEnd, tcp.CausePurged)},
	{fact: oracle.Destroyed, grade: tcp.FactTWEnd, match: of(tcp.KindTWEnd, tcp.CauseDestroyed)},
	{fact: oracle.EndedOtherwise, grade: tcp.FactTWEnd, match: of(tcp.KindTWEnd, tcp.CauseUnknown)},
	{fact: oracle.PortSearch, grade: tcp.FactConnectFail, match: of(tcp.KindConnectFailed, tcp.CausePortSearch)},
	{fact: oracle.FourTupleBusy, grade: tcp.FactConnectFail, match: of(tcp.KindConnectFailed, tcp.CauseFourTupleBusy)},
	{fact: oracle.BindFailed, grade: tcp.FactBindFail, match: of(tcp.KindBindFailed, tcp.CauseNone)},
	{fact: oracle.DropAcceptQueue, grade: tcp.FactListenDrop, match: func(_ *scene, ev *Event) bool {
		return ev.Kind == tcp.KindListenDrop && ev.Cause == tcp.CauseAcceptQueue && ev.Substate == tcp.SynSent
	}},
	{fact: oracle.DropLastACK, grade: tcp.FactListenDrop, match: func(_ *scene, ev *Event) bool {
		return ev.Kind == tcp.KindListenDrop && ev.Cause == tcp.CauseAcceptQueue && ev.Substate == tcp.Established
	}},
	{fact: oracle.DropSynQueue, grade: tcp.FactListenDrop, match: of(tcp.KindListenDrop, tcp.CauseSynQueue)},
	{fact: oracle.DropOther, grade: tcp.FactListenDrop, match: of(tcp.KindListenDrop, tcp.CauseOtherDrop)},
}

// of matches the events of a kind, and of a cause if it is not CauseNone.
func of(k Kind, c tcp.Cause) func(*scene, *Event) bool {
	return func(_ *scene, ev *Event) bool { return ev.Kind == k && (c == tcp.CauseNone || ev.Cause == c) }
}

type move struct{ old, new tcp.State }

func change(moves ...move) func(*scene, *Event) bool {
	return func(_ *scene, ev *Event) bool {
		return ev.Kind == tcp.KindState && slices.Contains(moves, move{ev.Old, ev.New})
	}
}

// finReceived: the peer's FIN moves a full socket, or makes of one in FIN_WAIT2 a
// minisock in TIME_WAIT. (From CLOSING it is the ACK that does; the FIN was before.)
func finReceived(s *scene, ev *Event) bool {
	moved := change(move{tcp.Established, tcp.CloseWait}, move{tcp.SynRecv, tcp.CloseWait}, move{tcp.FinWait1, tcp.Closing})
	return moved(s, ev) || change(move{tcp.FinWait2, tcp.Close})(s, ev) && s.madeAtOnce()[ev.Cookie]
}

// overflownInFinWait2: a FIN, or only the ACK of the own one, had no room for its minisock.
func overflownInFinWait2(_ *scene, ev *Event) bool {
	return ev.Kind == tcp.KindTWOverflow && ev.Old == tcp.FinWait2
}

// madeAtOnce are the sockets that became a minisock in TIME_WAIT at once.
func (s *scene) madeAtOnce() map[tcp.Cookie]bool {
	if s.atOnce == nil {
		s.atOnce = make(map[tcp.Cookie]bool)
		for _, ev := range s.ofKind(tcp.KindTWEnter) {
			s.atOnce[ev.Cookie] = ev.Substate == tcp.TimeWait
		}
	}
	return s.atOnce
}

// testify reads what the oracle has counted so far.
func (s *scene) testify() {
	s.Helper()
	if s.witness == nil {
		return
	}
	for _, ns := range s.traced {
		c, err := s.witness.Counts(ns.Cookie())
		s.must("the oracle", err)
		s.witness.counts[ns] = c
	}
}

// compareOracle compares the trace with what the oracle testified to. The line that
// it logs is what the matrix of kernels shows (internal/vmtest).
func (s *scene) compareOracle() {
	s.Helper()
	if s.witness == nil {
		return
	}
	var deviations, notes []string
	agreed, witnessed := 0, 0
	for _, row := range testimony {
		if s.witness.NotWitnessed(row.fact) != nil {
			continue // TestOracle says so
		}
		witnessed++
		missed := s.missed(row.fact)
		if missed > 0 {
			notes = append(notes, fmt.Sprintf("%v: the oracle missed %d", row.fact, missed))
		}
		grade := s.trace.Coverage()[row.grade]
		fits := true
		for _, ns := range s.traced {
			n, maybe := s.numberOf(ns, row.match), s.numberOf(ns, row.maybe)
			seen := s.witness.counts[ns].Of(row.fact)
			words := fmt.Sprintf("%s %v: the trace has %d, the oracle %d", s.side(ns), row.fact, n, seen)
			switch {
			case n == seen:
			case grade != tcp.Exact:
				notes = append(notes, fmt.Sprintf("%s (%s)", words, grade))
			case n > seen+missed || seen > n+maybe+s.stats.Lost():
				fits = false
				deviations = append(deviations, words)
			case maybe > 0:
				notes = append(notes, fmt.Sprintf("%s (and %d that can be)", words, maybe))
			}
		}
		if fits {
			agreed++
		}
	}
	deviations = append(deviations, s.compareChanges()...)
	for _, d := range deviations {
		s.Error(d)
	}
	s.Logf("oracle: %d of %d facts agree%s", agreed, witnessed, strings.Join(append([]string{""}, notes...), "; "))
}

// missed is how often the oracle's programs for a fact were skipped during the scene.
func (s *scene) missed(f oracle.Fact) uint64 {
	s.Helper()
	n, err := s.witness.Missed(f)
	s.must("the oracle", err)
	return n - s.witness.missed[f]
}

// compareChanges compares the changes of state one by one, where nothing was lost.
func (s *scene) compareChanges() (deviations []string) {
	if s.stats.Lost() > 0 || s.missed(oracle.StateChange) > 0 || s.witness.NotWitnessed(oracle.StateChange) != nil {
		return nil
	}
	for _, ns := range s.traced {
		for old := tcp.Established; old <= tcp.NewSynRecv; old++ {
			for next := tcp.Established; next <= tcp.NewSynRecv; next++ {
				n, seen := s.numberOf(ns, change(move{old, next})), s.witness.counts[ns].Changes(uint8(old), uint8(next))
				if n != seen {
					deviations = append(deviations, fmt.Sprintf("%s %v>%v: the trace has %d, the oracle %d", s.side(ns), old, next, n, seen))
				}
			}
		}
	}
	return deviations
}

// numberOf counts the events of a namespace that match; none match nil.
func (s *scene) numberOf(ns *netlab.Namespace, match func(*scene, *Event) bool) (n uint64) {
	if match == nil {
		return 0
	}
	for i := range s.events {
		if ev := &s.events[i]; ev.NetNS == NetNS(ns.Cookie()) && match(s, ev) {
			n++
		}
	}
	return n
}

func (s *scene) side(ns *netlab.Namespace) string {
	switch {
	case s.lab.Client() == s.lab.Server():
		return "loopback"
	case ns == s.lab.Client():
		return "client"
	}
	return "server"
}

// TestOracle: the oracle counts what happens, forgets what it is told to, and says what
// this kernel does not let it see.
func TestOracle(t *testing.T) {
	testenv.Require(t, testenv.Fentry)
	s := newScene(t, setup{})
	if s.witness == nil {
		t.Fatal("this kernel refuses the oracle")
	}
	c := s.dial(0)
	s.closeFirst(c.client, c.server)
	s.finish()
	client, server := s.witness.counts[s.lab.Client()], s.witness.counts[s.lab.Server()]
	for _, tt := range []struct {
		fact   oracle.Fact
		counts *oracle.Counts
		want   uint64
	}{
		{oracle.StateChange, client, 5}, {oracle.StateChange, server, 5},
		{oracle.MadeTimeWait, server, 0}, {oracle.MadeFinWait2, server, 0},
		{oracle.FinSent, client, 1}, {oracle.FinSent, server, 1},
		{oracle.FinReceived, server, 1}, {oracle.RstSent, client, 0},
	} {
		if got := tt.counts.Of(tt.fact); got != tt.want && s.witness.NotWitnessed(tt.fact) == nil {
			t.Errorf("%v: %d, want %d", tt.fact, got, tt.want)
		}
	}
	if n := client.Of(oracle.MadeTimeWait) + client.Of(oracle.MadeFinWait2); n != 1 {
		t.Errorf("%d minisocks, want 1", n)
	}
	s.sayNotWitnessed()

	netns := s.lab.Client().Cookie()
	s.must("unwatch", s.witness.Unwatch(netns))
	if _, err := s.witness.Counts(netns); err == nil {
		t.Error("counts of a namespace that is not watched")
	}
	s.must("watch again", s.witness.Watch(netns)) // for the cleanup
}

// sayNotWitnessed fails the test if that is most of it.
func (s *scene) sayNotWitnessed() {
	s.Helper()
	var silent []string
	for _, row := range testimony {
		if err := s.witness.NotWitnessed(row.fact); err != nil {
			silent = append(silent, fmt.Sprintf("%v (%v)", row.fact, err))
		}
	}
	if len(silent) > len(testimony)/2 {
		s.Errorf("not witnessed: %d of %d facts", len(silent), len(testimony))
	}
	if len(silent) > 0 {
		s.Logf("oracle: not witnessed: %s", strings.Join(silent, "; "))
	}
}
