package vmtest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/twtrace/twtrace/internal/vmtest/guest"
)

// qemu is the emulator. KVM is not asked for: it is not there, or does not work,
// on many of the machines that run CI.
const qemu = "qemu-system-x86_64"

const (
	// bootLimit is how long a kernel may take to user space and back.
	bootLimit = 3 * time.Minute
	// grace is how long init may take to end a job that is over its limit.
	grace = 30 * time.Second
)

// machine is one boot of a kernel.
type machine struct {
	kernel, initrd string                   // files
	console        string                   // file that gets what the kernel prints
	limits         map[string]time.Duration // of each job, until the host gives it up
	cx16           bool                     // the processors have CMPXCHG16B
}

// arguments are those of QEMU.
func (m machine) arguments() []string {
	// QEMU 7.2 emulates some of what newer processors have wrongly: with five-level
	// page tables, and with CMPXCHG16B in the slab allocator of Debian's 6.12.107,
	// memory was corrupted in every other boot. Without the latter, though, 7.x makes
	// no socket storage at all (mm/slub.c, kmalloc_nolock), and its allocator is
	// another.
	cpu := "max,la57=off"
	if !m.cx16 {
		cpu += ",cx16=off"
	}
	return []string{
		// The processors take turns. When they run at the same time, one can meet
		// code that another is patching as it was before, and the kernel an int3
		// that it knows nothing of: tests that switch tracepoints on and off run
		// into that within minutes.
		"-accel", "tcg,thread=single",
		"-cpu", cpu,
		"-smp", "2",
		"-m", "1024",
		"-nodefaults", "-no-reboot", "-display", "none",
		"-serial", "file:" + m.console,
		"-chardev", "stdio,id=results,signal=off", "-serial", "chardev:results",
		"-kernel", m.kernel,
		"-initrd", m.initrd,
		// A kernel that has an Oops is of no use any more: it stops, and QEMU with
		// it, instead of going on with what the Oops has left. RCU in a hurry: the
		// end of a trace or of a network namespace waits for it many times.
		"-append", "console=ttyS0 loglevel=4 oops=panic panic=-1 rcupdate.rcu_expedited=1",
	}
}

// errSilent is the end of a guest that said nothing for too long.
var errSilent = errors.New("nothing more came")

// run boots the machine and hands over what the guest says, until it is off. The
// error is a *crash if the guest did not come to its end.
func (m machine) run(ctx context.Context, handle func(guest.Message)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(bootLimit, func() { cancel(errSilent) })
	defer silence.Stop()

	cmd := exec.CommandContext(ctx, qemu, m.arguments()...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start a virtual machine (apt-get install qemu-system-x86): %w", err)
	}
	var last guest.Message
	garbage := read(out, func(msg guest.Message) {
		switch msg.Kind {
		case guest.Start:
			silence.Reset(m.limits[msg.Job])
		case guest.End, guest.Done:
			silence.Reset(bootLimit)
		}
		last = msg
		handle(msg)
	})
	err = cmd.Wait()
	silent := errors.Is(context.Cause(ctx), errSilent)
	switch {
	case ctx.Err() != nil && !silent:
		return ctx.Err()
	case garbage != nil:
		return garbage
	case last.Kind == guest.Done:
		return nil
	case last.Kind == guest.Failed:
		return fmt.Errorf("set up the guest: %s", last.Text)
	case err != nil && !silent:
		return fmt.Errorf("%s: %w: %s", qemu, err, strings.TrimSpace(errs.String()))
	}
	console, err := readConsole(m.console)
	if err != nil {
		return err
	}
	c := &crash{words: complaint(console), console: console}
	switch {
	case c.words != "":
	case silent:
		c.words = errSilent.Error()
	default:
		c.words = "it went off without a word"
	}
	return c
}

