package recording

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/klauspost/compress/s2"

	"github.com/twtrace/twtrace/internal/tcp"
)

// ErrFormat says that a file is no recording, or that its header is damaged.
var ErrFormat = errors.New("not a recording of twtrace")

// VersionError says that a recording is of a version of the format that this one does not know.
type VersionError struct{ Version int }

func (e *VersionError) Error() string {
	return fmt.Sprintf("the recording is of version %d of the format, and this twtrace reads versions 1 to %d: read it with a newer twtrace", e.Version, Version)
}

// Reader reads a recording. It may be used by one goroutine at a time.
type Reader struct {
	src    io.ReaderAt
	size   int64
	close  func() error
	header Header
	layout layouts
	names  *renumbering
	id     uint32 // the checksum of the header, which segments and the footer repeat
	body   int64  // where the chunks after the header begin
	err    error  // of reading the file: not that it is too short

	// Reused from segment to segment.
	head                         [chunkHead]byte
	packed, raw, details, search []byte
	batch                        Batch
}

// Batch is some records of one table, in the order in which they were recorded. It is valid during the call
// that it is given to.
type Batch struct {
	Table    Table
	End      int64 // where they end in the file: how far the reading is
	Events   []tcp.Event
	Attempts []tcp.Attempt
	Samples  []Sample
}

// Query says what to read.
type Query struct {
	// Tables to read; empty: all. TableDetails is read with TableEvents.
	Tables []Table
	// Want says by what is known of a segment whether to read it; nil: yes.
	Want func(*Segment) bool
}

func (q *Query) wants(s *Segment) bool {
	if len(q.Tables) > 0 && !slices.Contains(q.Tables, s.Table) {
		return false
	}
	return q.Want == nil || q.Want(s)
}

// Condition is how much of a recording there is.
type Condition struct {
	// Footer is the recording's end; nil: it is not there. The writer was killed, still
	// writes, or the file was cut.
	Footer *Footer
	// Bytes is the length of the file, and Cut how many at its end are of no whole segment.
	Bytes, Cut int64
	Damage     []Damage
	// Records are how many of each table are there, and Missing how many are known to be missing.
	Records, Missing [numTables]uint64
	// Segments are how many are there, and MissingSegments how many are known to be missing: of them
	// it may not be known which table's they were.
	Segments, MissingSegments uint64
	// Lost and Skipped are those of the footer, or else of the last Segment.
	Lost, Skipped uint64
	// LastNS is the latest time of a record; 0: there is none.
	LastNS int64
}

// Complete reports whether everything is there that was recorded.
func (c *Condition) Complete() bool {
	return c.Footer != nil && c.Cut == 0 && len(c.Damage) == 0 && c.Missing == [numTables]uint64{} && c.MissingSegments == 0
}

// Damage is a piece of the file that is not as it was written.
type Damage struct {
	Offset, Length int64
	What           string
}

// Open opens a recording. Errors are of the file system, ErrFormat, and *VersionError.
func Open(name string) (*Reader, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), f.Close())
	}
	r, err := NewReader(f, size)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), f.Close())
	}
	r.close = f.Close
	return r, nil
}

// NewReader reads a recording of so many bytes. Errors are as of Open.
func NewReader(src io.ReaderAt, size int64) (*Reader, error) {
	r := &Reader{src: src, size: size}
	if err := r.readHeader(); err != nil {
		return nil, err
	}
	return r, nil
}

// Close closes the file.
func (r *Reader) Close() error {
	if r.close == nil {
		return nil
	}
	return r.close()
}

// Size is the length of the file, in bytes.
func (r *Reader) Size() int64 { return r.size }

// Header is what the recording says of itself.
func (r *Reader) Header() *Header { return &r.header }

