package watch

import (
	"slices"

	"github.com/twtrace/twtrace/internal/tcp"
)

// Missing is a fact that was asked for and can't be seen.
type Missing struct {
	Fact tcp.Fact
	Kind tcp.Kind // that the fact belongs to; 0: a filter asks for it
}

// String names what is missing in the words of the command line.
func (m Missing) String() string {
	if m.Kind == 0 {
		return string(m.Fact)
	}
	if string(m.Fact) == m.Kind.String() {
		return m.Kind.String()
	}
	return m.Kind.String() + " (" + string(m.Fact) + ")"
}

// kinds has, per kind, the facts that its lines consist of, and the kinds that have
// to be read along with it: they tell whose connection it is, for how long it was in its
// state, and when it is over and can be forgotten.
var kinds = [tcp.NumKinds]struct {
	facts   []tcp.Fact
	along   []tcp.Kind
	failure bool // may be of a connection that failed (tracer.Options.FailuresOnly)
}{
	tcp.KindState:            {facts: []tcp.Fact{tcp.FactState}, failure: true},
	tcp.KindRstSent:          {facts: []tcp.Fact{tcp.FactRstSent, tcp.FactRstReason}, along: lives},
	tcp.KindRstReceived:      {facts: []tcp.Fact{tcp.FactRstReceived}, along: states, failure: true},
	tcp.KindTWEnter:          {facts: []tcp.Fact{tcp.FactTWEnter}, along: lives},
	tcp.KindTWEnd:            {facts: []tcp.Fact{tcp.FactTWEnd, tcp.FactTWCause}, along: lives},
	tcp.KindTWOverflow:       {facts: []tcp.Fact{tcp.FactTWOverflow}, along: states},
	tcp.KindRetransmit:       {facts: []tcp.Fact{tcp.FactRetransmit}, along: states},
	tcp.KindSynAckRetransmit: {facts: []tcp.Fact{tcp.FactRetransmit}, along: states},
	tcp.KindError:            {facts: []tcp.Fact{tcp.FactError}, along: states, failure: true},
	tcp.KindTWConvert:        {facts: []tcp.Fact{tcp.FactTWConvert}, along: lives},
	tcp.KindConnectFailed:    {facts: []tcp.Fact{tcp.FactConnectFail, tcp.FactRefusals}, along: states, failure: true},
	tcp.KindBindFailed:       {facts: []tcp.Fact{tcp.FactBindFail, tcp.FactBindOwner}, along: lives, failure: true},
	tcp.KindListenDrop:       {facts: []tcp.Fact{tcp.FactListenDrop}, along: states, failure: true},
	tcp.KindSnapshot:         {facts: []tcp.Fact{tcp.FactSnapshot}},
}

var (
	states = []tcp.Kind{tcp.KindState}
	lives  = []tcp.Kind{tcp.KindState, tcp.KindTWEnter, tcp.KindTWConvert, tcp.KindTWEnd}
)

// wants says whether events of a kind are written.
func wants(list []tcp.Kind, k tcp.Kind) bool { return len(list) == 0 || slices.Contains(list, k) }

// read returns the kinds that have to be read for those that are written; nil: all.
func read(opts *Options) []tcp.Kind {
	if len(opts.Tracer.Kinds) == 0 {
		return nil
	}
	list := slices.Clone(opts.Tracer.Kinds)
	for _, k := range opts.Tracer.Kinds {
		list = append(list, kinds[k].along...)
	}
	if opts.Snapshot {
		list = append(list, tcp.KindSnapshot) // which has owners too
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// missing returns what opts ask for and the kernel does not show. A fact that the
// coverage does not name is one that the tracer does not know of.
func missing(opts *Options, coverage tcp.Coverage) []Missing {
	var list []Missing
	check := func(k tcp.Kind, fact tcp.Fact) {
		if g := coverage[fact]; g == "" || g == tcp.NotObservable {
			list = append(list, Missing{fact, k})
		}
	}
	for i := range kinds {
		k := tcp.Kind(i)
		if !wants(opts.Tracer.Kinds, k) || k == tcp.KindSnapshot && !opts.Snapshot ||
			opts.Tracer.FailuresOnly && !kinds[k].failure {
			continue
		}
		for _, fact := range kinds[k].facts {
			check(k, fact)
		}
	}
	if len(opts.Tracer.PIDs)+len(opts.Tracer.Comms)+len(opts.Tracer.Cgroups) > 0 {
		check(0, tcp.FactOwner)
	}
	return list
}
