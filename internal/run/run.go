package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/clients"
	"github.com/twtrace/twtrace/internal/clock"
	"github.com/twtrace/twtrace/internal/control"
	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/privilege"
	"github.com/twtrace/twtrace/internal/progress"
	"github.com/twtrace/twtrace/internal/report"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
	"github.com/twtrace/twtrace/loadgen"
	"github.com/twtrace/twtrace/tracer"
)

// Options say what to run.
type Options struct {
	Version string // of twtrace, for the summary
	// Plan is the storm; its Target, Enter, OnAttempts and OnLoop are the
	// run's own business.
	Plan loadgen.Plan
	// Net is the network it runs in.
	Net netlab.Options
	// Target is a server started elsewhere; the zero value: a server of the run's own.
	Target netip.AddrPort
	// Control is where the Target's server is asked for its counts; the zero value:
	// it is not asked.
	Control netip.AddrPort
	// Clients is how many processes run the Plan, each all of it; 0 and 1: this one does. More
	// start this program again, whose main must call clients.Serve if asked for clients.Command.
	Clients int
	// What follows is of the own server.
	Backlog     int // 0: 4096
	Server      loadgen.ServerMode
	AcceptDelay time.Duration // after every AcceptEvery accepts
	AcceptEvery int
	// Watch is how long to go on tracing after the storm.
	Watch time.Duration
	Trace bool
	// DropPrivilege gives up every capability of the process once none is needed any
	// more: the programs are attached, and all threads are in their namespaces. It
	// is for a process that does nothing else.
	DropPrivilege bool
	// Record is where to keep what the run sees.
	Record Recording
	// OnStart, if set, is given the summary's head before the storm starts.
	OnStart func(*report.Summary)
	// OnLoop, if set, is given each loop once how things stood at its end is
	// known, in order, from one goroutine.
	OnLoop func(report.Loop)
	// OnProgress, if set, is given at the begin, each ProgressEvery, and as the storm ends, how
	// far the run is, from one goroutine.
	OnProgress    func(progress.Run)
	ProgressEvery time.Duration
	// Warmup leaves attempts that are due in the storm's first moments out of the latencies, and
	// of nothing else.
	Warmup time.Duration
	// Latency are where to write distributions of all loops at the end, by name
	// (report.LatencyNames); nil: nowhere.
	Latency map[string]io.Writer
	// network, if set, is the run's in place of a new one as Net has it, and is closed at the end: a test's, with what the
	// storm is to meet already in it.
	network *netlab.Lab
}

// ErrUnreachable says that there is no route to the target.
var ErrUnreachable = errors.New("no route to the target")

// echoPort is the server's port in namespaces of the run's own: the echo
// service (RFC 862), outside every port range that connect() chooses from.
const echoPort = 7

// hostPorts are the server's on the host, below the kernel's default range.
const (
	hostPortFirst = 7007
	hostPortLast  = 7107
)

// settleLimit bounds the wait for the last segments after a storm, and settleStopped
// that of who has asked for the end: a report within a second.
const (
	settleLimit   = 3 * time.Second
	settleStopped = 300 * time.Millisecond
)

// session is a run under way.
type session struct {
	opts   Options
	lab    *netlab.Lab
	trace  *tracer.Tracer // nil without a trace
	server *loadgen.Server
	// clients are the processes that run the storm; nil: this one.
	clients *clients.Group
	target  netip.AddrPort
	// What a server elsewhere had counted before the storm; nil: it was not asked, or
	// did not answer, and notAsked says why.
	first    *control.Counts
	notAsked error
	sides    []side
	summary  *report.Summary
	builder  *report.Builder
	joiner   *timeline.Joiner // nil without a trace
	live     *live            // nil: nobody asks
	rec      *recorder        // nil: nothing is kept
	begun    int64            // CLOCK_MONOTONIC ns, from which the summary's times count

	together bool           // the server's threads are the storm's too
	sources  []netip.Addr   // that the storm binds; none: the kernel chooses
	result   loadgen.Result // of the storm, once it is over
	reasons  map[uint32]int // of RSTs sent; touched by the pump alone until it ends
	pumpDone chan error
	lines    chan report.Loop
}

