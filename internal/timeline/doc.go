// Package timeline joins what a program saw of its connections (Attempt) with
// what the kernel did to them (Event), by socket cookie and never by guessing
// from times.
//
// A Joiner is fed both streams in batches, in any relative order, and hands out
// a Timeline for each attempt once both sides of it are complete. It keeps only
// what is still open, so that its memory is bounded by the connections and
// TIME_WAITs that exist at once, not by the length of the run.
package timeline
