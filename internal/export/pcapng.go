package export

import (
	"encoding/binary"
	"fmt"
	"strconv"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/timeline"
)

// synthesised is what every capture says of itself, where each reader of it may look.
const synthesised = "synthesised by twtrace from state changes: sequence numbers, payload and times between are not real"

// writePcapng writes the segments that the events tell of, as packets without a link layer.
func writePcapng(j *job) error {
	c := &capture{job: j, names: j.reasons(), interfaces: make(map[tcp.NetNS]int)}
	segments := timeline.NewSegmenter(0, c.write)
	if err := j.events(segments.Event); err != nil {
		return err
	}
	counts, err := segments.Finish()
	if err != nil {
		return err
	}
	if counts.Unplaced > 0 {
		j.note("%d events have no addresses, and no packet", counts.Unplaced)
	}
	if err := c.open(); err != nil { // if there was no packet
		return err
	}
	return c.out.Flush()
}

// capture is a pcapng file that is written.
type capture struct {
	*job
	out        *pcapgo.NgWriter
	names      map[uint32]string // of the reasons for an RST
	interfaces map[tcp.NetNS]int
	packet     []byte
	comment    []byte
}

// maxInterfaces bounds what a recording can make a reader of the capture hold.
const maxInterfaces = 4096

// open begins the file, with the interfaces of the namespaces that the recording's header names.
func (c *capture) open() error {
	if c.out != nil {
		return nil
	}
	h := c.r.Header()
	options := pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{
		Hardware: tcp.Printable(h.Arch), OS: tcp.Printable("Linux " + h.Kernel), Application: tcp.Printable("twtrace " + h.Twtrace),
		Comment: fmt.Sprintf("%s. From the recording of %s on %s, boot %s. Data is not recorded, and has no packets. "+
			"A packet without data whose sequence number is one too low is a segment that was sent again, no SYN: what was in it is not known.",
			synthesised, h.Started.UTC().Format("2006-01-02T15:04:05Z07:00"), tcp.Printable(h.Host), tcp.Printable(h.BootID)),
	}}
	named := h.NetNS[:min(len(h.NetNS), maxInterfaces-1)]
	first := device("any")
	if len(named) > 0 {
		first = device(tcp.Printable(named[0].Name))
		c.interfaces[named[0].Cookie] = 0
	}
	var err error
	if c.out, err = pcapgo.NewNgWriterInterface(c.w, first, options); err != nil {
		return err
	}
	for i, ns := range named {
		if _, ok := c.interfaces[ns.Cookie]; i == 0 || ok {
			continue
		}
		if c.interfaces[ns.Cookie], err = c.out.AddInterface(device(tcp.Printable(ns.Name))); err != nil {
			return err
		}
	}
	return nil
}

// device describes an interface: one for each network namespace.
func device(name string) pcapgo.NgInterface {
	return pcapgo.NgInterface{
		Name: "twtrace-" + name, Description: synthesised, LinkType: layers.LinkTypeRaw, TimestampResolution: 9,
	}
}

// of is the interface of a namespace. All packets of a conversation are on that of the end
// that was seen first: readers that keep interfaces apart (Wireshark's "deinterlacing") keep it whole.
func (c *capture) of(netns tcp.NetNS) (int, error) {
	if i, ok := c.interfaces[netns]; ok {
		return i, nil
	}
	name := "netns-" + strconv.FormatUint(uint64(netns), 10)
	switch n := len(c.interfaces); {
	case n > maxInterfaces:
		netns = others
		if i, ok := c.interfaces[netns]; ok {
			return i, nil
		}
		name = "others"
	case n == 0: // the header named none
		c.interfaces[netns] = 0
		return 0, nil
	}
	i, err := c.out.AddInterface(device(name))
	c.interfaces[netns] = i
	return i, err
}

// others is the namespace of those that are too many.
const others = ^tcp.NetNS(0)

