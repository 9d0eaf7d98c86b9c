package loadgen_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/twtrace/twtrace/loadgen"
	"golang.org/x/sys/unix"
)

// await waits until done, which the test's time limit bounds.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestServerFirst: an attempt is complete only with the server's own bytes and the reply.
func TestServerFirst(t *testing.T) {
	for _, c := range []struct {
		first, bytes int
		close        loadgen.Closer
	}{
		{256, 100, loadgen.ClientCloses},
		{256, 0, loadgen.ClientCloses},
		{256, 0, loadgen.ServerCloses},
		{256, 100, loadgen.BothClose},
		{1 << 20, 1 << 20, loadgen.ClientCloses}, // more than both buffers hold: neither may wait for the other
		{1 << 20, 1 << 20, loadgen.ServerCloses},
	} {
		t.Run(fmt.Sprintf("%d+%d, %s closes", c.first, c.bytes, c.close), func(t *testing.T) {
			server := loadgen.NewServerPlan(localhosts["ipv4"])
			server.First, server.Bytes, server.Close = c.first, c.bytes, c.close
			s := startServer(t, server)
			plan := loadgen.NewPlan(s.Addr())
			plan.Loops, plan.Connections, plan.Close = 1, 50, c.close
			plan.ServerFirst, plan.Bytes = c.first, c.bytes
			_, attempts := storm(t.Context(), t, plan)
			all(t, attempts, loadgen.PhaseDone, 0, 0)
			for i := range attempts {
				if attempts[i].FirstByte == 0 {
					t.Fatal("complete without a byte")
				}
			}
			if stats := closed(t, s); stats.Accepted != 50 || stats.Closed != 50 {
				t.Errorf("server: %+v", stats)
			}
		})
	}
}

// TestServerFirstOnTheWire counts what the server sends with another client.
func TestServerFirstOnTheWire(t *testing.T) {
	server := loadgen.NewServerPlan(localhosts["ipv4"])
	server.First, server.Bytes, server.Close = 256, 100, loadgen.ServerCloses
	s := startServer(t, server)
	c, err := net.Dial("tcp4", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 256)); err != nil {
		t.Fatalf("before a request was sent: %v", err)
	}
	if _, err := c.Write(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(c); err != nil || len(rest) != 100 {
		t.Errorf("the reply has %d bytes: %v", len(rest), err)
	}
}

// TestServerFirstMissing: a client that expects more than the server sends has not finished.
func TestServerFirstMissing(t *testing.T) {
	s := startServer(t, loadgen.NewServerPlan(localhosts["ipv4"]))
	plan := loadgen.NewPlan(s.Addr())
	plan.Loops, plan.Connections, plan.ServerFirst, plan.Timeout = 1, 20, 256, 100*time.Millisecond
	_, attempts := storm(t.Context(), t, plan)
	all(t, attempts, loadgen.PhaseReceive, loadgen.Errno(unix.ETIMEDOUT), loadgen.OwnTimeout)
}

// TestResetOnClose has the server close by RST in the middle of an orderly end.
func TestResetOnClose(t *testing.T) {
	server := loadgen.NewServerPlan(localhosts["ipv4"])
	server.Mode = loadgen.ResetOnClose
	s := startServer(t, server)
	addr := s.Addr().String()
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("after the server's close(): %d bytes, %v; want ECONNRESET", n, err)
	}
}

// TestNeverRead: the reply never comes, and the client's end of it is the server's too.
func TestNeverRead(t *testing.T) {
	for _, bytes := range []int{100, 1 << 20} {
		server := loadgen.NewServerPlan(localhosts["ipv4"])
		server.Mode, server.Bytes = loadgen.NeverRead, bytes
		s := startServer(t, server)
		plan := loadgen.NewPlan(s.Addr())
		plan.Loops, plan.Connections, plan.Bytes, plan.Timeout = 1, 20, bytes, 300*time.Millisecond
		_, attempts := storm(t.Context(), t, plan)
		for i := range attempts {
			a := &attempts[i]
			// The kernel's buffers may take the whole request.
			sending := bytes > 100 && a.Phase == loadgen.PhaseSend
			if a.Errno != loadgen.Errno(unix.ETIMEDOUT) || a.Flags != loadgen.OwnTimeout || a.FirstByte != 0 || a.Phase != loadgen.PhaseReceive && !sending {
				t.Errorf("%+v", *a)
			}
		}
		if bytes == 100 { // else the FIN is behind data that there is no room for
			await(t, "the server to close what its peers have", func() bool { return s.Stats().Closed == 20 })
		}
		if stats := closed(t, s); stats.Accepted != 20 || stats.Closed != 20 {
			t.Errorf("server: %+v", stats)
		}
	}
}

