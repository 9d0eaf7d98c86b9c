package run

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/loadgen"
)

// Recording says where to keep what a run sees.
type Recording struct {
	File    string // empty: nowhere
	Options recording.Options
}

// sampleEvery is how often a recording gets a sample of how things stand.
const sampleEvery = time.Second

// recorder keeps what a run sees. Its methods do nothing on nil.
type recorder struct {
	w     *recording.Writer
	storm *loadgen.Progress

	mu   sync.Mutex
	quit chan struct{} // of the samples; nil: there are none, or no more
	done chan struct{}
}

// startRecording makes the file, once the summary's head is known.
func (r *session) startRecording() error {
	if r.opts.Record.File == "" {
		return nil
	}
	head, err := json.Marshal(r.summary)
	if err != nil {
		return fmt.Errorf("begin the recording: %w", err)
	}
	h := recording.Here(r.opts.Version, recording.CommandRun)
	h.Started, h.StartMonoNS = r.summary.Started, r.begun
	h.Sysctls, h.Coverage, h.Summary = r.summary.Sysctls, r.summary.Coverage, head
	for _, s := range r.sides {
		h.NetNS = append(h.NetNS, recording.NetNS{Cookie: s.netns, Name: s.name})
	}
	if r.trace != nil {
		if h.HZ, err = r.trace.HZ(); err != nil {
			return err
		}
		h.Enums = map[string]map[uint32]string{"rst_reason": r.trace.RstReasons()}
	}
	w, err := recording.Create(r.opts.Record.File, h, r.opts.Record.Options)
	if err != nil {
		return fmt.Errorf("begin the recording: %w", err)
	}
	r.rec = &recorder{w: w, storm: new(loadgen.Progress)}
	return nil
}

func (rec *recorder) events(events []tcp.Event) {
	if rec != nil {
		rec.w.Events(events)
	}
}

func (rec *recorder) attempts(attempts []tcp.Attempt) {
	if rec != nil {
		rec.w.Attempts(attempts)
	}
}

// loop notes the end of a loop; timeWaits is how many there were, if the trace is not what tells.
func (rec *recorder) loop(l loadgen.LoopResult, end int64, timeWaits *int) {
	if rec == nil {
		return
	}
	now := recording.Now()
	s := recording.Sample{
		Kind: recording.SampleLoop, MonoNS: end, RealNS: now.RealNS - now.MonoNS + end, BootNS: now.BootNS - now.MonoNS + end,
		Loop: uint32(l.Loop), Started: uint32(l.Attempts), Finished: uint32(l.Finished), Failed: uint32(l.Failed),
		TimeWait: -1, Ports: -1, DurationNS: int64(l.Duration),
	}
	if timeWaits != nil {
		s.TimeWait = int32(*timeWaits)
	}
	rec.w.Sample(s)
}

// warm notes when the storm began, and from when on latencies count.
func (rec *recorder) warm(from int64) {
	if rec != nil {
		rec.w.Sample(recording.Sample{Kind: recording.SampleWarm, MonoNS: from, TimeWait: -1, Ports: -1})
	}
}

// sample begins to note each second how things stand.
func (r *session) sample() {
	rec := r.rec
	if rec == nil {
		return
	}
	rec.quit, rec.done = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(rec.done)
		tick := time.NewTicker(sampleEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				r.sampleOnce()
			case <-rec.quit:
				return
			}
		}
	}()
}

func (r *session) sampleOnce() {
	if r.trace != nil {
		// Where it can't be read the account at the end says so.
		if st, err := r.trace.Stats(); err == nil {
			r.rec.w.SetLoss(st.LostRing, st.Lost()-st.LostRing)
		}
	}
	all := r.rec.storm.Now().All
	r.rec.w.Sample(recording.Sample{
		Kind: recording.SampleTick, Started: uint32(all.Started), Finished: uint32(all.Finished), Failed: uint32(all.Failed),
		Open: uint32(all.Open), TimeWait: int32(r.timeWaits()), Ports: -1,
	})
}

// stopSamples ends them. It may be called again.
func (rec *recorder) stopSamples() {
	if rec == nil {
		return
	}
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if rec.quit != nil {
		close(rec.quit)
		<-rec.done
		rec.quit = nil
	}
}

// finishRecording ends the recording, with the summary if it is done. It may be called again.
func (r *session) finishRecording(done bool) error {
	if r.rec == nil {
		return nil
	}
	r.rec.stopSamples()
	if !done {
		return r.rec.w.Close(nil)
	}
	summary, err := json.Marshal(r.summary)
	if err != nil {
		return errors.Join(fmt.Errorf("end the recording: %w", err), r.rec.w.Close(nil))
	}
	return r.rec.w.Close(summary)
}
