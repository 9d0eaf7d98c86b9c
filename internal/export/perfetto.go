package export

import (
	"bufio"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/tcp"
)

// maxTracks is how many sockets a trace shows: the page that opens it holds all of it in memory, several times as big
// as the file, and draws a row for each.
const maxTracks = 20_000

// writePerfetto writes a trace of Perfetto: a track for each socket within its network namespace, with a slice for
// each state, and counters of the samples. The numbers of fields are those of protos/perfetto/trace in Perfetto's repository.
func writePerfetto(j *job) error {
	p := &tracks{
		job: j, out: bufio.NewWriterSize(j.w, 1<<16), reasons: j.reasons(), names: make(map[string]uint64),
		spaces: make(map[tcp.NetNS]uint64), sockets: make(map[trackKey]*track), limit: maxTracks,
	}
	p.begin()
	err := j.scan(func(b *recording.Batch) error {
		for i := range b.Events {
			p.event(&b.Events[i])
		}
		for i := range b.Samples {
			p.sample(&b.Samples[i])
		}
		return p.err
	}, recording.TableEvents, recording.TableSamples)
	if err != nil {
		return err
	}
	p.end()
	if p.err != nil {
		return p.err
	}
	return p.out.Flush()
}

// tracks is a trace that is written.
type tracks struct {
	*job
	out     *bufio.Writer
	err     error
	reasons map[uint32]string
	names   map[string]uint64 // of slices, that have a number in the trace
	fresh   []byte            // InternedData of names that have none yet
	spaces  map[tcp.NetNS]uint64
	sockets map[trackKey]*track
	limit   int
	shown   int    // sockets
	left    uint64 // events of sockets that are too many
	last    int64
	uuid    uint64 // of the latest track
	// Reused from packet to packet.
	packet, body, notes []byte
}

// trackKey tells a TIME_WAIT from the full socket, which may be connected again while it lasts.
type trackKey struct {
	cookie tcp.Cookie
	port   uint16 // of a TIME_WAIT
}

// track is a socket.
type track struct {
	uuid     uint64 // 0: it has no track yet
	open     bool   // a slice is
	timeWait bool   // it is that of a TIME_WAIT
	// syn is the begin of a connection that waits for the next, which has the port; Kind 0: none does.
	syn tcp.Event
}

// Fields and values of Perfetto's messages.
const (
	tracePacket = 1 // of Trace

	packetClockSnapshot = 6
	packetTimestamp     = 8
	packetSequence      = 10
	packetTrackEvent    = 11
	packetInterned      = 12
	packetFlags         = 13
	packetDefaults      = 59
	packetTrack         = 60
	defaultsClock       = 58

	stateCleared, needsState = 1, 2 // of packetFlags

	clockRealtime, clockMonotonic, clockBoottime = 1, 3, 6

	trackUUID, trackName, trackParent, trackCounter, counterUnitName = 1, 2, 5, 8, 6

	eventAnnotation, eventType, eventNameID, eventTrack, eventName, eventCounter = 4, 9, 10, 11, 23, 30
	sliceBegin, sliceEnd, instant, counter                                       = 1, 2, 3, 4

	internedName, internedAnnotation, internedID, internedText       = 2, 3, 1, 2
	annotationNameID, annotationUint, annotationText, annotationName = 1, 3, 6, 10

	annotationEvent = 1 // the number of the only annotation that has one
)

// The tracks that every trace has.
const (
	trackRecording uint64 = iota + 1
	trackTimeWait
	trackPorts
	trackOpen
	trackLost
	numTracks
)

func appendUint(b []byte, field protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

func appendText(b []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

func appendBytes(b []byte, field protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), v)
}

// write appends a TracePacket to the trace.
func (p *tracks) write(packet []byte) {
	if p.err != nil {
		return
	}
	head := protowire.AppendVarint(protowire.AppendTag(nil, tracePacket, protowire.BytesType), uint64(len(packet)))
	if _, p.err = p.out.Write(head); p.err == nil {
		_, p.err = p.out.Write(packet)
	}
}

