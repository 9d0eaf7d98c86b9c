// Package bpf holds twtrace's kernel side: the BPF programs, in C, and what
// bpf2go makes of them, so that a build needs no compiler but Go's.
//
// Read probes.bpf.c first: it is the table of all programs. event.h is the wire
// to user space, maps.h what they keep, emit.h how an event is recorded, and one
// header per subject has the handlers: state.h (full sockets), timewait.h
// (minisocks), reset.h (RST), retransmit.h, error.h, listen.h (what a listener
// drops), bind.h, snapshot.h (what is there already); owner.h says whose it is.
// Package tracer loads and attaches them.
package bpf
