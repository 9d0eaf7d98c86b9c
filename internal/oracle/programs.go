package oracle

// Fact is something that the oracle counts, per network namespace.
type Fact uint32

// The facts.
const (
	FinSent          = Fact(objectFactFACT_FIN_SENT)          // by a full socket, for the first time
	FinReceived      = Fact(objectFactFACT_FIN_RECEIVED)      // by a full socket, for the first time
	RstSent          = Fact(objectFactFACT_RST_SENT)          // by whatever
	RstReceived      = Fact(objectFactFACT_RST_RECEIVED)      // by a full socket
	Retransmit       = Fact(objectFactFACT_RETRANSMIT)        // that was sent
	SynAckRetransmit = Fact(objectFactFACT_SYNACK_RETRANSMIT) // that was sent
	ErrorReport      = Fact(objectFactFACT_ERROR)             // with an error
	MadeFinWait2     = Fact(objectFactFACT_MADE_FIN_WAIT2)    // a minisock in FIN_WAIT2
	MadeTimeWait     = Fact(objectFactFACT_MADE_TIME_WAIT)    // a minisock in TIME_WAIT
	Overflow         = Fact(objectFactFACT_OVERFLOW)          // no minisock
	Converted        = Fact(objectFactFACT_CONVERTED)         // from FIN_WAIT2 to TIME_WAIT
	Expired          = Fact(objectFactFACT_EXPIRED)           // this and the next six: how a minisock ended
	Reused           = Fact(objectFactFACT_REUSED)            //
	Replaced         = Fact(objectFactFACT_REPLACED)          //
	Killed           = Fact(objectFactFACT_KILLED)            //
	Purged           = Fact(objectFactFACT_PURGED)            //
	Destroyed        = Fact(objectFactFACT_DESTROYED)         //
	EndedOtherwise   = Fact(objectFactFACT_ENDED_OTHERWISE)   //
	PortSearch       = Fact(objectFactFACT_PORT_SEARCH)       // a connect() that found no port
	FourTupleBusy    = Fact(objectFactFACT_FOUR_TUPLE_BUSY)   // a connect() whose port was taken
	BindFailed       = Fact(objectFactFACT_BIND_FAILED)       //
	DropAcceptQueue  = Fact(objectFactFACT_DROP_ACCEPT_QUEUE) // by a listener: a SYN
	DropLastACK      = Fact(objectFactFACT_DROP_LAST_ACK)     // by a listener whose accept queue was full
	DropSynQueue     = Fact(objectFactFACT_DROP_SYN_QUEUE)    // by a listener: a SYN
	DropOther        = Fact(objectFactFACT_DROP_OTHER)        // by a listener: a SYN
	StateChange      = Fact(objectFactNR_FACTS)               // of a full socket; see Counts.Changes
	numFacts         = int(objectFactNR_FACTS) + 1
)

var factNames = [numFacts]string{
	FinSent: "FIN sent", FinReceived: "FIN received", RstSent: "RST sent", RstReceived: "RST received",
	Retransmit: "retransmit", SynAckRetransmit: "SYN+ACK retransmit", ErrorReport: "error",
	MadeFinWait2: "FIN_WAIT2 minisock", MadeTimeWait: "TIME_WAIT minisock", Overflow: "overflow", Converted: "conversion",
	Expired: "expired", Reused: "reused by connect", Replaced: "replaced by SYN", Killed: "killed by RST",
	Purged: "purged", Destroyed: "destroyed", EndedOtherwise: "ended otherwise",
	PortSearch: "port search failed", FourTupleBusy: "four-tuple busy", BindFailed: "bind failed",
	DropAcceptQueue: "accept queue full", DropLastACK: "last ACK dropped", DropSynQueue: "SYN queue full", DropOther: "other drop",
	StateChange: "state change",
}

func (f Fact) String() string { return factNames[f] }

var (
	timeWaitEnds = []Fact{Expired, Reused, Replaced, Killed, Purged, Destroyed, EndedOtherwise}
	synDrops     = []Fact{DropAcceptQueue, DropSynQueue, DropOther}
)

// programs says which facts need which program of oracle.bpf.c: a fact is
// witnessed if all of its programs are attached.
var programs = []struct {
	name  string
	facts []Fact
}{
	{"state_store", []Fact{StateChange}},
	{"state_set", []Fact{StateChange}},
	{"fin_sent", []Fact{FinSent}},
	{"fin_received", []Fact{FinReceived}},
	{"rst_received", []Fact{RstReceived}},
	{"retransmits", []Fact{Retransmit}},
	{"retransmitted_inner", []Fact{Retransmit}},
	{"retransmitted", []Fact{Retransmit}},
	{"synack_again", []Fact{SynAckRetransmit}},
	{"error_reported", []Fact{ErrorReport}},
	{"rst_active", []Fact{RstSent}},
	{"rst_answer4", []Fact{RstSent}},
	{"rst_answer6", []Fact{RstSent}},
	{"tw_made", []Fact{MadeFinWait2, MadeTimeWait, Overflow}},
	{"tw_segment", append([]Fact{Converted}, timeWaitEnds...)},
	{"tw_segment_done", append([]Fact{Converted}, timeWaitEnds...)},
	{"tw_unique", timeWaitEnds},
	{"tw_expires", timeWaitEnds},
	{"tw_aborted", timeWaitEnds},
	{"purge_begins", timeWaitEnds},
	{"purge_ends", timeWaitEnds},
	{"tw_ends", timeWaitEnds},
	{"connect4", []Fact{PortSearch, FourTupleBusy}},
	{"connect6", []Fact{PortSearch, FourTupleBusy}},
	{"bind4", []Fact{BindFailed}},
	{"bind6", []Fact{BindFailed}},
	{"syn", synDrops},
	{"syn_queued", synDrops},
	{"syn_cookie4", synDrops},
	{"syn_cookie6", synDrops},
	{"syn_done", synDrops},
	{"ack4", []Fact{DropLastACK}},
	{"ack4_done", []Fact{DropLastACK}},
	{"ack6", []Fact{DropLastACK}},
	{"ack6_done", []Fact{DropLastACK}},
}
