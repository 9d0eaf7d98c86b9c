package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/twtrace/twtrace/internal/control"
	"github.com/twtrace/twtrace/internal/privilege"
	"github.com/twtrace/twtrace/internal/progress"
	"github.com/twtrace/twtrace/loadgen"
)

func (a *app) serveCommand() *cobra.Command {
	plan := loadgen.NewServerPlan(netip.AddrPort{})
	listen := "127.0.0.1:7007"
	closer := newChoice("client", "client", "server", "both")
	server := newServerFlags()
	controlPort := ""
	follow := newProgressChoice()
	cmd := &cobra.Command{
		Long: "serve reads --bytes from each connection and sends as many back; both ends need the same --bytes\n" +
			"and --server-first. It prints one line when it is ready, and an account when it is stopped with Ctrl-C.\n" +
			"On the port after its own (--control) it tells whoever connects what it has counted, as one line of\n" +
			"JSON (twtrace.server/1): that is how the client learns it.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if plan.Listen, err = netip.ParseAddrPort(listen); err != nil {
				return usagef("--listen %s: want ADDRESS:PORT", listen)
			}
			if plan.Close, err = loadgen.ParseCloser(closer.value); err != nil {
				return usageError{err}
			}
			if err := server.into(&plan); err != nil {
				return err
			}
			if _, err := parseControl(controlPort, plan.Listen.Port()); err != nil {
				return err
			}
			return a.serve(cmd.Context(), plan, controlPort, follow.value)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&listen, "listen", listen, "where to listen, `ADDRESS:PORT`; port 0: the kernel chooses")
	fl.IntVar(&plan.Bytes, "bytes", plan.Bytes, "bytes each way")
	fl.Var(closer, "close", "who closes first")
	fl.IntVar(&plan.Backlog, "backlog", loadgen.DefaultBacklog, "listen backlog")
	server.add(fl)
	fl.Var(follow, "progress", progressHelp)
	fl.StringVar(&controlPort, "control", "", "`PORT` where the counts are told, or none (default: the port after the server's)")
	return cmd
}

// serverFlags are those of run and serve about what the server does.
type serverFlags struct {
	mode  *choice
	first int
	delay time.Duration
	every int
}

func newServerFlags() *serverFlags {
	return &serverFlags{mode: newChoice("echo", "echo", "rst", "never-read", "never-accept")}
}

func (s *serverFlags) add(fl *pflag.FlagSet) {
	fl.Var(s.mode, "server", "what the server does: echo; rst: echo, and close by RST; never-read: accept, and read nothing; never-accept: listen only")
	fl.IntVar(&s.first, "server-first", 0, "bytes that the server sends as soon as it has accepted, before the reply")
	fl.DurationVar(&s.delay, "accept-delay", 0, "a slow acceptor: accept nothing for this time after every --accept-every accepts")
	fl.IntVar(&s.every, "accept-every", 1, "accepts between two delays of --accept-delay")
}

// into completes a plan, or says everything that is wrong with it.
func (s *serverFlags) into(p *loadgen.ServerPlan) (err error) {
	if p.Mode, err = loadgen.ParseServerMode(s.mode.value); err != nil {
		return usageError{err}
	}
	if s.every < 1 {
		return usagef("--accept-every must be at least 1, not %d", s.every)
	}
	p.First, p.AcceptDelay, p.AcceptEvery = s.first, s.delay, s.every
	if err := p.Validate(); err != nil {
		return usageError{err}
	}
	return nil
}

// parseControl reads --control: the port, or 0 for none. Without one it is the port
// after the server's, if there is any.
func parseControl(text string, server uint16) (uint16, error) {
	switch text {
	case "":
		return server + 1, nil // 0 after the last one
	case "none":
		return 0, nil
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 || uint16(port) == server {
		return 0, usagef("--control %s: want a port from 1 to 65535 that is not the server's, or none", text)
	}
	return uint16(port), nil
}

// tellCounts has the server's counts told on the port that --control asks for. Where none was
// asked for and the one there is can't be had, that is no reason not to serve.
func (a *app) tellCounts(server *loadgen.Server, asked string) (io.Closer, error) {
	port, err := parseControl(asked, server.Addr().Port())
	if err != nil {
		return nil, err
	}
	if port == 0 {
		return io.NopCloser(nil), nil
	}
	told, err := control.Listen(netip.AddrPortFrom(server.Addr().Addr(), port), func() control.Counts {
		st := server.Stats()
		return control.Counts{
			Port: server.Addr().Port(), Accepted: st.Accepted, Closed: st.Closed,
			Resets: st.Resets, Drops: st.Drops, AcceptErrors: st.AcceptErrors,
		}
	})
	switch {
	case err == nil:
		return told, nil
	case asked != "":
		return nil, fmt.Errorf("--control %s: %w", asked, err)
	}
	a.log.Warn("clients can't ask what was accepted: choose another port with --control, or none", "err", err)
	return io.NopCloser(nil), nil
}

func (a *app) serve(ctx context.Context, plan loadgen.ServerPlan, controlPort, follow string) (err error) {
	server, err := loadgen.NewServer(plan)
	if err != nil {
		return err
	}
	if err := server.Start(); err != nil {
		return privilege.Explain(privilege.ServeLowPort, err) // a port below 1024, if anything
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	told, err := a.tellCounts(server, controlPort)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, told.Close()) }()
	if a.dropPrivilege {
		// It listens, be it below port 1024, and needs nothing more.
		if err := privilege.Drop(); err != nil {
			return err
		}
	}
	fmt.Fprintf(a.stdout, "listening on %s\n", server.Addr())
	a.showUntil(ctx, server, follow)
	if err := server.Close(); err != nil {
		return err
	}
	st := server.Stats()
	fmt.Fprintf(a.stderr, "%d accepted, %d closed, %d dropped by the listener\n", st.Accepted, st.Closed, st.Drops)
	return nil
}

// showUntil shows what the server does until ctx ends.
func (a *app) showUntil(ctx context.Context, server *loadgen.Server, mode string) {
	_, follower, end := a.follow(mode)
	defer end()
	if follower == nil {
		<-ctx.Done()
		return
	}
	tick := time.NewTicker(follower.every)
	defer tick.Stop()
	begun := time.Now()
	var meter progress.Meter
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			st, at := server.Stats(), time.Since(begun)
			follower.show(progress.Server{
				Elapsed: at, Accepted: st.Accepted, Closed: st.Closed, PerSecond: meter.PerSecond(at, int64(st.Accepted)),
			}.Line)
		}
	}
}
