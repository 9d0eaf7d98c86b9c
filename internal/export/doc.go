// Package export writes a recording in the forms that other tools read.
//
//	condition, err := export.Write(ctx, reader, "parquet", file, export.Options{})
//
// Formats is the table of what there is. Each reads the recording in order and holds a bounded part of it in
// memory, whatever its size.
//
// The formats with columns write the same tables: events, attempts, connections. Their columns are a table each,
// in the file of that name. What holds for all:
//
//	cookie      the socket; 0: nobody had asked for its cookie
//	*_port      0: the kernel had not chosen one
//	time        UTC, by the recording's nearest sample of the clocks
//	t_ns, *_ns  nanoseconds: a moment of CLOCK_MONOTONIC, or a length of time
//	words       of states, kinds, causes as in JSON: fin_wait_1, tw-end, reused-by-connect
//	flags       words with | between them
//	host, boot_id  in every row, so that recordings can be put together; not in lines of JSON
//
// Whatever else is not known is null, in CSV an empty cell. What a recording has from elsewhere, the names of
// processes first of all, comes out without what could do harm to a terminal, as \xNN; in CSV without what a
// spreadsheet takes for a formula too.
package export
