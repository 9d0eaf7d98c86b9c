package lab

import (
	"fmt"
	"net/netip"

	"github.com/twtrace/twtrace/internal/netlab"
)

// flags are the options that decide about a bind().
var rebindFlags = []struct {
	name    string
	options []Option
}{
	{"none", nil},
	{"SO_REUSEADDR", []Option{ReuseAddr}},
	{"SO_REUSEPORT", []Option{ReusePort}},
}

const serverPort = 7

// rebind is experiment 4: a server is started again after it, or its client, has closed first.
func rebind(s *Session) error {
	type row struct {
		ClosedFirst string `json:"closed_first"`
		Address     string `json:"address"`
		Timestamps  int    `json:"timestamps"`
		Old         string `json:"old"`
		New         string `json:"new"`
		Bind        string `json:"bind"`
	}
	var table []row
	find := func(f func(*row) bool) (n, ok int) {
		for i := range table {
			if f(&table[i]) {
				n++
				if table[i].Bind == "ok" {
					ok++
				}
			}
		}
		return n, ok
	}
	for _, timestamps := range []int{1, 0} {
		for _, first := range []string{"client", "server"} {
			for _, address := range []string{"specific", "any"} {
				for _, old := range rebindFlags {
					for _, again := range rebindFlags {
						bind, err := s.rebindOnce(timestamps, first, address, old.options, again.options)
						if err != nil {
							return fmt.Errorf("%s closes first, %s address, old %s, new %s, timestamps %d: %w", first, address, old.name, again.name, timestamps, err)
						}
						table = append(table, row{first, address, timestamps, old.name, again.name, bind})
					}
				}
			}
		}
	}
	s.Note("table", table)

	n, ok := find(func(r *row) bool { return r.ClosedFirst == "client" })
	s.Claim(Claim{
		Key: "client-closed", Text: "If the client closed first the server can be started again at once, whatever is set.",
		Holds: holdsOf(ok == n), Expected: Yes, Evidence: Evidence{"binds": n, "ok": ok},
	})
	n, ok = find(func(r *row) bool { return r.ClosedFirst == "server" && r.New == "none" })
	s.Claim(Claim{
		Key: "server-closed", Text: "If the server closed first, bind() without SO_REUSEADDR fails for the length of TIME_WAIT.",
		Holds: holdsOf(ok == 0), Expected: Yes, Evidence: Evidence{"binds": n, "ok": ok},
	})
	n, ok = find(func(r *row) bool { return r.ClosedFirst == "server" && r.New == "SO_REUSEADDR" && r.Old != r.New })
	s.Claim(Claim{
		Key: "reuseaddr-alone", Text: "SO_REUSEADDR on the new socket alone is enough.",
		Holds: holdsOf(ok == n), Expected: No, Evidence: Evidence{"binds": n, "ok": ok},
		History: "The old socket must have had it too: the accepted socket inherits it from the listener, and the TIME_WAIT from that (tw_reuse; inet_csk_bind_conflict asks both).",
	})
	n, ok = find(func(r *row) bool { return r.ClosedFirst == "server" && r.New == r.Old && r.New != "none" })
	s.Claim(Claim{
		Key: "same-flag", Text: "With SO_REUSEADDR (or SO_REUSEPORT) on the old and on the new socket bind() succeeds, though the TIME_WAIT is still there.",
		Holds: holdsOf(ok == n), Expected: Yes, Evidence: Evidence{"binds": n, "ok": ok},
	})
	differ := 0
	for _, a := range table {
		for _, b := range table {
			if a.Timestamps == 1 && b.Timestamps == 0 && a.ClosedFirst == b.ClosedFirst && a.Address == b.Address && a.Old == b.Old && a.New == b.New && a.Bind != b.Bind {
				differ++
			}
		}
	}
	s.Claim(Claim{
		Key: "timestamps", Text: "SO_REUSEADDR works only with tcp_timestamps=1.",
		Holds: holdsOf(differ > 0), Expected: No, Evidence: Evidence{"rows that differ with timestamps": differ, "rows": len(table) / 2},
		History: "It never did: no code path of bind() reads timestamps.",
	})
	s.Answerf("bind() fails only if the server closed first, and then unless SO_REUSEADDR (or SO_REUSEPORT) was set on both the old and the new socket; timestamps make no difference.")
	return nil
}

// rebindOnce returns what bind() of a server's port said after a connection was closed.
func (s *Session) rebindOnce(timestamps int, first, address string, old, again []Option) (string, error) {
	net, err := s.Network(netlab.Pair, fmt.Sprintf("tcp_timestamps=%d", timestamps))
	if err != nil {
		return "", err
	}
	at := netip.AddrPortFrom(net.ServerAddr(), serverPort)
	if address == "any" {
		at = netip.AddrPortFrom(netip.IPv4Unspecified(), serverPort)
	}
	listener, err := s.Listener(net.Server(), at, 16, old...)
	if err != nil {
		return "", err
	}
	client, server, err := s.PairTo(net.Client(), listener, netip.AddrPortFrom(net.ServerAddr(), serverPort), netip.AddrPort{})
	if err != nil {
		return "", err
	}
	ends := map[string][2]*Socket{"client": {client, server}, "server": {server, client}}[first]
	if err := s.CloseFirst(ends[0], ends[1]); err != nil {
		return "", err
	}
	holder := map[string]*netlab.Namespace{"client": net.Client(), "server": net.Server()}[first]
	if err := s.TimeWaits(holder, 1); err != nil {
		return "", err
	}
	if err := s.Closed(net.Server()); err != nil {
		return "", err
	}
	if err := listener.Close(); err != nil {
		return "", err
	}
	socket, err := s.Socket(net.Server(), false, again...)
	if err != nil {
		return "", err
	}
	result := Errno(socket.Bind(at))
	return result, net.Close()
}
