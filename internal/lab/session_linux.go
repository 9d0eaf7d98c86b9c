package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/report"
	"github.com/twtrace/twtrace/internal/run"
)

// Options say how entries are run.
type Options struct {
	Version string // of twtrace
	// Full runs storms at their full size, not on a narrow range of ports.
	Full bool
	// AtOnce is how many entries may run side by side; 0: four.
	AtOnce int
	Log    *slog.Logger // of what goes on; nil: nowhere
	// OnAnswer, if set, is given each answer as it is there, from one goroutine at a time.
	OnAnswer func(*Answer)
}

// Session is one entry under way.
type Session struct {
	ctx    context.Context
	opts   *Options
	entry  *Entry
	answer *Answer
	mu     sync.Mutex // of undo: parts of an entry may run side by side
	undo   []func() error
}

// Context ends when the entry is to give up.
func (s *Session) Context() context.Context { return s.ctx }

// Full reports whether sizes are those of the original experiment.
func (s *Session) Full() bool { return s.opts.Full }

// Claim settles a claim.
func (s *Session) Claim(c Claim) {
	if c.Evidence == nil {
		c.Evidence = Evidence{}
	}
	s.answer.Claims = append(s.answer.Claims, c)
}

// Answerf says the answer in a sentence.
func (s *Session) Answerf(format string, args ...any) { s.answer.Answer = fmt.Sprintf(format, args...) }

// Note adds to the evidence of the whole entry.
func (s *Session) Note(key string, value any) { s.answer.Evidence[key] = value }

// Logf says what goes on.
func (s *Session) Logf(format string, args ...any) {
	if s.opts.Log != nil {
		s.opts.Log.Info(fmt.Sprintf(format, args...), "entry", s.entry.Name)
	}
}

// Defer calls f when the entry has ended, the latest first.
func (s *Session) Defer(f func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.undo = append(s.undo, f)
}

// Together runs parts of an entry side by side, each with networks of its own, and waits for all. Claims are
// settled by one of them at a time, or afterwards.
func (s *Session) Together(parts ...func() error) error {
	errs := make([]error, len(parts))
	var wg sync.WaitGroup
	for i, part := range parts {
		wg.Add(1)
		go func() {
			defer wg.Done()
			errs[i] = part()
		}()
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Network makes a fresh network, gone when the entry ends. Sysctls are "key=value", below net.ipv4 if
// they name no other family.
func (s *Session) Network(kind netlab.Kind, sysctls ...string) (*netlab.Lab, error) {
	set, err := Sysctls(sysctls...)
	if err != nil {
		return nil, err
	}
	return s.NetworkOf(netlab.Options{Kind: kind, Sysctls: set})
}

// NetworkOf is Network with all that netlab can be told.
func (s *Session) NetworkOf(o netlab.Options) (*netlab.Lab, error) {
	l, err := netlab.New(o)
	if err != nil {
		return nil, err
	}
	s.Defer(l.Close)
	return l, nil
}

// Sysctls reads settings as Network takes them.
func Sysctls(texts ...string) (set []netlab.Sysctl, err error) {
	for _, text := range texts {
		if !strings.Contains(strings.SplitN(text, "=", 2)[0], ".") {
			text = "net.ipv4." + text
		}
		one, err := netlab.ParseSysctl(text)
		if err != nil {
			return nil, err
		}
		set = append(set, one)
	}
	return set, nil
}

// Storm does a run as `twtrace run` does, traced, and returns its summary.
func (s *Session) Storm(o run.Options) (*report.Summary, error) {
	o.Version, o.Trace = s.opts.Version, true
	return run.Run(s.ctx, o)
}

// errTooLong: what was waited for did not come.
var errTooLong = errors.New("not within")

// Wait waits until a condition holds, which it asks every few milliseconds, or returns an error after limit.
func (s *Session) Wait(what string, limit time.Duration, ready func() (bool, error)) error {
	for deadline := time.Now().Add(limit); ; {
		ok, err := ready()
		if ok || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: %w %v", what, errTooLong, limit)
		}
		select {
		case <-s.ctx.Done():
			return s.ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Sleep waits for a time that the kernel's own timers need.
func (s *Session) Sleep(d time.Duration) error {
	select {
	case <-s.ctx.Done():
		return s.ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// Run runs entries, side by side where they may be, and returns their answers in the order of the entries. An entry
// that fails has an answer that says why. When ctx ends those under way give up.
func Run(ctx context.Context, entries []Entry, opts Options) []Answer {
	if opts.AtOnce == 0 {
		opts.AtOnce = 4
	}
	answers := make([]Answer, len(entries))
	var told sync.Mutex
	do := func(i int) {
		answers[i] = runOne(ctx, &entries[i], &opts)
		if opts.OnAnswer != nil {
			told.Lock()
			defer told.Unlock()
			opts.OnAnswer(&answers[i])
		}
	}
	alone := func(e *Entry) bool { return e.Alone || opts.Full && e.FullAlone }
	var wg sync.WaitGroup
	room := make(chan struct{}, opts.AtOnce) // a token for each that runs
	for i := range entries {
		if alone(&entries[i]) {
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			room <- struct{}{}
			defer func() { <-room }()
			do(i)
		}()
	}
	wg.Wait()
	for i := range entries {
		if alone(&entries[i]) {
			do(i)
		}
	}
	return answers
}

func runOne(ctx context.Context, e *Entry, opts *Options) (a Answer) {
	a = Answer{
		Schema: Schema, Name: e.Name, Question: e.Question, Source: e.Source, Evidence: Evidence{}, Claims: []Claim{},
		Kernel: kernel(), Full: opts.Full,
	}
	s := &Session{ctx: ctx, opts: opts, entry: e, answer: &a}
	begun := time.Now()
	err := errors.Join(e.run(s), s.end())
	a.Seconds = time.Since(begun).Seconds()
	a.settle()
	if err != nil {
		a.Error, a.Holds = err.Error(), No
	}
	return a
}

// end undoes what the entry made.
func (s *Session) end() (err error) {
	for i := len(s.undo) - 1; i >= 0; i-- {
		err = errors.Join(err, s.undo[i]())
	}
	return err
}

// kernel is the release of the running one.
func kernel() string {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return ""
	}
	return unix.ByteSliceToString(uts.Release[:])
}
