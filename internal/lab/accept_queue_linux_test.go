package lab

import (
	"sync"
	"testing"
)

// TestOverflow overflows accept queues side by side, on a machine that has too much to do: each has room for as many as
// it says, whichever processors the last ACKs come to. With handshakes from any processor one in ten let one more in.
func TestOverflow(t *testing.T) {
	defer moreProcs(40)()
	var wg sync.WaitGroup
	for range 24 {
		s := session(t)
		wg.Go(func() {
			q, clients, o, err := s.overflow("tcp_syncookies=0", "tcp_synack_retries=2")
			if err != nil {
				t.Error(err)
				return
			}
			gone, err := q.dropped(clients)
			if err != nil || len(gone) != tooMany || o.SynRecv != tooMany || o.Overflows < tooMany {
				t.Errorf("%v; %d handshakes were dropped, want %d: %+v", err, len(gone), tooMany, o)
			}
		})
	}
	wg.Wait()
}
