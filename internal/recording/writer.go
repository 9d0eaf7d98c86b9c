package recording

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/s2"

	"github.com/twtrace/twtrace/internal/clock"
	"github.com/twtrace/twtrace/internal/tcp"
)

// Options say how a recording is written. The zero value is what a run wants.
type Options struct {
	// FlushEvery is how long a record may wait to be written to the file; 0: DefaultFlush.
	FlushEvery time.Duration
	// SyncEvery is how often the file is written to the disk; 0: DefaultSync.
	SyncEvery time.Duration
	// RotateSize and RotateAge end a file and begin the next once it has so many bytes, or is so old;
	// 0: never.
	RotateSize int64
	RotateAge  time.Duration
	// Keep is how many files there may be; the oldest are removed; 0: all are kept.
	Keep int
	// Create makes a file, or empties it; nil: os.Create.
	Create func(name string) (*os.File, error)
	// OnStop, if set, is called once if the recording can't go on, from a goroutine of the Writer:
	// the disk is full. What is handed over later is counted and dropped. It must not call the Writer.
	OnStop func(error)
	// Now returns a moment by three clocks; nil: the kernel's.
	Now func() Clock
}

// The defaults of Options.
const (
	DefaultFlush = 30 * time.Millisecond
	DefaultSync  = time.Second
)

// perSegment is how many records a segment has at most: what was just filled is then still in the processor's cache as it is
// compressed (with four times as many a storm was four percent slower), and a lookup reads little of what it passes.
const perSegment = 1024

// buffers bounds what waits to be written, in segments: a third of a second of a storm, some 9 MB. If the disk
// is slower for longer, those who hand over wait, and the trace's ring is where events are lost and counted.
const buffers = 96

// Writer writes a recording. Its methods may be called from several goroutines.
type Writer struct {
	opts   Options
	layout *layouts
	name   string // as the caller said; parts of a rotated recording have a number

	mu     sync.Mutex
	filled [numTables]*buffer
	closed bool
	rows   uint64 // events that were handed over for the file

	queue chan *buffer // has room for all buffers and a mark of rotation
	free  *pool
	done  chan struct{}

	lost, skipped atomic.Uint64
	rotation      atomic.Uint32 // one of those below

	closing  sync.Once
	closeErr error

	// The rest is of the writing goroutine alone, and of Close after its end.

	header  Header
	file    *file
	names   []string // of parts that are there
	stopped *Stopped
	out     []byte
	data    bytes.Buffer
	snappy  *s2.Writer
}

// The values of Writer.rotation.
const (
	noRotation uint32 = iota
	rotationDue
	rotationQueued
)

// buffer is records of one table on their way to the file.
type buffer struct {
	table  Table
	n      int
	raw    []byte
	rotate bool // none: the next file begins here
}

// pool is the buffers that are free. What was freed last is taken first: it is still in the processor's cache.
type pool struct {
	tokens chan struct{} // as many as may be taken

	mu   sync.Mutex
	free []*buffer
}

func newPool(n int) *pool {
	p := &pool{tokens: make(chan struct{}, n)}
	for range n {
		p.tokens <- struct{}{}
	}
	return p
}

// take returns an empty buffer, and waits for one if all are taken.
func (p *pool) take() *buffer {
	<-p.tokens
	p.mu.Lock()
	defer p.mu.Unlock()
	last := len(p.free) - 1
	if last < 0 {
		return new(buffer)
	}
	b := p.free[last]
	p.free = p.free[:last]
	return b
}

func (p *pool) put(b *buffer) {
	b.raw = b.raw[:0]
	p.mu.Lock()
	p.free = append(p.free, b)
	p.mu.Unlock()
	p.tokens <- struct{}{}
}

// file is the part that is being written.
type file struct {
	f        *os.File
	name     string
	id       uint32 // the checksum of its header
	reserve  reserve
	begun    time.Time
	offset   int64 // of what is written whole
	segments uint64
	records  [numTables]uint64
	syncing  chan error // the result of a sync under way; nil: none is
	synced   time.Time
	dirty    bool
}

// Create begins a recording in a file, which is emptied. The header's Schema, Version, Part, Tables and
// Enums are filled in; Enums may have others, such as "rst_reason". Errors are of the file system.
func Create(name string, h Header, opts Options) (*Writer, error) {
	return create(name, h, opts, own())
}

