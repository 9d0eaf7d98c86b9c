package recording

import (
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

// Writer writes a recording. Its methods may be called from several goroutines.
type Writer struct {
	opts   Options
	layout *layouts
	name   string // as the caller said; parts of a rotated recording have a number

	mu     sync.Mutex
	header Header
	enc    *encoder
	closed bool

	queue chan *block // has room for all blocks and a mark of rotation
	free  *pool
	done  chan struct{}

	lost, skipped atomic.Uint64
	rotation      atomic.Uint32 // one of those below

	closing  sync.Once
	closeErr error

	// The rest is of the writing goroutine alone, and of Close after its end.

	file    *file
	names   []string // of parts that are there
	stopped *Stopped
}

// The values of Writer.rotation.
const (
	noRotation uint32 = iota
	rotationDue
	rotationQueued
)

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
		queue: make(chan *block, blocks+1), free: newPool(blocks),
		done: make(chan struct{}),
	}
	h.Schema, h.Version, h.Tables = Schema, Version, w.layout.describe()
	all := ownEnums()
	for name, e := range h.Enums {
		all[name] = e
	}
	h.Enums = all
	w.header = h
	w.enc = newEncoder(layout)
	first := w.nextPart()
	if first.err != nil {
		return nil, first.err
	}
	var err error
	if w.file, err = w.begin(first.part); err != nil {
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
		if w.enc.event(&events[i]) {
			w.seal(TableDetails) // before the events that they are of
			w.seal(TableEvents)
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
		if w.enc.attempt(&attempts[i]) {
			w.seal(TableAttempts)
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
	if w.enc.sample(&s) {
		w.seal(TableSamples)
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
	w.sealAll()
	w.queue <- w.nextPart()
}

// nextPart is the mark after which the next file begins. The caller holds mu.
func (w *Writer) nextPart() *block {
	w.header.Part++
	w.header.Clock = w.opts.Now()
	p := &part{name: w.partName(w.header.Part)}
	err := p.encode(&w.header)
	w.enc.begin(p.id)
	return &block{part: p, err: err}
}

// seal ends a segment, and queues the block that it is in if that is full. It waits while all blocks are queued. The
// caller holds mu.
func (w *Writer) seal(t Table) {
	w.needBlock()
	w.enc.seal(t, w.lost.Load(), w.skipped.Load())
	if w.enc.block.full() {
		w.send()
	}
}

// sealAll ends all segments, and queues them. The caller holds mu.
func (w *Writer) sealAll() {
	w.needBlock()
	w.enc.sealAll(w.lost.Load(), w.skipped.Load())
	w.send()
}

func (w *Writer) needBlock() {
	if w.enc.block == nil {
		w.enc.block = w.free.take()
	}
}

// send queues what is sealed. The caller holds mu.
func (w *Writer) send() {
	if b := w.enc.block; b != nil && b.segments > 0 {
		w.enc.block = nil
		w.queue <- b
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

// flush writes what was handed over, or says when to try again because somebody is just handing over.
func (w *Writer) flush() (again <-chan time.Time) {
	if !w.mu.TryLock() {
		return time.After(time.Millisecond)
	}
	if w.enc.block == nil {
		w.enc.block = w.free.tryTake()
	}
	room := w.enc.block != nil // else all are queued, for this goroutine
	if room && !w.closed {
		w.sealAll()
	}
	w.mu.Unlock()
	if !room {
		return time.After(time.Millisecond)
	}
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

// write writes a block, and frees it.
func (w *Writer) write(b *block) {
	if b.part != nil {
		w.next(b)
		w.rotation.Store(noRotation)
		return
	}
	if w.stopped == nil {
		if err := w.file.write(b); err != nil {
			w.stop(err)
		}
	}
	if w.stopped != nil {
		for t, n := range b.records {
			if n > 0 {
				w.stopped.Dropped[Table(t).String()] += n
			}
		}
	}
	if w.opts.RotateSize > 0 && w.file.offset >= w.opts.RotateSize {
		w.rotateSoon()
	}
	w.free.put(b)
}

// write appends a block.
func (f *file) write(b *block) error {
	if b.err != nil {
		return b.err
	}
	if err := f.append(b.data); err != nil {
		return err
	}
	f.segments += b.segments
	for t, n := range b.records {
		f.records[t] += n
	}
	return nil
}

// begin makes a file and writes what it begins with.
func (w *Writer) begin(p *part) (*file, error) {
	f := &file{name: p.name, id: p.id, begun: time.Now(), synced: time.Now()}
	var err error
	if f.f, err = w.opts.Create(f.name); err != nil {
		return nil, err // names the file
	}
	f.reserve = newReserve(f.name)
	if err := f.append(p.head); err != nil {
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
func (w *Writer) next(mark *block) {
	if w.stopped != nil {
		return
	}
	if mark.err != nil {
		w.stop(mark.err)
		return
	}
	foot := w.footer(nil)
	last := w.file
	f, err := w.begin(mark.part)
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
	w.sealAll()
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
