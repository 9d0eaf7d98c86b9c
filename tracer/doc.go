// Package tracer records the end of TCP connections in the Linux kernel: every
// change of state, every RST, and the whole life of every TIME_WAIT.
//
// A trace is
//
//	t, err := tracer.Open(tracer.Options{NetNS: []tracer.NetNS{ns}}) // load
//	err = t.Start()                  // attach; when it returns, nothing is missed any more
//	n, err := t.Read(ctx, events)    // again and again; io.EOF after Stop
//	err = t.Stop()                   // detach; Read goes on until the ring is empty
//	stats, err := t.Stats()          // the account: seen = recorded + lost + skipped
//	err = t.Close()
//
// It needs BTF-typed tracepoints alone (Linux 5.14 and later with
// CONFIG_DEBUG_INFO_BTF), so that it also runs where kprobes and fentry are
// denied. probes.go is the table of what is attached, enrich.go of what is added
// on kernel functions where that is allowed; Coverage says how well
// this kernel shows each fact.
package tracer