// Run does the run. When ctx ends the storm is stopped and the summary is of
// what was done. Errors are of the set-up, or of the trace; failed connections
// are results. Among the errors: those of netlab.New, tracer.Open and
// loadgen.NewStorm, and ErrUnreachable.
func Run(ctx context.Context, opts Options) (_ *report.Summary, err error) {
	r := &session{opts: opts, reasons: make(map[uint32]int), live: startLive(&opts)}
	defer func() { err = errors.Join(err, r.close()) }()
	defer r.live.stop()
	if err := r.setUp(ctx); err != nil {
		return nil, err
	}
	if err := r.describe(); err != nil {
		return nil, err
	}
	if err := r.startRecording(); err != nil {
		return nil, err
	}
	if opts.OnStart != nil {
		opts.OnStart(r.summary)
	}
	stopLines := r.startLines()
	defer func() {
		err = errors.Join(err, r.stopTrace()) // whose last marks still go to lines
		stopLines()
	}()

	before, err := r.counters()
	if err != nil {
		return nil, err
	}
	if err := r.storm(ctx); err != nil {
		return nil, err
	}
	r.noteEnd()
	if opts.Watch > 0 && r.summary.StoppedBy != report.StoppedByUser {
		r.live.enter(progress.Watching, time.Now().Add(opts.Watch))
		select {
		case <-ctx.Done():
			r.summary.Interrupted, r.summary.StoppedBy = true, report.StoppedByUser
		case <-time.After(opts.Watch):
		}
	}
	r.live.enter(progress.Settling, time.Time{})
	after, err := r.settle(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.stopTrace(); err != nil {
		return nil, err
	}
	stopped, err := r.counters()
	if err != nil {
		return nil, err
	}
	stopLines()
	if r.summary.Server, err = r.account(ctx); err != nil {
		return nil, err
	}
	if err := r.sumUp(readings{before, after, stopped}); err != nil {
		return nil, err
	}
	return r.summary, r.finishRecording(true)
}

// setUp makes the network, the trace and the server, in this order: the trace
// is limited to the network's namespaces, and sees the server start.
func (r *session) setUp(ctx context.Context) (err error) {
	if err := r.opts.Plan.CheckKernel(); err != nil {
		return err
	}
	if r.lab = r.opts.network; r.lab == nil {
		if r.lab, err = netlab.New(r.opts.Net); err != nil {
			return err
		}
	}
	r.sides = r.findSides()
	if r.opts.Plan.Bind != loadgen.BindNone || r.opts.Net.Sources > 1 {
		r.sources = r.lab.ClientAddrs()
	}
	if r.opts.Target.IsValid() {
		r.target = r.opts.Target
		if err := r.checkRoute(); err != nil {
			return err
		}
		r.askFirst(ctx)
	}
	if r.opts.Trace {
		if err := r.startTrace(); err != nil {
			return err
		}
	}
	if !r.opts.Target.IsValid() {
		if err := r.startServer(); err != nil {
			return err
		}
	}
	if err := r.startClients(); err != nil {
		return err
	}
	return r.watchListeners()
}

// watchListeners has the trace find the listeners there are, so that the programs for
// them are in place before the storm begins and capabilities are dropped.
func (r *session) watchListeners() error {
	if r.trace == nil {
		return nil
	}
	for _, s := range r.sides {
		if err := s.ns.Do(r.trace.Snapshot); err != nil {
			return fmt.Errorf("find the listeners: %w", err)
		}
	}
	return nil
}

// checkRoute asks the kernel for a route to the target, sending nothing. Of another
// host than this one it is what says which source address leads there.
func (r *session) checkRoute() error {
	return r.lab.Client().Do(func() error {
		c, err := net.Dial("udp", r.target.String())
		if err != nil {
			return fmt.Errorf("%w %s: %w", ErrUnreachable, r.target, err)
		}
		if from, ok := c.LocalAddr().(*net.UDPAddr); ok && len(r.sources) == 1 {
			// Without a zone: the target's says on which link the source is.
			r.sources[0] = from.AddrPort().Addr().Unmap().WithZone(r.target.Addr().Zone())
		}
		return c.Close()
	})
}

func (r *session) startServer() error {
	plan := loadgen.NewServerPlan(netip.AddrPortFrom(r.lab.ServerAddr(), echoPort))
	plan.Bytes, plan.First = r.opts.Plan.Bytes, r.opts.Plan.ServerFirst
	plan.Mode, plan.AcceptDelay, plan.AcceptEvery = r.opts.Server, r.opts.AcceptDelay, r.opts.AcceptEvery
	plan.Close = r.opts.Plan.Close
	plan.Linger = r.opts.Plan.Linger
	plan.Backlog = r.opts.Backlog
	plan.Concurrency = r.atOnce()
	plan.Enter = r.lab.Server().Enter
	var cpus []int
	if r.opts.Clients <= 1 {
		var err error
		if cpus, err = loadgen.Together(&r.opts.Plan, &plan); err != nil {
			return err
		}
	}
	if plan.Shards = r.opts.Plan.Shards; len(cpus) != 0 {
		r.together = true
		plan.Shards, plan.CPUs, plan.EnterGuests = len(cpus), cpus, r.lab.Client().Enter
	}
	first, last := echoPort, echoPort
	if r.opts.Net.Kind == netlab.Host {
		first, last = hostPortFirst, hostPortLast
	}
	for port := first; ; port++ {
		plan.Listen = netip.AddrPortFrom(r.lab.ServerAddr(), uint16(port))
		server, err := loadgen.NewServer(plan)
		if err != nil {
			return err
		}
		err = server.Start()
		if err == nil {
			r.server, r.target = server, server.Addr()
			return nil
		}
		if !errors.Is(err, unix.EADDRINUSE) || port == last {
			return err
		}
	}
}

// atOnce is how many connections may be open at once, of all clients.
func (r *session) atOnce() int { return r.opts.Plan.AtOnce() * max(1, r.opts.Clients) }

func (r *session) startTrace() error {
	var scope []tracer.NetNS
	for _, s := range r.sides {
		if s.netns == 0 {
			return fmt.Errorf("%w: it gives network namespaces no cookies (SO_NETNS_COOKIE, since 5.14)", tracer.ErrTooOld)
		}
		scope = append(scope, s.netns)
	}
	size, err := r.ringSize()
	if err != nil {
		return err
	}
	if r.trace, err = tracer.Open(tracer.Options{NetNS: scope, Kinds: r.kinds(), RingSize: size}); err != nil {
		return err
	}
	if err := r.trace.Start(); err != nil {
		return err
	}
	return nil
}

// ringSize is the tracer's default, or more where so many connections are open at once that they
// can be closed at once too, with the threads that do it in the way of the one that reads.
func (r *session) ringSize() (int, error) {
	const usual, most = 1 << 16, 8 // connections, times the default
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return 0, fmt.Errorf("count the CPUs: %w", err)
	}
	size := tracer.DefaultRingSize(cpus)
	for times := 1; times < most && r.atOnce() > times*usual; times *= 2 {
		size *= 2
	}
	return size, nil
}

