// Package lab is the catalogue of experiments behind `twtrace lab`: each entry is a question about how Linux ends
// TCP connections, the set-up in fresh network namespaces, the measurement, what the answer is expected to be and where that
// is from, and the answer found.
//
// [Catalogue] is the table; an entry is a function that makes its networks by the [Session], measures, and settles its
// [Claim]s one by one with evidence. [Run] runs entries side by side. An entry changes nothing of the host, leaves nothing behind, and
// finds out what the kernel does instead of asking for its version.
package lab
