package report

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/twtrace/twtrace/internal/tcp"
)

// connected is a summary of a run in which n attempts connected.
func connected(n int, server *Server) *Summary {
	b := NewBuilder(start, false)
	as := make([]tcp.Attempt, n)
	for i := range as {
		as[i] = tcp.Attempt{Started: start, Connected: start + 1000, Closed: start + 2000, Phase: tcp.PhaseDone}
	}
	b.Attempts(as)
	s := base()
	s.Server = server
	b.Fill(s)
	return s
}

// TestServerAccount: what is not known is null and said to be, never 0.
func TestServerAccount(t *testing.T) {
	for _, c := range []struct {
		name   string
		server *Server
		json   string
		text   string
	}{
		{"all accepted", &Server{Accepted: 50, Closed: 50},
			`{"accepted":50,"closed":50,"never_accepted":0,"last_ack_dropped":0,"elsewhere":false}`, "50 accepted, 50 closed, 0 connected but never accepted"},
		{"some", &Server{Accepted: 20, Closed: 19},
			`{"accepted":20,"closed":19,"never_accepted":30,"last_ack_dropped":0,"elsewhere":false}`, "20 accepted, 19 closed, 30 connected but never accepted"},
		{"elsewhere", &Server{Accepted: 0, Elsewhere: true},
			`{"accepted":0,"closed":0,"never_accepted":50,"last_ack_dropped":0,"elsewhere":true}`, "0 accepted, 0 closed, 50 connected but never accepted (by its own account"},
		{"elsewhere, with others", &Server{Accepted: 51, Closed: 51, Elsewhere: true},
			`{"accepted":51,"closed":51,"never_accepted":null,"last_ack_dropped":0,"elsewhere":true}`, "not known how many connected but were never accepted"},
		{"unknown", nil, "null", "not known what it accepted"},
	} {
		s := connected(50, c.server)
		if got, err := json.Marshal(s.Server); err != nil || string(got) != c.json {
			t.Errorf("%s: %s, want %s (%v)", c.name, got, c.json, err)
		}
		if got := words(t, s); !strings.Contains(got, c.text) {
			t.Errorf("%s: %q is not in\n%s", c.name, c.text, got)
		}
	}
}

func TestServerHeader(t *testing.T) {
	s := connected(1, nil)
	if got := words(t, s); strings.Contains(got, "server:") {
		t.Errorf("there is nothing to say of an ordinary server:\n%s", got)
	}
	s.Options.ServerMode, s.Options.ServerFirst, s.Options.Backlog = "rst", 256, 10
	s.Options.AcceptDelayS, s.Options.AcceptEvery = 0.1, 5
	want := "server: rst, sends 256 bytes first, accepts nothing for 0.1 s after every 5 accepts, backlog 10"
	if got := words(t, s); !strings.Contains(got, want) {
		t.Errorf("%q is not in\n%s", want, got)
	}
}

// words is the text, without its line breaks.
func words(t *testing.T, s *Summary) string {
	t.Helper()
	var b bytes.Buffer
	if err := NewText(&b, false).Write(s); err != nil {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(b.String()), " ")
}
