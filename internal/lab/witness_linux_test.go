package lab

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twtrace/twtrace/internal/fault"
	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/testenv"
)

// TestWitness has tshark capture the experiments of lost-last-ack while they are made, and counts FINs and RSTs in what
// it prints, and in the events of a trace.
func TestWitness(t *testing.T) {
	testenv.Require(t, testenv.Tshark)
	for _, tt := range []struct {
		name    string
		drops   uint32
		sysctls []string
		// At least: the server repeats a FIN whenever the machine is slow.
		fins, rsts int
	}{
		{"TIME_WAIT", 2, nil, 1 + 3, 0},
		{"no TIME_WAIT", 1, []string{"tcp_max_tw_buckets=0"}, 1 + 2, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := session(t)
			w, err := s.wire(tt.sysctls...)
			if err != nil {
				t.Fatal(err)
			}
			trace, err := s.Trace(w.net)
			if err != nil {
				t.Fatal(err)
			}
			if !trace.Sees(tcp.FactRstSent) {
				t.Skip("this kernel does not show each RST")
			}
			lines, end := tshark(t, w)
			if _, err := w.dropLastAck(tt.drops); err != nil {
				t.Fatal(err)
			}
			all, err := w.capture.Segments() // also what tshark's own programs send over loopback
			if err != nil {
				t.Fatal(err)
			}
			want := count(all, func(g *Segment) bool { return ofExperiment(g.From.Port(), g.To.Port()) })
			fins, rsts := countLines(t, lines, want)
			end()
			events, err := trace.Stop()
			if err != nil {
				t.Fatal(err)
			}
			tracedFins, tracedRsts := countEvents(events)
			if fins != tracedFins || rsts != tracedRsts || fins < tt.fins || rsts != tt.rsts {
				t.Errorf("tshark saw %d FINs and %d RSTs, the trace %d and %d; want %d or more, and %d", fins, rsts, tracedFins, tracedRsts, tt.fins, tt.rsts)
			}
		})
	}
}

// ofExperiment leaves out the segments that asked whether tshark had begun.
func ofExperiment(from, to uint16) bool {
	return from == serverPort && to != probePort || to == serverPort && from != probePort
}

// countLines reads the segments of the experiment that tshark saw.
func countLines(t *testing.T, lines <-chan string, want int) (fins, rsts int) {
	t.Helper()
	for seen := 0; seen < want; {
		select {
		case line := <-lines:
			f := strings.Fields(line)
			var n [3]uint64 // ports and flags
			for i := range n {
				var err error
				if n[i], err = strconv.ParseUint(f[i], 0, 16); err != nil {
					t.Fatal(err)
				}
			}
			if !ofExperiment(uint16(n[0]), uint16(n[1])) {
				continue
			}
			seen++
			flags := n[2]
			if fault.Flags(flags)&fin != 0 {
				fins++
			}
			if fault.Flags(flags)&rst != 0 {
				rsts++
			}
		case <-time.After(patience):
			t.Fatalf("tshark saw %d segments, of %d", seen, want)
		}
	}
	return fins, rsts
}

// countEvents counts what they say was sent: in these experiments nothing but a FIN is sent again.
func countEvents(events []tcp.Event) (fins, rsts int) {
	for i := range events {
		ev := &events[i]
		switch {
		case !ofExperiment(ev.Tuple.Local.Port(), ev.Tuple.Peer.Port()):
		case ev.Kind == tcp.KindRstSent:
			rsts++
		case ev.Kind == tcp.KindRetransmit, ev.Kind == tcp.KindState && (ev.New == tcp.FinWait1 || ev.New == tcp.LastAck):
			fins++
		}
	}
	return fins, rsts
}
