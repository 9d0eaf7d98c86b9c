// Package clients runs a storm in several processes, each with the whole of it, for
// what one process can't show: what happens when some clients stop, or are killed,
// while the others go on.
//
// The program starts itself again with the argument Command, and its main must then
// call Serve. A Group is the parent's end; its Run takes a loadgen.Plan and gives back
// what a Storm would:
//
//	group, err := clients.Start(4, namespace.Do)
//	…
//	result, err := group.Run(ctx, plan)
//
// Between the two is a socket pair. The plan goes down as JSON, attempts come up in the
// batches in which the storm hands them over, as they are in memory. A loop begins when
// every client is through with the one before, so that loop 3 is the same time for all.
//
//	Group.Run ── plan, begin, begin, … stop ──▶ Serve ── Storm.Run
//	    ▲                                         │
//	    └──── ready, attempts, loop end, result ──┘
//
// Nothing is buffered without bound: a client whose batches nobody reads waits in
// OnAttempts, and its shards wait for it (loadgen.Result.Stalls).
//
// A client that is killed takes along what it had not reported. How many attempts it had
// begun is in a page of memory that parent and client share (loadgen.Plan.Begun), so that
// the rest is a number, Account.NotReported.
package clients
