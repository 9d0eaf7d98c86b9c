package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/twtrace/twtrace/internal/clients"
	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/privilege"
	"github.com/twtrace/twtrace/internal/progress"
	"github.com/twtrace/twtrace/internal/report"
	"github.com/twtrace/twtrace/internal/run"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/loadgen"
)

// runFlags are the flags of `twtrace run` as given.
type runFlags struct {
	plan     loadgen.Plan
	linger   string
	close    *choice
	bind     *choice
	ports    string // --local-port-range
	net      *choice
	output   *choice
	color    *choice
	ipv6     bool
	target   string
	allow    string
	sources  int
	clients  int
	backlog  int
	server   *serverFlags
	control  string
	watch    time.Duration
	duration time.Duration
	noTrace  bool
	hgrm     string
	write    string
	warmup   time.Duration
	rate     string
	follow   *choice // --progress
	strict   bool
	sysctls  []string
	short    [len(shortForms)]string
	given    func(flag string) bool // on the command line, be it empty
}

// shortForms are flags of their own for the settings that the experiments turn.
var shortForms = [...]shortForm{
	{"tw-reuse", "0|1|2", report.SysctlReuse, ": may connect() take the port of a TIME_WAIT"},
	{"port-range", "LO-HI", report.SysctlPortRange, ": the ports connect() chooses from"},
	{"max-tw-buckets", "N", report.SysctlBuckets, ": how many TIME_WAITs there may be"},
	{"fin-timeout", "SECONDS", report.SysctlFin, ": how long FIN_WAIT2 may last"},
	{"timestamps", "0|1", report.SysctlStamps, ""},
	{"syncookies", "0|1", report.SysctlCookies, ""},
}

type shortForm struct{ flag, value, key, help string }

// check says whether a value is one that the flag's help promises.
func (s *shortForm) check(value string) error {
	if words := strings.Split(s.value, "|"); len(words) > 1 {
		if !slices.Contains(words, value) {
			return fmt.Errorf("want %s", s.value)
		}
		return nil
	}
	if _, err := strconv.ParseUint(value, 10, 31); err != nil {
		return errors.New("want a number")
	}
	return nil
}

func (a *app) runCommand() *cobra.Command {
	_, cmd := a.newRunCommand()
	return cmd
}