// at reads n bytes; false: they are not all there, or can't be read.
func (r *Reader) at(offset int64, n int, into []byte) ([]byte, bool) {
	if offset < 0 || n < 0 || offset > r.size-int64(n) {
		return nil, false
	}
	if cap(into) < n {
		into = make([]byte, n)
	}
	into = into[:n]
	got, err := r.src.ReadAt(into, offset)
	if got == n {
		return into, true
	}
	if err != nil && !errors.Is(err, io.EOF) { // it was longer once
		r.err = err
	}
	return nil, false
}

func (r *Reader) readHeader() error {
	head, ok := r.at(0, len(streamID)+chunkHead, nil)
	if r.err != nil {
		return r.err
	}
	if !ok || string(head[:len(streamID)]) != streamID || head[len(streamID)] != chunkHeader {
		return ErrFormat
	}
	n := chunkLength(head[len(streamID):])
	chunk, ok := r.at(int64(len(head)), n, nil)
	if r.err != nil {
		return r.err
	}
	if !ok {
		return fmt.Errorf("%w: it ends in its header", ErrFormat)
	}
	p, ok := payloadOf(chunk, magicHeader)
	if !ok || len(p) < 4 {
		return fmt.Errorf("%w: its header is damaged", ErrFormat)
	}
	if v := le.Uint32(p); v != Version {
		return &VersionError{int(v)}
	}
	if err := json.Unmarshal(p[4:], &r.header); err != nil {
		return fmt.Errorf("%w: header: %w", ErrFormat, err)
	}
	if err := r.layout.read(r.header.Tables); err != nil {
		return fmt.Errorf("%w: header: %w", ErrFormat, err)
	}
	names, err := newRenumbering(r.header.Enums)
	if err != nil {
		return fmt.Errorf("%w: header: %w", ErrFormat, err)
	}
	r.names = names
	r.id = le.Uint32(chunk[n-4:])
	r.body = int64(len(head) + n)
	return nil
}

func chunkLength(head []byte) int { return int(head[1]) | int(head[2])<<8 | int(head[3])<<16 }

// Check reads everything and returns how much there is.
func (r *Reader) Check() (*Condition, error) { return r.Scan(Query{}, nil) }

// Scan hands out the records that the query asks for, in the order of the file, and returns how much of
// the file there is. What was not asked for is not looked at: its damage is not found. What is damaged is
// left out, and in the Condition; an event whose details are is handed out without FlagOwner, FlagRefusals and
// Holder. Errors are those of visit, and of reading the file; visit may be nil.
func (r *Reader) Scan(q Query, visit func(*Batch) error) (*Condition, error) {
	s := &scan{r: r, q: &q, visit: visit, c: &Condition{Bytes: r.size}, at: r.body}
	r.err = nil
	for s.at < r.size && s.c.Footer == nil {
		if err := s.step(); err != nil {
			return s.c, err
		}
		if r.err != nil {
			return s.c, r.err
		}
	}
	s.end()
	return s.c, nil
}

// scan is one way through a file.
type scan struct {
	r     *Reader
	q     *Query
	visit func(*Batch) error
	c     *Condition
	at    int64
	next  [numTables]uint64 // record that is to come
	seq   uint64            // segment that is to come
	// detail is the segment of details since the last one of events; Count is 0: there was none, or it could
	// not be read.
	detail Segment
	tried  int // footers, by resync
}

// step takes the chunk at s.at.
func (s *scan) step() error {
	head, ok := s.r.at(s.at, chunkHead, s.r.head[:])
	if !ok {
		s.resync("a chunk")
		return nil
	}
	n := chunkLength(head)
	switch kind := head[0]; {
	case kind == chunkSegment:
		return s.segment(n)
	case kind == chunkFooter:
		s.footer(n)
	case kind == chunkHeader:
		s.resync("the begin of another recording")
	case kind == chunkStream || kind > chunkHeader && kind <= chunkPadding:
		// Of a later version, or of another program: passed over, as the framing format has it.
		if s.at+chunkHead+int64(n) > s.r.size {
			s.resync("a chunk that goes beyond the end")
			return nil
		}
		s.at += chunkHead + int64(n)
	default:
		s.resync("no chunk of a recording")
	}
	return nil
}

