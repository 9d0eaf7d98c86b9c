// Package recording keeps what a run or a trace saw in a file: the kernel's events, the program's
// attempts, and samples of how things stood. A file is written while the run goes on, survives the
// end of the writer at any moment up to its last flush, and is read on any system, without privilege.
//
// [Create] begins a recording and [Open] reads one. FORMAT.md has the file byte by byte: standard
// Snappy framing, in which skippable chunks say what the compressed ones hold. Everything in
// it has a checksum, and every record a number, so that a reader knows what is missing.
package recording
