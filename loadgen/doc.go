// Package loadgen makes storms of short TCP connections and serves them: a
// Storm opens many connections at once, sends a request on each, reads the same
// number of bytes back and closes; a Server is the other end. Neither needs a
// privilege, and neither knows of tracing: what ties a storm to the kernel's own
// account of it is that every Attempt carries its socket's cookie and times of
// the kernel's clock.
//
//	plan := loadgen.NewPlan(netip.MustParseAddrPort("127.0.0.1:8080"))
//	plan.OnAttempts = func(attempts []loadgen.Attempt) { … }
//	storm, err := loadgen.NewStorm(plan)
//	…
//	result, err := storm.Run(ctx)
//
// # How it is built
//
// The work is done by shards. A shard is one operating-system thread with a
// file-descriptor table of its own (fdtable_linux.go says why and how), one
// edge-triggered epoll instance, and an array of connections indexed by file
// descriptor. It calls the kernel directly, allocates nothing per connection,
// and asks the kernel for as little as it can: socket, SO_COOKIE, connect, send,
// one epoll_ctl, recv, close. On loopback the handshake is over when connect
// returns, which is why a shard sends at once and asks epoll only afterwards.
//
// Where connections come from is Plan.Sources and Plan.Bind. With BindPort each shard
// has a list of ports of its own for each source (source_linux.go), so that no two
// shards try the same one.
//
// The goroutine that called Storm.Run starts each loop on all shards. Attempts
// come back in batches through a channel to one collector goroutine, which calls
// Plan.OnAttempts. A shard that finds no free batch waits and counts it
// (Result.Stalls): attempts are never dropped.
//
//	Storm.Run ── start ──▶ shard 1…n ── batches ──▶ collector ── OnAttempts
//	    ▲                    ▲                          │
//	    │                    └──────── free ────────────┤
//	    └──────────────── loop done ────────────────────┘
//
// # GOMAXPROCS
//
// A shard's thread keeps its processor (the scheduler's P) through every call but
// the blocking epoll_wait, and gives it up there only when the runtime's monitor
// notices. A program that runs n shards of storms and servers and has other work
// to do should set GOMAXPROCS to the number of CPUs plus n; the package does not
// set it. Measured on 2 CPUs with two storm and two server shards: a goroutine that
// slept 1 ms woke 11 ms late (median) with GOMAXPROCS=2, 0.1 ms late with 6.
//
// The engine is for Linux. Attempt, Plan and ServerPlan build everywhere.
package loadgen