// write appends a segment as a packet.
func (c *capture) write(s *timeline.Segment) error {
	if err := c.open(); err != nil {
		return err
	}
	i, err := c.of(s.NetNS)
	if err != nil {
		return err
	}
	c.packet = appendPacket(c.packet[:0], s)
	info := gopacket.CaptureInfo{
		Timestamp: c.clocks.Wall(s.MonoNS), CaptureLength: len(c.packet), Length: len(c.packet), InterfaceIndex: i,
	}
	return c.out.WritePacketWithOptions(info, c.packet, pcapgo.NgPacketOptions{Comments: []string{c.say(s)}})
}

// say is a packet's comment: the event that it is made from.
func (c *capture) say(s *timeline.Segment) string {
	b := append(c.comment[:0], "twtrace: event "...)
	b = strconv.AppendUint(b, s.Event, 10)
	b = append(append(b, ' '), s.Kind.String()...)
	b = append(append(b, ' '), s.Old.String()...)
	if s.Old != s.New {
		b = append(append(b, " > "...), s.New.String()...)
	}
	if s.Errno != 0 {
		b = append(append(b, ", "...), s.Errno.String()...)
	}
	if s.Kind == tcp.KindRstSent && s.Reason != 0 {
		b = append(append(b, ", reason "...), c.reason(s.Reason)...)
	}
	switch s.Witness {
	case timeline.ByReceiver:
		b = append(b, ", seen by the receiver"...)
	case timeline.Implied:
		b = append(b, ", which is not without this segment"...)
	}
	if s.Retransmit {
		b = append(b, ", sent again"...)
		if s.Flags&timeline.SYN == 0 {
			b = append(b, ": which segment is not known"...)
		}
	}
	if s.WaitedNS > 0 {
		b = append(b, ", sent "...)
		b = strconv.AppendFloat(b, float64(s.WaitedNS)/1e9, 'f', 6, 64)
		b = append(b, " s before, when its port was not known"...)
	}
	if s.Owner.PID != 0 {
		b = append(append(b, ", by "...), s.Owner.Comm.String()...)
		b = append(append(b, " ["...), strconv.FormatUint(uint64(s.Owner.PID), 10)...)
		b = append(b, ']')
	}
	c.comment = b
	return string(b)
}

func (c *capture) reason(n uint32) string {
	if name, ok := c.names[n]; ok {
		return name
	}
	return strconv.FormatUint(uint64(n), 10)
}

// window is that of every packet: one that does not change says nothing.
const window = 64240

// appendPacket appends the headers of a segment: IP and TCP, without options.
func appendPacket(b []byte, s *timeline.Segment) []byte {
	const header = 20 // of TCP
	be := binary.BigEndian
	sum := uint32(6 + header) // of the pseudo header: protocol and length
	if s.From.Addr().Is4() {
		from, to := s.From.Addr().As4(), s.To.Addr().As4()
		ip := len(b)
		b = append(b, 0x45, 0, 0, 20+header, 0, 0, 0x40, 0, 64, 6, 0, 0)
		b = append(append(b, from[:]...), to[:]...)
		be.PutUint16(b[ip+10:], ^fold(add(0, b[ip:])))
	} else {
		from, to := s.From.Addr().As16(), s.To.Addr().As16()
		b = append(b, 0x60, 0, 0, 0, 0, header, 6, 64)
		b = append(append(b, from[:]...), to[:]...)
	}
	addrs := 2 * s.From.Addr().BitLen() / 8
	sum = add(sum, b[len(b)-addrs:])
	at := len(b)
	b = be.AppendUint16(b, s.From.Port())
	b = be.AppendUint16(b, s.To.Port())
	b = be.AppendUint32(b, s.Seq)
	b = be.AppendUint32(b, s.Ack)
	b = append(b, header/4<<4, byte(s.Flags), window>>8, window&0xff, 0, 0, 0, 0)
	be.PutUint16(b[at+16:], ^fold(add(sum, b[at:])))
	return b
}

// add adds 16-bit words for a checksum (RFC 1071).
func add(sum uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}
