// Package progress tells a person how far a command is: what is said (Run, Server), and
// how a line that is rewritten in place shares a terminal with other output (Display).
//
// It measures nothing, and imports nothing of the project.
package progress
