package fault

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
)

// Flags are the flags of a segment (RFC 9293, 3.1).
type Flags uint8

// The flags.
const (
	FIN Flags = 1 << iota
	SYN
	RST
	PSH
	ACK
)

var flagNames = []string{"FIN", "SYN", "RST", "PSH", "ACK"}

// String names the flags, as in "SYN+ACK".
func (f Flags) String() string {
	var names []string
	for i, name := range flagNames {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, "+")
}

// Segment is a TCP segment. Of its options it has the timestamps.
type Segment struct {
	From, To   netip.AddrPort
	Flags      Flags
	Seq, Ack   uint32
	Window     uint16
	Timestamps bool // it has the option, and so the two below
	TSVal      uint32
	TSEcr      uint32
	Data       []byte
	// Len is the length of the data on the wire; Data may be cut short by what captured it. It is nothing to Send.
	Len int
}

// String is a line for people.
func (s *Segment) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v > %v %v seq %d", s.From, s.To, s.Flags, s.Seq)
	if s.Flags&ACK != 0 {
		fmt.Fprintf(&b, " ack %d", s.Ack)
	}
	if s.Len > 0 {
		fmt.Fprintf(&b, " len %d", s.Len)
	}
	if s.Timestamps {
		fmt.Fprintf(&b, " TSval %d TSecr %d", s.TSVal, s.TSEcr)
	}
	return b.String()
}

// End is the sequence number after the segment: data, SYN and FIN count.
func (s *Segment) End() uint32 {
	end := s.Seq + uint32(s.Len)
	for _, f := range []Flags{SYN, FIN} {
		if s.Flags&f != 0 {
			end++
		}
	}
	return end
}

// Sizes and places in headers.
const (
	ethernetLen = 14
	ipv6Len     = 40
	tcpLen      = 20
	protocolTCP = 6
	optionEnd   = 0
	optionNop   = 1
	optionTS    = 8 // RFC 7323
	optionTSLen = 10
)

// Parse reads the segment in an Ethernet frame, which may be cut short after the headers; false: there is none.
// Data is a part of the frame.
func Parse(frame []byte) (s Segment, ok bool) {
	if len(frame) < ethernetLen {
		return s, false
	}
	return ParsePacket(frame[ethernetLen:])
}

// ParsePacket is Parse of what is in the frame: an IP packet without extension headers.
func ParsePacket(packet []byte) (s Segment, ok bool) {
	from, to, tcp, payload, ok := parseIP(packet)
	if !ok || len(tcp) < tcpLen {
		return s, false
	}
	header := int(tcp[12]>>4) * 4
	if header < tcpLen || header > len(tcp) || header > payload {
		return s, false
	}
	s = Segment{
		From:   netip.AddrPortFrom(from, binary.BigEndian.Uint16(tcp)),
		To:     netip.AddrPortFrom(to, binary.BigEndian.Uint16(tcp[2:])),
		Seq:    binary.BigEndian.Uint32(tcp[4:]),
		Ack:    binary.BigEndian.Uint32(tcp[8:]),
		Flags:  Flags(tcp[13]),
		Window: binary.BigEndian.Uint16(tcp[14:]),
		Data:   tcp[header:],
		Len:    payload - header,
	}
	s.Data = s.Data[:min(len(s.Data), s.Len)] // a short frame is padded
	s.options(tcp[tcpLen:header])
	return s, true
}

// parseIP returns what IP carries for TCP, and how long that was on the wire.
func parseIP(packet []byte) (from, to netip.Addr, tcp []byte, length int, ok bool) {
	if len(packet) < tcpLen { // no less than an IPv4 header
		return from, to, nil, 0, false
	}
	switch packet[0] >> 4 {
	case 4:
		header := int(packet[0]&15) * 4
		fragment := binary.BigEndian.Uint16(packet[6:]) & 0x1fff
		if header < 20 || len(packet) < header || packet[9] != protocolTCP || fragment != 0 {
			return from, to, nil, 0, false
		}
		from, to = netip.AddrFrom4([4]byte(packet[12:])), netip.AddrFrom4([4]byte(packet[16:]))
		return from, to, packet[header:], int(binary.BigEndian.Uint16(packet[2:])) - header, true
	case 6:
		if len(packet) < ipv6Len || packet[6] != protocolTCP {
			return from, to, nil, 0, false
		}
		from, to = netip.AddrFrom16([16]byte(packet[8:])), netip.AddrFrom16([16]byte(packet[24:]))
		return from, to, packet[ipv6Len:], int(binary.BigEndian.Uint16(packet[4:])), true
	}
	return from, to, nil, 0, false
}

// options finds the timestamps.
func (s *Segment) options(b []byte) {
	for len(b) > 0 && b[0] != optionEnd {
		if b[0] == optionNop {
			b = b[1:]
			continue
		}
		if len(b) < 2 || b[1] < 2 || int(b[1]) > len(b) {
			return
		}
		if b[0] == optionTS && b[1] == optionTSLen {
			s.Timestamps = true
			s.TSVal, s.TSEcr = binary.BigEndian.Uint32(b[2:]), binary.BigEndian.Uint32(b[6:])
		}
		b = b[b[1]:]
	}
}

// marshal is the segment as TCP sends it, with its checksum.
func (s *Segment) marshal() []byte {
	b := make([]byte, tcpLen, tcpLen+12+len(s.Data))
	binary.BigEndian.PutUint16(b, s.From.Port())
	binary.BigEndian.PutUint16(b[2:], s.To.Port())
	binary.BigEndian.PutUint32(b[4:], s.Seq)
	binary.BigEndian.PutUint32(b[8:], s.Ack)
	b[13] = byte(s.Flags)
	binary.BigEndian.PutUint16(b[14:], s.Window)
	if s.Timestamps {
		b = append(b, optionNop, optionNop, optionTS, optionTSLen)
		b = binary.BigEndian.AppendUint32(b, s.TSVal)
		b = binary.BigEndian.AppendUint32(b, s.TSEcr)
	}
	b[12] = byte(len(b) / 4 << 4)
	b = append(b, s.Data...)
	setChecksum(b, s.From.Addr(), s.To.Addr())
	return b
}

// setChecksum computes a segment's checksum (RFC 9293, 3.1): that of a frame on a link between namespaces
// is not there yet (CHECKSUM_PARTIAL).
func setChecksum(tcp []byte, from, to netip.Addr) {
	tcp[16], tcp[17] = 0, 0
	var sum uint32
	add := func(b []byte) {
		for ; len(b) > 1; b = b[2:] {
			sum += uint32(b[0])<<8 | uint32(b[1])
		}
		if len(b) == 1 {
			sum += uint32(b[0]) << 8
		}
	}
	add(from.AsSlice())
	add(to.AsSlice())
	sum += protocolTCP + uint32(len(tcp))
	add(tcp)
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(tcp[16:], ^uint16(sum))
}
