package lab

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/fault"
)

// oldDuplicates is the other half of why TIME_WAIT exists: an old segment must not reach a new connection on the same
// four-tuple.
//
// A new connection's first sequence number follows a clock of 15.6 MB/s (secure_tcp_seq(): a tick is 64 ns), so that old segments are
// below its window, unless the old connection was faster than that clock. Here it is: client and server exchange chunks
// as fast as they can, and a segment that was sent early on has the number that the new connection begins with.
func oldDuplicates(s *Session) error {
	without, err := s.duplicateIntoNew("tcp_timestamps=0")
	if err != nil && !errors.Is(err, errNoFit) {
		return fmt.Errorf("without timestamps: %w", err)
	}
	corrupts := observed(err, without.delivered)
	with, err := s.duplicateIntoNew("tcp_timestamps=1")
	if err != nil && !errors.Is(err, errNoFit) {
		return fmt.Errorf("with timestamps: %w", err)
	}
	paws := observed(err, !with.delivered && with.paws > 0)
	s.Claim(Claim{
		Key: "corrupts", Text: "Without timestamps, and without TIME_WAIT, an old segment can reach a new connection on the same four-tuple, and its data is read as the new one's.",
		Holds: corrupts, Expected: Yes, Evidence: without.evidence(),
		History: "Its number has to be in the window, and its ACK no older than the window (RFC 5961, 5.2), since 6.7 and the stable kernels of December 2023 also of something that the new connection has sent (3d501dd326fb; tcp_ack()).",
	})
	s.Claim(Claim{
		Key: "paws", Text: "With timestamps it is told apart, and dropped (PAWS), so that TIME_WAIT can be cut short.",
		Holds: paws, Expected: Yes, Evidence: with.evidence(),
		History: "RFC 7323, 5; tcp_paws_discard().",
	})
	if err := s.duplicateIntoTimeWait(); err != nil {
		return fmt.Errorf("into TIME_WAIT: %w", err)
	}
	if err := s.reuseBeyond(); err != nil {
		return fmt.Errorf("a reused TIME_WAIT: %w", err)
	}
	if corrupts == NotObservable {
		s.Answerf("An old segment meets TIME_WAIT, which answers and drops it; this machine is too slow to make one that fits a new connection.")
		return nil
	}
	s.Answerf("An old segment was read by a new connection on its four-tuple when neither TIME_WAIT nor timestamps were in the way; each of the two keeps it out.")
	return nil
}

// observed is what was found, unless no old segment fitted.
func observed(err error, found bool) Holds {
	if err != nil {
		return NotObservable
	}
	return holdsOf(found)
}

// intruder is what became of an old segment that met a new connection.
type intruder struct {
	tries       int
	transferred int
	apart       time.Duration // between the two connections' SYNs
	seq, ack    int32         // of the old segment, from what the new connection expects
	old, new    uint32        // timestamps
	read        string        // what the new server read first
	delivered   bool
	paws        uint64
}

func (d *intruder) evidence() Evidence {
	e := Evidence{
		"bytes exchanged before": d.transferred, "seconds between the connections": d.apart.Seconds(), "the new server read": d.read,
		"its number, from what was expected": int(d.seq), "its ACK, from what was expected": int(d.ack),
		"PAWSEstab": d.paws, "tries": d.tries,
	}
	if d.old != 0 {
		e["its timestamp, from the last, ms"] = int(int32(d.old - d.new))
	}
	return e
}

// duplicateChunk is what the ends of the old connection send in turn, as often as 64 ns, the clock of sequence numbers, allows them to be
// ahead of it.
const (
	duplicateChunk = 32_000
	duplicatePort  = 41000
)

// A chunk is a whole number of each.
var (
	oldText = bytes.Repeat([]byte("old! "), duplicateChunk/5)
	newText = bytes.Repeat([]byte("new! "), 200)
)

// errNoFit: no old segment fitted the new connection.
var errNoFit = errors.New("no old segment has the numbers that the new connection expects")

// duplicateIntoNew repeats an old segment into a new connection; it tries again if none fits, since the machine may be
// busy just when the new connection begins.
func (s *Session) duplicateIntoNew(sysctl string) (d intruder, err error) {
	const most = 10
	for try := 1; try <= most; try++ {
		d, err = s.tryDuplicate(sysctl, time.Duration(try)*20*time.Millisecond)
		d.tries = try
		if !errors.Is(err, errNoFit) {
			return d, err
		}
	}
	return d, err
}