func create(name string, h Header, opts Options, layout *layouts) (*Writer, error) {
	if opts.FlushEvery == 0 {
		opts.FlushEvery = DefaultFlush
	}
	if opts.SyncEvery == 0 {
		opts.SyncEvery = DefaultSync
	}
	if opts.Create == nil {
		opts.Create = os.Create
	}
	if opts.Now == nil {
		opts.Now = Now
	}
	w := &Writer{
		opts: opts, layout: layout, name: name,
		queue: make(chan *buffer, buffers+1), free: newPool(buffers),
		done: make(chan struct{}),
	}
	h.Schema, h.Version, h.Tables = Schema, Version, w.layout.describe()
	all := ownEnums()
	for name, e := range h.Enums {
		all[name] = e
	}
	h.Enums = all
	w.header = h
	w.snappy = s2.NewWriter(&w.data, s2.WriterConcurrency(1), s2.WriterSnappyCompat())
	var err error
	if w.file, err = w.begin(); err != nil {
		return nil, err
	}
	go w.run()
	return w, nil
}

// Rotates reports whether the recording may have several files.
func (w *Writer) Rotates() bool { return w.opts.RotateSize > 0 || w.opts.RotateAge > 0 }

// Events appends events. It waits while more is to be written than may wait. After Close it does nothing, as
// Attempts and Sample do.
func (w *Writer) Events(events []tcp.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	for i := range events {
		ev := &events[i]
		if needsDetail(ev) {
			w.layout.detail.put(w.room(TableDetails), ev)
		}
		w.layout.event.put(w.room(TableEvents), w.rows, ev)
		w.rows++
		if w.filled[TableEvents].n == perSegment {
			w.pass(TableDetails) // before the events that they are of
			w.pass(TableEvents)
		}
	}
}

// Attempts appends attempts.
func (w *Writer) Attempts(attempts []tcp.Attempt) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	for i := range attempts {
		w.layout.attempt.put(w.room(TableAttempts), &attempts[i])
		if w.filled[TableAttempts].n == perSegment {
			w.pass(TableAttempts)
		}
	}
}

// Sample appends a sample, whose times may be 0: they are then those of now, and its losses the latest.
func (w *Writer) Sample(s Sample) {
	if s.MonoNS == 0 {
		c := w.opts.Now()
		s.MonoNS, s.RealNS, s.BootNS = c.MonoNS, c.RealNS, c.BootNS
	}
	s.Lost, s.Skipped = w.lost.Load(), w.skipped.Load()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	w.layout.sample.put(w.room(TableSamples), &s)
	if w.filled[TableSamples].n == perSegment {
		w.pass(TableSamples)
	}
}

// SetLoss says how many events were lost by now: that the ring had no room for, and that the kernel ran no program
// for and no twin recorded.
func (w *Writer) SetLoss(lost, skipped uint64) {
	w.lost.Store(lost)
	w.skipped.Store(skipped)
}

// RotationDue reports whether the next file should begin: the caller says when, with Rotate.
func (w *Writer) RotationDue() bool { return w.rotation.Load() == rotationDue }

// Rotate ends the file with what was handed over so far, and begins the next, if one is due.
func (w *Writer) Rotate() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || !w.rotation.CompareAndSwap(rotationDue, rotationQueued) {
		return
	}
	w.passAll()
	w.rows = 0
	w.queue <- &buffer{rotate: true}
}

