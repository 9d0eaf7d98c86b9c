package watch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/clock"
	"github.com/twtrace/twtrace/internal/eventline"
	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
	"github.com/twtrace/twtrace/tracer"
)

// AllNetNS is Options.NetNS for every network namespace of the machine.
const AllNetNS = "all"

// MaxFollowed is how many sockets and TIME_WAITs have an owner and a time at once.
const MaxFollowed = timeline.MaxFollowed

// Options say what to watch. The zero value, with a Writer, watches the caller's own
// network namespace until the context ends.
type Options struct {
	// Tracer has the kernel's filters. Its NetNS is the session's own business. Its
	// Kinds are those to write; what has to be read along with them is added.
	Tracer tracer.Options
	// NetNS is "" for the caller's own, AllNetNS, or a file (netlab.Find).
	NetNS string
	// Snapshot begins with a line for each socket that exists already.
	Snapshot bool
	// Duration ends the trace after this time; 0: it does not.
	Duration time.Duration
	// Max ends the trace after this many lines; 0: it does not.
	Max uint64
	// Command is run while the trace goes on, and the trace ends with it; nil: none.
	// Its Cmd must not have been started.
	Command *exec.Cmd
	// OnReady is called once, when everything that needs a privilege is done but what
	// the tracer attaches later (see tracer.Options): programs are in place, what exists is
	// listed, and Command has been started; nil: nothing. It is given what will be read
	// of the trace at its end.
	OnReady func(stats func() error) error
	// Writer is asked for once what lines need to know is known. With Record it may return nil:
	// there are no lines.
	Writer func(Start) eventline.Writer
	// Record keeps the events instead.
	Record Recording
}

// Start is what is known when a trace begins.
type Start struct {
	MonoNS  int64
	HZ      int
	Reasons map[uint32]string
	// NotObservable are the facts that Options ask for and this kernel does not show.
	NotObservable []Missing
}

// Account is what a trace came to.
type Account struct {
	// Recorded are the lines that were handed to the Writer, or the events of the recording.
	Recorded uint64
	// Along were read and not written: of kinds that only give owners and times.
	Along uint64
	// AfterEnd were read and not written because Max was reached.
	AfterEnd uint64
	// Lost did not fit into the ring.
	Lost uint64
	// Skipped is how often the kernel skipped a program, Rescued how many of these
	// a second copy of it recorded.
	Skipped, Rescued uint64
	// Unfollowed are sockets without owner and time, for lack of room.
	Unfollowed uint64
	// Unwritten is set when the reader of the lines went away (EPIPE).
	Unwritten bool
	// Files are those that a recording is in, the oldest first.
	Files         []string
	NotObservable []Missing
	// Exit is how Command ended, as a shell tells it; 0 without one.
	Exit int
}

// Incomplete says whether something that happened is missing, or, if strict,
// could not have been seen.
func (a *Account) Incomplete(strict bool) bool {
	return a.Lost > 0 || a.Skipped > a.Rescued || strict && (len(a.NotObservable) > 0 || a.Unfollowed > 0)
}

// source is the trace itself, as a session uses it.
type source interface {
	Start() error
	Snapshot() error
	Read(ctx context.Context, events []tcp.Event) (int, error)
	Stop() error
	Close() error
	Stats() (tracer.Stats, error)
	Coverage() tcp.Coverage
	RstReasons() map[uint32]string
	HZ() (int, error)
}

var _ source = (*tracer.Tracer)(nil)

// space is a network namespace whose sockets can be listed.
type space interface {
	Do(func() error) error
}

// Run watches until ctx ends, or what Options say, or the command has ended. Errors are
// of the set-up or of the trace; among them those of tracer.Open and netlab.Find,
// ErrNoProcess, and ErrNoCommand. Lines that nobody reads any more are no error.
func Run(ctx context.Context, opts Options) (_ *Account, err error) {
	if err := checkProcesses(opts.Tracer.PIDs); err != nil {
		return nil, err
	}
	if err := checkCommand(opts.Command); err != nil {
		return nil, err
	}
	found, err := namespaces(opts.NetNS)
	if err != nil {
		return nil, err
	}
	var spaces []space
	for _, ns := range found {
		spaces = append(spaces, ns)
		defer func() { err = errors.Join(err, ns.Close()) }()
	}
	topts := opts.Tracer
	topts.Kinds = read(&opts)
	if opts.NetNS != AllNetNS {
		topts.NetNS = []tracer.NetNS{tracer.NetNS(found[0].Cookie())}
	}
	trace, err := tracer.Open(topts)
	if err != nil {
		return nil, err
	}
	opts.Tracer.NetNS = topts.NetNS // a recording names it
	return run(ctx, trace, spaces, opts)
}

// namespaces finds what Options.NetNS means.
func namespaces(path string) ([]*netlab.Namespace, error) {
	var ns *netlab.Namespace
	var err error
	switch path {
	case AllNetNS:
		return netlab.FindAll()
	case "":
		ns, err = netlab.Own()
	default:
		ns, err = netlab.Find(path)
	}
	if err != nil {
		return nil, err
	}
	return []*netlab.Namespace{ns}, nil
}

