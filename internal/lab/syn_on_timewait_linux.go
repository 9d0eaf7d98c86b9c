package lab

import (
	"errors"
	"fmt"

	"github.com/twtrace/twtrace/internal/fault"
)

// synRow is a SYN that meets a server's TIME_WAIT: what it was compared with the connection that is over, and what
// answered it.
type synRow struct {
	Old       string `json:"old_connection"` // with or without timestamps
	Sequence  string `json:"sequence"`
	Timestamp string `json:"timestamp"`
	Answer    string `json:"answer"`
	// Advance is, of a SYN+ACK, how far its number is from the last of the old connection.
	Advance uint32 `json:"advance,omitempty"`
}

// Distances of a SYN from what TIME_WAIT expects: of its number, and of its timestamp.
var (
	synSequences  = []shift{{"later", 100_000}, {"earlier", -100_000}}
	synTimestamps = []shift{{"newer", 1000}, {"the same", 0}, {"older", -1000}, {"none", 0}}
)

type shift struct {
	name string
	by   int32
}

// isnAdvance is how far a connection that replaces a TIME_WAIT begins after it (tcp_timewait_state_process():
// tw_snd_nxt + 65535 + 2).
const isnAdvance = 65537

// isnHistory is why kernels differ in what becomes of that number.
const isnHistory = "Until 6.10 (41eecbd712b7), and since eeea10b83a13 for IPv4, the number was cleared on its way to tcp_conn_request(): the new connection began anywhere, and its SYN was treated as any other."

// handsOverISN reports whether this kernel's TIME_WAIT hands the number over by a parameter of its own, as it does since it
// arrives.
func handsOverISN() (bool, error) {
	proto, err := function("tcp_timewait_state_process")
	if err != nil || proto == nil {
		return false, err
	}
	for _, p := range proto.Params {
		if p.Name == "tw_isn" {
			return true, nil
		}
	}
	return false, nil
}

