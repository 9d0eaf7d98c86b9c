// Package run does one run from end to end: it makes the network, starts the
// trace, then the server, then the storm (in processes of its own, if there are to be several); waits until both ends have settled;
// stops the trace and drains it; and adds everything up into a report.Summary.
//
// Here the program's side (loadgen) and the kernel's (tracer) meet, in a
// timeline.Joiner. Everything a run makes is gone when Run returns.
package run
