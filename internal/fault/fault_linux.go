package fault

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
)

// Action is what becomes of a segment.
type Action uint32

// The actions.
const (
	Count = Action(objectActionACTION_COUNT) // nothing
	Drop  = Action(objectActionACTION_DROP)
	Hold  = Action(objectActionACTION_HOLD) // until Release
)

// Payload says whether a segment has data.
type Payload uint32

// The values of Payload.
const (
	Any  = Payload(objectPayloadPAYLOAD_ANY)
	Some = Payload(objectPayloadPAYLOAD_SOME)
	None = Payload(objectPayloadPAYLOAD_NONE)
)

// MaxRules is how many rules a Fault can have.
const MaxRules = 8

// Rule says which segments, and what becomes of some of them.
type Rule struct {
	// Those of Mask that are set are Flags. No Mask: any.
	Flags, Mask Flags
	Payload     Payload
	// From and To are ports; 0: any.
	From, To uint16
	// First to Last of them, counted from 1, are acted upon. First 0 is the first; Last 0 is First if
	// that is given, otherwise all.
	First, Last uint32
	Action      Action
}

func (r Rule) object() objectRule {
	if r.Last == 0 {
		r.Last = r.First
		if r.First == 0 {
			r.Last = math.MaxUint32
		}
	}
	return objectRule{
		First: max(1, r.First), Last: r.Last, Action: objectAction(r.Action), Payload: objectPayload(r.Payload),
		From: r.From, To: r.To, Flags: uint8(r.Flags), Mask: uint8(r.Mask), Used: 1,
	}
}

// Fault is a set of rules for the segments on their way from one namespace to another.
type Fault struct {
	from   *netlab.Namespace
	coll   *ebpf.Collection
	detach func() error // nil once it is
	sent   map[int]bool // of what was held: by its place
}

// Open has rules apply to the segments that arrive at a namespace over its link; from is where they come from. All
// rules count; of several that act upon a segment the first one does.
func Open(at, from *netlab.Namespace, rules ...Rule) (*Fault, error) {
	if len(rules) > MaxRules {
		return nil, fmt.Errorf("%d rules: at most %d", len(rules), MaxRules)
	}
	spec, err := loadObject()
	if err != nil {
		return nil, err
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, fmt.Errorf("load the program for faults: %w", err)
	}
	f := &Fault{from: from, coll: coll, sent: make(map[int]bool)}
	for i, r := range rules {
		if err := coll.Maps[objectMapRules].Put(uint32(i), r.object()); err != nil {
			return nil, errors.Join(fmt.Errorf("set a rule: %w", err), f.Close())
		}
	}
	if err := at.Do(f.attach); err != nil {
		return nil, errors.Join(fmt.Errorf("attach the program for faults: %w", err), f.Close())
	}
	return f, nil
}

// attach attaches the program to the link of the namespace of the calling thread.
func (f *Fault) attach() error {
	index, err := linkIndex()
	if err != nil {
		return err
	}
	prog := f.coll.Programs[objectProgFault]
	l, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: prog, Attach: ebpf.AttachTCXIngress})
	if err == nil {
		f.detach = l.Close
		return nil
	}
	if !errors.Is(err, ebpf.ErrNotSupported) {
		return err
	}
	return f.attachFilter(index, prog)
}

// linkIndex finds the link of an experiment's namespace: the one that is not the loopback device, or that where
// there is none.
func linkIndex() (int, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return 0, fmt.Errorf("list links: %w", err)
	}
	if i := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Type() == "veth" }); i >= 0 {
		return links[i].Attrs().Index, nil
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return 0, fmt.Errorf("find link lo: %w", err)
	}
	return lo.Attrs().Index, nil
}

// attachFilter is for kernels before 6.6. The queue discipline stays with the link.
func (f *Fault) attachFilter(index int, prog *ebpf.Program) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
	if err := h.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		h.Close()
		return fmt.Errorf("add a clsact queue discipline: %w", err)
	}
	filter := &netlink.BpfFilter{
		FilterAttrs:  netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Protocol: unix.ETH_P_ALL},
		Fd:           prog.FD(),
		Name:         "twtrace_fault",
		DirectAction: true,
	}
	if err := h.FilterAdd(filter); err != nil {
		h.Close()
		return fmt.Errorf("add a filter: %w", err)
	}
	f.detach = func() error {
		defer h.Close()
		if err := h.QdiscDel(qdisc); err != nil {
			return fmt.Errorf("remove the filter: %w", err)
		}
		return nil
	}
	return nil
}

