package report

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/twtrace/twtrace/internal/tcp"
)

const (
	// maxRefused bounds what is kept of ports that bind() refused, of all processes together: each port of one process.
	maxRefused = 1 << 16
	// maxHolders is how many ports a failure shows.
	maxHolders = 64
)

// BindHolder is what had a port that bind() refused to the run.
type BindHolder struct {
	Source  string `json:"source"` // the address that bind() was to be of
	Port    int    `json:"port"`
	Refused int    `json:"refused"` // calls of bind()
	// Grade is tcp.Exact if the kernel was asked as it refused, and tcp.Inferred if the socket had the port as the run
	// began. With tcp.NotObservable nothing is known of the holder.
	Grade tcp.Grade `json:"grade"`
	State string    `json:"state"`
	Addr  string    `json:"addr"`
	PID   int       `json:"pid"` // 0: not known
	Comm  string    `json:"comm"`
}

// refusedKey names a port that a process wanted.
type refusedKey struct {
	pid  uint32
	port netip.AddrPort
}

// refusedPort is what is known of it.
type refusedPort struct {
	calls  int
	holder tcp.Holder // of the first call whose holder was found
	owner  tcp.Owner
}

// BindFailed takes a bind() that failed, of any process; owner is whose the holder of the port is, the zero value if that
// is not known.
func (b *Builder) BindFailed(ev *tcp.Event, owner tcp.Owner) {
	if ev.Errno != tcp.EADDRINUSE || ev.Tuple.Local.Port() == 0 || ev.Flags&tcp.FlagOwner == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	key := refusedKey{ev.Owner.PID, ev.Tuple.Local}
	r := b.refused[key]
	if r == nil {
		if len(b.refused) == maxRefused {
			return
		}
		r = new(refusedPort)
		b.refused[key] = r
	}
	r.calls++
	if r.holder.State == tcp.StateNone {
		r.holder, r.owner = ev.Holder, owner
	}
}

// holders are the ports that bind() refused to the run's clients, those that it refused most often first, and how many there were.
func (b *Builder) holders(s *Summary) (list []BindHolder, ports int) {
	for key, r := range b.refused {
		if slices.ContainsFunc(s.Clients, func(c Client) bool { return c.PID == int(key.pid) }) {
			list = append(list, r.describe(s, key.port))
		}
	}
	slices.SortFunc(list, func(a, b BindHolder) int {
		return cmp.Or(cmp.Compare(b.Refused, a.Refused), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Source, b.Source))
	})
	return list[:min(len(list), maxHolders)], len(list)
}

// describe says what had the port: what the kernel found, or else what was bound to it, at an address that overlaps, as the
// run began.
func (r *refusedPort) describe(s *Summary, at netip.AddrPort) BindHolder {
	h := BindHolder{Source: at.Addr().String(), Port: int(at.Port()), Refused: r.calls, Grade: tcp.NotObservable}
	if r.holder.State != tcp.StateNone {
		state := r.holder.State
		if state == tcp.Close {
			state = tcp.BoundInactive
		}
		h.Grade, h.State, h.Addr = tcp.Exact, state.String(), r.holder.Addr.String()
		h.PID, h.Comm = int(r.owner.PID), r.owner.Comm.String()
	}
	for i := range s.BoundPorts {
		had := &s.BoundPorts[i]
		switch {
		case had.Port != h.Port || !overlap(had.Addr, at.Addr()):
		case h.Grade == tcp.NotObservable:
			h.Grade, h.State, h.Addr, h.PID, h.Comm = tcp.Inferred, had.State, had.Addr, had.PID, had.Comm
		case h.PID == 0 && had.Addr == h.Addr && had.State == h.State:
			h.PID, h.Comm = had.PID, had.Comm // it is older than the trace
		}
	}
	return h
}

// overlap reports whether sockets at these addresses want the same port.
func overlap(bound string, wanted netip.Addr) bool {
	a, err := netip.ParseAddr(bound)
	return err == nil && (a.Unmap() == wanted.Unmap() || a.IsUnspecified() || wanted.IsUnspecified())
}

// bindHolders are who had the ports, for people.
func (t *Text) bindHolders(f *Failure) {
	const most = 4
	for i := range f.Holders {
		if i == most {
			t.wrap("    ", fmt.Sprintf("these are %d of the %v ports that bind() refused", most, f.Evidence["ports_refused"]))
			return
		}
		t.wrapHead("    ", "      ", f.Holders[i].line())
	}
}

func (h *BindHolder) line() string {
	times := "once"
	if h.Refused > 1 {
		times = fmt.Sprintf("%d times", h.Refused)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "port %d of %s, refused %s: ", h.Port, h.Source, times)
	switch h.Grade {
	case tcp.Exact:
		fmt.Fprintf(&b, "held by %s (%s at %s)", process(h.PID, h.Comm), h.State, h.Addr)
	case tcp.Inferred:
		fmt.Fprintf(&b, "%s had it as the run began (%s at %s; inferred)", process(h.PID, h.Comm), h.State, h.Addr)
	case tcp.NotObservable:
		b.WriteString("who holds it is not observable here")
	}
	return b.String()
}