// describe fills the summary's head and readies what adds up the rest.
func (r *session) describe() error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	p := &r.opts.Plan
	s := &report.Summary{
		Schema: report.Schema, Version: r.opts.Version, Kernel: unix.ByteSliceToString(uts.Release[:]),
		Started: time.Now().UTC(), Net: r.opts.Net.Kind.String(), Target: r.target.String(),
		Options: report.Options{
			Clients: max(1, r.opts.Clients), Loops: p.Loops, Connections: p.Connections, Concurrency: p.Concurrency, Bytes: p.Bytes,
			ReusePort: p.ReusePort, ReuseAddr: p.ReuseAddr, Close: p.Close.String(), Backlog: r.opts.Backlog,
			Rate: p.Rate, RateTo: p.RateTo, MaxRate: p.MaxRate, MaxDurationS: p.MaxDuration.Seconds(), WarmupS: r.opts.Warmup.Seconds(), IntervalS: p.Interval.Seconds(), HoldS: p.Hold.Seconds(), WatchS: r.opts.Watch.Seconds(),
			IPv6: r.opts.Net.IPv6, Trace: r.opts.Trace, Shards: p.Shards, Together: r.together,
			Sources: max(1, r.opts.Net.Sources), Bind: p.Bind.String(), NoPort: p.NoPort,
			ServerMode: r.opts.Server.String(), ServerFirst: p.ServerFirst,
			AcceptDelayS: r.opts.AcceptDelay.Seconds(), AcceptEvery: max(1, r.opts.AcceptEvery),
		},
		Sysctls: make(map[string]string),
	}
	if r.opts.Target.IsValid() {
		s.Options.ServerMode = report.ServerElsewhere
	}
	if s.Options.Concurrency == 0 {
		s.Options.Concurrency = p.Connections
	}
	if p.Linger != loadgen.NoLinger {
		seconds := p.Linger.Seconds()
		s.Options.Linger = &seconds
	}
	if p.LocalPorts != (loadgen.PortRange{}) {
		s.Options.LocalPortRange = []int{int(p.LocalPorts.Low), int(p.LocalPorts.High)}
	}
	for _, key := range report.Sysctls {
		// A kernel without the setting is not an error: the summary leaves it out.
		if v, err := r.lab.Client().Sysctl(key); err == nil {
			s.Sysctls[key] = strings.Join(strings.Fields(v), " ")
		}
	}
	if err := r.listBound(s); err != nil {
		return err
	}
	s.Clients = r.listClients()
	s.Coverage = r.coverage()
	r.summary = s
	r.begun = clock.Mono()
	r.builder = report.NewBuilder(r.begun, r.trace != nil)
	if r.trace == nil {
		return nil
	}
	r.builder.SetEnv(report.EnvOf(s, r.trace.RstReasons()))
	hz, err := r.trace.HZ()
	if err != nil {
		return err
	}
	r.joiner = timeline.NewJoiner(timeline.Options{
		OnTimeline:   r.builder.Timeline,
		OnLifetime:   r.builder.Lifetime,
		OnBindFailed: r.builder.BindFailed,
		OnMark: func(m timeline.Mark) {
			if l, ok := r.builder.SetLoop(m.Loop, &m.TimeWait, &m.Ports); ok {
				r.lines <- l
			}
		},
		ShortTicks:  uint32(4 * hz),
		AbortOnData: report.ReasonNumber(r.trace.RstReasons(), report.AbortOnData),
		Forecast:    report.ForecastOptions(s),
	})
	return nil
}