// synOnTimeWait sends SYNs, of every kind that the kernel tells apart, to TIME_WAITs of a server.
func synOnTimeWait(s *Session) error {
	tables := make(map[int][]synRow)
	for _, reuse := range []int{0, 1} {
		for _, timestamps := range []int{1, 0} {
			rows, err := s.synTable(reuse, timestamps)
			if err != nil {
				return fmt.Errorf("tcp_tw_reuse=%d, tcp_timestamps=%d: %w", reuse, timestamps, err)
			}
			tables[reuse] = append(tables[reuse], rows...)
		}
	}
	table := tables[0]
	s.Note("table", table)
	// count returns how many rows match, and how many of them got a connection.
	count := func(match func(*synRow) bool) (n, connected int) {
		for i := range table {
			if match(&table[i]) {
				n++
				if table[i].Answer == synAck.String() {
					connected++
				}
			}
		}
		return n, connected
	}
	const with, without = "with timestamps", "without timestamps"
	n, ok := count(func(r *synRow) bool {
		return r.Old == with && (r.Timestamp == "newer" || r.Sequence == "later" && r.Timestamp != "older")
	})
	s.Claim(Claim{
		Key: "newer", Text: "A SYN with a newer timestamp, or with a later sequence number and no older timestamp, ends the server's TIME_WAIT and connects at once.",
		Holds: holdsOf(n == ok), Expected: Yes, Evidence: Evidence{"SYNs": n, "answered by SYN+ACK": ok},
		History: "RFC 6191; tcp_timewait_state_process().",
	})
	n, ok = count(func(r *synRow) bool { return r.Old == with && r.Sequence == "later" && r.Timestamp == "older" })
	s.Claim(Claim{
		Key: "sequence-alone", Text: "A later sequence number is enough, whatever the timestamp.",
		Holds: holdsOf(n == ok), Expected: No, Evidence: Evidence{"SYNs with an older timestamp": n, "answered by SYN+ACK": ok},
		History: "PAWS comes first (tcp_paws_reject()): what is older than the last timestamp is not looked at further.",
	})
	n, ok = count(func(r *synRow) bool { return r.Old == without && r.Sequence == "later" })
	m, no := count(func(r *synRow) bool { return r.Old == without && r.Sequence == "earlier" })
	s.Claim(Claim{
		Key: "without-timestamps", Text: "After a connection without timestamps only the sequence number decides.",
		Holds: holdsOf(n == ok && no == 0), Expected: Yes,
		Evidence: Evidence{"later": n, "of these answered by SYN+ACK": ok, "earlier": m, "and of these": no},
	})
	silent, acked, older := 0, 0, 0
	for _, r := range table {
		if r.Answer == synAck.String() {
			continue
		}
		older++
		switch r.Answer {
		case ack.String():
			acked++
		case "nothing":
			silent++
		}
	}
	s.Claim(Claim{
		Key: "older-silent", Text: "An old SYN is dropped without an answer.",
		Holds: holdsOf(silent == older), Expected: No, Evidence: Evidence{"old SYNs": older, "answered by ACK": acked, "by nothing": silent},
		History: "TIME_WAIT sends the old connection's ACK. A client that was serious answers that with RST, which ends TIME_WAIT unless tcp_rfc1337=1, and sends its SYN again (see nat).",
	})
	differ := 0
	for i := range table {
		if table[i].Answer != tables[1][i].Answer {
			differ++
		}
	}
	s.Claim(Claim{
		Key: "tw-reuse", Text: "tcp_tw_reuse on the server has a say in this.",
		Holds: holdsOf(differ > 0), Expected: No, Evidence: Evidence{"rows": len(table), "that differ between 0 and 1": differ},
		History: "It is for connect() only, in every kernel.",
	})
	hands, err := handsOverISN()
	if err != nil {
		return err
	}
	beyond, advances := 0, 0
	for _, r := range table {
		if r.Answer == synAck.String() {
			advances++
			if r.Advance == isnAdvance {
				beyond++
			}
		}
	}
	s.Claim(Claim{
		Key: "isn", Text: "The new connection's first sequence number is beyond the old one's window: 65,537 after its last.",
		Holds: holdsOf(beyond == advances), Expected: holdsOf(hands), Evidence: Evidence{"SYN+ACKs": advances, "65,537 after the last": beyond},
		History: isnHistory,
	})
	if err := s.synLimits(hands); err != nil {
		return err
	}
	s.Answerf("A SYN with a newer timestamp or a later number takes a server's TIME_WAIT over at once, whatever tcp_tw_reuse is; an older one is answered by an ACK of the old connection.")
	return nil
}

// serverWaits makes a connection from a port whose server closes first, and returns the last segments that each sent.
func (w *wire) serverWaits(port uint16) (client, server Segment, err error) {
	c, k, err := w.pair(port)
	if err != nil {
		return client, server, err
	}
	if err := w.CloseFirst(k, c); err != nil {
		return client, server, err
	}
	finMatch := Match{Out: true, Flags: fin, Mask: fin, Port: port}
	if client, err = w.Await(w.capture, "the client's FIN", finMatch, 1); err != nil {
		return client, server, err
	}
	if err := w.Wait("the server's TIME_WAIT", patience, func() (bool, error) {
		list, err := w.Minisocks(w.server)
		for _, m := range list {
			if m.Peer.Port() == port {
				return true, err
			}
		}
		return false, err
	}); err != nil {
		return client, server, err
	}
	finMatch.Out = false
	server, err = w.Await(w.capture, "the server's FIN", finMatch, 1)
	return client, server, err
}

// noResets keeps the client's kernel from ending by RST what it has no socket for.
func (w *wire) noResets() error {
	_, err := w.faults(w.server, fault.Rule{Flags: rst, Mask: rst, Action: fault.Drop})
	return err
}

// answer is the first segment that comes for a port after those that there were.
func (w *wire) answer(port uint16, had int) (g Segment, err error) {
	err = w.Wait("an answer to the SYN", patience, func() (bool, error) {
		found, err := w.capture.Find(Match{Port: port})
		if err != nil || len(found) <= had {
			return false, err
		}
		g = found[had]
		return true, nil
	})
	return g, err
}

