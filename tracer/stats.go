package tracer

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/twtrace/twtrace/bpf"
)

// Stats is the account of a trace. Every event that happened while the trace
// was attached is in exactly one of Recorded, LostRing and SkippedRecursion:
//
//	Seen = Recorded + LostRing + SkippedRecursion
//
// Rescued says how many of the skipped were recorded after all.
type Stats struct {
	Seen uint64
	// Emitted is what the kernel side counted as handed to the ring or lost
	// there. Once Read has returned io.EOF it equals Recorded + Rescued +
	// Duplicates + LostRing, or the drain was not complete.
	Emitted uint64
	// Recorded were handed over by Read, without the rescued.
	Recorded uint64
	// LostRing did not fit into the ring.
	LostRing uint64
	// SkippedRecursion is how often the kernel did not run a program because
	// it was running already on that CPU (recursion_misses of
	// bpf_prog_info), for events in the trace's scope.
	SkippedRecursion uint64
	// Rescued of these were recorded by the program's twin and handed over by Read.
	Rescued uint64
	// Duplicates were recorded by both and handed over once, or were the FIN of a
	// conversion that was sent again.
	Duplicates uint64
	// Late were found out from later events and handed over besides the recorded ones.
	Late uint64
	// Untracked are connections and listeners for which a table had no room: with a
	// filter by process their events are missing, and drops by such a listener are. Or
	// calls of connect() and bind(): they lack the refusals, or the holder of the port.
	Untracked uint64
	// ByKind counts what Read handed over, LostByKind what the ring lost.
	ByKind, LostByKind map[Kind]uint64
	// Programs has, per program, how often it ran, for how long (0 unless
	// kernel.bpf_stats_enabled is 1), and how often it was skipped.
	Programs []ProgramStats
}

// Lost is the number of events that are missing from what Read handed over.
func (s *Stats) Lost() uint64 {
	return s.LostRing + s.SkippedRecursion - min(s.Rescued, s.SkippedRecursion)
}

// ProgramStats is the kernel's own account of one program.
type ProgramStats struct {
	Name            string
	Runs            uint64
	RuntimeNS       uint64
	RecursionMisses uint64
}

// Stats returns the account so far. It is complete, and Seen is exact, once
// Read has returned io.EOF.
func (t *Tracer) Stats() (Stats, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var s Stats
	if t.final != nil {
		s = *t.final
	} else {
		if t.closed {
			return Stats{}, errors.New("the trace is closed")
		}
		now, err := t.skipped()
		if err != nil {
			return Stats{}, err
		}
		k, err := t.kernelStats(now)
		if err != nil {
			return Stats{}, err
		}
		s = *k
	}
	s.Recorded = t.recorded.Load()
	s.Rescued = t.rescued.Load()
	s.Duplicates = t.duplicates.Load()
	s.Late = t.late.Load()
	s.ByKind = make(map[Kind]uint64)
	for k := range t.byKind {
		if n := t.byKind[k].Load(); n > 0 {
			s.ByKind[Kind(k)] = n
		}
	}
	s.Seen = s.Recorded + s.LostRing + s.SkippedRecursion
	return s, nil
}

// skipped is what the kernel did not run programs for, per kind: main programs
// (recursion_misses of bpf_prog_info), and of these for events outside of the trace.
type skipped struct {
	all, foreign [bpf.ProbesEventKindKIND_MAX]uint64
}

// skipped reads it as it is now. Two counts can't be read at once: it reads again when the one
// has changed meanwhile. The caller holds mu.
func (t *Tracer) skipped() (s skipped, err error) {
	for range 100 {
		if err := t.foreign(&s.foreign); err != nil {
			return s, err
		}
		s.all = [bpf.ProbesEventKindKIND_MAX]uint64{}
		for _, p := range t.chosen {
			// What a listener dropped is counted by the kernel: a look that was
			// skipped is made up for by the next.
			if p.how == withListener {
				continue
			}
			st, err := t.coll.Programs[p.program].Stats()
			if err != nil {
				return s, fmt.Errorf("read the counters of program %s: %w", p.program, err)
			}
			s.all[p.kind] += st.RecursionMisses
		}
		before := s.foreign
		if err := t.foreign(&s.foreign); err != nil || s.foreign == before {
			return s, err
		}
	}
	return s, nil
}

// foreign reads what was skipped of others, per kind.
func (t *Tracer) foreign(sum *[bpf.ProbesEventKindKIND_MAX]uint64) error {
	perCPU, err := t.accounts()
	*sum = [bpf.ProbesEventKindKIND_MAX]uint64{}
	for _, a := range perCPU {
		for k, n := range a.Foreign {
			sum[k] += n
		}
	}
	return err
}

// since is how many events of the trace were skipped since before.
func (s *skipped) since(before *skipped) (n uint64) {
	for k := range s.all {
		all, foreign := s.all[k]-before.all[k], s.foreign[k]-before.foreign[k]
		n += all - min(foreign, all)
	}
	return n
}

// accounts reads the counters of each CPU.
func (t *Tracer) accounts() (perCPU []bpf.ProbesAccount, err error) {
	if err := t.coll.Maps[bpf.ProbesMapAccounts].Lookup(uint32(0), &perCPU); err != nil {
		return nil, fmt.Errorf("read the counters: %w", err)
	}
	return perCPU, nil
}

// kernelStats reads what the kernel side counted; now is what was skipped. The caller holds mu.
func (t *Tracer) kernelStats(now skipped) (*Stats, error) {
	perCPU, err := t.accounts()
	if err != nil {
		return nil, err
	}
	s := &Stats{LostByKind: make(map[Kind]uint64), SkippedRecursion: now.since(&t.before)}
	for _, a := range perCPU {
		for k, n := range a.Lost {
			if n > 0 {
				s.LostByKind[Kind(k)] += n
				s.LostRing += n
			}
		}
		s.Untracked += a.Untracked
	}
	s.Emitted = t.rings.written() + s.LostRing
	for _, p := range t.chosen {
		for _, name := range []string{p.program, p.twin} {
			if name == "" {
				continue
			}
			st, err := t.coll.Programs[name].Stats()
			if err != nil {
				return nil, fmt.Errorf("read the counters of program %s: %w", name, err)
			}
			s.Programs = append(s.Programs, programStats(name, st))
		}
	}
	programs, untracked, err := t.enriched.stats()
	if err != nil {
		return nil, err
	}
	s.Programs = append(s.Programs, programs...)
	s.Untracked += untracked
	return s, nil
}

func programStats(name string, st *ebpf.ProgramStats) ProgramStats {
	return ProgramStats{Name: name, Runs: st.RunCount, RuntimeNS: uint64(st.Runtime), RecursionMisses: st.RecursionMisses}
}