// kinds are what this storm is explained by. Where it binds ports of its own choice each that is refused has a
// holder. Else bind() is not watched: a tracepoint on a system call makes every system call of the machine slower.
func (r *session) kinds() []tracer.Kind {
	if r.opts.Plan.Bind == loadgen.BindPort {
		return append(slices.Clone(kinds), tcp.KindBindFailed)
	}
	return kinds
}

// kinds are what every storm is explained by. Errors come with the states; nothing is there before the trace begins.
var kinds = []tracer.Kind{
	tcp.KindState, tcp.KindRstSent, tcp.KindRstReceived, tcp.KindRetransmit, tcp.KindSynAckRetransmit, tcp.KindTWEnter,
	tcp.KindTWConvert, tcp.KindTWEnd, tcp.KindTWOverflow, tcp.KindConnectFailed, tcp.KindListenDrop,
}

// coverage is the trace's, and what the run itself adds to it.
func (r *session) coverage() tcp.Coverage {
	c := tcp.Coverage{tcp.FactCause: tcp.Inferred}
	if r.trace != nil {
		for fact, grade := range r.trace.Coverage() {
			c[fact] = grade
		}
		c[tcp.FactCause] = tcp.Exact
		// What is bound is listed once, as the run begins; in namespaces of its own that is all there can be.
		if c[tcp.FactCensus] = tcp.Exact; r.opts.Net.Kind == netlab.Host {
			c[tcp.FactCensus] = tcp.Inferred
		}
		// The census of the ports of a run says how many were in TIME_WAIT and how many
		// open, and the run's settings what that meant for a connect().
		if c[tcp.FactRefusals] == tcp.NotObservable {
			c[tcp.FactRefusals] = tcp.Inferred
		}
		// So does the list of what is bound as the run begins, of the ports that bind() refuses.
		if c[tcp.FactBindFail] == tcp.Exact && c[tcp.FactBindOwner] == tcp.NotObservable {
			c[tcp.FactBindOwner] = tcp.Inferred
		}
	} else {
		for _, fact := range []tcp.Fact{
			tcp.FactState, tcp.FactRstSent, tcp.FactRstReason, tcp.FactRstReceived, tcp.FactTWEnter,
			tcp.FactTWEnd, tcp.FactTWCause, tcp.FactTWConvert, tcp.FactTWOverflow, tcp.FactConnectFail,
			tcp.FactRetransmit, tcp.FactOwner, tcp.FactCensus,
		} {
			c[fact] = tcp.NotObservable
		}
		// The listener's own count (sk_drops), which does not say why.
		c[tcp.FactListenDrop] = tcp.NotObservable
		if r.server != nil {
			c[tcp.FactListenDrop] = tcp.Inferred
		}
	}
	return c
}

