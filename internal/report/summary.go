package report

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/twtrace/twtrace/internal/tcp"
	"github.com/twtrace/twtrace/internal/verdict"
)

// Schema names the JSON form of a Summary.
const Schema = "twtrace.summary/1"

// Summary is what a run came to.
type Summary struct {
	Schema   string            `json:"schema"`
	Version  string            `json:"version"`
	Kernel   string            `json:"kernel"`
	Started  time.Time         `json:"started"`
	Net      string            `json:"net"`
	Target   string            `json:"target"`
	Options  Options           `json:"options"`
	Sysctls  map[string]string `json:"sysctls"`
	Coverage tcp.Coverage      `json:"coverage"`
	// BoundPorts are those of the range that were bound as the run began, in the client's namespace.
	BoundPorts []BoundPort `json:"bound_ports"`
	// Interrupted: the run was stopped before it was done; the numbers are of
	// what was done.
	Interrupted bool         `json:"interrupted"`
	Clients     []Client     `json:"clients"`
	StoppedBy   string       `json:"stopped_by"` // what interrupted it: StoppedByUser, StoppedByMaxDuration; empty: nothing
	Loops       []Loop       `json:"loops"`
	Totals      Totals       `json:"totals"`
	Server      *Server      `json:"server"` // null: not known; the notes say why
	TimeWait    TimeWait     `json:"time_wait"`
	Segments    Segments     `json:"segments"`
	Resets      Resets       `json:"resets"`
	Retransmits Retransmits  `json:"retransmits"`
	Failures    []Failure    `json:"failures"`
	Slow        []Slow       `json:"slow"`
	Forecast    *Forecast    `json:"forecast"` // null: none was made
	Unexplained int          `json:"unexplained"`
	Joined      Joined       `json:"joined"`
	Events      Events       `json:"events"`
	CrossCheck  []CrossCheck `json:"cross_check"`
	// Notes explain what a reader would wonder about, a sentence each.
	Notes []string `json:"notes"`
}

// The values of Summary.StoppedBy.
const (
	StoppedByUser        = "user" // Ctrl-C, a signal
	StoppedByMaxDuration = "max-duration"
	StoppedByEnd         = "end-of-recording" // the run may have gone on
)

// Options is what the run was asked for.
type Options struct {
	Clients     int      `json:"clients"` // processes, each with all of the following
	Loops       int      `json:"loops"`
	Connections int      `json:"connections"`
	Concurrency int      `json:"concurrency"`
	Bytes       int      `json:"bytes"`
	Linger      *float64 `json:"linger"` // seconds; null: off
	ReusePort   bool     `json:"reuseport"`
	ReuseAddr   bool     `json:"reuseaddr"`
	Close       string   `json:"close"`
	Backlog     int      `json:"backlog"`
	Rate        float64  `json:"rate"`     // connections a second as a loop begins; 0: a closed loop
	RateTo      float64  `json:"rate_to"`  // as it ends
	MaxRate     float64  `json:"max_rate"` // the limit of attempts a second; 0: none
	WarmupS     float64  `json:"warmup_seconds"`
	IntervalS   float64  `json:"interval_seconds"`
	HoldS       float64  `json:"hold_seconds"`
	WatchS      float64  `json:"linger_watch_seconds"`
	// MaxDurationS is how long the storm may last; 0: as long as it takes.
	MaxDurationS float64 `json:"max_duration_seconds"`
	IPv6         bool    `json:"ipv6"`
	Shards       int     `json:"shards"`   // threads of each end; 0: chosen by itself
	Together     bool    `json:"together"` // each thread is both ends of its connections
	Sources      int     `json:"sources"`  // addresses that the connections came from
	Bind         string  `json:"bind"`     // who chose their port: none, addr, port
	NoPort       bool    `json:"no_port"`
	// LocalPortRange is IP_LOCAL_PORT_RANGE; null: not set.
	LocalPortRange []int `json:"local_port_range"`
	Trace          bool  `json:"trace"`
	// ServerMode is what the server does: loadgen.ServerMode, or ServerElsewhere.
	ServerMode   string  `json:"server"`
	ServerFirst  int     `json:"server_first"`
	AcceptDelayS float64 `json:"accept_delay_seconds"`
	AcceptEvery  int     `json:"accept_every"`
}

// The values of Options.ServerMode that the summary itself knows: the server that
// answers as it is meant to, and the one that was started by someone else.
const (
	ServerEcho      = "echo"
	ServerElsewhere = "elsewhere"
	// ServerNeverAccepts listens, and never calls accept().
	ServerNeverAccepts = "never-accept"
)

