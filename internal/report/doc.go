// Package report is what a run came to: the Summary, as JSON
// (twtrace.summary/1) and as text, and the Builder that adds it up while the
// run goes on.
//
// The JSON's names are a promise; docs and outside checks use them. Text is for
// a tired person: one line a loop, then what failed and why, then the account.
package report
