package tcp

// Grade says how well this kernel lets a fact be seen.
type Grade string

// The grades.
const (
	Exact         Grade = "exact"
	Inferred      Grade = "inferred"
	NotObservable Grade = "not observable"
)

// Fact is something twtrace can tell about connections, as a recording and a
// summary name it.
type Fact string

// The facts of the tracer.
const (
	FactState       Fact = "state"               // every state change of every socket
	FactRstSent     Fact = "rst-sent"            // every RST this host sent
	FactRstReason   Fact = "rst-reason"          // why it was sent
	FactRstReceived Fact = "rst-received"        // every RST that ended or reset a full socket
	FactTWEnter     Fact = "time-wait-enter"     // every TIME_WAIT minisock, and when it was made
	FactTWEnd       Fact = "time-wait-end"       // every end of one, and when
	FactTWCause     Fact = "time-wait-end-cause" // why it ended
	FactTWOverflow  Fact = "time-wait-overflow"  // every TIME_WAIT that was skipped
	FactConnectFail Fact = "connect-failure"     // connects that failed inside the kernel
	FactRetransmit  Fact = "retransmit"          // every segment that was sent again
	FactListenDrop  Fact = "listen-drop"         // SYNs and ACKs that a listener dropped
	FactTWConvert   Fact = "time-wait-convert"   // when a FIN_WAIT2 minisock became TIME_WAIT
	FactError       Fact = "error"               // every error a socket got
	FactBindFail    Fact = "bind-failure"        // binds that failed
	FactOwner       Fact = "owner"               // whose connection it is
	FactSnapshot    Fact = "snapshot"            // what was there when the trace began
	FactBindOwner   Fact = "bind-holder"         // what holds the port that a bind() wanted
	FactRefusals    Fact = "reuse-refusals"      // why a connect could not take a port, port by port
	FactCause       Fact = "failure-cause"       // why an attempt failed
	FactCensus      Fact = "port-census"         // who had which ports as a connect() found none
)

// Coverage is how well each fact can be seen in a trace.
type Coverage map[Fact]Grade
