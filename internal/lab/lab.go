package lab

import (
	"encoding/json"
	"fmt"
)

// Entry is a row of the catalogue.
type Entry struct {
	Name     string
	Question string
	// Source is where the question, or the claims about its answer, come from.
	Source string
	// Seconds is about how long it takes, scaled and at full size, for who waits.
	Seconds, FullSeconds int
	// Alone: it measures times, and nothing else runs meanwhile. FullAlone: at full size it needs the whole machine.
	Alone, FullAlone bool
	Asks             Asks
	run              func(*Session) error
}

// Asks is what an entry asks of its caller besides a network and the server's port in it.
type Asks uint8

// The values of Asks, which can be joined.
const (
	Packets   Asks = 1 << iota // packet sockets, to capture, and raw ones, to send segments that no connection has
	TimeWaits                  // a trace that sees TIME_WAIT
)

// Holds says whether a claim does.
type Holds uint8

// The values of Holds.
const (
	NotObservable Holds = iota // this kernel, or this machine, does not let it be seen
	Yes
	No
)

// holdsOf turns what was found into a Holds.
func holdsOf(found bool) Holds {
	if found {
		return Yes
	}
	return No
}

func (h Holds) String() string {
	switch h {
	case Yes:
		return "holds"
	case No:
		return "does not hold"
	}
	return "not observable"
}

// MarshalJSON writes true, false, or "not observable".
func (h Holds) MarshalJSON() ([]byte, error) {
	switch h {
	case Yes:
		return []byte("true"), nil
	case No:
		return []byte("false"), nil
	}
	return []byte(`"not observable"`), nil
}

// UnmarshalJSON reads what MarshalJSON writes.
func (h *Holds) UnmarshalJSON(text []byte) error {
	switch string(text) {
	case "true":
		*h = Yes
	case "false":
		*h = No
	case `"not observable"`:
		*h = NotObservable
	default:
		return fmt.Errorf("want true, false or \"not observable\", not %s", text)
	}
	return nil
}

// Evidence is what a sceptic can check: names and values, which are numbers, texts, or lists and tables of them.
type Evidence map[string]any

// Claim is something that is said about how the kernel behaves, and whether it does here.
type Claim struct {
	// Key names it within its entry; it stays the same for ever, since profiles are compared by it.
	Key  string `json:"key"`
	Text string `json:"text"`
	// Holds is what was found, Expected what the catalogue expects of a kernel like this one.
	Holds    Holds `json:"holds"`
	Expected Holds `json:"expected"`
	// History says since when, or until when it holds, and by which change; empty: always, as far as is known.
	History  string   `json:"history,omitempty"`
	Evidence Evidence `json:"evidence"`
}

// AsExpected reports whether what was found is what was expected. What could not be seen is no surprise.
func (c *Claim) AsExpected() bool { return c.Holds == c.Expected || c.Holds == NotObservable }

// Schema names the JSON form of an Answer.
const Schema = "twtrace.lab/1"

// Answer is what an entry found out.
type Answer struct {
	Schema   string `json:"schema"`
	Name     string `json:"name"`
	Question string `json:"question"`
	Source   string `json:"source"`
	// Answer is a sentence.
	Answer string `json:"answer"`
	// Holds: all claims are as expected; not observable if none could be seen.
	Holds    Holds    `json:"holds"`
	Evidence Evidence `json:"evidence"`
	Claims   []Claim  `json:"claims"`
	Kernel   string   `json:"kernel"`
	Full     bool     `json:"full"`
	Seconds  float64  `json:"seconds"`
	// Error is why there is no answer; empty: there is one.
	Error string `json:"error,omitempty"`
}

// settle derives what the whole entry comes to.
func (a *Answer) settle() {
	a.Holds = NotObservable
	for i := range a.Claims {
		c := &a.Claims[i]
		if !c.AsExpected() {
			a.Holds = No
			return
		}
		if c.Holds != NotObservable {
			a.Holds = Yes
		}
	}
}

// Unexpected are the claims whose finding is not the one expected.
func (a *Answer) Unexpected() (claims []*Claim) {
	for i := range a.Claims {
		if !a.Claims[i].AsExpected() {
			claims = append(claims, &a.Claims[i])
		}
	}
	return claims
}

// Read reads the answers that `lab run -o json` wrote.
func Read(text []byte) (answers []Answer, err error) {
	if err := json.Unmarshal(text, &answers); err != nil {
		return nil, fmt.Errorf("read the answers of a lab: %w", err)
	}
	for i := range answers {
		if answers[i].Schema != Schema {
			return nil, fmt.Errorf("read the answers of a lab: answer %d is %q, and this twtrace reads %q", i+1, answers[i].Schema, Schema)
		}
	}
	return answers, nil
}