// synTable sends a SYN of each kind to a TIME_WAIT of its own.
func (s *Session) synTable(reuse, timestamps int) (rows []synRow, err error) {
	w, err := s.wire(fmt.Sprintf("tcp_tw_reuse=%d", reuse), fmt.Sprintf("tcp_timestamps=%d", timestamps))
	if err != nil {
		return nil, err
	}
	if err := w.noResets(); err != nil {
		return nil, err
	}
	old := map[int]string{1: "with timestamps", 0: "without timestamps"}[timestamps]
	port := uint16(41000)
	for _, sequence := range synSequences {
		for _, timestamp := range synTimestamps {
			port++
			row := synRow{Old: old, Sequence: sequence.name, Timestamp: timestamp.name}
			if err := w.sendSyn(port, sequence, timestamp, &row); err != nil {
				return nil, fmt.Errorf("number %s, timestamp %s: %w", sequence.name, timestamp.name, err)
			}
			rows = append(rows, row)
		}
	}
	return rows, nil
}

func (w *wire) sendSyn(port uint16, sequence, timestamp shift, row *synRow) error {
	client, server, err := w.serverWaits(port)
	if err != nil {
		return err
	}
	had, err := w.capture.Find(Match{Port: port})
	if err != nil {
		return err
	}
	err = fault.Send(w.client, &fault.Segment{
		From: client.From, To: client.To, Flags: syn, Window: 65535,
		Seq: client.End() + uint32(sequence.by), Timestamps: timestamp.name != "none", TSVal: client.TSVal + uint32(timestamp.by),
	})
	if err != nil {
		return err
	}
	g, err := w.answer(port, len(had))
	if errors.Is(err, errTooLong) {
		row.Answer = "nothing"
		return nil
	}
	if err != nil {
		return err
	}
	row.Answer = g.Flags.String()
	if g.Flags == synAck {
		row.Advance = g.Seq - server.End()
	}
	return nil
}

// laterSyn is one that takes TIME_WAIT over, if anything does.
func laterSyn(client *Segment) *fault.Segment {
	return &fault.Segment{
		From: client.From, To: client.To, Flags: syn, Window: 65535,
		Seq: client.End() + 100_000, Timestamps: client.Timestamps, TSVal: client.TSVal + 1000,
	}
}

// synLimits asks what else such a SYN has to pass: a listener, its SYN queue, its accept queue.
func (s *Session) synLimits(hands bool) error {
	if err := s.synQueueBypassed(hands); err != nil {
		return fmt.Errorf("with the SYN queue full: %w", err)
	}
	if err := s.acceptQueueNot(); err != nil {
		return fmt.Errorf("with the accept queue full: %w", err)
	}
	const port = 41000
	w, err := s.wire()
	if err != nil {
		return err
	}
	if err := w.noResets(); err != nil {
		return err
	}
	client, _, err := w.serverWaits(port)
	if err != nil {
		return err
	}
	if err := w.listener.Close(); err != nil {
		return err
	}
	had, err := w.capture.Find(Match{Port: port})
	if err != nil {
		return err
	}
	if err := fault.Send(w.client, laterSyn(&client)); err != nil {
		return err
	}
	g, err := w.answer(port, len(had))
	if err != nil {
		return err
	}
	s.Claim(Claim{
		Key: "no-listener", Text: "If nobody listens any more the SYN is refused by RST.",
		Holds: holdsOf(g.Flags&rst != 0), Expected: No, Evidence: Evidence{"answer": g.Flags.String()},
		History: "TIME_WAIT answers with its ACK; the client's RST ends it, and only the next SYN is refused.",
	})
	return nil
}

