// Package verdict says why an attempt failed: one table of rules, read from top
// to bottom, each of which looks at the attempt's timeline and names a cause, the
// evidence for it and what helps.
//
// A rule may use what the kernel showed (the timeline's events) or, in a run
// without a trace, the error number alone; Cause.Inferred says which. What no
// rule explains is Unexplained, and is counted.
package verdict