// rule reads a rule with its counts.
func (f *Fault) rule(i int) (r objectRule, err error) {
	if err := f.coll.Maps[objectMapRules].Lookup(uint32(i), &r); err != nil {
		return r, fmt.Errorf("read a rule: %w", err)
	}
	return r, nil
}

// Matched is how many segments fitted a rule, by its number in Open.
func (f *Fault) Matched(i int) (uint64, error) {
	r, err := f.rule(i)
	return r.Matched, err
}

// Acted is how many of them were dropped or held.
func (f *Fault) Acted(i int) (uint64, error) {
	r, err := f.rule(i)
	return r.Acted, err
}

// Stop ends the faults. What was held can still be released, and counts read.
func (f *Fault) Stop() error {
	if f.detach == nil {
		return nil
	}
	detach := f.detach
	f.detach = nil
	return detach()
}

// frames are those that were taken off the wire.
func (f *Fault) frames() (frames []objectFrame, err error) {
	var t objectTally
	if err := f.coll.Maps[objectMapTallies].Lookup(uint32(0), &t); err != nil {
		return nil, fmt.Errorf("read how many segments are held: %w", err)
	}
	if t.Unheld > 0 {
		return nil, fmt.Errorf("%d segments that were to be held went on: there was no room", t.Unheld)
	}
	for i := range uint32(t.Held) {
		var one objectFrame
		if err := f.coll.Maps[objectMapHeld].Lookup(i, &one); err != nil {
			return nil, fmt.Errorf("read a segment that is held: %w", err)
		}
		if one.Len == 0 {
			break // the program is at it
		}
		frames = append(frames, one)
	}
	return frames, nil
}

// Held are the segments taken off the wire so far, in their order, also those that were released.
func (f *Fault) Held() ([]Segment, error) {
	frames, err := f.frames()
	if err != nil {
		return nil, err
	}
	segments := make([]Segment, len(frames))
	for i := range frames {
		s, ok := Parse(frames[i].Bytes[:frames[i].Len])
		if !ok {
			return nil, errors.New("a segment that was held can't be read")
		}
		segments[i] = s
	}
	return segments, nil
}

// ReleaseRule ends one rule, by its number in Open, and sends on what it held. To the rules that are left these are
// new segments.
func (f *Fault) ReleaseRule(i int) error {
	r, err := f.rule(i)
	if err != nil {
		return err
	}
	r.Used = 0
	if err := f.coll.Maps[objectMapRules].Put(uint32(i), r); err != nil {
		return fmt.Errorf("end a rule: %w", err)
	}
	return f.sendOn(func(rule uint32) bool { return rule == uint32(i) })
}

// Release ends the faults and sends on what was held, byte for byte, in its order.
func (f *Fault) Release() error {
	if err := f.Stop(); err != nil {
		return err
	}
	return f.sendOn(func(uint32) bool { return true })
}

func (f *Fault) sendOn(of func(rule uint32) bool) error {
	frames, err := f.frames()
	if err != nil {
		return err
	}
	for i := range frames {
		if f.sent[i] || !of(frames[i].Rule) {
			continue
		}
		f.sent[i] = true
		from, to, tcp, length, ok := parseIP(frames[i].Bytes[ethernetLen:frames[i].Len])
		if !ok || length > len(tcp) {
			return errors.New("a segment that was held can't be read")
		}
		tcp = tcp[:length]
		setChecksum(tcp, from, to)
		if err := send(f.from, from, to, tcp); err != nil {
			return err
		}
	}
	return nil
}

// Close ends the faults. What is held is lost.
func (f *Fault) Close() error {
	err := f.Stop()
	f.coll.Close()
	return err
}

// Send sends a segment from a namespace, whether or not there is such a connection.
func Send(ns *netlab.Namespace, s *Segment) error {
	return send(ns, s.From.Addr(), s.To.Addr(), s.marshal())
}

// send lets the kernel put the IP header before a segment.
func send(ns *netlab.Namespace, from, to netip.Addr, tcp []byte) error {
	err := ns.Do(func() error {
		family, source, destination := unix.AF_INET, unix.Sockaddr(nil), unix.Sockaddr(nil)
		if to.Is4() {
			source, destination = &unix.SockaddrInet4{Addr: from.As4()}, &unix.SockaddrInet4{Addr: to.As4()}
		} else {
			family = unix.AF_INET6
			source, destination = &unix.SockaddrInet6{Addr: from.As16()}, &unix.SockaddrInet6{Addr: to.As16()}
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, source); err != nil {
			return err
		}
		return unix.Sendto(fd, tcp, 0, destination)
	})
	if err != nil {
		return fmt.Errorf("send a segment of %d bytes from %v to %v: %w", len(tcp), from, to, err)
	}
	return nil
}
