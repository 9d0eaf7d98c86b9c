package control

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var anyPort = netip.MustParseAddrPort("127.0.0.1:0")

func listen(t *testing.T, counts Counts) *Server {
	t.Helper()
	s, err := Listen(anyPort, func() Counts { return counts })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestAsk(t *testing.T) {
	want := Counts{Schema: Schema, Port: 7007, Accepted: 10, Closed: 9, Resets: 3, Drops: 1 << 53, AcceptErrors: 1}
	s := listen(t, want)
	for range 3 * maxPeers { // each makes room for another
		if got, err := Ask(t.Context(), s.Addr(), 7007); err != nil || got != want {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	if _, err := Ask(t.Context(), s.Addr(), 7008); !errors.Is(err, ErrAnswer) {
		t.Errorf("the counts of another server's port: %v", err)
	}
}

func TestNobodyAnswers(t *testing.T) {
	s := listen(t, Counts{})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Ask(t.Context(), s.Addr(), 1); !errors.Is(err, unix.ECONNREFUSED) {
		t.Error(err)
	}
}

// TestHostileServer has servers that say something else, too much, or nothing.
func TestHostileServer(t *testing.T) {
	good := `{"schema":"twtrace.server/1","port":7,"accepted":%s,"closed":%s}` + "\n"
	for name, text := range map[string]string{
		"empty":          "",
		"no end of line": fmt.Sprintf(good[:len(good)-1], "1", "1"),
		"too long":       strings.Repeat(" ", maxLine) + fmt.Sprintf(good, "1", "1"),
		"endless":        strings.Repeat("x", 1<<22),
		"no JSON":        "HTTP/1.1 400 Bad Request\r\n",
		"null":           "null\n",
		"a list":         "[1,2]\n",
		"another schema": strings.Replace(fmt.Sprintf(good, "1", "1"), "server/1", "server/2", 1),
		"negative":       fmt.Sprintf(good, "-1", "-1"),
		"a fraction":     fmt.Sprintf(good, "1.5", "1"),
		"huge":           fmt.Sprintf(good, "9007199254740993", "1"),
		"beyond uint64":  fmt.Sprintf(good, "1e30", "1"),
		"more closed":    fmt.Sprintf(good, "1", "2"),
		"an escape":      "\x1b[2J\n",
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp4", anyPort.String())
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, text)
				_ = c.(*net.TCPConn).CloseWrite()
				_, _ = io.Copy(io.Discard, c)
				c.Close()
			}()
			got, err := Ask(t.Context(), l.Addr().(*net.TCPAddr).AddrPort(), 7)
			if !errors.Is(err, ErrAnswer) || got != (Counts{}) {
				t.Errorf("%+v, %v", got, err)
			}
			if err != nil && strings.ContainsAny(err.Error(), "\x1b\n") {
				t.Errorf("the answer is in the error: %q", err)
			}
		})
	}
}

// TestMuteServer accepts the question and never answers.
func TestMuteServer(t *testing.T) {
	l, err := net.Listen("tcp4", anyPort.String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Ask(t.Context(), l.Addr().(*net.TCPAddr).AddrPort(), 7); !isTimeout(err) {
		t.Error(err)
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// TestHostilePeers: those who connect and stay are let go after a while, so that
// others get their answer, and Close waits for none of them.
func TestHostilePeers(t *testing.T) {
	s := listen(t, Counts{Port: 7, Accepted: 1})
	stay := func() {
		c, err := net.Dial("tcp4", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		// It is in its place once it has been answered.
		if n, err := c.Read(make([]byte, maxLine)); n == 0 {
			t.Fatal(err)
		}
	}
	for range maxPeers {
		stay()
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		if _, err := Ask(t.Context(), s.Addr(), 7); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	stay()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