// Client is a process of the storm.
type Client struct {
	Client   int            `json:"client"` // from 1
	PID      int            `json:"pid"`
	Attempts int            `json:"attempts"`
	Finished int            `json:"finished"`
	Failed   int            `json:"failed"`
	Errors   map[string]int `json:"errors"`
	// NotReported is how many more attempts it had begun when it was killed. They are in no other
	// number of the storm, while the kernel's events and counters have them.
	NotReported int `json:"not_reported"`
	// Ended says how: "done", "interrupted", "killed by SIGKILL" or another signal.
	Ended string `json:"ended"`
}

// Loop is one loop of the storm, all clients together.
type Loop struct {
	Loop     int            `json:"loop"`
	Attempts int            `json:"attempts"`
	Finished int            `json:"finished"`
	Failed   int            `json:"failed"`
	Seconds  float64        `json:"seconds"`
	Errors   map[string]int `json:"errors"`
	// MostOpen is the most connections that were open at once, looked at every 10 ms.
	MostOpen int `json:"most_open"`
	Latencies
	// TimeWaitNow and PortsInUse are as the loop ended; null: not observable
	// in a run without a trace.
	TimeWaitNow *int `json:"time_wait_now"`
	PortsInUse  *int `json:"ports_in_use"`
}

// Latencies are times since an attempt began, or was due in an open loop: until the handshake was done, until the
// first byte of the reply, and until the connection was closed, Options.HoldS included.
type Latencies struct {
	ConnectUS   Quantiles `json:"connect_us"`
	FirstByteUS Quantiles `json:"first_byte_us"`
	ExchangeUS  Quantiles `json:"exchange_us"` // of those that finished
}

// Quantiles of a time, in microseconds, of the attempts that got that far.
type Quantiles struct {
	P50   int64 `json:"p50"`
	P90   int64 `json:"p90"`
	P99   int64 `json:"p99"`
	P999  int64 `json:"p999"`
	P9999 int64 `json:"p9999"`
	Max   int64 `json:"max"`
}

// Totals is all loops together. Seconds is the sum of the loops', without the
// pauses between them.
type Totals struct {
	Attempts  int            `json:"attempts"`
	Finished  int            `json:"finished"`
	Failed    int            `json:"failed"`
	Seconds   float64        `json:"seconds"`
	PerSecond float64        `json:"per_second"` // finished a second
	Errors    map[string]int `json:"errors"`
	MostOpen  int            `json:"most_open"` // of any loop
	Latencies
	// PortsSkipped is how often --bind port passed a port over because somebody else held it.
	PortsSkipped int `json:"ports_skipped"`
	// HeldBack is how many attempts would have begun earlier but for Options.MaxRate.
	HeldBack int `json:"held_back"`
	// OpenLoop is how well the attempts of an open loop kept to their times; null of a closed loop.
	OpenLoop *OpenLoop `json:"open_loop"`
}

// OpenLoop says how much later than due attempts began. Late ones did so by more than a
// millisecond: the generator was behind, or Concurrency was reached.
type OpenLoop struct {
	StartLagUS Quantiles `json:"start_lag_us"`
	Late       int       `json:"late"`
}

// Server is the server's own account, as it stood when everything had settled after
// the storm. NeverAccepted is the attempts whose connect() succeeded, less the
// connections that accept() returned; null where more were accepted than this run's
// attempts, so that others were among them, or a client was killed before it had told of all.
type Server struct {
	Accepted      int  `json:"accepted"`
	Closed        int  `json:"closed"`
	NeverAccepted *int `json:"never_accepted"`
	// LastAckDropped of these are known to have come to nothing because the listener dropped the last ACK of the handshake:
	// its accept queue was full.
	LastAckDropped int `json:"last_ack_dropped"`
	// Elsewhere: the server is another process, and the counts are of all its clients
	// since the run began.
	Elsewhere bool `json:"elsewhere"`
}

// TimeWait is the account of TIME_WAIT minisocks, all namespaces of the run
// together. Now is what was left at the end of the trace.
type TimeWait struct {
	Entered         int `json:"entered"`
	FinWait2        int `json:"fin_wait2_minisocks"` // of Entered: made to wait for the peer's FIN
	Expired         int `json:"expired"`
	ReusedByConnect int `json:"reused_by_connect"`
	ReplacedBySyn   int `json:"replaced_by_syn"`
	KilledByRst     int `json:"killed_by_rst"`
	Purged          int `json:"purged"`
	Destroyed       int `json:"destroyed"`
	UnknownEnd      int `json:"unknown_end"`
	Overflowed      int `json:"overflowed"`
	Now             int `json:"now"`
	// ExpiredSeconds is how long those lasted that expired.
	ExpiredSeconds *Lengths `json:"expired_seconds,omitempty"`
	// Sides has the same of each namespace: who closed first holds the TIME_WAIT.
	Sides map[string]SideTimeWait `json:"sides"`
}

// SideTimeWait is a namespace's share.
type SideTimeWait struct {
	Entered    int `json:"entered"`
	Overflowed int `json:"overflowed"`
}

