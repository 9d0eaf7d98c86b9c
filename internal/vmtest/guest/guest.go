// Package guest is what the host and the guest of internal/vmtest say to each
// other: a Plan, which lies in the guest's first file system, and Messages, one a
// line of JSON, on its second serial port. The first is the kernel's console, so
// that no kernel message ever lands inside a test's line.
package guest

import "time"

// PlanFile is where /init finds its Plan, in JSON.
const PlanFile = "/plan.json"

// Plan is what /init does between boot and power off.
type Plan struct {
	// Modules are kernel modules, in the order in which they go in.
	Modules []string
	Jobs    []Job
}

// Job is a program to run.
type Job struct {
	Name string
	Argv []string
	Dir  string
	Env  []string
	// Limit is how long it may take.
	Limit time.Duration
	// Merge has stderr come as stdout, in the order in which they were written.
	Merge bool
}

// Kind says what a Message is about.
type Kind string

const (
	// Up is the first: user space has begun. Text is the kernel's release.
	Up Kind = "up"
	// Start is the begin of Job.
	Start Kind = "start"
	// Stdout is what Job wrote there, in Text.
	Stdout Kind = "stdout"
	// Stderr is what Job wrote there, in Text.
	Stderr Kind = "stderr"
	// End is the end of Job, with Code. Text says more if it did not exit by
	// itself.
	End Kind = "end"
	// Done is the last: all jobs have ended, the machine powers off.
	Done Kind = "done"
	// Failed is the last if the machine could not be set up. Text says why.
	Failed Kind = "failed"
)

// Message is what the guest tells the host.
type Message struct {
	Kind Kind
	Job  string `json:",omitempty"`
	Text string `json:",omitempty"`
	Code int    `json:",omitempty"`
}
