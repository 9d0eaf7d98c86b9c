package oracle

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
)

// Oracle is a set of attached programs. It counts until it is closed.
type Oracle struct {
	watched  *ebpf.Map
	maps     map[string]*ebpf.Map
	programs map[string]*ebpf.Program
	links    []link.Link
	missing  [numFacts]error // why a fact is not witnessed: the first reason
}

// Counts is what happened in a namespace since Watch.
type Counts struct {
	counts objectCounts
}

// Of returns how often the fact happened; of [StateChange], all changes.
func (c *Counts) Of(f Fact) (n uint64) {
	if f != StateChange {
		return c.counts.Facts[f]
	}
	for _, k := range c.counts.Changes {
		n += k
	}
	return n
}

// Changes returns how often a socket went from one state to another (numbers of
// include/net/tcp_states.h).
func (c *Counts) Changes(from, to uint8) uint64 { return c.counts.Changes[int(from)*states+int(to)] }

// states is STATES of oracle.bpf.c.
const states = 16

// Open attaches what this kernel lets it. A kernel that refuses fentry altogether is
// an error that is os.ErrPermission (lockdown=integrity, or no privilege).
func Open() (*Oracle, error) {
	spec, err := loadObject()
	if err != nil {
		return nil, err
	}
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, fmt.Errorf("read the kernel's types: %w", err)
	}
	o := &Oracle{maps: make(map[string]*ebpf.Map), programs: make(map[string]*ebpf.Program)}
	for name, m := range spec.Maps {
		if strings.HasPrefix(name, ".") {
			continue // a section of the object that no program uses
		}
		if o.maps[name], err = ebpf.NewMap(m); err != nil {
			return nil, errors.Join(fmt.Errorf("make map %s: %w", name, err), o.Close())
		}
	}
	o.watched = o.maps["watched"]
	for _, p := range programs {
		err := o.attach(kernel, spec, p.name)
		if errors.Is(err, os.ErrPermission) {
			return nil, errors.Join(err, o.Close())
		}
		for _, f := range p.facts {
			if o.missing[f] == nil {
				o.missing[f] = err
			}
		}
	}
	return o, nil
}

// attach loads one program, so that what a kernel lacks for one is no matter to others.
func (o *Oracle) attach(kernel *btf.Spec, all *ebpf.CollectionSpec, name string) error {
	target := all.Programs[name].AttachTo
	var f *btf.Func
	if err := kernel.TypeByName(target, &f); err != nil {
		return fmt.Errorf("no function %s", target)
	}
	spec := all.Copy()
	spec.Programs = map[string]*ebpf.ProgramSpec{name: spec.Programs[name]}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: o.maps})
	if err != nil {
		return fmt.Errorf("load for %s: %w", target, err)
	}
	defer coll.Close()
	prog := coll.DetachProgram(name)
	l, err := link.AttachTracing(link.TracingOptions{Program: prog})
	if err != nil {
		prog.Close()
		return fmt.Errorf("attach to %s: %w", target, err)
	}
	o.programs[name] = prog
	o.links = append(o.links, l)
	return nil
}

// Watch begins to count in a namespace, by its cookie.
func (o *Oracle) Watch(netns uint64) error {
	if err := o.watched.Put(netns, new(objectCounts)); err != nil {
		return fmt.Errorf("watch namespace %d: %w", netns, err)
	}
	return nil
}

// Unwatch forgets a namespace.
func (o *Oracle) Unwatch(netns uint64) error { return o.watched.Delete(netns) }

// Counts returns what was counted since Watch.
func (o *Oracle) Counts(netns uint64) (*Counts, error) {
	var c Counts
	if err := o.watched.Lookup(netns, &c.counts); err != nil {
		return nil, fmt.Errorf("read the counts of namespace %d: %w", netns, err)
	}
	return &c, nil
}

// NotWitnessed says why this kernel does not let a fact be counted; nil if it does.
func (o *Oracle) NotWitnessed(f Fact) error { return o.missing[f] }

// Missed is how often the kernel did not run the programs that count a fact, since
// they were running already on that CPU, in any namespace.
func (o *Oracle) Missed(f Fact) (n uint64, err error) {
	for _, p := range programs {
		prog := o.programs[p.name]
		if prog == nil || !slices.Contains(p.facts, f) {
			continue
		}
		st, err := prog.Stats()
		if err != nil {
			return 0, fmt.Errorf("read the counters of program %s: %w", p.name, err)
		}
		n += st.RecursionMisses
	}
	return n, nil
}

// Close detaches.
func (o *Oracle) Close() error {
	var errs []error
	for _, l := range o.links {
		errs = append(errs, l.Close())
	}
	for _, p := range o.programs {
		errs = append(errs, p.Close())
	}
	for _, m := range o.maps {
		errs = append(errs, m.Close())
	}
	o.links, o.programs, o.maps = nil, nil, nil
	return errors.Join(errs...)
}