// begin writes what a trace begins with: the clocks, and what it is.
func (p *tracks) begin() {
	h := p.r.Header()
	var clocks []byte
	for _, c := range []struct{ id, ns uint64 }{
		{clockMonotonic, uint64(h.Clock.MonoNS)}, {clockRealtime, uint64(h.Clock.RealNS)}, {clockBoottime, uint64(h.Clock.BootNS)},
	} {
		clocks = appendBytes(clocks, 1, appendUint(appendUint(nil, 1, c.id), 2, c.ns))
	}
	first := appendBytes(nil, packetClockSnapshot, clocks)
	first = appendUint(first, packetSequence, 1)
	first = appendUint(first, packetFlags, stateCleared)
	first = appendBytes(first, packetInterned, appendBytes(nil, internedAnnotation,
		appendText(appendUint(nil, internedID, annotationEvent), internedText, "event")))
	first = appendBytes(first, packetDefaults, appendUint(nil, defaultsClock, clockMonotonic))
	p.write(first)

	p.uuid = numTracks
	p.track(trackRecording, 0, "twtrace on "+tcp.Printable(h.Host), "")
	p.track(trackTimeWait, trackRecording, "TIME_WAIT", "sockets")
	p.track(trackPorts, trackRecording, "source ports in use", "ports")
	p.track(trackOpen, trackRecording, "open connections", "connections")
	p.track(trackLost, trackRecording, "events lost", "events")
	notes := annotate(nil, "schema", "twtrace.perfetto/1")
	notes = annotate(notes, "made_by", tcp.Printable("twtrace "+h.Twtrace+", command "+h.Command))
	notes = annotate(notes, "kernel", tcp.Printable(h.Kernel))
	notes = annotate(notes, "boot_id", tcp.Printable(h.BootID))
	notes = annotate(notes, "limit", fmt.Sprintf("the first %d sockets", p.limit))
	p.trackEvent(h.Clock.MonoNS, trackRecording, instant, "recording", notes)
}

// end closes what is open, and says what is not shown.
func (p *tracks) end() {
	waiting := slices.Collect(maps.Values(p.sockets))
	slices.SortFunc(waiting, func(a, b *track) int { return cmp.Compare(a.syn.Seq, b.syn.Seq) })
	for _, t := range waiting {
		p.opened(t, &t.syn)
	}
	if p.left > 0 {
		text := fmt.Sprintf("%d events of sockets after the first %d", p.left, p.limit)
		p.trackEvent(p.last, trackRecording, instant, "left out", annotate(nil, "left_out", text))
		p.note("%s are left out: a trace of Perfetto is held in memory by what opens it", text)
	}
}

// track writes a TrackDescriptor. A unit makes it a counter.
func (p *tracks) track(uuid, parent uint64, name, unit string) {
	b := appendText(appendUint(p.body[:0], trackUUID, uuid), trackName, name)
	if parent != 0 {
		b = appendUint(b, trackParent, parent)
	}
	if unit != "" {
		b = appendBytes(b, trackCounter, appendText(nil, counterUnitName, unit))
	}
	p.body = b
	p.packet = appendUint(appendBytes(p.packet[:0], packetTrack, b), packetSequence, 1)
	p.write(p.packet)
}

// annotate appends a DebugAnnotation to those of an event.
func annotate(notes []byte, name, text string) []byte {
	return appendBytes(notes, eventAnnotation, appendText(appendText(nil, annotationName, name), annotationText, text))
}

// trackEvent writes a TrackEvent; notes are its annotations, "" is no name.
func (p *tracks) trackEvent(ns int64, uuid, kind uint64, name string, notes []byte) {
	b := appendUint(appendUint(p.body[:0], eventType, kind), eventTrack, uuid)
	if name != "" {
		if id, ok := p.id(name); ok {
			b = appendUint(b, eventNameID, id)
		} else {
			b = appendText(b, eventName, name)
		}
	}
	b = append(b, notes...)
	p.body = b
	p.packet = appendUint(p.packet[:0], packetTimestamp, uint64(max(0, ns)))
	p.packet = appendUint(appendUint(p.packet, packetSequence, 1), packetFlags, needsState)
	if len(p.fresh) > 0 {
		p.packet = appendBytes(p.packet, packetInterned, p.fresh)
		p.fresh = p.fresh[:0]
	}
	p.packet = appendBytes(p.packet, packetTrackEvent, b)
	p.write(p.packet)
}

