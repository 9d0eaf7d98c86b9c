// Package export writes a recording in the forms that other tools read.
//
//	condition, err := export.Write(ctx, reader, "parquet", file, export.Options{})
//
// Formats is the table of what there is. Each reads the recording in order, once or twice, and holds
// a bounded part of it in memory, whatever its size. What a recording has from elsewhere, the names of processes first
// of all, comes out so that it does no harm to a terminal, a spreadsheet or a page.
package export
