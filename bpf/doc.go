// Package bpf holds twtrace's kernel side: the BPF programs, in C, and what
// bpf2go makes of them, so that a build needs no compiler but Go's.
//
// Read probes.bpf.c first: it is the table of all programs. event.h is the wire
// to user space, maps.h what they keep, emit.h how an event is recorded, and one
// header per subject has the handlers: state.h (full sockets), timewait.h
// (minisocks), reset.h (RST), retransmit.h, error.h, listen.h (what a listener
// drops), bind.h, snapshot.h (what is there already); owner.h says whose it is.
//
// enrich.bpf.c is the table of the programs on kernel functions, which many
// kernels refuse: refusal.h (ports that a connect() could not have), overflow.h,
// holder.h (who has the port that a bind() wanted). What these find out they leave in
// the maps of notes.h, which the two objects share.
//
// Package tracer loads and attaches them.
package bpf