// maxNames bounds the names that have a number.
const maxNames = 4096

// id is the number of a name.
func (p *tracks) id(name string) (id uint64, ok bool) {
	if id, ok := p.names[name]; ok {
		return id, true
	}
	if len(p.names) == maxNames {
		return 0, false
	}
	id = uint64(len(p.names) + 1)
	p.names[name] = id
	p.fresh = appendBytes(p.fresh, internedName, appendText(appendUint(nil, internedID, id), internedText, name))
	return id, true
}

// space is the track of a network namespace.
func (p *tracks) space(ns tcp.NetNS) uint64 {
	if uuid, ok := p.spaces[ns]; ok {
		return uuid
	}
	if len(p.spaces) >= maxInterfaces {
		return trackRecording
	}
	name := strconv.FormatUint(uint64(ns), 10)
	for _, known := range p.r.Header().NetNS {
		if known.Cookie == ns {
			name = tcp.Printable(known.Name)
		}
	}
	p.uuid++
	p.spaces[ns] = p.uuid
	p.track(p.uuid, trackRecording, "network namespace "+name, "")
	return p.uuid
}

// event shows an event on the track of its socket.
func (p *tracks) event(ev *tcp.Event) {
	p.last = max(p.last, ev.MonoNS)
	if ev.Cookie == 0 {
		if ev.Kind != tcp.KindState { // LISTEN > SYN_RECV: the child has no addresses yet
			p.mark(p.space(ev.NetNS), ev)
		}
		return
	}
	t := p.of(ev)
	if t == nil {
		p.left++
		return
	}
	if ev.Kind == tcp.KindState && ev.New == tcp.SynSent && t.uuid == 0 {
		t.syn = *ev
		return
	}
	if t.syn.Kind != 0 {
		t.syn.Tuple = ev.Tuple
		p.opened(t, &t.syn)
	}
	p.opened(t, ev)
	switch ev.Kind {
	case tcp.KindState:
		p.state(t, ev)
	case tcp.KindSnapshot:
		if ev.New == tcp.TimeWait {
			p.enterTimeWait(t, ev)
		} else if !t.open {
			p.slice(t, ev, ev.New.String())
		}
	case tcp.KindTWEnter, tcp.KindTWConvert:
		p.enterTimeWait(t, ev)
	case tcp.KindTWEnd:
		if t.open && t.timeWait {
			p.close(t, ev, ev.Cause.String())
		}
		delete(p.sockets, keyOf(ev))
	default:
		p.mark(t.uuid, ev)
	}
}

func keyOf(ev *tcp.Event) trackKey {
	k := trackKey{cookie: ev.Cookie}
	switch {
	case ev.Kind == tcp.KindTWEnter, ev.Kind == tcp.KindTWConvert, ev.Kind == tcp.KindTWEnd, ev.New == tcp.TimeWait:
		k.port = ev.Tuple.Local.Port()
	}
	return k
}

// of is the track of an event's socket; nil: there are too many.
func (p *tracks) of(ev *tcp.Event) *track {
	key := keyOf(ev)
	t := p.sockets[key]
	if t != nil && ev.Kind == tcp.KindState && ev.New == tcp.SynSent && t.timeWait && t.open {
		t = nil // connected again, while the TIME_WAIT of its last connection goes on there
	}
	if t != nil {
		return t
	}
	if key.port != 0 { // a TIME_WAIT goes on where its full socket was
		if t = p.sockets[trackKey{cookie: ev.Cookie}]; t != nil {
			p.sockets[key] = t
			return t
		}
	}
	if p.shown >= p.limit {
		return nil
	}
	p.shown++
	t = new(track)
	p.sockets[key] = t
	return t
}