// damage notes a piece, and goes on after it.
func (s *scan) damage(length int64, what string) {
	if d := s.c.Damage; len(d) > 0 && d[len(d)-1].Offset+d[len(d)-1].Length == s.at {
		d[len(d)-1].Length += length
	} else if len(d) < maxDamage {
		s.c.Damage = append(d, Damage{s.at, length, what})
	}
	s.at += length
}

// maxDamage bounds a list that would be as long as the file.
const maxDamage = 1 << 16

// segment takes a segment whose own chunk has a payload of n bytes.
func (s *scan) segment(n int) error {
	seg, ok := s.r.parseSegment(s.at, n)
	if !ok {
		s.resync("a segment's description")
		return nil
	}
	if seg.id != s.r.id {
		s.resync("a segment of another recording")
		return nil
	}
	if seg.Seq < s.seq || known(seg.Table) && seg.First < s.next[seg.Table] {
		s.resync("a segment that is out of order, or there twice")
		return nil
	}
	s.c.MissingSegments += seg.Seq - s.seq
	s.seq = seg.Seq + 1
	whole := seg.end() <= s.r.size
	switch {
	case !known(seg.Table) && whole:
		s.at = seg.end() // of a later version
		return nil
	case !known(seg.Table):
		s.resync("a segment that is not whole")
		return nil
	}
	s.c.Missing[seg.Table] += seg.First - s.next[seg.Table]
	s.next[seg.Table] = seg.First + uint64(seg.Count)
	s.c.Segments++
	s.c.Lost, s.c.Skipped = max(s.c.Lost, seg.Lost), max(s.c.Skipped, seg.Skipped)
	if seg.Table != TableDetails {
		s.c.LastNS = max(s.c.LastNS, seg.MaxNS)
	}
	if !whole {
		s.lose(&seg, "a segment that is not whole")
		return nil
	}
	if seg.Size != s.r.layout.size[seg.Table] {
		s.lose(&seg, "a segment whose records have another size than the header says")
		return nil
	}
	return s.records(&seg)
}

// lose notes that a segment's records can't be had, and goes on at what is whole after it.
func (s *scan) lose(seg *Segment, what string) {
	s.detail.Count = 0
	s.c.Missing[seg.Table] += uint64(seg.Count)
	s.resync(what)
}

// records takes what is in a segment.
func (s *scan) records(seg *Segment) error {
	some := len(s.q.Tables) > 0 || s.q.Want != nil
	if seg.Table == TableDetails {
		s.detail = *seg
		if !some { // else it is read when the events that follow are
			if err := s.r.unpack(seg, &s.r.details); err != nil {
				s.lose(seg, err.Error())
				return nil
			}
		}
		s.take(seg)
		return nil
	}
	var detail Segment
	if seg.Table == TableEvents {
		detail, s.detail.Count = s.detail, 0
	}
	if !s.q.wants(seg) {
		s.take(seg)
		return nil
	}
	if err := s.r.unpack(seg, &s.r.raw); err != nil {
		s.lose(seg, err.Error())
		return nil
	}
	s.take(seg)
	if some && detail.Count > 0 && s.r.unpack(&detail, &s.r.details) != nil {
		s.c.Records[TableDetails] -= uint64(detail.Count)
		s.c.Missing[TableDetails] += uint64(detail.Count)
		if len(s.c.Damage) < maxDamage {
			s.c.Damage = append(s.c.Damage, Damage{detail.offset, detail.end() - detail.offset, "details that can't be read"})
		}
		detail.Count = 0
	}
	if s.visit == nil {
		return nil
	}
	s.r.decode(seg, detail.Count)
	s.r.batch.End = s.at
	return s.visit(&s.r.batch)
}