// read decodes the guest's lines up to the last.
func read(r io.Reader, handle func(guest.Message)) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			return nil // what a crash cut off is no message
		}
		if err != nil {
			return err
		}
		var m guest.Message
		if err := json.Unmarshal(line, &m); err != nil {
			_, _ = io.Copy(io.Discard, lines) // or the guest would wait for a reader
			return fmt.Errorf("the guest said %q: %w", line, err)
		}
		handle(m)
	}
}

// crash is the end of a machine that its kernel is to blame for.
type crash struct {
	words   string // what the kernel said first, in one line
	console string // all of it
}

func (c *crash) Error() string { return "the kernel crashed: " + c.words }

// complaints are the words by which a kernel says that it is broken. A warning is
// none, nor is a processor that an emulator let wait.
var (
	complaints = regexp.MustCompile(`BUG:|Oops|general protection fault|Kernel panic|double fault`)
	lockup     = regexp.MustCompile(`(soft|hard) lockup|workqueue lockup`)
	stamp      = regexp.MustCompile(`^(<\d>)?\[ *\d+\.\d+\](\[ *[TC]\d+\])? *`)
)

// complaint returns the first line on the console by which the kernel says that
// it is broken.
func complaint(console string) string {
	for line := range strings.Lines(console) {
		if complaints.MatchString(line) && !lockup.MatchString(line) {
			return stamp.ReplaceAllString(strings.TrimSpace(line), "")
		}
	}
	return ""
}

func readConsole(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	return strings.ReplaceAll(string(text), "\r\n", "\n"), nil
}

// maxCrashes is how often a kernel may crash in one job, or before any.
const maxCrashes = 3

// outcome is what became of all jobs on one kernel.
type outcome struct {
	release string
	boot    time.Duration // from QEMU's start to user space, of the last boot
	results []result
	crashes []string // each in one line
}

// runJobs boots the kernel and runs the jobs; done is told of each result. A boot
// that ends in a crash is repeated with the jobs that have no result yet, and a
// test that failed before the crash has failed. An error says that there is no
// result for a reason that is not the kernel's.
func runJobs(ctx context.Context, boot func(context.Context, []job, func(guest.Message)) error, jobs []job, done func(result)) (*outcome, error) {
	r := &runner{
		outcome: new(outcome), done: done, pending: slices.Clone(jobs),
		failed: make(map[string][]test), crashes: make(map[string]int),
	}
	for len(r.pending) > 0 {
		r.current, r.err = nil, nil
		start := time.Now()
		err := boot(ctx, slices.Clone(r.pending), func(m guest.Message) {
			if m.Kind == guest.Up {
				r.outcome.release, r.outcome.boot = m.Text, time.Since(start)
			}
			if err := r.message(ctx, m); err != nil {
				r.err = errors.Join(r.err, err)
			}
		})
		var c *crash
		switch {
		case r.err != nil:
			return r.outcome, r.err
		case errors.As(err, &c):
			err = r.crashed(ctx, c)
		case err == nil && len(r.pending) > 0:
			err = fmt.Errorf("the guest ended with %d jobs to do", len(r.pending))
		}
		if err != nil {
			return r.outcome, err
		}
	}
	return r.outcome, nil
}

// runner is one call of runJobs.
type runner struct {
	outcome *outcome
	done    func(result)
	pending []job             // without a result
	current *recording        // the job that runs
	err     error             // of this boot's messages
	failed  map[string][]test // by job: in boots that crashed
	crashes map[string]int    // by job, and "" where none ran
}

func (r *runner) message(ctx context.Context, m guest.Message) error {
	switch m.Kind {
	case guest.Start:
		if !slices.ContainsFunc(r.pending, func(j job) bool { return j.Name == m.Job }) {
			return fmt.Errorf("the guest starts %q, which it was not asked to", m.Job)
		}
		r.current = &recording{job: m.Job, start: time.Now()}
	case guest.Stdout, guest.Stderr, guest.End:
		if r.current == nil || r.current.job != m.Job {
			return fmt.Errorf("the guest tells of %q, which does not run", m.Job)
		}
		if m.Kind != guest.End {
			r.current.write(m)
			return nil
		}
		res, err := r.current.result(ctx, r.take(), m)
		if err != nil {
			return err
		}
		r.finish(res)
	}
	return nil
}