// startLines hands loops to OnLoop from a goroutine of its own, so that a slow
// terminal does not hold up the trace. The function it returns waits for the
// last of them; it may be called twice.
func (r *session) startLines() (stop func()) {
	r.lines = make(chan report.Loop, min(r.opts.Plan.Loops, 4096))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for l := range r.lines {
			if r.opts.OnLoop != nil {
				r.opts.OnLoop(l)
			}
		}
	}()
	stopped := false
	return func() {
		if !stopped {
			stopped = true
			close(r.lines)
		}
		<-done
	}
}

// storm runs the storm, and the pump that feeds the trace's events to the joiner.
func (r *session) storm(ctx context.Context) error {
	plan := r.opts.Plan
	plan.Target = r.target
	plan.Enter = r.lab.Client().Enter
	plan.Sources = r.sources
	if plan.Record = loadgen.RecordCookie; r.trace == nil {
		plan.Record = loadgen.RecordTimes
	}
	if r.together {
		plan.Host = r.server
	}
	untraced := new(timeline.Timeline) // one for all: the builder keeps none
	plan.OnAttempts = func(attempts []loadgen.Attempt) {
		r.rec.attempts(attempts)
		r.builder.Attempts(attempts)
		if r.joiner != nil {
			r.joiner.Attempts(attempts)
			return
		}
		for i := range attempts {
			*untraced = timeline.Timeline{Attempt: attempts[i]}
			r.builder.Timeline(untraced)
		}
	}
	if plan.Progress = r.live.plan(); r.rec != nil {
		if plan.Progress == nil {
			plan.Progress = r.rec.storm
		}
		r.rec.storm = plan.Progress
	}
	plan.OnLoop = func(l loadgen.LoopResult) {
		end := clock.Mono()
		r.builder.LoopDone(l.Loop, l.Attempts, l.Finished, l.Failed, l.Duration)
		if r.joiner != nil {
			r.rec.loop(l, end, nil)
			r.joiner.MarkAt(l.Loop, end)
			return
		}
		loop, ok := r.untracedMark(l.Loop)
		r.rec.loop(l, end, loop.TimeWaitNow)
		if ok {
			r.lines <- loop
		}
	}
	plan.OnReady = func() error {
		r.live.count(r.timeWaits, r.noPortIn)
		r.live.enter(progress.Storm, time.Time{})
		warm := clock.Mono() + int64(r.opts.Warmup)
		r.builder.WarmUntil(warm)
		r.rec.warm(warm)
		r.sample()
		if r.opts.DropPrivilege {
			return r.dropPrivilege()
		}
		return nil
	}
	run, threads, err := r.runner(plan)
	if err != nil {
		return err
	}
	defer makeRoom(threads, r.server)()
	if r.trace != nil {
		r.pumpDone = make(chan error, 1) // one result, which may come before anyone waits
		go func() { r.pumpDone <- r.pump() }()
	}
	r.result, err = run(ctx)
	return err
}

// noteEnd notes whether the storm was stopped, and why.
func (r *session) noteEnd() {
	r.summary.Interrupted = r.result.Canceled
	switch {
	case r.result.TimeIsUp:
		r.summary.StoppedBy = report.StoppedByMaxDuration
	case r.result.Canceled:
		r.summary.StoppedBy = report.StoppedByUser
	}
}

