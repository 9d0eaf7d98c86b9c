package watch

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twtrace/twtrace/internal/eventline"
	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
)

// Recording says where to keep events instead of writing lines.
type Recording struct {
	File    string // empty: nowhere
	Options recording.Options
	Twtrace string // the version that writes it
	// Asked is what the command was asked for, in its own words.
	Asked []string
}

// AccountSchema names the JSON form of an account in a recording.
const AccountSchema = "twtrace.account/1"

// recordedAccount is what the footer of a recorded trace has.
type recordedAccount struct {
	Schema   string `json:"schema"`
	Recorded uint64 `json:"recorded"`
	AfterMax uint64 `json:"after_max"`
	Lost     uint64 `json:"lost_ring"`
	Skipped  uint64 `json:"skipped_recursion"`
	Rescued  uint64 `json:"rescued"`
	// Unfollowed are sockets without owner in files after the first.
	Unfollowed uint64 `json:"unfollowed"`
}

// sampleEvery is how often a recording gets a sample: the clocks, and what was lost by then.
const sampleEvery = time.Second

// recorder keeps the events of a session.
type recorder struct {
	w    *recording.Writer
	part uint32 // of a rotated recording, from 1
	quit chan struct{}
	done chan struct{}
	once sync.Once
}

// nowhere is the Writer of a session whose events are kept.
type nowhere struct{}

func (nowhere) Header()              {}
func (nowhere) Line(*eventline.Line) {}
func (nowhere) Flush() error         { return nil }

// startRecording makes the file.
func (s *session) startRecording(hz int) error {
	if s.opts.Record.File == "" {
		return nil
	}
	h := recording.Here(s.opts.Record.Twtrace, recording.CommandTrace)
	h.HZ, h.Coverage = hz, s.trace.Coverage()
	h.Enums = map[string]map[uint32]string{"rst_reason": s.trace.RstReasons()}
	asked, err := json.Marshal(s.opts.Record.Asked)
	if err != nil {
		return fmt.Errorf("begin the recording: %w", err)
	}
	h.Options = asked
	for _, ns := range s.opts.Tracer.NetNS {
		h.NetNS = append(h.NetNS, recording.NetNS{Cookie: ns})
	}
	w, err := recording.Create(s.opts.Record.File, h, s.opts.Record.Options)
	if err != nil {
		return fmt.Errorf("begin the recording: %w", err)
	}
	s.rec = &recorder{w: w, part: 1, quit: make(chan struct{}), done: make(chan struct{})}
	go s.sample()
	return nil
}

func (s *session) sample() {
	defer close(s.rec.done)
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			// Where it can't be read the account at the end says so.
			if st, err := s.trace.Stats(); err == nil {
				s.rec.w.SetLoss(st.LostRing, st.Lost()-st.LostRing)
			}
			s.rec.w.Sample(recording.Sample{Kind: recording.SampleTick, TimeWait: -1, Ports: -1})
		case <-s.rec.quit:
			return
		}
	}
}

// record keeps a batch: all that was read, since what was not asked for tells whose a connection is.
func (s *session) record(events []tcp.Event) {
	if s.closed {
		s.account.AfterEnd += uint64(len(events))
		return
	}
	if s.rec.w.RotationDue() {
		s.rec.w.Rotate()
		s.rec.part++
	}
	if max := s.opts.Max; max > 0 {
		for i := range events {
			if wants(s.opts.Tracer.Kinds, events[i].Kind) {
				s.wanted++
			}
			if s.wanted == max {
				s.closed = true
				s.end()
				s.account.AfterEnd += uint64(len(events) - i - 1)
				events = events[:i+1]
				break
			}
		}
	}
	if s.rec.w.Rotates() {
		s.carryOwners(events)
	}
	s.rec.w.Events(events)
	s.account.Recorded += uint64(len(events))
}

// carryOwners gives the first event of each connection in a file its owner, who was told in one before.
func (s *session) carryOwners(events []tcp.Event) {
	for i := range events {
		ev := &events[i]
		past := s.owners.Event(ev)
		if s.owners.FirstIn(s.rec.part, ev) && ev.Flags&tcp.FlagOwner == 0 && past.Owner != (tcp.Owner{}) {
			ev.Flags |= tcp.FlagOwner
			ev.Owner = past.Owner
		}
	}
}

// finishRecording ends the recording, with the account if the session came to its end. It may be
// called again.
func (s *session) finishRecording(done bool) error {
	if s.rec == nil {
		return nil
	}
	s.rec.once.Do(func() { close(s.rec.quit) })
	<-s.rec.done
	if !done {
		return s.rec.w.Close(nil)
	}
	a := &s.account
	s.rec.w.SetLoss(a.Lost, a.Skipped-min(a.Rescued, a.Skipped))
	text, err := json.Marshal(recordedAccount{
		Schema: AccountSchema, Recorded: a.Recorded, AfterMax: a.AfterEnd, Lost: a.Lost, Skipped: a.Skipped, Rescued: a.Rescued,
		Unfollowed: a.Unfollowed,
	})
	if err != nil {
		return errors.Join(fmt.Errorf("end the recording: %w", err), s.rec.w.Close(nil))
	}
	err = s.rec.w.Close(text)
	a.Files = s.rec.w.Names()
	return err
}
