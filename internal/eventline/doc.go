// Package eventline writes events one a line: as text in the columns of bcc's
// tcpstates, or as JSON lines (twtrace.event/1).
//
//	w := eventline.NewText(os.Stdout, eventline.Options{Start: start})
//	w.Header()
//	w.Line(&eventline.Line{Event: &ev, Past: owners.Event(&ev), Wall: wall})
//	w.Flush()
//
// The table of words in words.go says what each kind of event looks like in the
// column EVENT. What a line does not know is "-" in text and null in JSON, never 0.
//
// In JSON these fields are in every line, null where there is nothing to say:
//
//	schema seq time mono_ns kind cookie netns pid comm
//	local{addr,port} peer{addr,port} old_state new_state cause reason errno ms_in_state
//
// A port of 0 is one that the kernel had not chosen; cookie 0 is a socket that nobody
// had asked for its cookie. These are left out where they do not apply:
//
//	substate      what a TIME_WAIT stands for: fin_wait_2 or time_wait
//	time_left_ms  tw-enter, snapshot: until the TIME_WAIT's timer ends it
//	refusals      connect-failed: ports tried in vain, by why
//	holder        bind-failed: what has the port, if the kernel lets it be seen:
//	              state cookie addr pid comm
//	flags         list of words: rescued, late, linger0, no_segment, tw_made, active
//	cgroup_id cgroup container
//
// Names that processes chose come out without control characters in both forms:
// what is not printable is \xNN or \uNNNN.
package eventline
