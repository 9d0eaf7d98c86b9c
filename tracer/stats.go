package tracer

// Stats is the account of a trace. Every event that happened while the trace
// was attached is in exactly one of Recorded, LostRing and SkippedRecursion:
//
//	Seen = Recorded + LostRing + SkippedRecursion
//
// Rescued says how many of the skipped were recorded after all.
type Stats struct {
	Seen uint64
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
	// Duplicates were recorded by both and handed over once.
	Duplicates uint64
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
