package fault

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// frameOf puts the headers of Ethernet and IPv4 before a segment.
func frameOf(s *Segment) []byte {
	tcp := s.marshal()
	ip := make([]byte, 20)
	ip[0], ip[3], ip[9] = 0x45, byte(20+len(tcp)), protocolTCP
	copy(ip[12:], s.From.Addr().AsSlice())
	copy(ip[16:], s.To.Addr().AsSlice())
	return slices.Concat(make([]byte, ethernetLen), ip, tcp)
}

func example() *Segment {
	return &Segment{
		From: netip.MustParseAddrPort("198.18.0.1:40000"), To: netip.MustParseAddrPort("198.19.0.1:7"),
		Flags: FIN | ACK, Seq: 4294967290, Ack: 17, Window: 512, Timestamps: true, TSVal: 3, TSEcr: 4,
		Data: []byte("abc"), Len: 3,
	}
}

func TestParse(t *testing.T) {
	s := example()
	frame := frameOf(s)
	got, ok := Parse(frame)
	if diff := cmp.Diff(*s, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); !ok || diff != "" {
		t.Errorf("parsed: %v, -want +got:\n%s", ok, diff)
	}
	if want := uint32(4294967290) + 4; want-got.End() != 0 {
		t.Errorf("it ends at %d", got.End())
	}
	padded, _ := Parse(append(slices.Clone(frame), 0, 0, 0))
	if string(padded.Data) != "abc" {
		t.Errorf("the data of a padded frame is %q", padded.Data)
	}
	short, ok := Parse(frame[:len(frame)-2])
	if !ok || short.Len != 3 || string(short.Data) != "a" {
		t.Errorf("cut short: %v, %d bytes, %q", ok, short.Len, short.Data)
	}
}

// TestChecksum uses the definition: with the checksum in its place all words add up to ffff.
func TestChecksum(t *testing.T) {
	s := example()
	tcp := s.marshal()
	all := slices.Concat(s.From.Addr().AsSlice(), s.To.Addr().AsSlice(), []byte{0, protocolTCP, 0, byte(len(tcp))}, tcp)
	if len(all)%2 == 1 {
		all = append(all, 0)
	}
	var sum uint32
	for word := range slices.Chunk(all, 2) {
		sum += uint32(word[0])<<8 | uint32(word[1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum != 0xffff {
		t.Errorf("the words add up to %#x", sum)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(frameOf(example()))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if s, ok := Parse(frame); ok && (len(s.Data) > s.Len || s.Len < 0) {
			t.Errorf("%d bytes of data, %d on the wire", len(s.Data), s.Len)
		}
	})
}