// exchange has both ends send chunks in turn until a new connection would begin below what was sent, even if it takes
// a margin of time to get there; it returns how much each has sent. errNoFit: they are too slow.
func exchange(client, server *Socket, begun time.Time, margin time.Duration) (sent int, err error) {
	const most = 2 * time.Second
	for {
		if err := errors.Join(passOn(client, server, oldText), passOn(server, client, oldText)); err != nil {
			return sent, err
		}
		sent += duplicateChunk
		elapsed := time.Since(begun)
		if sent > int((elapsed+margin)/64)+newFromServer+duplicateChunk {
			return sent, nil
		}
		if elapsed > most {
			return sent, errNoFit
		}
	}
}

func (s *Session) tryDuplicate(sysctl string, margin time.Duration) (d intruder, err error) {
	w, err := s.wire(sysctl, "tcp_max_tw_buckets=0")
	if err != nil {
		return d, err
	}
	begun := time.Now()
	client, server, err := w.pair(duplicatePort, Linger(0))
	if err != nil {
		return d, err
	}
	if d.transferred, err = exchange(client, server, begun, margin); err != nil {
		return d, err
	}
	// RST: nothing is left of it at either end.
	if err := client.Close(); err != nil {
		return d, err
	}
	if err := w.gone(); err != nil {
		return d, err
	}
	second, accepted, err := w.pair(duplicatePort)
	if err != nil {
		return d, err
	}
	// An ACK may not be of bytes that were never sent: the new server has to have sent some.
	if err := errors.Join(sendAll(second, accepted, newFromClient), sendAll(accepted, second, newFromServer), w.acknowledged(accepted)); err != nil {
		return d, err
	}
	old, err := d.choose(w)
	if err != nil {
		return d, err
	}
	before, err := s.counted(w.server, "TcpExt.PAWSEstab")
	if err != nil {
		return d, err
	}
	if err := fault.Send(w.client, old); err != nil {
		return d, err
	}
	// What the new client itself sends comes after it, with the same number.
	const own = "new"
	if err := second.Send([]byte(own)); err != nil {
		return d, err
	}
	got := make([]byte, 1<<16)
	n, err := accepted.Receive(got, patience)
	if err != nil {
		return d, fmt.Errorf("receive: %w", err)
	}
	d.read = string(got[:min(n, 20)])
	d.delivered = string(got[:n]) != own
	after, err := s.counted(w.server, "TcpExt.PAWSEstab")
	d.paws = after["TcpExt.PAWSEstab"].(uint64) - before["TcpExt.PAWSEstab"].(uint64)
	return d, err
}

// What the new connection carries before the old segment comes: its client's next number is then in the middle of the
// ACKs that its server takes.
const (
	newFromClient = 45_000
	newFromServer = 60_000
)

// sendAll sends n bytes from one end and reads them at the other.
func sendAll(from, to *Socket, n int) error {
	for ; n > 0; n -= len(newText) {
		if err := passOn(from, to, newText); err != nil {
			return err
		}
	}
	return nil
}

