package story

import (
	"fmt"
	"strings"

	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/verdict"
)

// Cause is a word for why: of a failure, as a run's report has it, or the kernel's, of a TIME_WAIT's end, of
// a connect() that failed, of a segment that was dropped.
type Cause struct {
	Verdict verdict.Cause
	Kernel  tcp.Cause
}

func (c Cause) String() string {
	if c.Verdict != "" {
		return string(c.Verdict)
	}
	return c.Kernel.String()
}

// ParseCause reads a cause by its name.
func ParseCause(name string) (Cause, error) {
	var c Cause
	for _, v := range verdict.Causes {
		if strings.EqualFold(string(v), name) {
			c.Verdict = v
		}
	}
	for k := tcp.Cause(1); int(k) < tcp.NumCauses; k++ {
		if strings.EqualFold(k.String(), name) {
			c.Kernel = k
		}
	}
	if c == (Cause{}) {
		return c, fmt.Errorf("unknown cause %q, want one of %s", name, strings.Join(CauseNames(), ", "))
	}
	return c, nil
}

// CauseNames lists all causes.
func CauseNames() []string {
	var names []string
	for _, v := range verdict.Causes {
		names = append(names, string(v))
	}
	for k := tcp.Cause(1); int(k) < tcp.NumCauses; k++ {
		if k != tcp.CauseFourTupleBusy { // a verdict has that name too
			names = append(names, k.String())
		}
	}
	return names
}