func (a *app) newRunCommand() (*runFlags, *cobra.Command) {
	f := &runFlags{
		plan:   loadgen.NewPlan(netip.AddrPort{}),
		close:  newChoice("client", "client", "server", "both"),
		bind:   newChoice("none", "none", "addr", "port"),
		net:    newChoice("pair", "pair", "loopback", "host"),
		server: newServerFlags(),
		output: newChoice("text", "text", "json"),
		color:  newChoice("auto", "auto", "always", "never"),
		follow: newProgressChoice(),
	}
	cmd := &cobra.Command{
		Long: "run opens --connections connections at once, --loops times; each sends --bytes, receives as many\n" +
			"back, and closes. The kernel's side of each is traced and joined to it by socket cookie.\n\n" +
			"Client and server are in two fresh network namespaces unless --net says otherwise: nothing of\n" +
			"this host is changed, and nothing is left behind.",
		Example: "  sudo twtrace run                     # the classic failure: TIME_WAIT takes the ports\n" +
			"  sudo twtrace run --linger            # close by RST: no TIME_WAIT\n" +
			"  sudo twtrace run --tw-reuse 1        # reuse TIME_WAIT\n" +
			"  sudo twtrace run --loops 1 --connections 100 --linger-watch 65s   # see them expire",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.given = cmd.Flags().Changed
			return a.run(cmd.Context(), f)
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.IntVar(&f.plan.Loops, "loops", f.plan.Loops, "how many times")
	fl.IntVar(&f.plan.Connections, "connections", f.plan.Connections, "connections a loop, all at once")
	fl.IntVar(&f.clients, "clients", 1, "that many client processes at the same time, each with the whole storm (and its own --rate): kill -INT PID stops one")
	fl.IntVar(&f.plan.Concurrency, "concurrency", 0, "how many are in flight at once (default: all of a loop)")
	fl.StringVar(&f.rate, "rate", "", "open loop: `R` connections a second are due, or LO-HI from the begin to the end of a loop, done or not those before")
	fl.Float64Var(&f.plan.MaxRate, "max-rate", 0, "never begin more than `R` connections a second, in a closed loop too, of all clients together; latencies still count from the begin; 0: no limit")
	fl.DurationVar(&f.plan.MaxDuration, "max-duration", 0, "stop the storm after this time, as Ctrl-C does; 0: no limit")
	fl.DurationVar(&f.duration, "duration", 0, "how long a loop of --rate lasts, instead of --connections; one loop unless --loops is given")
	fl.IntVar(&f.plan.Bytes, "bytes", f.plan.Bytes, "bytes each way")
	fl.StringVar(&f.linger, "linger", "", "SO_LINGER {1,SECONDS}; without a value {1,0}: close by RST")
	fl.Lookup("linger").NoOptDefVal = "0"
	fl.BoolVar(&f.plan.ReusePort, "reuseport", false, "SO_REUSEPORT on the client's sockets")
	fl.BoolVar(&f.plan.ReuseAddr, "reuseaddr", false, "SO_REUSEADDR on the client's sockets")
	fl.IntVar(&f.sources, "sources", 1, "spread the connections over this many source addresses")
	fl.Var(f.bind, "bind", "who chooses the source: the kernel in connect(); bind() of the address; or address and port from a list of our own")
	fl.BoolVar(&f.plan.NoPort, "no-port", false, "IP_BIND_ADDRESS_NO_PORT with --bind addr: connect() chooses the port after all")
	fl.StringVar(&f.ports, "local-port-range", "", "IP_LOCAL_PORT_RANGE `LO-HI` on the client's sockets, within ip_local_port_range")
	fl.Var(f.close, "close", "who closes first, and so gets the TIME_WAIT")
	fl.DurationVar(&f.plan.Interval, "interval", 0, "pause between loops")
	fl.DurationVar(&f.plan.Hold, "hold", 0, "keep each connection open after the reply")
	fl.DurationVar(&f.plan.Timeout, "timeout", 0, "give an attempt up after this time (default: three minutes)")
	fl.IntVar(&f.plan.Shards, "shards", 0, "threads of the client, and of the server; 0: one a processor, each with both ends of its connections, where that changes nothing but the speed")
	fl.IntVar(&f.backlog, "backlog", loadgen.DefaultBacklog, "the server's listen backlog")
	f.server.add(fl)
	fl.Var(f.net, "net", "two fresh namespaces joined by veth, one with its loopback, or this host's own")
	fl.BoolVarP(&f.ipv6, "ipv6", "6", false, "IPv6")
	fl.StringVar(&f.target, "target", "", "a server started elsewhere (twtrace serve) at `HOST:PORT`; implies --net host, and for a public address --max-rate 1000")
	fl.StringVar(&f.control, "control", "", "`PORT` where the server of --target is asked for its counts, or none (default: its port + 1)")
	fl.StringVar(&f.allow, "yes-i-may-load", "", "the `HOST` of --target, once more: it is not loopback, and I may load it")
	fl.StringArrayVar(&f.sysctls, "sysctl", nil, "set `KEY=VALUE` in the fresh namespaces (repeatable)")
	for i, s := range shortForms {
		fl.StringVar(&f.short[i], s.flag, "", s.key[strings.LastIndexByte(s.key, '.')+1:]+" `"+s.value+"`"+s.help)
	}
	fl.DurationVar(&f.watch, "linger-watch", 0, "go on tracing after the storm (65s sees TIME_WAITs expire)")
	fl.DurationVar(&f.warmup, "warmup", 0, "leave what was due in this time from the storm's begin out of the latencies")
	fl.StringVar(&f.hgrm, "hgrm", "", "write the latencies to `PREFIX`-connect.hgrm, -first-byte.hgrm and -exchange.hgrm (HdrHistogram)")
	fl.StringVarP(&f.write, "write", "w", "", "keep what was seen in `FILE`, a recording: twtrace report, timeline and export read it")
	fl.BoolVar(&f.noTrace, "no-trace", false, "the storm alone; needs no root with --net host")
	fl.Var(f.follow, "progress", progressHelp)
	fl.BoolVar(&f.strict, "strict", false, "exit 3 if anything was lost or not observable")
	fl.VarP(f.output, "output", "o", "form of the result")
	fl.Var(f.color, "color", "colour in text output")
	return f, cmd
}

func (a *app) run(ctx context.Context, f *runFlags) error {
	opts, err := f.options(ctx)
	if err != nil {
		return err
	}
	a.warn(f, &opts)
	opts.DropPrivilege = a.dropPrivilege
	color := useColor(f.color.value, a.stdout)
	a, follower, end := a.follow(f.follow.value)
	defer end()
	if follower != nil {
		opts.ProgressEvery = follower.every
		opts.OnProgress = func(p progress.Run) { follower.show(p.Line) }
	}
	text := report.NewText(a.stdout, color)
	isText := f.output.value == "text"
	opts.OnStart = func(s *report.Summary) {
		a.announce(&opts)
		a.warnUnseen(f, s)
		a.warnLocalPorts(opts.Plan.LocalPorts, s)
		if isText {
			_ = text.Header(s)
		}
	}
	if isText {
		// Lines are written as loops end; a write that fails is met again,
		// and reported, by the last part.
		opts.OnLoop = func(l report.Loop) { _ = text.Loop(l) }
	}
	if f.watch > 0 && isTerminal(a.stderr) {
		a.log.Info("the trace goes on after the storm: Ctrl-C ends it earlier, with the report", "linger-watch", f.watch)
	}
	if f.hgrm != "" {
		files, err := openLatencies(f.hgrm)
		if err != nil {
			return err
		}
		defer files.close()
		opts.Latency = files.writers()
	}
	var stopped atomic.Bool
	if f.write != "" {
		opts.Record = run.Recording{File: f.write, Options: a.recording(&stopped)}
	}
	summary, err := run.Run(ctx, opts)
	if err != nil {
		return privilege.Explain(f.needs(), err)
	}
	if isText {
		err = text.Rest(summary)
	} else {
		err = summary.WriteJSON(a.stdout)
	}
	if err != nil {
		return err
	}
	if stopped.Load() || opts.Trace && summary.Incomplete(f.strict) || f.strict && !opts.Trace {
		return errIncomplete
	}
	return nil
}

// options turns flags into what package run takes, or says what is wrong with them.
func (f *runFlags) options(ctx context.Context) (run.Options, error) {
	opts := run.Options{
		Version: version(), Plan: f.plan, Clients: f.clients, Backlog: f.backlog, Watch: f.watch, Trace: !f.noTrace, Warmup: f.warmup,
	}
	var err error
	if opts.Plan.Close, err = loadgen.ParseCloser(f.close.value); err != nil {
		return opts, usageError{err}
	}
	if opts.Net.Kind, err = netlab.ParseKind(f.net.value); err != nil {
		return opts, usageError{err}
	}
	opts.Net.IPv6 = f.ipv6
	if err := f.source(&opts); err != nil {
		return opts, err
	}
	if f.given("linger") {
		seconds, err := strconv.ParseUint(f.linger, 10, 16)
		if err != nil {
			return opts, usagef("--linger=%s: want whole seconds from 0 to 65535", f.linger)
		}
		opts.Plan.Linger = time.Duration(seconds) * time.Second
	}
	if err := f.howFast(&opts.Plan); err != nil {
		return opts, err
	}
	if f.backlog < 1 || f.watch < 0 || f.warmup < 0 {
		return opts, usagef("--backlog must be at least 1 and --linger-watch and --warmup not negative")
	}
	if f.given("target") {
		if f.given("net") && f.net.value != "host" || len(f.sysctls) > 0 {
			return opts, usagef("--target is a server outside the namespaces that a run makes: leave --net and --sysctl out")
		}
		opts.Net.Kind = netlab.Host
		if opts.Target, err = f.resolveTarget(ctx); err != nil {
			return opts, err
		}
		if !f.given("max-rate") && opts.Plan.Rate == 0 && isPublic(opts.Target.Addr()) {
			opts.Plan.MaxRate = publicMaxRate
		}
		opts.Net.IPv6 = opts.Target.Addr().Is6()
		if f.sources > 1 && !opts.Target.Addr().IsLoopback() {
			return opts, usagef("--sources %d: towards %s this host has the addresses it has, and is never given more: use --net pair, or a target in 127.0.0.0/8", f.sources, opts.Target.Addr())
		}
	}
	if err := f.serverOptions(&opts); err != nil {
		return opts, err
	}
	if err := f.settings(&opts); err != nil {
		return opts, err
	}
	if err := opts.Net.Validate(); err != nil {
		return opts, usageError{err}
	}
	check := opts.Plan
	check.Target = netip.AddrPortFrom(netip.IPv4Unspecified(), 1) // chosen later
	if check.Bind != loadgen.BindNone || f.sources > 1 {
		check.Sources = []netip.Addr{netip.IPv4Unspecified()} // too
	}
	if err := check.Validate(); err != nil {
		return opts, usageError{err}
	}
	return opts, nil
}

// howFast reads the flags about how fast connections begin, of how many processes.
func (f *runFlags) howFast(p *loadgen.Plan) (err error) {
	if f.given("rate") {
		if p.Rate, p.RateTo, err = parseRate(f.rate); err != nil {
			return usagef("--rate %s: %w", f.rate, err)
		}
	}
	if f.given("duration") {
		if err := f.lasting(p); err != nil {
			return err
		}
	}
	if f.clients < 1 || f.clients > clients.Max {
		return usagef("--clients must be from 1 to %d, not %d", clients.Max, f.clients)
	}
	if fastest := max(p.Rate, p.RateTo) * float64(f.clients); f.clients > 1 && p.MaxRate > 0 && fastest > p.MaxRate {
		return usagef("--max-rate %g is below the %g connections a second that --rate asks for, of all clients together", p.MaxRate, fastest)
	}
	return nil
}

// lasting makes a loop of an open loop as long as --duration says.
func (f *runFlags) lasting(p *loadgen.Plan) error {
	if p.Rate == 0 {
		return usagef("--duration needs --rate: a closed loop takes the time that it takes, and --max-duration stops it")
	}
	if f.given("connections") {
		return usagef("--duration with --rate says how many --connections there are: leave one of the two out")
	}
	n := math.Round((p.Rate + cmp.Or(p.RateTo, p.Rate)) / 2 * f.duration.Seconds())
	if n < 1 || n > math.MaxInt32 {
		return usagef("--duration %s at --rate %s is %.0f connections, want 1 to 2147483647", f.duration, f.rate, n)
	}
	p.Connections = int(n)
	if !f.given("loops") {
		p.Loops = 1
	}
	return nil
}

// source reads the flags about where the connections come from.
func (f *runFlags) source(opts *run.Options) (err error) {
	if opts.Plan.Bind, err = loadgen.ParseBinding(f.bind.value); err != nil {
		return usageError{err}
	}
	if f.sources < 1 {
		return usagef("--sources must be at least 1, not %d", f.sources)
	}
	opts.Net.Sources = f.sources
	if !f.given("local-port-range") {
		return nil
	}
	lo, hi, err := parsePorts(f.ports)
	if err != nil {
		return usagef("--local-port-range %s: %w", f.ports, err)
	}
	opts.Plan.LocalPorts = loadgen.PortRange{Low: uint16(lo), High: uint16(hi)}
	return nil
}

// serverOptions collects what the server is to do, or where the one elsewhere is asked
// what it did.
func (f *runFlags) serverOptions(opts *run.Options) error {
	opts.Plan.ServerFirst = f.server.first
	if !opts.Target.IsValid() {
		if f.given("control") {
			return usagef("--control is for the server of --target: leave it out")
		}
		server := loadgen.NewServerPlan(netip.AddrPortFrom(netip.IPv4Unspecified(), 0)) // chosen later
		server.Close = opts.Plan.Close
		if err := f.server.into(&server); err != nil {
			return err
		}
		opts.Server, opts.AcceptDelay, opts.AcceptEvery = server.Mode, server.AcceptDelay, server.AcceptEvery
		return nil
	}
	for _, flag := range []string{"server", "accept-delay", "accept-every"} {
		if f.given(flag) {
			return usagef("--%s is of the run's own server: give it to the `twtrace serve` that --target names", flag)
		}
	}
	port, err := parseControl(f.control, opts.Target.Port())
	if err != nil {
		return err
	}
	if port != 0 {
		opts.Control = netip.AddrPortFrom(opts.Target.Addr(), port)
	}
	return nil
}

// settings collects --sysctl and its short forms.
func (f *runFlags) settings(opts *run.Options) error {
	for _, text := range f.sysctls {
		s, err := netlab.ParseSysctl(text)
		if err != nil {
			return usagef("--sysctl %s: %w", text, err)
		}
		opts.Net.Sysctls = append(opts.Net.Sysctls, s)
	}
	for i, form := range shortForms {
		if !f.given(form.flag) {
			continue
		}
		value := f.short[i]
		if form.key == report.SysctlPortRange {
			lo, hi, err := parsePorts(value)
			if err != nil {
				return usagef("--%s %s: %w", form.flag, value, err)
			}
			value = fmt.Sprintf("%d %d", lo, hi)
		} else if err := form.check(value); err != nil {
			return usagef("--%s %s: %w", form.flag, value, err)
		}
		opts.Net.Sysctls = append(opts.Net.Sysctls, netlab.Sysctl{Key: form.key, Value: value})
	}
	return nil
}

// parseRate reads R or LO-HI, of which HI may be the smaller.
func parseRate(text string) (from, to float64, err error) {
	a, b, ramp := strings.Cut(text, "-")
	from, err = strconv.ParseFloat(a, 64)
	if err == nil && ramp {
		to, err = strconv.ParseFloat(b, 64)
	}
	if err != nil || from <= 0 || ramp && to <= 0 {
		return 0, 0, errors.New("want connections a second, for instance 5000 or 1000-5000")
	}
	return from, to, nil
}

// parsePorts reads LO-HI. The kernel takes no range that begins below
// ip_unprivileged_port_start (1024 unless set), nor an empty one.
func parsePorts(text string) (lo, hi int, err error) {
	a, b, ok := strings.Cut(text, "-")
	lo, errLo := strconv.Atoi(a)
	hi, errHi := strconv.Atoi(b)
	switch {
	case !ok || errLo != nil || errHi != nil:
		return 0, 0, fmt.Errorf("want LO-HI, for instance 32768-60999")
	case lo > hi:
		return 0, 0, fmt.Errorf("no port is left: want LO-HI with LO not above HI")
	case lo < 1024 || hi > 65535:
		return 0, 0, fmt.Errorf("ports must be from 1024 to 65535")
	}
	return lo, hi, nil
}

// needs is what a run with these flags asks of its caller.
func (f *runFlags) needs() privilege.Need {
	host := f.net.value == "host" || f.given("target")
	switch {
	case host && f.noTrace:
		return privilege.RunHostNoTrace
	case host:
		return privilege.RunHost
	case f.noTrace:
		return privilege.RunPairNoTrace
	}
	return privilege.RunPair
}

// warnUnseen says which capability would show what this run can't see.
func (a *app) warnUnseen(f *runFlags, s *report.Summary) {
	need := f.needs()
	held, err := privilege.Effective()
	if err != nil || f.noTrace || s.Coverage[tcp.FactTWEnter] != tcp.NotObservable {
		return
	}
	if missing := held.Missing(need.Should); len(missing) > 0 {
		a.log.Warn(need.Loses+": run with sudo; see `twtrace doctor`", "missing", privilege.Names(missing))
	}
}

// warnLocalPorts says that the kernel passes over a bound of IP_LOCAL_PORT_RANGE that
// lies outside ip_local_port_range (inet_sk_get_local_port_range).
func (a *app) warnLocalPorts(r loadgen.PortRange, s *report.Summary) {
	var all loadgen.PortRange
	n, _ := fmt.Sscan(s.Sysctls[report.SysctlPortRange], &all.Low, &all.High)
	if r == (loadgen.PortRange{}) || n != 2 || all.Low <= r.Low && r.High <= all.High {
		return
	}
	a.log.Warn("the kernel ignores a bound of --local-port-range that is outside ip_local_port_range: choose it within, or set --port-range too",
		"local-port-range", fmt.Sprintf("%d-%d", r.Low, r.High), "ip_local_port_range", fmt.Sprintf("%d-%d", all.Low, all.High))
}

// warn says what is allowed and yet probably not meant.
func (a *app) warn(f *runFlags, opts *run.Options) {
	if silent := opts.Server == loadgen.NeverRead || opts.Server == loadgen.NeverAccept; silent && opts.Plan.Timeout == 0 {
		a.log.Warn("the server will not answer: each attempt goes on until --timeout", "timeout", loadgen.DefaultTimeout)
	}
	for _, s := range opts.Net.Sysctls {
		var lo, hi int
		if s.Key != report.SysctlPortRange {
			continue
		}
		if n, _ := fmt.Sscan(s.Value, &lo, &hi); n == 2 && (hi-lo+1)*f.sources < opts.Plan.Connections*opts.Clients {
			a.log.Warn("the port range is smaller than one loop: connects will fail; widen --port-range or lower --connections",
				"ports", hi-lo+1, "connections", opts.Plan.Connections*opts.Clients)
		}
	}
}
