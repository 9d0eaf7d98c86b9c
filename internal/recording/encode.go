package recording

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/s2"

	"github.com/twtrace/twtrace/internal/tcp"
)

// perSegment is how many records a segment has at most: what was just filled is then still in the processor's cache as it is
// compressed, and a lookup reads little of what it passes.
const perSegment = 1024

// A block is full with so many segments, or bytes: what a storm brings between two flushes.
const (
	maxSegments = 16
	blockSize   = 256 << 10
)

// blocks bounds what waits to be written: half a second of a storm, some 4 MB, and 8 MB of what can't be compressed. If the disk
// is slower for longer, those who hand over wait, and the trace's ring is where events are lost and counted.
const blocks = 24

// block is segments on their way to the file, as they will be there.
type block struct {
	data     []byte
	segments uint64
	records  [numTables]uint64
	part     *part // none: the next file begins here
	err      error // there is nothing to write, and no more to come
}

func (b *block) full() bool { return b.segments >= maxSegments || len(b.data) >= blockSize }

// part is what a file begins with.
type part struct {
	name string
	id   uint32 // the checksum of the header
	head []byte
}

// encode makes the head.
func (p *part) encode(h *Header) error {
	text, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("write the header of a recording: %w", err)
	}
	version := le.AppendUint32(nil, Version)
	p.head = appendChunk([]byte(streamID), chunkHeader, magicHeader, append(version, text...))
	if len(p.head) > maxChunk {
		return fmt.Errorf("write the header of a recording: it has %d bytes", len(p.head))
	}
	p.id = le.Uint32(p.head[len(p.head)-4:])
	return nil
}

// pool is the blocks that are free. What was freed last is taken first: it is still in the processor's cache.
type pool struct {
	tokens chan struct{} // as many as may be taken

	mu   sync.Mutex
	free []*block
}

func newPool(n int) *pool {
	p := &pool{tokens: make(chan struct{}, n)}
	for range n {
		p.tokens <- struct{}{}
	}
	return p
}

// take returns an empty block, and waits for one if all are taken.
func (p *pool) take() *block {
	<-p.tokens
	return p.last()
}

// tryTake returns nil if all are taken.
func (p *pool) tryTake() *block {
	select {
	case <-p.tokens:
		return p.last()
	default:
		return nil
	}
}

func (p *pool) last() *block {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := len(p.free) - 1
	if last < 0 {
		return new(block)
	}
	b := p.free[last]
	p.free = p.free[:last]
	return b
}

func (p *pool) put(b *block) {
	*b = block{data: b.data[:0]}
	p.mu.Lock()
	p.free = append(p.free, b)
	p.mu.Unlock()
	p.tokens <- struct{}{}
}

// encoder makes segments of the records of a file. That is done by who hands the records over, while they are in its
// processor's cache: on another one it took twice the time.
type encoder struct {
	layout  *layouts
	block   *block // where segments go
	id      uint32 // the checksum of the file's header
	rows    uint64 // events of the file
	filling [numTables]buffer

	segments uint64            // of the file
	records  [numTables]uint64 // of the file, in segments

	data   bytes.Buffer
	snappy *s2.Writer
}

// buffer is the records of one table that no segment has yet.
type buffer struct {
	n   int
	raw []byte
}

func newEncoder(layout *layouts) *encoder {
	e := &encoder{layout: layout}
	e.snappy = s2.NewWriter(&e.data, s2.WriterConcurrency(1), s2.WriterSnappyCompat())
	return e
}

// begin begins another file. All that was handed over is sealed.
func (e *encoder) begin(id uint32) {
	e.id, e.rows, e.segments, e.records = id, 0, 0, [numTables]uint64{}
}

// event, attempt and sample add a record, and report whether its table has a segment's worth of them.

func (e *encoder) event(ev *tcp.Event) (full bool) {
	if needsDetail(ev) {
		e.layout.detail.put(e.room(TableDetails), ev)
	}
	e.layout.event.put(e.room(TableEvents), e.rows, ev)
	e.rows++
	return e.filling[TableEvents].n == perSegment
}

func (e *encoder) attempt(a *tcp.Attempt) (full bool) {
	e.layout.attempt.put(e.room(TableAttempts), a)
	return e.filling[TableAttempts].n == perSegment
}

func (e *encoder) sample(s *Sample) (full bool) {
	e.layout.sample.put(e.room(TableSamples), s)
	return e.filling[TableSamples].n == perSegment
}

// room returns where the next record of a table goes.
func (e *encoder) room(t Table) []byte {
	b := &e.filling[t]
	size := e.layout.size[t]
	at := b.n * size
	b.n++
	if need := at + size; need > cap(b.raw) {
		b.raw = append(make([]byte, 0, min(4*need, perSegment*size)), b.raw[:at]...)
	}
	b.raw = b.raw[:at+size]
	record := b.raw[at:]
	clear(record[size-8:]) // the end may have no field
	return record
}

// sealAll makes segments of all records.
func (e *encoder) sealAll(lost, skipped uint64) {
	// Details before the events that they are of.
	for _, t := range []Table{TableDetails, TableEvents, TableAttempts, TableSamples} {
		e.seal(t, lost, skipped)
	}
}

// seal appends the records of a table to the block as a segment.
func (e *encoder) seal(t Table, lost, skipped uint64) {
	b, to := &e.filling[t], e.block
	if b.n == 0 {
		return
	}
	s := Segment{
		id: e.id, Table: t, Seq: e.segments, First: e.records[t], Size: e.layout.size[t], Lost: lost, Skipped: skipped,
	}
	e.index(&s, b)
	e.data.Reset()
	if err := errors.Join(e.snappy.EncodeBuffer(b.raw), e.snappy.Flush()); err != nil {
		to.err = fmt.Errorf("compress: %w", err)
	}
	data := bytes.TrimPrefix(e.data.Bytes(), []byte(streamID)) // the file has begun with it
	s.Length, s.sum = len(data), checksum(data)
	to.data = append(s.append(to.data), data...)
	to.segments++
	to.records[t] += uint64(b.n)
	e.segments++
	e.records[t] += uint64(b.n)
	b.n, b.raw = 0, b.raw[:0]
}

// index notes what is in a buffer.
func (e *encoder) index(s *Segment, b *buffer) {
	s.index(b.n)
	for at := 0; at < len(b.raw); at += s.Size {
		r := b.raw[at:]
		switch s.Table {
		case TableEvents:
			l := &e.layout.event
			s.addTime(int64(le.Uint64(r[l.mono:])))
			s.addCookie(tcp.Cookie(le.Uint64(r[l.cookie:])))
			s.addErrno(le.Uint16(r[l.errno:]))
			s.ports.add(uint64(le.Uint16(r[l.localPort:])))
			s.ports.add(uint64(le.Uint16(r[l.peerPort:])))
		case TableAttempts:
			l := &e.layout.attempt
			s.addTime(int64(le.Uint64(r[l.closed:])))
			s.addCookie(tcp.Cookie(le.Uint64(r[l.cookie:])))
			s.addErrno(le.Uint16(r[l.errno:]))
			s.ports.add(uint64(le.Uint16(r[l.localPort:])))
		case TableSamples:
			s.addTime(int64(le.Uint64(r[e.layout.sample.mono:])))
		}
	}
}