// TestNeverAccept: as many connect as the accept queue has room for, backlog + 1
// (sk_acceptq_is_full), and the server knows of none.
func TestNeverAccept(t *testing.T) {
	server := loadgen.NewServerPlan(localhosts["ipv4"])
	server.Mode, server.Backlog = loadgen.NeverAccept, 10
	s := startServer(t, server)
	if s.Shards() != 1 {
		t.Errorf("%d listeners, not one", s.Shards())
	}
	plan := loadgen.NewPlan(s.Addr())
	plan.Loops, plan.Connections, plan.Timeout = 1, 50, 400*time.Millisecond
	_, attempts := storm(t.Context(), t, plan)
	connected := 0
	for i := range attempts {
		a := &attempts[i]
		if a.Errno != loadgen.Errno(unix.ETIMEDOUT) || a.Flags != loadgen.OwnTimeout {
			t.Errorf("%+v", *a)
		}
		if a.Connected != 0 {
			connected++
		}
	}
	if connected != 11 {
		t.Errorf("%d connected, the queue has room for 11", connected)
	}
	stats := closed(t, s)
	if stats.Accepted != 0 || stats.Closed != 0 || stats.Drops == 0 {
		t.Errorf("server: %+v", stats)
	}
}

// TestSlowAcceptor counts what a slow acceptor has accepted between two of its delays,
// while those that it has accepted are served.
func TestSlowAcceptor(t *testing.T) {
	const every, delay = 3, 150 * time.Millisecond
	server := loadgen.NewServerPlan(localhosts["ipv4"])
	server.AcceptDelay, server.AcceptEvery = delay, every
	s := startServer(t, server)
	plan := loadgen.NewPlan(s.Addr())
	plan.Loops, plan.Connections = 1, 12
	_, attempts := storm(t.Context(), t, plan)
	all(t, attempts, loadgen.PhaseDone, 0, 0)
	// The k-th group of three can't have been answered before k delays were over.
	for k := 1; k < 4; k++ {
		late := 0
		for i := range attempts {
			if attempts[i].FirstByte-attempts[0].Started >= int64(k)*int64(delay) {
				late++
			}
		}
		if late < 12-k*every {
			t.Errorf("%d of 12 were answered after %d delays, want at least %d", late, k, 12-k*every)
		}
	}
	if stats := closed(t, s); stats.Accepted != 12 || stats.Closed != 12 {
		t.Errorf("server: %+v", stats)
	}
}

// TestSlowAcceptorEvery: delays shorter than epoll's millisecond are kept too.
func TestSlowAcceptorEvery(t *testing.T) {
	server := loadgen.NewServerPlan(localhosts["ipv4"])
	server.AcceptDelay = 300 * time.Microsecond
	s := startServer(t, server)
	plan := loadgen.NewPlan(s.Addr())
	plan.Loops, plan.Connections = 1, 100
	result, attempts := storm(t.Context(), t, plan)
	all(t, attempts, loadgen.PhaseDone, 0, 0)
	if least := 99 * server.AcceptDelay; result.Loops[0].Duration < least {
		t.Errorf("100 connections were accepted in %s, 99 delays take %s", result.Loops[0].Duration, least)
	}
}

// TestSlowAcceptorClosed ends a server in the middle of a delay of an hour: what it
// had accepted is closed, what it had not is not accepted for the occasion.
func TestSlowAcceptorClosed(t *testing.T) {
	server := loadgen.NewServerPlan(localhosts["ipv4"])
	server.AcceptDelay, server.AcceptEvery = time.Hour, 2
	s := startServer(t, server)
	plan := loadgen.NewPlan(s.Addr())
	plan.Loops, plan.Connections, plan.Timeout = 1, 5, 300*time.Millisecond
	_, attempts := storm(t.Context(), t, plan)
	finished := 0
	for i := range attempts {
		if a := &attempts[i]; a.Connected == 0 {
			t.Errorf("not connected: %+v", *a)
		} else if !a.Failed() {
			finished++
		}
	}
	if finished != 2 {
		t.Errorf("%d were served, not 2", finished)
	}
	ended := make(chan loadgen.ServerStats, 1)
	go func() { ended <- closed(t, s) }()
	select {
	case stats := <-ended:
		if stats.Accepted != 2 || stats.Closed != 2 {
			t.Errorf("server: %+v", stats)
		}
	case <-time.After(time.Minute): // an hour, if it waited
		t.Fatal("Close waits for the delay")
	}
}