// dropPrivilege is called when the last thread has entered its namespace. What is
// left to do needs nothing: the counters' files are open, and so are the programs
// and maps; links are taken off, and namespaces let go, by closing descriptors. Old
// kernels alone ask for something when the trace's account is read.
func (r *session) dropPrivilege() error {
	if r.trace == nil {
		return privilege.Drop()
	}
	return privilege.Drop(privilege.ReadStats(func() error {
		_, err := r.trace.Stats()
		return err
	}))
}

// makeRoom gives Go's scheduler a processor for each thread of the storm and the server, which
// holds one while it runs, on top of those it has: the kernel then chooses who
// gets a core, and the trace is drained in time. The function it returns takes
// them back.
func makeRoom(threads int, server *loadgen.Server) (undo func()) {
	if server != nil {
		threads += server.Shards() // the same, if they are the storm's too
	}
	before := runtime.GOMAXPROCS(runtime.NumCPU() + threads)
	return func() { runtime.GOMAXPROCS(before) }
}

// pump moves events from the trace to the joiner until the trace ends.
func (r *session) pump() error {
	events := make([]tcp.Event, 8192)
	for {
		before := clock.Mono()
		n, err := r.trace.Read(context.Background(), events)
		for i := range events[:n] {
			if events[i].Kind == tcp.KindRstSent {
				r.reasons[events[i].Reason]++
			}
		}
		r.rec.events(events[:n])
		r.joiner.Events(events[:n])
		if n < len(events) {
			r.joiner.Advance(before)
		}
		if err != nil {
			r.joiner.Finish()
			return err
		}
	}
}

// settle waits until the server has closed what it accepted and the kernel's
// counters stand still, and returns them.
func (r *session) settle(ctx context.Context) ([]netlab.Counters, error) {
	deadline := settleDeadline(ctx)
	for r.server != nil && !deadline() {
		if st := r.server.Stats(); st.Accepted == st.Closed {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	last, err := r.counters()
	for err == nil {
		time.Sleep(60 * time.Millisecond)
		var now []netlab.Counters
		if now, err = r.counters(); err == nil && (sameChecked(last, now) || deadline()) {
			return now, nil
		}
		last = now
	}
	return nil, err
}

// settleDeadline returns what tells whether it is time to wait no more: after settleLimit, or
// settleStopped after the end of ctx.
func settleDeadline(ctx context.Context) (passed func() bool) {
	deadline, stopping := time.Now().Add(settleLimit), false
	return func() bool {
		now := time.Now()
		if !stopping && ctx.Err() != nil {
			stopping = true
			if soon := now.Add(settleStopped); soon.Before(deadline) {
				deadline = soon
			}
		}
		return !now.Before(deadline)
	}
}

// stopTrace stops the trace and waits until the pump has drained it.
func (r *session) stopTrace() error {
	if r.trace == nil {
		return nil
	}
	err := r.trace.Stop()
	if r.pumpDone != nil {
		if pumpErr := <-r.pumpDone; !errors.Is(pumpErr, io.EOF) {
			err = errors.Join(err, pumpErr)
		}
		r.pumpDone = nil
	}
	return err
}

// close frees what the run made, in the reverse order.
func (r *session) close() error {
	var errs []error
	if r.clients != nil {
		errs = append(errs, r.clients.Close())
	}
	if r.server != nil {
		errs = append(errs, r.server.Close())
	}
	if r.trace != nil {
		errs = append(errs, r.stopTrace(), r.trace.Close())
	}
	errs = append(errs, r.finishRecording(false)) // what the run saw until it failed
	if r.lab != nil {
		errs = append(errs, r.lab.Close())
	}
	return errors.Join(errs...)
}

// untracedMark notes what /proc shows of the client's TIME_WAITs as a loop ended.
func (r *session) untracedMark(loop int) (report.Loop, bool) {
	var timeWaits *int
	if c, err := r.lab.Client().Counters(); err == nil {
		n := int(c[timeWaitsNow])
		timeWaits = &n
	}
	return r.builder.SetLoop(loop, timeWaits, nil)
}