// synQueueBypassed compares a SYN for a TIME_WAIT with a fresh one where the SYN queue is full and there are no cookies.
func (s *Session) synQueueBypassed(hands bool) error {
	const port, backlog = 41000, 1
	w, err := s.wire("tcp_syncookies=0")
	if err != nil {
		return err
	}
	if err := w.noResets(); err != nil {
		return err
	}
	client, _, err := w.serverWaits(port)
	if err != nil {
		return err
	}
	if err := w.listener.Listen(backlog); err != nil {
		return err
	}
	// Their SYN+ACKs are never answered: they fill the queue.
	dropped := func() (uint64, error) {
		c, err := s.counted(w.server, "TcpExt.TCPReqQFullDrop")
		return c["TcpExt.TCPReqQFullDrop"].(uint64), err
	}
	sent := 0
	for ; sent < 16; sent++ {
		if err := s.SendSyn(w.client, w.from(uint16(42000+sent)), w.at, 1); err != nil {
			return err
		}
		if n, err := dropped(); err != nil || n > 0 {
			break
		}
	}
	if err := s.Wait("a SYN that is dropped", patience, func() (bool, error) {
		n, err := dropped()
		return n > 0, err
	}); err != nil {
		return err
	}
	had, err := w.capture.Find(Match{Port: port})
	if err != nil {
		return err
	}
	before, err := dropped()
	if err != nil {
		return err
	}
	if err := fault.Send(w.client, laterSyn(&client)); err != nil {
		return err
	}
	answer := ""
	if err := s.Wait("what becomes of the SYN", patience, func() (bool, error) {
		n, err := dropped()
		if err != nil {
			return false, err
		}
		all, err := w.capture.Find(Match{Port: port})
		switch {
		case len(all) > len(had):
			answer = all[len(had)].Flags.String()
		case n > before:
			answer = "nothing: dropped"
		}
		return answer != "", err
	}); err != nil {
		return err
	}
	s.Claim(Claim{
		Key: "syn-queue", Text: "It passes a full SYN queue, where a fresh SYN is dropped.",
		Holds: holdsOf(answer == synAck.String()), Expected: holdsOf(hands),
		Evidence: Evidence{"backlog": backlog, "fresh SYNs before one was dropped": sent, "answer": answer},
		History:  "tcp_conn_request() asks neither about the queue nor for a cookie if TIME_WAIT has given it the number to begin with. " + isnHistory,
	})
	return nil
}

// acceptQueueNot does the same with the accept queue.
func (s *Session) acceptQueueNot() error {
	const port = 41000
	w, err := s.wire()
	if err != nil {
		return err
	}
	if err := w.noResets(); err != nil {
		return err
	}
	client, _, err := w.serverWaits(port)
	if err != nil {
		return err
	}
	if err := w.listener.Listen(0); err != nil { // room for one
		return err
	}
	fills, err := s.Socket(w.client, false)
	if err != nil {
		return err
	}
	if err := fills.Connect(w.at, patience); err != nil {
		return err
	}
	had, err := w.capture.Find(Match{Port: port})
	if err != nil {
		return err
	}
	before, err := s.counted(w.server, "TcpExt.ListenOverflows")
	if err != nil {
		return err
	}
	if err := fault.Send(w.client, laterSyn(&client)); err != nil {
		return err
	}
	if err := s.Wait("a SYN that is dropped", patience, func() (bool, error) {
		now, err := s.counted(w.server, "TcpExt.ListenOverflows")
		return now["TcpExt.ListenOverflows"].(uint64) > before["TcpExt.ListenOverflows"].(uint64), err
	}); err != nil {
		return err
	}
	all, err := w.capture.Find(Match{Port: port})
	if err != nil {
		return err
	}
	list, err := s.Minisocks(w.server)
	if err != nil {
		return err
	}
	s.Claim(Claim{
		Key: "accept-queue", Text: "It does not pass a full accept queue: it is dropped, and the TIME_WAIT is gone all the same.",
		Holds: holdsOf(len(all) == len(had) && len(list) == 0), Expected: Yes,
		Evidence: Evidence{"answers": len(all) - len(had), "TIME_WAITs left": len(list)},
		History:  "tcp_v4_rcv() ends the TIME_WAIT before the listener looks at the SYN.",
	})
	return nil
}