// session is a trace under way.
type session struct {
	opts   Options
	trace  source
	spaces []space
	end    func() // the trace; what was read by then is still written

	// What only the goroutine of run touches.
	writer  eventline.Writer
	owners  *timeline.Owners
	account Account
	closed  bool      // nothing is written any more
	rec     *recorder // nil: lines are written
	wanted  uint64    // events of the kinds that were asked for, where Max counts them
}

// run is Run on any source, which it closes.
func run(ctx context.Context, trace source, spaces []space, opts Options) (_ *Account, err error) {
	defer func() { err = errors.Join(err, trace.Close()) }()
	s := &session{opts: opts, trace: trace, spaces: spaces, owners: timeline.NewOwners(0)}
	s.account.NotObservable = missing(&opts, trace.Coverage())

	start := clock.Mono()
	if err := trace.Start(); err != nil {
		return nil, err
	}
	hz, err := trace.HZ()
	if err != nil {
		return nil, err
	}
	until, end := context.WithCancel(ctx)
	defer end()
	s.end = end
	if opts.Duration > 0 {
		limited, free := context.WithTimeout(until, opts.Duration)
		defer free()
		until = limited
	}
	s.writer = opts.Writer(Start{
		MonoNS: start, HZ: hz, Reasons: trace.RstReasons(), NotObservable: s.account.NotObservable,
	})
	if s.writer == nil {
		s.writer = nowhere{}
	}
	if err := s.startRecording(hz); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.finishRecording(false)) }() // if the session fails
	s.writer.Header()
	if err := s.flush(); err != nil {
		return nil, err
	}

	err = s.follow(ctx, until)
	stats, statsErr := trace.Stats()
	if err := errors.Join(err, statsErr); err != nil {
		return nil, err
	}
	a := &s.account
	a.Lost, a.Skipped, a.Rescued = stats.LostRing, stats.SkippedRecursion, stats.Rescued
	a.Unfollowed = s.owners.Overflow()
	return a, s.finishRecording(true)
}

// follow writes events until the context until ends, and then those that happened
// before that. The snapshot is taken and the command runs meanwhile: a snapshot can have more
// sockets than the ring has room.
func (s *session) follow(ctx, until context.Context) error {
	listed, listingDone := context.WithCancel(context.Background())
	defer listingDone()
	others := make(chan error, 1) // one result, which may come before anyone waits
	go func() {
		err := s.snapshot()
		listingDone()
		if err == nil && s.opts.Command == nil {
			err = s.ready()
		}
		if err == nil && s.opts.Command != nil && until.Err() == nil {
			err = s.command(ctx)
			s.end()
		}
		if err != nil {
			s.end()
		}
		others <- err
	}()
	err := s.pump(until)
	if err == nil {
		err = s.pump(listed) // it still writes into the ring
	}
	s.end()
	<-listed.Done()
	err = errors.Join(err, s.trace.Stop())
	if err == nil {
		err = s.pump(context.Background())
	}
	return errors.Join(err, <-others)
}

func (s *session) ready() error {
	if s.opts.OnReady == nil {
		return nil
	}
	return s.opts.OnReady(func() error {
		_, err := s.trace.Stats()
		return err
	})
}

// snapshot lists what exists already.
func (s *session) snapshot() error {
	if !s.opts.Snapshot {
		return nil
	}
	for _, ns := range s.spaces {
		if err := ns.Do(s.trace.Snapshot); err != nil {
			return fmt.Errorf("list the sockets that exist already: %w", err)
		}
	}
	return nil
}

// pump writes what the trace reads until the trace or ctx ends.
func (s *session) pump(ctx context.Context) error {
	events := make([]tcp.Event, batch)
	for {
		n, err := s.trace.Read(ctx, events)
		if n > 0 {
			if err := s.write(events[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || err != nil && errors.Is(err, ctx.Err()) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// batch is how many events are read before what they gave is sent on its way: in a
// storm some milliseconds' worth, else what happened within the tracer's tick.
const batch = 4096

// write writes a batch.
func (s *session) write(events []tcp.Event) error {
	if s.rec != nil {
		s.record(events)
		return nil
	}
	// Anew for each batch: the clocks part when the machine sleeps or its time is set.
	wall := time.Now().UnixNano() - clock.Mono()
	for i := range events {
		ev := &events[i]
		past := s.owners.Event(ev)
		switch {
		case !wants(s.opts.Tracer.Kinds, ev.Kind):
			s.account.Along++
		case s.closed:
			s.account.AfterEnd++
		default:
			s.writer.Line(&eventline.Line{Event: ev, Past: past, Wall: time.Unix(0, wall+ev.MonoNS)})
			s.account.Recorded++
			if s.account.Recorded == s.opts.Max {
				s.closed = true
				s.end()
			}
		}
	}
	return s.flush()
}

// flush sends the lines on their way. A reader who has seen enough (head, less) ends
// the trace without an error.
func (s *session) flush() error {
	err := s.writer.Flush()
	if errors.Is(err, unix.EPIPE) {
		s.account.Unwritten = true
		s.closed = true
		s.end()
		return nil
	}
	return err
}
