package main

import (
	"fmt"
	"runtime"
	"strconv"
	"time"

	"github.com/twtrace/twtrace/internal/netlab"
)

// table is one that is printed.
type table struct {
	name, title string
	onRequest   bool // left out when no table is named: it takes too long, or too much memory
	rounds      int
	rows        []row
	columns     []column
}

// shapes are the sizes of all storms, so that a test can have small ones.
type shapes struct {
	loops, connections int           // of the classic storm
	many               int           // connections of storms of one loop
	concurrency        []int         // of those
	toolConcurrency    int           // of those against other tools
	toolTime           time.Duration // of a tool that counts time, not connections
	held, heldBig      int
	sources            int           // that heldBig comes from
	hold, holdBig      time.Duration // how long they are kept open
	filled             []int         // percent of the ports
	searches           int           // connects then
}

func fullShapes() shapes {
	return shapes{
		loops: 10, connections: 10_000,
		many: 100_000, concurrency: []int{100, 1000, 10_000},
		toolConcurrency: 1000, toolTime: 4 * time.Second,
		held: 10_000, heldBig: 500_000, hold: 3 * time.Second, holdBig: 30 * time.Second, sources: 25,
		filled: []int{0, 40, 55, 70, 100}, searches: 500,
	}
}

// crefShards is the most that the reference takes (MAX_SHARDS).
const crefShards = 64

// wide leaves room for TIME_WAITs of a second.
const wide = "1024-65535"

