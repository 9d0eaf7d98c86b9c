// Package watch is the session of `twtrace trace`: it opens a trace, lists what exists
// already, and hands over every event as it happens until it is told to stop.
//
//	account, err := watch.Run(ctx, watch.Options{
//		Tracer:   tracer.Options{RemotePorts: []uint16{443}},
//		Snapshot: true,
//		Writer:   func(start watch.Start) eventline.Writer { return eventline.NewText(os.Stdout, …) },
//	})
//
// The order is what matters. The programs are attached first, then the snapshot
// is taken, so that no connection falls between the two; a command is started when
// both are done. One goroutine reads, follows owners, and writes: a terminal that is
// slower than the kernel fills the ring, whose losses are counted.
//
// At the end the programs are detached, the ring is emptied, and only then the
// account is taken: it is exact.
package watch