// take takes the current job from those that are pending.
func (r *runner) take() job {
	i := slices.IndexFunc(r.pending, func(j job) bool { return j.Name == r.current.job })
	j := r.pending[i]
	r.pending = slices.Delete(r.pending, i, i+1)
	return j
}

func (r *runner) finish(res result) {
	res.fail(r.failed[res.job.Name])
	r.current = nil
	r.outcome.results = append(r.outcome.results, res)
	r.done(res)
}

// crashed notes how a boot ended. The error says that there is no use in another.
func (r *runner) crashed(ctx context.Context, c *crash) error {
	name, where := "", "before the first test"
	switch {
	case r.current != nil:
		name, where = r.current.job, r.current.where()
		res, err := r.current.result(ctx, job{}, guest.Message{Code: -1})
		if err != nil {
			return err
		}
		for _, t := range res.tests {
			if t.verdict == failure {
				r.failed[name] = append(r.failed[name], t)
			}
		}
	case len(r.outcome.results) > 0:
		where = "between two jobs"
	}
	r.outcome.crashes = append(r.outcome.crashes, where+": "+c.words)
	r.crashes[name]++
	switch {
	case r.crashes[name] < maxCrashes:
		return nil
	case name == "":
		return fmt.Errorf("%d boots, none to the tests: %w\n%s", maxCrashes, c, tail(c.console, 60))
	}
	r.finish(result{
		job: r.take(), verdict: failure, output: tail(c.console, 60),
		reason: fmt.Sprintf("the kernel crashed %d times, last %s: %s", maxCrashes, where, c.words),
	})
	return nil
}

// tail returns the last lines of a text.
func tail(text string, lines int) string {
	all := slices.Collect(strings.Lines(text))
	return strings.Join(all[max(0, len(all)-lines):], "")
}

// booter boots one kernel, each time with an image of its own in the directory
// dir, and keeps what it printed in the directory logs.
func booter(k Kernel, dir, logs, tree string, kernel files, release string, modules []module) func(context.Context, []job, func(guest.Message)) error {
	n := 0
	return func(ctx context.Context, jobs []job, handle func(guest.Message)) error {
		n++
		m := machine{
			kernel:  filepath.Join(dir, "vmlinuz"),
			initrd:  filepath.Join(dir, "initrd"),
			console: filepath.Join(logs, fmt.Sprintf("console.%d", n)),
			limits:  make(map[string]time.Duration),
			cx16:    k.CX16,
		}
		var plan guest.Plan
		for _, j := range jobs {
			m.limits[j.Name] = j.Limit + grace
			plan.Jobs = append(plan.Jobs, j.Job)
		}
		if err := os.WriteFile(m.kernel, kernel.image, 0o644); err != nil {
			return err
		}
		f, err := os.Create(m.initrd)
		if err != nil {
			return err
		}
		w := bufio.NewWriter(f)
		err = writeImage(w, tree, release, kernel, modules, plan)
		if err := errors.Join(err, w.Flush(), f.Close()); err != nil {
			return fmt.Errorf("write %s: %w", m.initrd, err)
		}
		// For who looks on, and for what a subtest does not show.
		output, err := os.Create(filepath.Join(logs, fmt.Sprintf("output.%d", n)))
		if err != nil {
			return err
		}
		err = m.run(ctx, func(m guest.Message) {
			if m.Kind == guest.Stdout || m.Kind == guest.Stderr {
				_, _ = output.WriteString(m.Text)
			} else {
				fmt.Fprintf(output, "== %s %s %s %d\n", m.Kind, m.Job, m.Text, m.Code)
			}
			handle(m)
		})
		return errors.Join(err, output.Close())
	}
}
