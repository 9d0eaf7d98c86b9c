package recording

import (
	"fmt"
	"hash/crc32"
	"math"
	"math/bits"

	"github.com/twtrace/twtrace/internal/tcp"
)

// The chunks of the Snappy framing format that a recording uses; those from 0x80 to 0xfd are
// skipped by every reader of that format.
const (
	chunkCompressed   = 0x00
	chunkUncompressed = 0x01
	chunkHeader       = 0x80
	chunkSegment      = 0x81
	chunkFooter       = 0x82
	chunkPadding      = 0xfe
	chunkStream       = 0xff
)

// streamID is the chunk that a stream begins with.
const streamID = "\xff\x06\x00\x00sNaPpY"

// chunkHead is a chunk's type and the length of what follows, 24 bits.
const chunkHead = 4

// maxChunk is the longest chunk.
const maxChunk = 1<<24 - 1

// What our own chunks begin with, so that they can be found in a damaged file.
const (
	magicCommon  = "TWR"
	magicHeader  = "TWRH"
	magicSegment = "TWRS"
	magicFooter  = "TWRF"
)

// castagnoli is the polynomial of the framing format too.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// appendChunk appends a skippable chunk of our own: type, length, magic, payload and a checksum of the last two.
func appendChunk(b []byte, kind byte, magic string, payload []byte) []byte {
	n := len(magic) + len(payload) + 4
	b = append(b, kind, byte(n), byte(n>>8), byte(n>>16))
	from := len(b)
	b = append(append(b, magic...), payload...)
	return le.AppendUint32(b, checksum(b[from:]))
}

// payloadOf returns the payload of a chunk that appendChunk made, false if it is none.
func payloadOf(chunk []byte, magic string) ([]byte, bool) {
	if len(chunk) < len(magic)+4 || string(chunk[:len(magic)]) != magic {
		return nil, false
	}
	end := len(chunk) - 4
	if checksum(chunk[:end]) != le.Uint32(chunk[end:]) {
		return nil, false
	}
	return chunk[len(magic):end], true
}

// Segment says what the compressed chunks that follow it hold: records of one table.
type Segment struct {
	Table  Table
	Seq    uint64 // of segments in this file, from 0
	First  uint64 // number of the first record, within its table and file, from 0
	Count  int
	Size   int // of a record, bytes
	Length int // of the chunks, bytes
	// MinNS and MaxNS are the earliest and the latest record's time; of attempts Closed.
	MinNS, MaxNS         int64
	MinCookie, MaxCookie tcp.Cookie
	// Lost and Skipped are as in Sample, as far as known when the segment was written.
	Lost, Skipped uint64

	id  uint32 // the checksum of the file's header: that of another file has another
	sum uint32 // CRC32C of the chunks as they are in the file

	errnos         [4]uint64 // a bit for each number's lowest eight
	cookies, ports bitmap

	offset int64 // of the segment's own chunk in the file
	data   int64 // of the chunks
}

// end is where the segment's chunks end in the file.
func (s *Segment) end() int64 { return s.data + int64(s.Length) }

// bitmap is a set that may say yes too often: a bit for each value's hash.
type bitmap []byte

// The sizes of bitmaps, in bits: for each record two to four.
const (
	minBits = 64
	maxBits = 1 << 13
)

func newBitmap(records int) bitmap {
	n := min(max(minBits, 1<<bits.Len(uint(2*records))), maxBits)
	return make(bitmap, n/8)
}

// place spreads neighbours: ports and cookies are given out in sequence (Fibonacci hashing).
func (m bitmap) place(v uint64) (at int, bit byte) {
	h := v * 0x9e3779b97f4a7c15 >> 32
	h &= uint64(len(m)*8 - 1)
	return int(h >> 3), 1 << (h & 7)
}

func (m bitmap) add(v uint64) {
	at, bit := m.place(v)
	m[at] |= bit
}

func (m bitmap) has(v uint64) bool {
	at, bit := m.place(v)
	return m[at]&bit != 0
}

// MayHaveCookie reports whether a record of the segment can have the cookie.
func (s *Segment) MayHaveCookie(c tcp.Cookie) bool {
	return c >= s.MinCookie && c <= s.MaxCookie && s.cookies.has(uint64(c))
}

// MayHavePort reports whether a record can have the port, at either end.
func (s *Segment) MayHavePort(port uint16) bool { return s.ports.has(uint64(port)) }

// MayHaveErrno reports whether a record can have the error number.
func (s *Segment) MayHaveErrno(e tcp.Errno) bool { return s.errnos[e>>6&3]>>(e&63)&1 != 0 }

// MayFail reports whether a record can have any error number.
func (s *Segment) MayFail() bool {
	return s.errnos[0]&^1 != 0 || s.errnos[1]|s.errnos[2]|s.errnos[3] != 0
}

