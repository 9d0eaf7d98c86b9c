// Package control is how the client of a storm learns what a server in another
// process has counted: the server listens on a second port, and writes one line of
// JSON (twtrace.server/1) to whoever connects. It is asked nothing, so that there is
// nothing to parse on its side.
package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Schema names the line.
const Schema = "twtrace.server/1"

const (
	// askLimit bounds a question, from connect() to the end of the line, and how long a
	// server waits for a peer.
	askLimit = time.Second
	// maxLine is the longest line that is read.
	maxLine = 4096
	// maxPeers is how many are answered at the same time; more wait.
	maxPeers = 8
	// maxCount is the largest number that every reader of JSON takes as it is.
	maxCount = 1 << 53
)

// Counts is what a server has counted since it started, of all its clients.
type Counts struct {
	Schema       string `json:"schema"`
	Port         uint16 `json:"port"` // that the counts are of
	Accepted     uint64 `json:"accepted"`
	Closed       uint64 `json:"closed"`
	Resets       uint64 `json:"resets"`
	Drops        uint64 `json:"drops"`
	AcceptErrors uint64 `json:"accept_errors"`
}

// ErrAnswer says that what came is not the line of the server that was asked about.
var ErrAnswer = errors.New("not a twtrace server's counts")

// Ask asks the server of port port at addr, which is its control address, for its
// counts. It takes a second at most, and trusts nothing that it reads. Errors:
// ErrAnswer, or that of the connection.
func Ask(ctx context.Context, addr netip.AddrPort, port uint16) (Counts, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	var d net.Dialer
	d.SetMultipathTCP(false)
	conn, err := d.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return Counts{}, fmt.Errorf("ask for the server's counts: %w", err)
	}
	defer conn.Close()
	// By RST, once the line is read: neither end keeps a TIME_WAIT.
	_ = conn.(*net.TCPConn).SetLinger(0)
	// The read then ends with a time-out, whether ctx ran out of time or was cancelled.
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })()
	line, err := bufio.NewReader(io.LimitReader(conn, maxLine)).ReadBytes('\n')
	if errors.Is(err, io.EOF) {
		return Counts{}, fmt.Errorf("ask %s for the server's counts: %w: no line of up to %d bytes", addr, ErrAnswer, maxLine)
	}
	if err != nil {
		return Counts{}, fmt.Errorf("ask %s for the server's counts: %w", addr, err)
	}
	c, err := decode(line, port)
	if err != nil {
		return Counts{}, fmt.Errorf("ask %s for the server's counts: %w", addr, err)
	}
	return c, nil
}

// decode reads the line about port, and nothing of it goes into an error.
func decode(line []byte, port uint16) (Counts, error) {
	var c Counts
	switch err := json.Unmarshal(line, &c); {
	case err != nil:
		return Counts{}, fmt.Errorf("%w: no JSON of that form", ErrAnswer)
	case c.Schema != Schema:
		return Counts{}, fmt.Errorf("%w: another schema", ErrAnswer)
	case c.Port != port:
		return Counts{}, fmt.Errorf("%w of port %d: its port is %d", ErrAnswer, port, c.Port)
	case c.Closed > c.Accepted:
		return Counts{}, fmt.Errorf("%w: more closed than accepted", ErrAnswer)
	}
	for _, n := range []uint64{c.Accepted, c.Resets, c.Drops, c.AcceptErrors} {
		if n > maxCount {
			return Counts{}, fmt.Errorf("%w: a count is out of range", ErrAnswer)
		}
	}
	return c, nil
}

// Server answers. Close ends it.
type Server struct {
	listener net.Listener
	counts   func() Counts
	stop     context.CancelFunc
	running  sync.WaitGroup
}

// Listen answers on addr with what counts returns, which is called from several
// goroutines and need not set Schema.
func Listen(addr netip.AddrPort, counts func() Counts) (*Server, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", addr.String())
	if err != nil {
		return nil, fmt.Errorf("listen for questions: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &Server{listener: l, counts: counts, stop: stop}
	s.running.Go(func() { s.run(ctx) })
	return s, nil
}

// Addr is where it listens.
func (s *Server) Addr() netip.AddrPort { return s.listener.Addr().(*net.TCPAddr).AddrPort() }

// Close stops answering, and waits for those who are being answered to be let go.
func (s *Server) Close() error {
	s.stop()
	err := s.listener.Close()
	s.running.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (s *Server) run(ctx context.Context) {
	room := make(chan struct{}, maxPeers)
	for {
		conn, err := s.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no descriptor is left, for instance: it may be better soon
			select {
			case <-ctx.Done():
				return
			case <-time.After(askLimit / 10):
				continue
			}
		}
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			conn.Close()
			return
		}
		s.running.Go(func() {
			defer func() { <-room }()
			s.answer(ctx, conn)
		})
	}
}

// answer writes the line and waits for the peer to close, so that the TIME_WAIT, if
// there is one, is the peer's.
func (s *Server) answer(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if conn.SetDeadline(time.Now().Add(askLimit)) != nil {
		return
	}
	c := s.counts()
	c.Schema = Schema
	// Of one who does not read, or is gone, there is nothing to tell.
	if json.NewEncoder(conn).Encode(c) == nil {
		_, _ = conn.Read(make([]byte, 1))
	}
}
