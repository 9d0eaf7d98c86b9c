package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/twtrace/twtrace/internal/privilege"
	"github.com/twtrace/twtrace/loadgen"
)

func (a *app) serveCommand() *cobra.Command {
	plan := loadgen.NewServerPlan(netip.AddrPort{})
	listen := "127.0.0.1:7007"
	closer := newChoice("client", "client", "server", "both")
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the storm's server alone, for a `twtrace run --target` elsewhere",
		Long:  "serve reads --bytes from each connection and sends as many back; both ends need the same --bytes.\nIt prints one line when it is ready, and an account when it is stopped with Ctrl-C.",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if plan.Listen, err = netip.ParseAddrPort(listen); err != nil {
				return usagef("--listen %s: want ADDRESS:PORT", listen)
			}
			if plan.Close, err = loadgen.ParseCloser(closer.value); err != nil {
				return usageError{err}
			}
			if err := plan.Validate(); err != nil {
				return usageError{err}
			}
			return a.serve(cmd.Context(), plan)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&listen, "listen", listen, "where to listen, `ADDRESS:PORT`; port 0: the kernel chooses")
	fl.IntVar(&plan.Bytes, "bytes", plan.Bytes, "bytes each way")
	fl.Var(closer, "close", "who closes first")
	fl.IntVar(&plan.Backlog, "backlog", loadgen.DefaultBacklog, "listen backlog")
	return cmd
}

func (a *app) serve(ctx context.Context, plan loadgen.ServerPlan) error {
	server, err := loadgen.NewServer(plan)
	if err != nil {
		return err
	}
	if err := server.Start(); err != nil {
		return privilege.Explain(privilege.ServeLowPort, err) // a port below 1024, if anything
	}
	if a.dropPrivilege {
		// It listens, be it below port 1024, and needs nothing more.
		if err := privilege.Drop(); err != nil {
			return errors.Join(err, server.Close())
		}
	}
	fmt.Fprintf(a.stdout, "listening on %s\n", server.Addr())
	<-ctx.Done()
	err = server.Close()
	st := server.Stats()
	fmt.Fprintf(a.stderr, "%d accepted, %d closed, %d dropped by the listener\n", st.Accepted, st.Closed, st.Drops)
	return err
}
