package lab

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/clients"
	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/tcp"
)

// stoppedClients is how it went with several client processes that together have all ports, of which one after the
// other is stopped.
type stoppedClients struct {
	Processes int        `json:"processes"`
	Ports     int        `json:"ports"`
	Full      stopSeen   `json:"no_port_left"`
	Stops     []stopSeen `json:"stops"`
	// What accept() had returned when no port was left, and at the end.
	Accepted    int `json:"accepted_before"`
	AcceptedEnd int `json:"accepted_at_the_end"`
	NoPort      int `json:"eaddrnotavail"` // connect() before the first stop
}

// stopSeen is what was seen since the stop before.
type stopSeen struct {
	Signal string `json:"signal,omitempty"`
	// Established is how many connections the clients had.
	Established int `json:"established"`
	// Fin and Rst are the ports that sent one, New how many SYNs were sent first from a port of these.
	Fin int `json:"sent_fin"`
	Rst int `json:"sent_rst"`
	New int `json:"new_connections"`
}

// stopClients runs n processes.
func (e *queueFindings) stopClients(s *Session) (err error) {
	e.stopped, err = s.stopClients(4, []unix.Signal{unix.SIGINT, unix.SIGKILL, unix.SIGINT})
	return err
}

func (s *Session) stopClients(n int, signals []unix.Signal) (*stoppedClients, error) {
	ports := 28_232 / 20 &^ 1
	if s.Full() {
		ports = 28_232
	}
	h := holding{connections: 1 << 20, ports: ports, backlog: 64, every: ports / 40, delay: 100 * time.Millisecond}
	l, err := s.Network(netlab.Pair, fmt.Sprintf("ip_local_port_range=%d %d", portLow, portLow+ports-1))
	if err != nil {
		return nil, err
	}
	r := &held{net: l, Ports: ports}
	if r.wire, err = s.Capture(l.Client()); err != nil {
		return nil, err
	}
	if err := r.listen(s, h); err != nil {
		return nil, err
	}
	group, err := clients.Start(n, l.Client().Do)
	if err != nil {
		return nil, err
	}
	s.Defer(group.Close)
	plan := r.plan(h)
	plan.Enter, plan.Progress = nil, nil // they were started there, and are many
	plan.Concurrency = ports
	// All ports are taken in seconds, and from then on each connect() fails, until one comes back. It looks at every
	// port first, which takes milliseconds at full size.
	plan.Rate = min(float64(ports)/2, 1400) / float64(n)
	ctx, stop := context.WithCancel(s.ctx)
	defer stop()
	done := make(chan error, 1)
	go func() {
		_, err := group.Run(ctx, plan)
		done <- err
	}()
	found := &stoppedClients{Processes: n, Ports: ports}
	err = found.follow(s, r, group, signals)
	stop()
	return found, errors.Join(err, <-done, r.server.Close())
}

// noPort is how many connects found no port.
func (r *held) noPort() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.attempts {
		if r.attempts[i].Errno == tcp.EADDRNOTAVAIL {
			n++
		}
	}
	return n
}

func (c *stoppedClients) follow(s *Session, r *held, group *clients.Group, signals []unix.Signal) error {
	enough := c.Ports / 10
	err := s.Wait("the last port to be taken", 2*time.Minute, func() (bool, error) { return r.noPort() >= enough, nil })
	if err != nil {
		return err
	}
	// The server accepts all that it is going to.
	if err := s.Sleep(quiet); err != nil {
		return err
	}
	c.Accepted, c.NoPort = int(r.server.Stats().Accepted), r.noPort()
	from, err := c.Full.look(r, 0)
	if err != nil {
		return err
	}
	for i, sig := range signals {
		st := stopSeen{Signal: unix.SignalName(sig)}
		if err := unix.Kill(group.PIDs()[i], sig); err != nil {
			return fmt.Errorf("stop client %d: %w", i+1, err)
		}
		if from, err = st.follow(s, r, from); err != nil {
			return err
		}
		c.Stops = append(c.Stops, st)
	}
	for end := time.Now().Add(c.limit()); time.Now().Before(end); {
		if c.AcceptedEnd = int(r.server.Stats().Accepted); c.AcceptedEnd > c.Ports {
			break
		}
		if err := s.Sleep(100 * time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// limit is how long to wait for what should come, and may not.
func (c *stoppedClients) limit() time.Duration { return time.Duration(c.Ports/1000+10) * time.Second }

// follow looks until the ports that came back are taken again, or for some time.
func (st *stopSeen) follow(s *Session, r *held, from int) (next int, err error) {
	for end := time.Now().Add(time.Duration(r.Ports/1000+10) * time.Second); ; {
		if err := s.Sleep(quiet / 2); err != nil {
			return 0, err
		}
		before := st.Rst
		if next, err = st.look(r, from); err != nil {
			return 0, err
		}
		if st.Rst > 0 && st.Rst == before && st.New >= st.Rst || time.Now().After(end) {
			return next, nil
		}
	}
}

// look counts what has been captured since a place.
func (st *stopSeen) look(r *held, from int) (int, error) {
	all, err := r.wire.Segments()
	if err != nil {
		return 0, err
	}
	fins, rsts, syns := map[uint16]bool{}, map[uint16]bool{}, map[uint32]bool{}
	seen := make(map[uint32]bool) // SYNs that were sent before: by port and sequence number, and so repeated
	for i := range all {
		g := &all[i]
		if !g.Sent {
			continue
		}
		key := uint32(g.From.Port())<<16 ^ g.Seq
		switch {
		case g.has(syn):
			if i >= from && !seen[key] {
				syns[key] = true
			}
			seen[key] = true
		case i < from:
		case g.has(fin):
			fins[g.From.Port()] = true
		case g.has(rst):
			rsts[g.From.Port()] = true
		}
	}
	st.Fin, st.Rst, st.New = len(fins), len(rsts), len(syns)
	st.Established, err = inState(r.net.Client(), tcp.Established)
	return len(all), err
}
