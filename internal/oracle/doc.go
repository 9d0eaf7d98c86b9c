// Package oracle counts what TCP does at the entries and exits of kernel functions
// (fentry, fexit), for tests that compare it with what package tracer recorded from
// tracepoints. It shares no handler with the tracer, and is part of no program.
//
// What a kernel does not have, or has inlined away, is not witnessed: see
// [Oracle.NotWitnessed]. What its recursion guard made it skip is in [Oracle.Missed].
package oracle