// take counts a segment's records, and goes on after it.
func (s *scan) take(seg *Segment) {
	s.c.Records[seg.Table] += uint64(seg.Count)
	s.at = seg.end()
}

func known(t Table) bool { return t > 0 && t < numTables }

// parseSegment reads a segment's chunk.
func (r *Reader) parseSegment(at int64, n int) (seg Segment, ok bool) {
	if n > maxSegmentChunk {
		return seg, false
	}
	chunk, ok := r.at(at+chunkHead, n, r.packed)
	if !ok {
		return seg, false
	}
	r.packed = chunk
	p, ok := payloadOf(chunk, magicSegment)
	if !ok || seg.parse(p) != nil {
		return seg, false
	}
	seg.offset, seg.data = at, at+chunkHead+int64(n)
	return seg, true
}

// unpack reads the records of a segment.
func (r *Reader) unpack(seg *Segment, into *[]byte) error {
	packed, ok := r.at(seg.data, seg.Length, r.packed)
	if !ok {
		return errors.New("records that can't be read")
	}
	r.packed = packed
	if checksum(packed) != seg.sum {
		return errors.New("records that are not as they were written")
	}
	want := seg.Count * seg.Size
	out := (*into)[:0]
	if cap(out) < want {
		out = make([]byte, 0, want)
	}
	for len(packed) > 0 {
		if len(packed) < chunkHead+4 {
			return errors.New("a chunk without a checksum")
		}
		n := chunkLength(packed)
		if n < 4 || n > len(packed)-chunkHead {
			return errors.New("a chunk that goes beyond its segment")
		}
		sum, data := le.Uint32(packed[chunkHead:]), packed[chunkHead+4:chunkHead+n]
		from := len(out)
		switch packed[0] {
		case chunkCompressed:
			size, err := s2.DecodedLen(data)
			if err != nil || size > want-from {
				return errors.New("compressed data")
			}
			if _, err := s2.Decode(out[from:from+size:from+size], data); err != nil {
				return errors.New("compressed data")
			}
			out = out[:from+size]
		case chunkUncompressed:
			if len(data) > want-from {
				return errors.New("data")
			}
			out = append(out, data...)
		default:
			return errors.New("a chunk of another type")
		}
		if masked(out[from:]) != sum {
			return errors.New("a checksum")
		}
		packed = packed[chunkHead+n:]
	}
	*into = out
	if len(out) != want {
		return errors.New("fewer records than there should be")
	}
	return nil
}

// masked is the checksum of a chunk of the framing format.
func masked(b []byte) uint32 {
	c := checksum(b)
	return (c>>15 | c<<17) + 0xa282ead8
}

// decode fills the batch from the records that were unpacked.
func (r *Reader) decode(seg *Segment, details int) {
	b := &r.batch
	b.Table, b.Events, b.Attempts, b.Samples = seg.Table, b.Events[:0], b.Attempts[:0], b.Samples[:0]
	switch seg.Table {
	case TableEvents:
		b.Events = grow(b.Events, seg.Count)
		for i := range b.Events {
			r.layout.event.get(r.raw[i*seg.Size:], seg.First+uint64(i), &b.Events[i], r.names)
		}
		r.addDetails(b.Events, details)
	case TableAttempts:
		b.Attempts = grow(b.Attempts, seg.Count)
		for i := range b.Attempts {
			r.layout.attempt.get(r.raw[i*seg.Size:], &b.Attempts[i], r.names)
		}
	case TableSamples:
		b.Samples = grow(b.Samples, seg.Count)
		for i := range b.Samples {
			r.layout.sample.get(r.raw[i*seg.Size:], &b.Samples[i], r.names)
		}
	}
}

// grow makes a slice n long, of what it has room for if it does.
func grow[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}

