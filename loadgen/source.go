package loadgen

import (
	"errors"
	"fmt"
	"net/netip"
)

// Binding says who chooses the source port of a connection, and when.
type Binding uint8

// The ways of getting a source port.
const (
	// BindNone: connect() chooses it. If there are Sources, the address is bound with
	// IP_BIND_ADDRESS_NO_PORT.
	BindNone Binding = iota
	// BindAddr: bind() of the address alone chooses it, before the destination is
	// known: a port then serves one connection at a time, whatever the destination.
	// Plan.NoPort leaves it to connect() again.
	BindAddr
	// BindPort: the storm chooses it itself. Each shard has its own part of the ports,
	// and takes the one of a source that has been free for longest. A port that bind()
	// refuses with EADDRINUSE is passed over (Result.PortSkips). A bound port takes
	// over its TIME_WAIT at once, whatever tcp_tw_reuse says (tcp_twsk_unique: it
	// needs only timestamps). SO_REUSEADDR is set, without which bind() would not.
	BindPort
)

var bindingNames = [...]string{"none", "addr", "port"}

func (b Binding) String() string { return nameOf(bindingNames[:], b, "binding") }

// ParseBinding reads none, addr or port.
func ParseBinding(name string) (Binding, error) { return parseName[Binding](bindingNames[:], name) }

// PortRange is a range of ports, both ends included. The zero value is none.
type PortRange struct{ Low, High uint16 }

// within narrows the range of the namespace as IP_LOCAL_PORT_RANGE does: a bound
// that lies outside it is passed over (inet_sk_get_local_port_range).
func (r PortRange) within(of PortRange) PortRange {
	low, high := of.Low, of.High
	if of.Low <= r.Low && r.Low <= of.High {
		low = r.Low
	}
	if of.Low <= r.High && r.High <= of.High {
		high = r.High
	}
	return PortRange{low, high}
}

// ErrNoPortRange says that the kernel can't do what Plan.LocalPorts asks for.
var ErrNoPortRange = errors.New("this kernel has no IP_LOCAL_PORT_RANGE (since Linux 6.3)")

// Source returns the address that an attempt of the plan came from; the zero value
// if the kernel chose it. The connections of a storm take the sources in turn.
func (p *Plan) Source(a *Attempt) netip.Addr {
	if len(p.Sources) == 0 {
		return netip.Addr{}
	}
	return p.Sources[p.sourceIndex(a)]
}

func (p *Plan) sourceIndex(a *Attempt) int {
	number := uint64(a.Loop-1)*uint64(p.Connections) + uint64(a.Index)
	return int(number % uint64(len(p.Sources)))
}

// validateSource reports every problem of where the connections come from.
func (p *Plan) validateSource() []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if int(p.Bind) >= len(bindingNames) {
		bad("bind must be none, addr or port")
	}
	if p.Bind != BindNone && len(p.Sources) == 0 {
		bad("bind %s needs a source address", p.Bind)
	}
	if p.NoPort && p.Bind == BindPort {
		bad("no-port leaves the port to connect(), and bind port chooses it: one of them")
	}
	if p.NoPort && p.Bind == BindNone && len(p.Sources) == 0 {
		bad("no-port is about an address that is bound: bind addr, or several sources")
	}
	if r := p.LocalPorts; r != (PortRange{}) && (r.Low == 0 || r.Low > r.High) {
		bad("no port is in the local port range %d-%d", r.Low, r.High)
	}
	for _, a := range p.Sources {
		if !a.IsValid() || p.Target.IsValid() && a.Unmap().Is4() != p.Target.Addr().Unmap().Is4() {
			bad("source %s is not an address of the target's family", a)
		} else if err := validZone(a); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}
