// Package story tells of single connections out of a recording: both ends, the attempt behind
// them, how it came out, and what of it was not seen.
//
//	result, err := story.Read(ctx, reader, story.Query{Failed: true, Limit: 10}, begin, story.NewText(os.Stdout, opts).Story)
//
// Read goes through the recording several times, each time through little of it: what a segment
// says of itself (cookies, ports, error numbers, times) decides whether it is looked into. First
// it finds which connections are asked for, then their events, then those of their other ends.
// Memory is bounded by the number of stories that are put together at once.
//
// An attempt and a socket's events are joined by cookie. The other end is joined by the reverse
// four-tuple and overlapping time, as timeline.Connections has it, and events that have no cookie
// (an RST for no socket) by four-tuple and time.
package story
