// Package doctor says what a machine lets twtrace see and do.
//
//	report := doctor.Examine(doctor.ThisMachine())
//	err := report.WriteText(os.Stdout, color)
//	if err := report.Err(); err != nil { … } // `twtrace run` can't trace here
//
// What can be tried is tried: programs are loaded and attached, a ring of each
// processor's size is made, two namespaces are joined. All of it is gone when
// Examine returns, and nothing of the host is changed; where trying would make the
// kernel load a module, the check looks instead, and says so.
//
// The checks are the rows of one table (checks in table.go), read top to bottom; a
// check is a name and a function from a Machine to a Finding. A Machine is a file
// system and the things to try, so that a test can make up any.
package doctor