// opened writes a socket's track, if there is none yet, and what waited for it.
func (p *tracks) opened(t *track, ev *tcp.Event) {
	if t.uuid == 0 && ev.Kind != 0 {
		p.uuid++
		t.uuid = p.uuid
		name := ev.Tuple.String()
		if ev.Flags&tcp.FlagOwner != 0 {
			name += " " + ev.Owner.Comm.String() + "[" + strconv.FormatUint(uint64(ev.Owner.PID), 10) + "]"
		}
		p.track(t.uuid, p.space(ev.NetNS), name, "")
	}
	if syn := t.syn; syn.Kind != 0 {
		t.syn = tcp.Event{}
		p.slice(t, &syn, syn.New.String())
	}
}

// state shows a change of state.
func (p *tracks) state(t *track, ev *tcp.Event) {
	if t.open && !t.timeWait {
		p.close(t, ev, "")
	}
	if ev.New != tcp.Close {
		p.slice(t, ev, ev.New.String())
	}
}

// enterTimeWait shows a minisock, which begins before its full socket has ended.
func (p *tracks) enterTimeWait(t *track, ev *tcp.Event) {
	if t.open {
		p.close(t, ev, "")
	}
	name := "TIME_WAIT"
	if ev.Substate == tcp.FinWait2 {
		name = "FIN_WAIT2 minisock"
	}
	p.slice(t, ev, name)
	t.timeWait = true
}

// slice begins one.
func (p *tracks) slice(t *track, ev *tcp.Event, name string) {
	t.open, t.timeWait = true, false
	p.trackEvent(ev.MonoNS, t.uuid, sliceBegin, name, p.facts(ev, ""))
}

// close ends the slice.
func (p *tracks) close(t *track, ev *tcp.Event, cause string) {
	t.open = false
	p.trackEvent(ev.MonoNS, t.uuid, sliceEnd, "", p.facts(ev, cause))
}

// mark shows an event that is no change of state.
func (p *tracks) mark(uuid uint64, ev *tcp.Event) {
	name := ev.Kind.String()
	switch {
	case ev.Kind == tcp.KindRstSent && ev.Reason != 0:
		name += " " + p.reason(ev.Reason)
	case ev.Cause != tcp.CauseNone:
		name += " " + ev.Cause.String()
	case ev.Errno != 0:
		name += " " + ev.Errno.String()
	}
	p.trackEvent(ev.MonoNS, uuid, instant, name, p.facts(ev, ""))
}

func (p *tracks) reason(n uint32) string {
	if name, ok := p.reasons[n]; ok {
		return name
	}
	return strconv.FormatUint(uint64(n), 10)
}

// facts are an event's annotations: its number, by which other exports have it, and what was wrong.
func (p *tracks) facts(ev *tcp.Event, cause string) []byte {
	b := protowire.AppendTag(p.notes[:0], eventAnnotation, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(3+protowire.SizeVarint(ev.Seq))) // two tags, and the number of the name
	b = appendUint(appendUint(b, annotationNameID, annotationEvent), annotationUint, ev.Seq)
	if ev.Errno != 0 {
		b = annotate(b, "errno", ev.Errno.String())
	}
	if cause != "" {
		b = annotate(b, "cause", cause)
	}
	p.notes = b
	return b
}

// sample shows how things stood.
func (p *tracks) sample(s *recording.Sample) {
	p.count(s.MonoNS, trackLost, int64(min(s.Lost+s.Skipped, 1<<62)))
	if s.TimeWait >= 0 {
		p.count(s.MonoNS, trackTimeWait, int64(s.TimeWait))
	}
	if s.Ports >= 0 {
		p.count(s.MonoNS, trackPorts, int64(s.Ports))
	}
	if s.Kind == recording.SampleTick { // of a loop it is the most there were
		p.count(s.MonoNS, trackOpen, int64(s.Open))
	}
}

func (p *tracks) count(ns int64, uuid uint64, v int64) {
	p.trackEvent(ns, uuid, counter, "", appendUint(p.notes[:0], eventCounter, uint64(v)))
}