// index readies a segment for n records of times and cookies.
func (s *Segment) index(n int) {
	s.Count = n
	s.MinNS, s.MaxNS = math.MaxInt64, math.MinInt64
	s.MinCookie, s.MaxCookie = math.MaxUint64, 0
	s.errnos = [4]uint64{}
	if s.Table == TableSamples || s.Table == TableDetails {
		n = 0 // they have none
	}
	s.cookies, s.ports = newBitmap(n), newBitmap(n)
}

func (s *Segment) addTime(ns int64) {
	s.MinNS, s.MaxNS = min(s.MinNS, ns), max(s.MaxNS, ns)
}

func (s *Segment) addCookie(c tcp.Cookie) {
	s.MinCookie, s.MaxCookie = min(s.MinCookie, c), max(s.MaxCookie, c)
	s.cookies.add(uint64(c))
}

func (s *Segment) addErrno(e uint16) { s.errnos[e>>6&3] |= 1 << (e & 63) }

// segmentFixed is the length of a segment's payload without its bitmaps.
const segmentFixed = 128

// append appends the segment's chunk.
func (s *Segment) append(b []byte) []byte {
	p := make([]byte, segmentFixed, segmentFixed+len(s.cookies)+len(s.ports))
	p[0] = byte(s.Table)
	p[1] = byte(bits.Len(uint(len(s.cookies)*8)) - 1)
	le.PutUint16(p[2:], uint16(s.Size))
	le.PutUint32(p[4:], uint32(s.Count))
	le.PutUint32(p[8:], uint32(s.Length))
	le.PutUint32(p[12:], s.id)
	le.PutUint64(p[16:], s.Seq)
	le.PutUint64(p[24:], s.First)
	le.PutUint64(p[32:], uint64(s.MinNS))
	le.PutUint64(p[40:], uint64(s.MaxNS))
	le.PutUint64(p[48:], uint64(s.MinCookie))
	le.PutUint64(p[56:], uint64(s.MaxCookie))
	le.PutUint64(p[64:], s.Lost)
	le.PutUint64(p[72:], s.Skipped)
	le.PutUint32(p[80:], s.sum) // 84 to 95 are 0
	for i, w := range s.errnos {
		le.PutUint64(p[96+8*i:], w)
	}
	p = append(append(p, s.cookies...), s.ports...)
	return appendChunk(b, chunkSegment, magicSegment, p)
}

// maxSegmentChunk is how long a segment's chunk can be.
const maxSegmentChunk = len(magicSegment) + segmentFixed + 2*maxBits/8 + 4

// parse reads a payload. What it finds has a right checksum: an error is a fault of the writer.
func (s *Segment) parse(p []byte) error {
	if len(p) < segmentFixed || p[1] < 6 || p[1] > 13 || len(p) != segmentFixed+2*(1<<p[1]/8) {
		return fmt.Errorf("a segment of %d bytes", len(p))
	}
	*s = Segment{
		Table: Table(p[0]), Size: int(le.Uint16(p[2:])), Count: int(le.Uint32(p[4:])), Length: int(le.Uint32(p[8:])),
		Seq: le.Uint64(p[16:]), First: le.Uint64(p[24:]),
		MinNS: int64(le.Uint64(p[32:])), MaxNS: int64(le.Uint64(p[40:])),
		MinCookie: tcp.Cookie(le.Uint64(p[48:])), MaxCookie: tcp.Cookie(le.Uint64(p[56:])),
		Lost: le.Uint64(p[64:]), Skipped: le.Uint64(p[72:]),
		id: le.Uint32(p[12:]), sum: le.Uint32(p[80:]),
	}
	for i := range s.errnos {
		s.errnos[i] = le.Uint64(p[96+8*i:])
	}
	half := 1 << p[1] / 8
	s.cookies, s.ports = append(bitmap(nil), p[segmentFixed:segmentFixed+half]...), append(bitmap(nil), p[segmentFixed+half:]...)
	if s.Count < 1 || s.Count > maxRecords || s.Size < 1 || s.Count*s.Size > maxSegmentData || s.Length > maxSegmentData {
		return fmt.Errorf("a segment of %d records of %d bytes", s.Count, s.Size)
	}
	if s.First > maxNumber || s.Seq > maxNumber {
		return fmt.Errorf("segment %d with record %d", s.Seq, s.First)
	}
	return nil
}

// maxRecords bounds the records of a segment, and maxSegmentData its chunks and what is in them, so that
// a reader's memory is. Sums of numbers up to maxNumber do not overflow.
const (
	maxRecords     = 1 << 16
	maxSegmentData = 1 << 25
	maxNumber      = 1 << 62
)