// join makes one list of columns of several.
func join(lists ...[]column) (all []column) {
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

// tables are all there are, in the order in which they are printed.
func tables(s shapes) []table {
	whole := join(speedColumns, cpuColumns, []column{peakColumn, failedColumn})
	split := join(speedColumns, cpuColumns, []column{lessColumn, lessRatio, peakColumn, failedColumn})
	all := []table{
		{
			name: "shape", title: fmt.Sprintf("%d × %d, closed by RST, one thread for each end", s.loops, s.connections),
			rounds: 7, columns: split, rows: s.shapeRows(),
		},
		{
			name: "ends", title: fmt.Sprintf("%d × %d, closed by RST, pair: which end is whose", s.loops, s.connections), onRequest: true,
			rounds: 7, columns: join(speedColumns, endColumns, []column{failedColumn}), rows: s.endRows(),
		},
		{
			name: "cores", title: fmt.Sprintf("%d × %d, closed by RST, loopback, as fast as all processors allow", s.loops, s.connections),
			rounds: 7, columns: whole, rows: s.coreRows(),
		},
		{
			name: "fin", title: fmt.Sprintf("%d × %d, closed by FIN, TIME_WAITs reused after a second, one thread for each end", s.loops, s.connections),
			rounds: 7, columns: split, rows: s.finRows(),
		},
		{
			name: "concurrency", title: fmt.Sprintf("%d, closed by RST, so many open at once, one thread for each end", s.many),
			rounds: 7, columns: whole, rows: s.concurrencyRows(),
		},
		{
			name: "trace", title: fmt.Sprintf("%d × %d with and without the trace", s.loops, s.connections),
			rounds: 7, columns: whole, rows: s.traceRows(),
		},
		{
			name: "record", title: fmt.Sprintf("%d × %d traced, with and without a recording", s.loops, s.connections),
			rounds: 25, columns: join(speedColumns, cpuColumns, []column{eventColumn, bytesColumn, peakColumn, failedColumn}), rows: s.recordRows(),
		},
		{
			name: "memory", title: "all of a storm open together",
			rounds: 7, columns: []column{openColumn, peakColumn, perOpenColumn, failedColumn}, rows: s.memoryRows(),
		},
		{
			name: "tools", title: fmt.Sprintf("%d open at once, closed by FIN; nginx answers with 100 bytes, the others echo 100", s.toolConcurrency),
			rounds: 7, columns: whole, rows: s.toolRows(),
		},
		{
			name: "big", title: fmt.Sprintf("%d open together (takes 5 GB of the kernel's memory)", s.heldBig), onRequest: true,
			rounds: 3, columns: []column{openColumn, peakColumn, perOpenColumn, absolute("seconds", func(m *measurement) float64 { return m.Seconds }, 1), failedColumn}, rows: s.bigRows(),
		},
		{
			name: "search", title: "the time of a connect() when so many of 28,232 ports are in TIME_WAIT (tcp_tw_reuse=0)", onRequest: true,
			rounds: 7, columns: []column{microsColumn, microsRatio, failedColumn}, rows: s.searchRows(),
		},
		{
			name: "classic", title: "the collapse: default ports, tcp_tw_reuse=0, closed by FIN; finished/failed/seconds of each loop", onRequest: true,
			rounds: 1, rows: s.classicRows(),
		},
	}
	for i := range s.loops {
		classic := &all[len(all)-1]
		classic.columns = append(classic.columns, loopColumn(i))
	}
	return all
}

// empty is the least that a run does: the fixed part of its cost.
func (s *shapes) empty(kind netlab.Kind) row {
	r := ours("twtrace, 1 × 1, "+kind.String(), storm{kind: kind, loops: 1, connections: 1, linger: true})
	r.least = true
	return r
}

func (s *shapes) shapeRows() (rows []row) {
	for _, kind := range []netlab.Kind{netlab.Pair, netlab.Loopback} {
		shape := storm{kind: kind, loops: s.loops, connections: s.connections, linger: true, single: true}
		c, empty := reference("C, "+kind.String(), shape, 1), s.empty(kind)
		rows = append(rows, c, ours("twtrace, "+kind.String(), shape).to(c.name).lessEmpty(empty.name), empty)
	}
	return rows
}

func (s *shapes) endRows() []row {
	shape := storm{loops: s.loops, connections: s.connections, linger: true}
	c := ends("C's client, C's server", shape, true, true)
	return []row{
		c, ends("C's client, twtrace's server", shape, true, false).to(c.name),
		ends("twtrace's client, C's server", shape, false, true).to(c.name), ends("twtrace's client, twtrace's server", shape, false, false).to(c.name),
	}
}

func (s *shapes) coreRows() []row {
	shape := storm{kind: netlab.Loopback, loops: s.loops, connections: s.connections, linger: true}
	n := min(runtime.NumCPU(), crefShards)
	c := oneLoop(fmt.Sprintf("C, both ends in one loop, %d processes", n), shape, n)
	one := shape
	one.single = true
	return []row{
		c, reference(fmt.Sprintf("C, %d + %d processes", n, n), shape, n).to(c.name),
		ours("twtrace, one thread for each end", one).to(c.name), ours("twtrace, both ends on each thread", shape).to(c.name),
	}
}

func (s *shapes) finRows() []row {
	shape := storm{kind: netlab.Pair, loops: s.loops, connections: s.connections, reuse: "1", ports: wide, single: true}
	c, empty := reference("C", shape, 1), s.empty(netlab.Pair)
	return []row{c, ours("twtrace", shape).to(c.name).lessEmpty(empty.name), empty}
}

func (s *shapes) concurrencyRows() (rows []row) {
	for _, n := range s.concurrency {
		shape := storm{kind: netlab.Pair, loops: 1, connections: s.many, concurrency: n, linger: true, single: true}
		c := reference(fmt.Sprintf("C, %d", n), shape, 1)
		rows = append(rows, c, ours(fmt.Sprintf("twtrace, %d", n), shape).to(c.name))
	}
	return rows
}

func (s *shapes) traceRows() (rows []row) {
	for _, close := range s.closings() {
		without := ours(close.name+", no trace", close.shape)
		rows = append(rows, without, traced(close.name+", traced", close.shape).to(without.name))
	}
	return rows
}

// closings are the two ways for a storm to end its connections without running out of ports.
func (s *shapes) closings() []struct {
	name  string
	shape storm
} {
	return []struct {
		name  string
		shape storm
	}{
		{"RST", storm{loops: s.loops, connections: s.connections, linger: true}},
		{"FIN", storm{loops: s.loops, connections: s.connections, reuse: "1", ports: wide}},
	}
}

func (s *shapes) recordRows() (rows []row) {
	for _, close := range s.closings() {
		without := traced(close.name+", traced", close.shape)
		rows = append(rows, without, recorded(close.name+", traced, recorded", close.shape).to(without.name))
	}
	return rows
}

func (s *shapes) memoryRows() []row {
	one, shape := storm{loops: 1, connections: 1, linger: true}, storm{loops: 1, connections: s.held, linger: true}
	empty, emptyTraced := held("1, no trace", one, s.hold, "--no-trace"), held("1, traced", one, s.hold)
	return []row{
		empty, held(fmt.Sprintf("%d, no trace", s.held), shape, s.hold, "--no-trace").lessEmpty(empty.name),
		emptyTraced, held(fmt.Sprintf("%d, traced", s.held), shape, s.hold).lessEmpty(emptyTraced.name),
	}
}

func (s *shapes) bigRows() []row {
	empty := held("1, no trace", storm{loops: 1, connections: 1, linger: true}, s.hold, "--no-trace")
	big := held(fmt.Sprintf("%d, no trace", s.heldBig), storm{loops: 1, connections: s.heldBig, linger: true}, s.holdBig,
		"--no-trace", "--sources", strconv.Itoa(s.sources))
	return []row{empty, big.lessEmpty(empty.name)}
}

func (s *shapes) toolRows() []row {
	shape := storm{loops: 1, connections: s.many, concurrency: s.toolConcurrency, reuse: "1", ports: wide, single: true}
	c := reference("C, echo, client closes first", shape, 1)
	n, concurrency := strconv.Itoa(s.many), strconv.Itoa(s.toolConcurrency)
	return []row{
		c,
		ours("twtrace, echo, client closes first", shape).to(c.name),
		ours("twtrace, echo, server closes first", shape, "--close", "server").to(c.name),
		web("ab, nginx closes first", "ab", shape, parseAB, "-q", "-n", n, "-c", concurrency).to(c.name),
		web("wrk, nginx closes first", "wrk", shape, parseWrk, "-t", "1", "-c", concurrency, "-d", s.toolTime.String(), "-H", "Connection: close").to(c.name),
	}
}

func (s *shapes) searchRows() (rows []row) {
	for _, percent := range s.filled {
		filled := (fillHigh - fillLow + 1) * percent / 100
		c := search(fmt.Sprintf("%d %% (%d), C", percent, filled), true, filled, s.searches)
		rows = append(rows, c, search(fmt.Sprintf("%d %% (%d), twtrace", percent, filled), false, filled, s.searches).to(c.name))
	}
	return rows
}

func (s *shapes) classicRows() []row {
	shape := storm{loops: s.loops, connections: s.connections, reuse: "0"}
	one := shape
	one.single = true
	return []row{
		reference("C", shape, 1),
		ours("twtrace, one thread for each end", one),
		ours("twtrace, both ends on each thread", shape),
		ours("twtrace --bind port", shape, "--bind", "port"),
		ours("twtrace --local-port-range", shape, "--local-port-range", fmt.Sprintf("%d-%d", fillLow, fillHigh)),
	}
}
