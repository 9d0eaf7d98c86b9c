package timeline

import (
	"net/netip"

	"github.com/twtrace/twtrace/internal/tcp"
)

// holderOf is whose the socket is that has the port which a bind() wanted; the zero value: not known, because it is older
// than the trace, or bound and no more.
func (j *Joiner) holderOf(ev *tcp.Event) tcp.Owner {
	h, port := &ev.Holder, ev.Tuple.Local.Port()
	switch {
	case h.State == tcp.Listen:
		return j.listeners[netip.AddrPortFrom(h.Addr, port)].Owner
	case h.Cookie == 0:
	case h.State == tcp.TimeWait:
		if t, ok := j.tw[twKey{h.Cookie, port}]; ok && t.path != nil {
			return t.path.holdings[t.holder].Owner
		}
	default:
		if c := j.open[h.Cookie]; c != nil && c.path != nil {
			return c.path.holdings[c.holder].Owner
		}
	}
	return tcp.Owner{}
}