// room returns where the next record of a table goes. The caller holds mu.
func (w *Writer) room(t Table) []byte {
	b := w.filled[t]
	if b == nil {
		b = w.free.take()
		b.table, b.n = t, 0
		w.filled[t] = b
	}
	size := w.layout.size[t]
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

// pass queues what is filled of a table. The caller holds mu.
func (w *Writer) pass(t Table) {
	if b := w.filled[t]; b != nil {
		w.filled[t] = nil
		w.queue <- b
	}
}

func (w *Writer) passAll() {
	for _, t := range []Table{TableDetails, TableEvents, TableAttempts, TableSamples} {
		w.pass(t)
	}
}

// run writes until Close. It never waits for who hands over: who does may wait for it, with the lock.
func (w *Writer) run() {
	defer close(w.done)
	tick := time.NewTicker(w.opts.FlushEvery)
	defer tick.Stop()
	soon := make(<-chan time.Time)
	for {
		select {
		case b, more := <-w.queue:
			if !more {
				return
			}
			w.write(b)
		case <-tick.C:
			soon = w.flush()
		case <-soon:
			soon = w.flush()
		}
	}
}

// flush queues what is filled, or says when to try again because somebody is just handing over. The queue
// has room for all buffers there are.
func (w *Writer) flush() (again <-chan time.Time) {
	if !w.mu.TryLock() {
		return time.After(time.Millisecond)
	}
	if !w.closed {
		w.passAll()
	}
	w.mu.Unlock()
	if w.stopped == nil {
		if err := w.file.sync(w.opts.SyncEvery); err != nil {
			w.stop(err)
		}
	}
	if w.opts.RotateAge > 0 && time.Since(w.file.begun) >= w.opts.RotateAge {
		w.rotateSoon()
	}
	return nil
}

// rotateSoon asks for a rotation, unless one is on its way.
func (w *Writer) rotateSoon() { w.rotation.CompareAndSwap(noRotation, rotationDue) }

// write writes a buffer as a segment, and frees it.
func (w *Writer) write(b *buffer) {
	if b.rotate {
		w.next()
		w.rotation.Store(noRotation)
		return
	}
	if w.stopped == nil {
		if err := w.segment(b); err != nil {
			w.stop(err)
		}
	}
	if w.stopped != nil {
		w.stopped.Dropped[b.table.String()] += uint64(b.n)
	}
	if w.opts.RotateSize > 0 && w.file.offset >= w.opts.RotateSize {
		w.rotateSoon()
	}
	w.free.put(b)
}

// segment appends a segment to the file.
func (w *Writer) segment(b *buffer) error {
	f := w.file
	s := Segment{
		id: f.id, Table: b.table, Seq: f.segments, First: f.records[b.table], Size: w.layout.size[b.table],
		Lost: w.lost.Load(), Skipped: w.skipped.Load(),
	}
	w.index(&s, b)
	w.data.Reset()
	if err := errors.Join(w.snappy.EncodeBuffer(b.raw), w.snappy.Flush()); err != nil {
		return fmt.Errorf("compress: %w", err)
	}
	data := bytes.TrimPrefix(w.data.Bytes(), []byte(streamID)) // the file has begun with it
	s.Length, s.sum = len(data), checksum(data)
	w.out = append(s.append(w.out[:0]), data...)
	if err := f.append(w.out); err != nil {
		return err
	}
	f.segments++
	f.records[b.table] += uint64(b.n)
	return nil
}

// index notes what is in a buffer.
func (w *Writer) index(s *Segment, b *buffer) {
	s.index(b.n)
	for at := 0; at < len(b.raw); at += s.Size {
		r := b.raw[at:]
		switch b.table {
		case TableEvents:
			l := &w.layout.event
			s.addTime(int64(le.Uint64(r[l.mono:])))
			s.addCookie(tcp.Cookie(le.Uint64(r[l.cookie:])))
			s.addErrno(le.Uint16(r[l.errno:]))
			s.ports.add(uint64(le.Uint16(r[l.localPort:])))
			s.ports.add(uint64(le.Uint16(r[l.peerPort:])))
		case TableAttempts:
			l := &w.layout.attempt
			s.addTime(int64(le.Uint64(r[l.closed:])))
			s.addCookie(tcp.Cookie(le.Uint64(r[l.cookie:])))
			s.addErrno(le.Uint16(r[l.errno:]))
			s.ports.add(uint64(le.Uint16(r[l.localPort:])))
		case TableSamples:
			s.addTime(int64(le.Uint64(r[w.layout.sample.mono:])))
		}
	}
}

// begin makes the next file and writes what it begins with.
func (w *Writer) begin() (*file, error) {
	w.header.Part++
	w.header.Clock = w.opts.Now()
	text, err := json.Marshal(&w.header)
	if err != nil {
		return nil, fmt.Errorf("write the header of a recording: %w", err)
	}
	version := le.AppendUint32(nil, Version)
	head := appendChunk([]byte(streamID), chunkHeader, magicHeader, append(version, text...))
	if len(head) > maxChunk {
		return nil, fmt.Errorf("write the header of a recording: it has %d bytes", len(head))
	}
	f := &file{name: w.partName(w.header.Part), id: le.Uint32(head[len(head)-4:]), begun: time.Now(), synced: time.Now()}
	if f.f, err = w.opts.Create(f.name); err != nil {
		return nil, err // names the file
	}
	f.reserve = newReserve(f.name)
	if err := f.append(head); err != nil {
		return nil, errors.Join(err, f.f.Close(), f.reserve.free())
	}
	w.names = append(w.names, f.name)
	return f, nil
}

// append writes what must be in the file wholly or not at all.
func (f *file) append(b []byte) error {
	if _, err := f.f.WriteAt(b, f.offset); err != nil {
		return errors.Join(err, f.f.Truncate(f.offset))
	}
	f.offset += int64(len(b))
	f.dirty = true
	return nil
}

// stop ends the recording before its time; the file stays as it was flushed last.
func (w *Writer) stop(err error) {
	w.stopped = &Stopped{MonoNS: clock.Mono(), Cause: err.Error(), Dropped: make(map[string]uint64)}
	if w.opts.OnStop != nil {
		w.opts.OnStop(err)
	}
}

// next begins another part of a rotated recording, and ends the one before: if there can be no other, the
// one that is there says why.
func (w *Writer) next() {
	if w.stopped != nil {
		return
	}
	foot := w.footer(nil)
	last := w.file
	f, err := w.begin()
	if err != nil {
		w.stop(err)
		return
	}
	w.file = f
	foot.Next = filepath.Base(f.name)
	if err := last.finish(foot); err != nil {
		w.stop(err)
		return
	}
	if w.opts.Keep > 0 && len(w.names) > w.opts.Keep {
		// One that somebody else has removed is gone as well.
		_ = os.Remove(w.names[0])
		w.names = w.names[1:]
	}
}

func (w *Writer) footer(summary json.RawMessage) *Footer {
	f := w.file
	foot := &Footer{
		Schema: FooterSchema, Records: make(map[string]uint64), Segments: f.segments, Clock: w.opts.Now(),
		Lost: w.lost.Load(), Skipped: w.skipped.Load(), Stopped: w.stopped, Summary: summary,
	}
	for t := TableEvents; t < numTables; t++ {
		foot.Records[t.String()] = f.records[t]
	}
	return foot
}

// finish writes the footer into the room that was kept for it, and closes the file.
func (f *file) finish(foot *Footer) error {
	var errs []error
	if f.syncing != nil {
		errs = append(errs, <-f.syncing) // the kernel says so once
		f.syncing = nil
	}
	errs = append(errs, f.reserve.free())
	err := f.end(foot)
	if err != nil && foot.Summary != nil {
		foot.Summary = nil // it is made again from the records
		err = f.end(foot)
	}
	return errors.Join(append(errs, err, dataSync(f.f), f.f.Close())...)
}

// end appends the footer.
func (f *file) end(foot *Footer) error {
	text, err := json.Marshal(foot)
	if err != nil {
		return fmt.Errorf("write the footer of a recording: %w", err)
	}
	chunk := appendChunk(nil, chunkFooter, magicFooter, append(le.AppendUint32(nil, f.id), s2.EncodeSnappy(nil, text)...))
	if len(chunk) > maxChunk {
		return fmt.Errorf("write the footer of a recording: it has %d bytes", len(chunk))
	}
	return f.append(chunk)
}

// Close writes what was handed over, and the footer with a summary, and closes the file. Names and Size
// tell of the files after it. Called again, it waits for the first call and returns what that did. An error
// that OnStop was given is not returned again.
func (w *Writer) Close(summary json.RawMessage) error {
	w.closing.Do(func() { w.closeErr = w.close(summary) })
	return w.closeErr
}

func (w *Writer) close(summary json.RawMessage) error {
	w.mu.Lock()
	w.closed = true
	w.passAll()
	close(w.queue)
	w.mu.Unlock()
	<-w.done
	stopped := w.stopped != nil
	err := w.file.finish(w.footer(summary))
	if err != nil && !stopped {
		return fmt.Errorf("end the recording: %w", err)
	}
	return nil
}

// Names are the files that hold the recording, the oldest first. It is called after Close.
func (w *Writer) Names() []string { return w.names }

// Size is the length of the last file, in bytes. It is called after Close.
func (w *Writer) Size() int64 { return w.file.offset }

// sync writes the file to the disk if it is time, without waiting for that. An error is of the sync before:
// the kernel tells of one that it had with the disk once, and forgets it.
func (f *file) sync(every time.Duration) error {
	if f.syncing != nil {
		select {
		case err := <-f.syncing:
			f.syncing = nil
			if err != nil {
				return err
			}
		default:
			return nil
		}
	}
	if !f.dirty || time.Since(f.synced) < every {
		return nil
	}
	f.dirty, f.synced = false, time.Now()
	result := make(chan error, 1)
	f.syncing = result
	go func(to *os.File) { result <- dataSync(to) }(f.f)
	return nil
}
