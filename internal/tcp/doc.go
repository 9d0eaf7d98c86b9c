// Package tcp holds the words of the project: the states of a TCP connection,
// its four-tuple, its socket cookie, and the events that the kernel side
// reports about it. It imports nothing of the project and nothing of the
// kernel's, so that a post-mortem on any operating system can use it.
package tcp