// addDetails gives events what is known of some of them. Both are in the order of Seq.
func (r *Reader) addDetails(events []tcp.Event, n int) {
	l, size := &r.layout.detail, r.layout.size[TableDetails]
	d := 0
	for i := range events {
		ev := &events[i]
		for d < n && le.Uint64(r.details[d*size+l.seq:]) < ev.Seq {
			d++
		}
		if d < n && le.Uint64(r.details[d*size+l.seq:]) == ev.Seq {
			l.get(r.details[d*size:], ev, r.names)
		} else {
			ev.Flags &^= tcp.FlagOwner | tcp.FlagRefusals
		}
	}
}

// footer takes the chunk that ends a recording.
func (s *scan) footer(n int) {
	foot, ok := s.r.parseFooter(s.at, n)
	if !ok {
		s.resync("the footer")
		return
	}
	s.at += chunkHead + int64(n)
	s.c.Footer = foot
	if s.at < s.r.size {
		s.damage(s.r.size-s.at, "something after the footer")
	}
}

// maxFooter bounds a footer's text.
const maxFooter = 1 << 26

// parseFooter reads a footer's chunk; false: it is none, or not of this recording.
func (r *Reader) parseFooter(at int64, n int) (*Footer, bool) {
	chunk, ok := r.at(at+chunkHead, n, r.packed)
	if !ok {
		return nil, false
	}
	r.packed = chunk
	p, ok := payloadOf(chunk, magicFooter)
	if !ok || len(p) < 4 || le.Uint32(p) != r.id {
		return nil, false
	}
	if n, err := s2.DecodedLen(p[4:]); err != nil || n > maxFooter {
		return nil, false
	}
	text, err := s2.Decode(nil, p[4:])
	if err != nil {
		return nil, false
	}
	foot := new(Footer)
	if json.Unmarshal(text, foot) != nil {
		return nil, false
	}
	return foot, true
}

// end adds what the footer knows to be missing.
func (s *scan) end() {
	foot := s.c.Footer
	if foot == nil {
		return
	}
	s.c.Lost, s.c.Skipped = max(s.c.Lost, foot.Lost), max(s.c.Skipped, foot.Skipped)
	if foot.Segments > s.seq {
		s.c.MissingSegments += foot.Segments - s.seq
	}
	for t := TableEvents; t < numTables; t++ {
		if all := foot.Records[t.String()]; all > s.next[t] {
			s.c.Missing[t] += all - s.next[t]
		}
	}
}

// resync notes that the file is damaged here, and goes on at the next chunk of our own that is whole; there is
// none: the file is cut here.
func (s *scan) resync(what string) {
	window := 4 << 10 // mostly it is near
	for at := s.at + 1; at < s.r.size; {
		b, ok := s.r.at(at, int(min(int64(window), s.r.size-at)), s.r.search)
		if !ok {
			break
		}
		s.r.search = b
		for i := chunkHead; ; i++ {
			skip := bytes.Index(b[min(i, len(b)):], []byte(magicCommon))
			if skip < 0 {
				break
			}
			i += skip
			if from := at + int64(i-chunkHead); s.whole(from, b[i-chunkHead:i]) {
				s.damage(from-s.at, what)
				return
			}
		}
		if len(b) < window {
			break
		}
		at += int64(len(b) - chunkHead - len(magicCommon) + 1)
		window = min(2*window, 1<<20)
	}
	s.c.Cut += s.r.size - s.at
	s.at = s.r.size
}

// maxTried bounds the places at which a footer is looked for: each can be long.
const maxTried = 100

// whole reports whether a chunk of our own is at a place.
func (s *scan) whole(at int64, head []byte) bool {
	n := chunkLength(head)
	switch head[0] {
	case chunkSegment:
		_, ok := s.r.parseSegment(at, n)
		return ok
	case chunkFooter:
		if s.tried++; s.tried > maxTried {
			return false
		}
		_, ok := s.r.parseFooter(at, n)
		return ok
	}
	return false
}
