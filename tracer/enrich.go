package tracer

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"

	"github.com/twtrace/twtrace/bpf"
	"github.com/twtrace/twtrace/internal/tcp"
)

// enrichment is a row of what programs on kernel functions (fexit) add to the events
// of those on tracepoints. Its programs go together: a kernel that refuses one of
// them (lockdown), or lacks its function, does without the row, and the coverage
// says so.
type enrichment struct {
	programs []string // in bpf/enrich.bpf.c
	fact     tcp.Fact
	// needs is what has to be seen itself for the fact to have an event.
	needs tcp.Fact
	// forKinds are the kinds of which one has to be asked for.
	forKinds []Kind
	// noted is the variable by which the programs on tracepoints know of the row.
	noted string
}

var enrichments = []enrichment{
	{
		programs: []string{bpf.EnrichProgTwRefused, bpf.EnrichProgPortChecked, bpf.EnrichProgPortChecked6},
		fact:     tcp.FactRefusals, needs: tcp.FactConnectFail,
		forKinds: []Kind{tcp.KindConnectFailed}, noted: bpf.ProbesVarRefusalsNoted,
	},
	{
		programs: []string{bpf.EnrichProgTwDenied, bpf.EnrichProgTwDeniedTwin},
		fact:     tcp.FactTWOverflow, needs: tcp.FactState,
		forKinds: []Kind{tcp.KindTWOverflow}, noted: bpf.ProbesVarOverflowsNoted,
	},
	{
		programs: []string{bpf.EnrichProgPortDenied},
		fact:     tcp.FactBindOwner, needs: tcp.FactBindFail,
		forKinds: []Kind{tcp.KindBindFailed}, noted: bpf.ProbesVarHoldersNoted,
	},
}

// sharedMaps are those that the programs of both objects use (bpf/notes.h).
var sharedMaps = []string{bpf.ProbesMapRecents, bpf.ProbesMapRefused, bpf.ProbesMapHolders}

// enriched is what of the enrichment is attached. The zero value: nothing.
type enriched struct {
	rows   []enrichment
	colls  []*ebpf.Collection
	links  []link.Link
	shared map[string]*ebpf.Map
	// gaps says of the rows that are not attached why.
	gaps map[tcp.Fact]error
}

// enrich loads and attaches what this kernel allows of the enrichment. It happens
// before the programs on tracepoints are loaded, which have to be told, and nothing is
// recorded until these are attached. The error says that not even the maps can be made.
func enrich(core *ebpf.CollectionSpec, opts *Options, seen Coverage, types *btf.Cache) (_ *enriched, err error) {
	spec, err := bpf.LoadEnrich()
	if err != nil {
		return nil, err
	}
	if err := setScope(spec, opts); err != nil {
		return nil, err
	}
	e := &enriched{shared: make(map[string]*ebpf.Map), gaps: make(map[tcp.Fact]error)}
	defer func() {
		if err != nil {
			_ = e.close()
		}
	}()
	for _, name := range sharedMaps {
		m, err := ebpf.NewMap(core.Maps[name])
		if err != nil {
			return nil, loadError(err)
		}
		e.shared[name] = m
	}
	for _, row := range enrichments {
		if !slices.ContainsFunc(opts.kinds(), func(k Kind) bool { return slices.Contains(row.forKinds, k) }) {
			continue
		}
		if grade := seen[row.needs]; grade != tcp.Exact {
			e.gaps[row.fact] = fmt.Errorf("%s is %s", row.needs, grade)
			continue
		}
		if err := e.attach(row, spec, types); err != nil {
			e.gaps[row.fact] = err
			continue
		}
		e.rows = append(e.rows, row)
	}
	return e, nil
}

// attach loads and attaches the programs of a row, all or none.
func (e *enriched) attach(row enrichment, spec *ebpf.CollectionSpec, types *btf.Cache) error {
	part := spec.Copy()
	for name := range part.Programs {
		if !slices.Contains(row.programs, name) {
			delete(part.Programs, name)
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(part, ebpf.CollectionOptions{Cache: types, MapReplacements: e.shared})
	if err != nil {
		return fmt.Errorf("load %s: %w", strings.Join(row.programs, ", "), err)
	}
	var links []link.Link
	for _, name := range row.programs {
		l, err := link.AttachTracing(link.TracingOptions{Program: coll.Programs[name]})
		if err != nil {
			for _, l := range links {
				_ = l.Close()
			}
			coll.Close()
			return fmt.Errorf("attach %s: %w", name, err)
		}
		links = append(links, l)
	}
	e.links = append(e.links, links...)
	e.colls = append(e.colls, coll)
	return nil
}

// grade raises the grades of the facts that the enrichment shows.
func (e *enriched) grade(c Coverage) {
	for _, row := range e.rows {
		if _, asked := c[row.fact]; asked {
			c[row.fact] = tcp.Exact
		}
	}
}

// tell sets the variables by which the programs on tracepoints know of the rows.
func (e *enriched) tell(core *ebpf.CollectionSpec) error {
	var told []constant
	for _, row := range e.rows {
		told = append(told, constant{row.noted, true})
	}
	return set(core, told)
}

// stats returns the kernel's account of each program, and how many holders of ports
// there was no room to note.
func (e *enriched) stats() (programs []ProgramStats, untracked uint64, err error) {
	for i, coll := range e.colls {
		for _, name := range e.rows[i].programs {
			st, err := coll.Programs[name].Stats()
			if err != nil {
				return nil, 0, fmt.Errorf("read the counters of program %s: %w", name, err)
			}
			programs = append(programs, programStats(name, st))
		}
		var n uint64
		if err := coll.Variables[bpf.EnrichVarUntracked].Get(&n); err != nil {
			return nil, 0, fmt.Errorf("read %s: %w", bpf.EnrichVarUntracked, err)
		}
		untracked += n
	}
	return programs, untracked, nil
}

// detach takes the programs off. Those on tracepoints are off already: an event must
// not miss what it says it has.
func (e *enriched) detach() error {
	var errs []error
	for _, l := range e.links {
		errs = append(errs, l.Close())
	}
	e.links = nil
	return errors.Join(errs...)
}

// close frees everything.
func (e *enriched) close() error {
	err := e.detach()
	for _, c := range e.colls {
		c.Close()
	}
	for _, m := range e.shared {
		err = errors.Join(err, m.Close())
	}
	e.colls, e.shared = nil, nil
	return err
}
