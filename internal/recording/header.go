package recording

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/twtrace/twtrace/internal/tcp"
)

// Version is the format that this package writes. It reads every version from 1 on.
const Version = 1

// Schema names the JSON form of a Header.
const Schema = "twtrace.recording/1"

// Header is what a recording says of itself, as it begins.
type Header struct {
	Schema  string `json:"schema"`
	Version int    `json:"version"` // of the format
	Twtrace string `json:"twtrace"` // what wrote it
	Command string `json:"command"` // CommandRun or CommandTrace
	// Part is 1 of the first file of a recording, and counts those that followed by rotation.
	Part    int       `json:"part"`
	Started time.Time `json:"started"`
	// StartMonoNS is Started by CLOCK_MONOTONIC, from which times in text count.
	StartMonoNS int64  `json:"start_mono_ns"`
	Host        string `json:"host"`
	BootID      string `json:"boot_id"`
	Kernel      string `json:"kernel"`
	Arch        string `json:"arch"`
	// HZ is the kernel's number of jiffies a second.
	HZ       int               `json:"hz"`
	NetNS    []NetNS           `json:"netns"`
	Sysctls  map[string]string `json:"sysctls"`
	Coverage tcp.Coverage      `json:"coverage"`
	// Options are the command's, in its own form.
	Options json.RawMessage `json:"options,omitempty"`
	// Summary is the head of a run's summary (twtrace.summary/1), as it stood when the storm began.
	Summary json.RawMessage `json:"summary,omitempty"`
	// Clock is a moment by three clocks; samples have more.
	Clock  Clock         `json:"clock"`
	Tables []TableLayout `json:"tables"`
	// Enums are the names of numbers, by the name of the enumeration. "rst_reason" is of this kernel's BTF.
	Enums map[string]map[uint32]string `json:"enums"`
}

// The values of Header.Command.
const (
	CommandRun   = "run"
	CommandTrace = "trace"
)

// NetNS is a network namespace that was recorded, and what the command calls it.
type NetNS struct {
	Cookie tcp.NetNS `json:"cookie"`
	Name   string    `json:"name"`
}

// Clock is one moment by three clocks of the kernel, nanoseconds.
type Clock struct {
	MonoNS int64 `json:"mono_ns"`
	RealNS int64 `json:"real_ns"` // since 1970
	BootNS int64 `json:"boot_ns"` // with the time that the machine slept
}

// Wall is when a time of CLOCK_MONOTONIC was, in the time of day that held at c.
func (c Clock) Wall(monoNS int64) time.Time { return time.Unix(0, monoNS-c.MonoNS+c.RealNS) }

// Footer is the end of a recording that was ended by its writer.
type Footer struct {
	Schema string `json:"schema"`
	// Records of each table in this file.
	Records map[string]uint64 `json:"records"`
	// Segments in this file.
	Segments uint64 `json:"segments"`
	Clock    Clock  `json:"clock"`
	// Lost and Skipped are as in Sample, when the file was ended.
	Lost    uint64 `json:"lost"`
	Skipped uint64 `json:"skipped"`
	// Stopped says that the recording ended before what it is of did; null: it did not.
	Stopped *Stopped `json:"stopped"`
	// Next is the name of the file, in the same directory, with which a rotated recording goes on; empty:
	// this is the last.
	Next string `json:"next,omitempty"`
	// Summary is the whole summary of a run (twtrace.summary/1), or the account of a trace
	// (twtrace.account/1).
	Summary json.RawMessage `json:"summary,omitempty"`
}

// FooterSchema names the JSON form of a Footer.
const FooterSchema = "twtrace.recording.footer/1"

// Stopped says why nothing more was recorded.
type Stopped struct {
	MonoNS int64  `json:"mono_ns"`
	Cause  string `json:"cause"` // "write: no space left on device"
	// Dropped is how many records of each table came after that, or were not written yet.
	Dropped map[string]uint64 `json:"dropped"`
}

// ownEnums are the names of the project's own enumerations.
func ownEnums() map[string]map[uint32]string {
	e := map[string]map[uint32]string{
		"kind": {}, "state": {}, "cause": {}, "phase": {}, "sample": {}, "errno": {},
		"flag":         names(flagNames[:]),
		"attempt_flag": names(attemptFlagNames[:]),
	}
	for k := 1; k < tcp.NumKinds; k++ {
		e["kind"][uint32(k)] = tcp.Kind(k).String()
	}
	for s := 0; s < tcp.NumStates; s++ {
		e["state"][uint32(s)] = tcp.State(s).JSON()
	}
	for c := 0; c < tcp.NumCauses; c++ {
		e["cause"][uint32(c)] = tcp.Cause(c).String()
	}
	for p := 0; p < tcp.NumPhases; p++ {
		e["phase"][uint32(p)] = tcp.Phase(p).String()
	}
	for k := SampleTick; k < numSampleKinds; k++ {
		e["sample"][uint32(k)] = k.String()
	}
	for no, name := range tcp.ErrnoNames() {
		e["errno"][uint32(no)] = name
	}
	return e
}

// The names of bits, in their order.
var (
	flagNames        = [...]string{"rescued", "no_segment", "linger0", "tw_made", "active", "owner", "late", "refusals"}
	attemptFlagNames = [...]string{"self_connected", "own_timeout", "cancelled", "short_reply"}
)

func names(bits []string) map[uint32]string {
	m := make(map[uint32]string)
	for i, name := range bits {
		m[1<<i] = name
	}
	return m
}

// unknown is what a number comes to whose name this version does not know.
const unknown = 255

// renumbering turns the numbers of a recording into those of this version, by their names.
type renumbering struct{ kind, state, cause, phase, sample, flags, attemptFlags [256]uint8 }

func newRenumbering(enums map[string]map[uint32]string) (*renumbering, error) {
	r := new(renumbering)
	own := ownEnums()
	for _, e := range []struct {
		name string
		to   *[256]uint8
		bits bool // a number is a set of bits that have names
	}{
		{"kind", &r.kind, false},
		{"state", &r.state, false},
		{"cause", &r.cause, false},
		{"phase", &r.phase, false},
		{"sample", &r.sample, false},
		{"flag", &r.flags, true},
		{"attempt_flag", &r.attemptFlags, true},
	} {
		if len(enums[e.name]) == 0 {
			return nil, fmt.Errorf("the names of %s are missing", e.name)
		}
		known := make(map[string]uint8)
		for n, name := range own[e.name] {
			known[name] = uint8(n)
		}
		if e.bits {
			renumberBits(e.to, enums[e.name], known)
			continue
		}
		for i := range e.to {
			e.to[i] = unknown
		}
		for n, name := range enums[e.name] {
			if to, ok := known[name]; ok && n < 256 {
				e.to[n] = to
			}
		}
	}
	return r, nil
}

// renumberBits makes the table of a set of bits: those that this version does not know are left out.
func renumberBits(to *[256]uint8, theirs map[uint32]string, known map[string]uint8) {
	for bit, name := range theirs {
		if bit >= 256 {
			continue
		}
		for n := range to {
			if uint32(n)&bit != 0 {
				to[n] |= known[name]
			}
		}
	}
}