// Lengths of TIME_WAITs, in seconds.
type Lengths struct {
	Count int     `json:"count"`
	Min   float64 `json:"min"`
	P50   float64 `json:"p50"`
	Max   float64 `json:"max"`
}

// Resets counts RST segments, all namespaces together.
type Resets struct {
	Sent     int            `json:"sent"`
	Received int            `json:"received"` // by full sockets
	Reasons  map[string]int `json:"reasons"`  // why sent, in this kernel's words
}

// Segments counts what was on the wire by the kernel's events, all namespaces together: what `twtrace export
// --format pcapng` makes packets of. Of a peer that was not traced only what it was sent is here.
type Segments struct {
	Conversations int `json:"conversations"` // connections of which a SYN was sent
	Fins          int `json:"fins"`          // each once, however often it was sent
	Rsts          int `json:"rsts"`
}

// Retransmits counts segments that were sent again, all namespaces together. Each
// SYN of them is a connect() that stalled: by one second at the first, then two, then
// four more; since Linux 6.5 by one at each of the first tcp_syn_linear_timeouts.
type Retransmits struct {
	Syn    int `json:"syn"`
	SynAck int `json:"syn_ack"` // by listeners
	Other  int `json:"other"`
}

// Failure is a group of attempts that failed in the same way.
type Failure struct {
	Errno    string         `json:"errno"`
	Phase    string         `json:"phase"`
	Cause    verdict.Cause  `json:"cause"`
	Detail   verdict.Detail `json:"detail"` // more about the cause; empty: nothing
	Count    int            `json:"count"`
	Evidence map[string]any `json:"evidence"`
	// Census and LastCensus are of PortExhausted: how the ports stood for the first that failed, and for the last if there were several.
	Census     *Census `json:"census,omitempty"`
	LastCensus *Census `json:"last_census,omitempty"`
	// Holders are of BindConflict: the ports that bind() refused to the run, and what had them.
	Holders []BindHolder `json:"holders,omitempty"`
	// Peer is what was seen of the other end, of the first that has events; null: nothing.
	Peer *PeerEvidence `json:"peer,omitempty"`
	// Events are the kernel's events of the first attempts of the group.
	Events []uint64 `json:"events"`
	Advice []string `json:"advice"`
}

// Joined says how many of the attempts that called connect() were found among
// the kernel's events.
type Joined struct {
	Attempts int `json:"attempts"`
	ByCookie int `json:"by_cookie"`
	ByTuple  int `json:"by_tuple"`
}

// Events is the account of the trace: seen = recorded + lost_ring +
// skipped_recursion. Rescued of the skipped were recorded by a second program.
type Events struct {
	Seen             uint64            `json:"seen"`
	Recorded         uint64            `json:"recorded"`
	LostRing         uint64            `json:"lost_ring"`
	SkippedRecursion uint64            `json:"skipped_recursion"`
	Rescued          uint64            `json:"rescued"`
	ByKind           map[string]uint64 `json:"by_kind"`
	LostByKind       map[string]uint64 `json:"lost_by_kind"` // of LostRing
	Programs         []Program         `json:"programs"`
}

// Program is a BPF program of the trace. RecursionMisses is how often the kernel
// skipped it because it was running already on that CPU, events of other
// namespaces included. Runs and RunNS are how often it ran, and for how long in
// all, as the kernel accounts it; 0 unless kernel.bpf_stats_enabled is 1.
type Program struct {
	Name            string `json:"name"`
	RecursionMisses uint64 `json:"recursion_misses"`
	Runs            uint64 `json:"runs"`
	RunNS           uint64 `json:"run_ns"`
}

// Lost is how many events are missing.
func (e *Events) Lost() uint64 {
	return e.LostRing + e.SkippedRecursion - min(e.Rescued, e.SkippedRecursion)
}

// CrossCheck compares one of the kernel's own counters with what was traced.
type CrossCheck struct {
	Side    string `json:"side"` // client, server, or both where they share a namespace
	Counter string `json:"counter"`
	Kernel  uint64 `json:"kernel"`
	Twtrace uint64 `json:"twtrace"`
	Agrees  bool   `json:"agrees"`
}

// Incomplete reports whether events were lost or, if strict, a fact could not
// be observed.
func (s *Summary) Incomplete(strict bool) bool {
	if s.Events.Lost() > 0 {
		return true
	}
	if !strict {
		return false
	}
	for _, grade := range s.Coverage {
		if grade == tcp.NotObservable {
			return true
		}
	}
	return false
}

// WriteJSON writes the summary as one document.
func (s *Summary) WriteJSON(w io.Writer) error { return writeJSON(w, s) }

func writeJSON(w io.Writer, document any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(document); err != nil {
		return fmt.Errorf("write summary: %w", err)
	}
	return nil
}