// passOn sends text from one end and reads as much at the other.
func passOn(from, to *Socket, text []byte) error {
	if err := from.Send(text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	for n := 0; n < len(text); {
		m, err := to.Receive(got, patience)
		if err != nil || m == 0 {
			return fmt.Errorf("receive: %d, %w", m, err)
		}
		n += m
	}
	return nil
}

// acknowledged waits until all that a socket has sent is.
func (w *wire) acknowledged(k *Socket) error {
	return w.Wait("ACKs", patience, func() (bool, error) {
		info, err := unix.GetsockoptTCPInfo(k.FD, unix.IPPROTO_TCP, unix.TCP_INFO)
		return err == nil && info.Unacked == 0, err
	})
}

// choose finds the old connection's segment that the new connection would take for its own.
func (d *intruder) choose(w *wire) (*fault.Segment, error) {
	syns, err := w.capture.Find(Match{Out: true, Flags: syn, Mask: synAck})
	if err != nil {
		return nil, err
	}
	answers, err := w.capture.Find(Match{Flags: synAck, Mask: synAck})
	if err != nil {
		return nil, err
	}
	sent, err := w.capture.Find(Match{Out: true, Data: true})
	if err != nil {
		return nil, err
	}
	if len(syns) != 2 || len(answers) != 2 {
		return nil, fmt.Errorf("%d SYNs and %d SYN+ACKs were seen of two connections", len(syns), len(answers))
	}
	d.apart = time.Duration(syns[1].MonoNS - syns[0].MonoNS)
	segment := uint32(1460)
	if syns[0].Timestamps {
		segment -= 12
	}
	first, seq, ackNo := syns[0].End(), syns[1].End()+newFromClient, answers[1].End()+newFromServer
	for i := range sent {
		g := sent[i].Segment
		at := seq - g.Seq // of the next byte in what was sent at once
		if at >= uint32(g.Len) {
			continue
		}
		// A veth carries many segments as one; on a wire they would be one by one.
		skip := at / segment * segment
		g.Len = int(min(segment, uint32(g.Len)-skip))
		g.Seq += skip
		d.seq, d.ack = int32(g.Seq-seq), int32(g.Ack-ackNo)
		// Its ACK must be of something that the new server has sent.
		if d.ack > 0 || d.ack < -newFromServer {
			continue
		}
		d.old, d.new = g.TSVal, syns[1].TSVal
		from := (g.Seq - first) % duplicateChunk
		g.Data = slices.Concat(oldText[from:], oldText)[:g.Len]
		return &g, nil
	}
	return nil, errNoFit
}

// duplicateIntoTimeWait repeats an old segment while the TIME_WAIT is there.
func (s *Session) duplicateIntoTimeWait() error {
	const port = 41000
	w, err := s.wire("tcp_timestamps=0")
	if err != nil {
		return err
	}
	data, _, err := w.timeWaitAt(port)
	if err != nil {
		return err
	}
	had, err := w.capture.Find(Match{Out: true, Port: port})
	if err != nil {
		return err
	}
	// The ACK ends at a peer that knows nothing any more: see assassination.
	if _, err := w.faults(w.client, fault.Rule{Flags: rst, Mask: rst, Action: fault.Drop}); err != nil {
		return err
	}
	if err := fault.Send(w.server, &data.Segment); err != nil {
		return err
	}
	var answer Segment
	if err := s.Wait("TIME_WAIT's answer", patience, func() (bool, error) {
		all, err := w.capture.Find(Match{Out: true, Port: port})
		if err != nil || len(all) <= len(had) {
			return false, err
		}
		answer = all[len(had)]
		return true, nil
	}); err != nil {
		return err
	}
	list, err := s.Minisocks(w.client)
	if err != nil {
		return err
	}
	s.Claim(Claim{
		Key: "time-wait", Text: "While TIME_WAIT is there the old segment meets it instead: it is answered by an ACK and goes nowhere.",
		Holds: holdsOf(answer.Flags == ack && len(list) == 1), Expected: Yes,
		Evidence: Evidence{"answer": answer.Flags.String(), "TIME_WAITs": len(list)},
	})
	return nil
}

// reuseBeyond has connect() take a TIME_WAIT over, and compares where the new connection begins.
func (s *Session) reuseBeyond() error {
	const port = 41000
	w, err := s.wire("tcp_timestamps=1")
	if err != nil {
		return err
	}
	if _, _, err := w.timeWaitAt(port); err != nil {
		return err
	}
	last, err := w.Await(w.capture, "the client's FIN", Match{Out: true, Flags: fin, Mask: fin, Port: port}, 1)
	if err != nil {
		return err
	}
	if _, _, err := w.pair(port); err != nil {
		return err
	}
	again, err := w.Await(w.capture, "the second SYN", Match{Out: true, Flags: syn, Mask: synAck, Port: port}, 2)
	if err != nil {
		return err
	}
	advance := again.Seq - last.End()
	s.Claim(Claim{
		Key: "reuse-begins-beyond", Text: "A connect() that reuses a TIME_WAIT begins beyond the old connection's window, so that old segments are outside its own even before their timestamps are looked at.",
		Holds: holdsOf(advance == isnAdvance), Expected: Yes, Evidence: Evidence{"from the last number of the old connection": advance},
		History: "tcp_twsk_unique(): tw_snd_nxt + 65535 + 2.",
	})
	return nil
}
