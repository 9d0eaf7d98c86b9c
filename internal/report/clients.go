package report

import (
	"fmt"
	"strings"
)

// clientPIDs says which processes to stop to see what follows, if there are several.
func clientPIDs(clients []Client) string {
	if len(clients) < 2 {
		return ""
	}
	pids := make([]string, len(clients))
	for i, c := range clients {
		pids[i] = fmt.Sprint(c.PID)
	}
	return fmt.Sprintf("%d client processes, each with all of that: %s (kill -INT stops one, Ctrl-C all)",
		len(clients), strings.Join(pids, ", "))
}

// clients is what each process came to, if there are several.
func (t *Text) clients(s *Summary) {
	if len(s.Clients) < 2 {
		return
	}
	t.line("")
	t.line("%s", t.bold(fmt.Sprintf("CLIENTS %10s %9s %9s %9s  %s", "PID", "ATTEMPTS", "FINISHED", "FAILED", "ENDED")))
	for _, c := range s.Clients {
		ended := c.Ended + reasons(c.Errors)
		if c.NotReported > 0 {
			ended += fmt.Sprintf(", %d more begun, not told of", c.NotReported)
		}
		failed := fmt.Sprintf("%9d", c.Failed)
		if c.Failed > 0 {
			failed = t.red(failed)
		}
		t.line("%7d %10d %9d %9d %s  %s", c.Client, c.PID, c.Attempts, c.Finished, failed, ended)
	}
}
