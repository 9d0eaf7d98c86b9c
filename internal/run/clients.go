package run

import (
	"context"
	"fmt"
	"maps"
	"os"

	"github.com/twtrace/twtrace/internal/clients"
	"github.com/twtrace/twtrace/internal/report"
	"github.com/twtrace/twtrace/loadgen"
)

// startClients starts the processes of the storm, if there are to be several, in the client's
// namespace, which is all the privilege that they are given.
func (r *session) startClients() (err error) {
	if r.opts.Clients > 1 {
		r.clients, err = clients.Start(r.opts.Clients, r.lab.Client().Do)
	}
	return err
}

// listClients is the clients as the storm begins.
func (r *session) listClients() []report.Client {
	pids := []int{os.Getpid()}
	if r.clients != nil {
		pids = r.clients.PIDs()
	}
	list := make([]report.Client, len(pids))
	for i, pid := range pids {
		list[i] = report.Client{Client: i + 1, PID: pid, Errors: make(map[string]int)}
	}
	return list
}

// sumUpClients completes the clients' account, and notes who took what it knew along.
func (r *session) sumUpClients() {
	for i, a := range r.clients.Accounts() {
		c := &r.summary.Clients[i]
		c.Attempts, c.Finished, c.Failed = a.Attempts, a.Finished, a.Failed
		c.NotReported, c.Ended = a.NotReported, a.Ended
		for errno, n := range a.Errors {
			c.Errors[errno.String()] += n
		}
		if c.NotReported > 0 {
			r.summary.Notes = append(r.summary.Notes, fmt.Sprintf(
				"Client %d (process %d) was %s: of %d attempts that it had begun it never told how they ended. They are in no number above; the kernel closed their sockets, and its events and counters have them.",
				c.Client, c.PID, c.Ended, c.NotReported))
		}
	}
}

// onlyClient is the account of the storm that this process ran.
func (r *session) onlyClient() {
	s := r.summary
	c := &s.Clients[0]
	c.Attempts, c.Finished, c.Failed = s.Totals.Attempts, s.Totals.Finished, s.Totals.Failed
	maps.Copy(c.Errors, s.Totals.Errors)
	c.Ended = clients.Done
	if r.result.Canceled {
		c.Ended = clients.Interrupted
	}
}

// runner returns what runs the plan, and how many threads of this process it takes.
func (r *session) runner(plan loadgen.Plan) (run func(context.Context) (loadgen.Result, error), threads int, err error) {
	if r.clients != nil {
		return func(ctx context.Context) (loadgen.Result, error) { return r.clients.Run(ctx, plan) }, 0, nil
	}
	storm, err := loadgen.NewStorm(plan)
	if err != nil {
		return nil, 0, err
	}
	return storm.Run, storm.Shards(), nil
}
