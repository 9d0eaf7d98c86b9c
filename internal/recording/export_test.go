package recording

import (
	"bytes"
	"io"

	"github.com/twtrace/twtrace/internal/tcp"
)

// What tests need to see of the inside.

// Flush queues what was handed over, as time does.
func (w *Writer) Flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sealAll()
}

// Offset and End are where a segment begins and ends in its file.
func (s *Segment) Offset() int64 { return s.offset }

// End is where it ends.
func (s *Segment) End() int64 { return s.end() }

// MaxWaiting is how many records of a table can be handed over before a writer must write some.
const MaxWaiting = (blocks*maxSegments + 1) * perSegment // the last is being filled

// Seal gives every whole chunk of our own in a file the checksums that belong to it, so that what is
// beneath them can be fuzzed.
func Seal(file []byte) {
	id := uint32(0)
	for at := 0; at+chunkHead <= len(file); {
		n := chunkLength(file[at:])
		if n > len(file)-at-chunkHead {
			return
		}
		chunk := file[at+chunkHead : at+chunkHead+n]
		switch kind := file[at]; {
		case kind == chunkHeader && sealed(chunk, magicHeader):
			id = le.Uint32(chunk[n-4:])
		case kind == chunkSegment && len(chunk) >= len(magicSegment)+segmentFixed+4:
			p := chunk[len(magicSegment):]
			le.PutUint32(p[12:], id)
			if length := int(le.Uint32(p[8:])); length <= len(file)-at-chunkHead-n {
				le.PutUint32(p[80:], checksum(file[at+chunkHead+n:][:length]))
			}
			sealed(chunk, magicSegment)
		case kind == chunkFooter && len(chunk) >= len(magicFooter)+8:
			le.PutUint32(chunk[len(magicFooter):], id)
			sealed(chunk, magicFooter)
		}
		at += chunkHead + n
	}
}

func sealed(chunk []byte, magic string) bool {
	if len(chunk) < len(magic)+4 {
		return false
	}
	copy(chunk, magic)
	end := len(chunk) - 4
	le.PutUint32(chunk[end:], checksum(chunk[:end]))
	return true
}

// WithHeader is a file's header in another form, and what follows.
func WithHeader(version uint32, text []byte, file []byte) []byte {
	p := append(le.AppendUint32(nil, version), text...)
	out := appendChunk([]byte(streamID), chunkHeader, magicHeader, p)
	if len(file) > len(streamID)+chunkHead {
		body := len(streamID) + chunkHead + chunkLength(file[len(streamID):])
		out = append(out, file[min(body, len(file)):]...)
	}
	Seal(out)
	return out
}

// HeaderText is the text of a file's header.
func HeaderText(file []byte) []byte {
	n := chunkLength(file[len(streamID):])
	p, _ := payloadOf(file[len(streamID)+chunkHead:][:n], magicHeader)
	return p[4:]
}

// ReadSegment reads a segment's payload, sealed, and the chunks that follow it, and decodes what is in them as
// the own layout has it. It returns how many records it got.
func ReadSegment(payload, data []byte) int {
	if len(payload) >= segmentFixed {
		le.PutUint32(payload[80:], checksum(data))
	}
	file := append(appendChunk(nil, chunkSegment, magicSegment, payload), data...)
	names, err := newRenumbering(ownEnums())
	if err != nil {
		panic(err)
	}
	r := &Reader{src: bytesAt(file), size: int64(len(file)), layout: *own(), names: names}
	seg, ok := r.parseSegment(0, chunkLength(file))
	if !ok || !known(seg.Table) || seg.Size != r.layout.size[seg.Table] || r.unpack(&seg, &r.raw) != nil {
		return 0
	}
	if seg.Table == TableDetails {
		r.details = append(r.details[:0], r.raw...)
		r.addDetails(make([]tcp.Event, 3), seg.Count)
		return seg.Count
	}
	r.decode(&seg, 0)
	return len(r.batch.Events) + len(r.batch.Attempts) + len(r.batch.Samples)
}

// Segments are the descriptions of all segments of a whole file.
func Segments(file []byte) []Segment {
	r, err := NewReader(bytesAt(file), int64(len(file)))
	if err != nil {
		panic(err)
	}
	var all []Segment
	for at := r.body; at < r.size; {
		n := chunkLength(file[at:])
		seg, ok := r.parseSegment(at, n)
		if !ok {
			break // the footer
		}
		all = append(all, seg)
		at = seg.end()
	}
	return all
}

// SegmentParts are the payload of the first segment of a table, and its chunks.
func SegmentParts(file []byte, of Table) (payload, data []byte) {
	for _, s := range Segments(file) {
		if s.Table == of {
			payload, _ = payloadOf(file[s.offset+chunkHead:s.data], magicSegment)
			return payload, file[s.data:s.end()]
		}
	}
	return nil, nil
}

func bytesAt(b []byte) io.ReaderAt { return bytes.NewReader(b) }

// CreateLater creates a recording whose records have gap bytes before every field.
func CreateLater(name string, h Header, opts Options, gap int) (*Writer, error) {
	l := new(layouts)
	for _, t := range Tables {
		at := 0
		for _, m := range l.members(t) {
			*m.at = at + gap
			at += gap + typeSizes[m.Type]
		}
		l.size[t] = (at + 15) &^ 7
	}
	return create(name, h, opts, l)
}

// WithLaterTable is a file with segments of another table between its own, and with chunks of other kinds.
func WithLaterTable(file []byte, t Table) []byte {
	segments := Segments(file)
	out := bytes.Clone(file[:segments[0].offset])
	for i, s := range segments {
		s.Seq = uint64(2 * i)
		out = append(s.append(out), file[s.data:s.end()]...)
		s.Table, s.Seq = t, uint64(2*i+1)
		out = append(s.append(out), file[s.data:s.end()]...)
		out = appendChunk(out, 0x90, "LATE", []byte("r"))
		out = append(out, chunkPadding, 3, 0, 0, 0, 0, 0)
		out = append(out, streamID...)
	}
	out = append(out, file[segments[len(segments)-1].end():]...)
	Seal(out)
	return out
}
