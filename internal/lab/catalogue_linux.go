package lab

// Catalogue is every entry, in the order in which they are listed.
var Catalogue = []Entry{
	{
		Name: "classic", Question: "Why do short connections fail after 28,232 of them, and what helps?",
		Source:  "experiment 1: the client storm",
		Seconds: 70, FullSeconds: 1500, FullAlone: true,
		run: classic,
	},
	{
		Name: "params", Question: "What does each setting about TIME_WAIT do, on a client and on a server?",
		Source:  "experiment 2: the parameters",
		Seconds: 15, FullSeconds: 20,
		run: params,
	},
	{
		Name: "accept-queue", Question: "Why does connect() succeed and accept() never return the connection, and who sends which FIN and RST?",
		Source:  "experiment 3: held connections against a slow acceptor",
		Seconds: 55, FullSeconds: 190,
		run: acceptQueue,
	},
	{
		Name: "syn-retry", Question: "Why does a connect() take whole seconds?",
		Source:  "connect stalls of 1, 3 and 7 seconds, as they are told of everywhere",
		Seconds: 9, FullSeconds: 9,
		run: synRetry,
	},
	{
		Name: "rebind", Question: "When can a server bind its port again?",
		Source:  "experiment 4: restarting a server",
		Seconds: 5, FullSeconds: 5,
		run: rebind,
	},
	{
		Name: "tw-length", Question: "How long does TIME_WAIT last?",
		Source:  "experiment 5: the loop on bind()",
		Seconds: 66, FullSeconds: 66,
		run: timeWaitLength,
	},
	{
		Name: "port-search", Question: "What does connect() cost as ports run out, and who gets which port?",
		Source:  "experiment 1's slow loops; Linux' __inet_hash_connect and inet_csk_find_open_port",
		Seconds: 6, FullSeconds: 40, Alone: true,
		run: portSearch,
	},
	{
		Name: "bound-port", Question: "Can a client that binds its own ports use those in TIME_WAIT at once?",
		Source:  "Linux' tcp_twsk_unique; port allocators of load generators",
		Seconds: 5, FullSeconds: 100,
		run: boundPort,
	},
	{
		Name: "syn-on-timewait", Question: "What does a SYN do that meets a TIME_WAIT of the server?",
		Source:  "experiment 2: on a server tcp_tw_reuse has no effect; RFC 6191",
		Seconds: 2, FullSeconds: 2,
		run: synOnTimeWait,
	},
	{
		Name: "nat", Question: "Do clients with different clocks behind one address lose connections?",
		Source:  "experiment 2: tcp_tw_recycle and clients behind NAT",
		Seconds: 5, FullSeconds: 5,
		run: nat,
	},
	{
		Name: "assassination", Question: "Can TIME_WAIT be ended from outside, and what does tcp_rfc1337 do about it?",
		Source:  "RFC 1337; tcp_rfc1337 in ip-sysctl.rst",
		Seconds: 2, FullSeconds: 2,
		run: assassination,
	},
	{
		Name: "simultaneous-close", Question: "Who gets the TIME_WAIT if both ends close at once?",
		Source:  "experiment 4: whoever closes first gets the TIME_WAIT; RFC 9293, 3.6",
		Seconds: 1, FullSeconds: 1,
		run: simultaneousClose,
	},
	{
		Name: "half-close", Question: "What can the peer still send after shutdown(), and after close()?",
		Source:  "RFC 9293, 3.6; RFC 1122, 4.2.2.13",
		Seconds: 4, FullSeconds: 4,
		run: halfClose,
	},
	{
		Name: "fin-wait2", Question: "What is tcp_fin_timeout the timeout of?",
		Source:  "experiment 2: tcp_fin_timeout is the FIN_WAIT2 timeout, not 2 MSL",
		Seconds: 4, FullSeconds: 4,
		run: finWait2,
	},
	{
		Name: "self-connect", Question: "Can a connection be made with nobody?",
		Source:  "RFC 9293, 3.5; servers on ports of the ephemeral range",
		Seconds: 1, FullSeconds: 1,
		run: selfConnect,
	},
	{
		Name: "lost-last-ack", Question: "Why TIME_WAIT: what if the last ACK is lost?",
		Source:  "experiment 2: the last ACK may be lost, the peer repeats its FIN",
		Seconds: 2, FullSeconds: 2,
		run: lostLastAck,
	},
	{
		Name: "old-duplicate", Question: "Why TIME_WAIT: can an old segment reach a new connection?",
		Source:  "experiment 2: old segments must not reach a new connection on the same four-tuple",
		Seconds: 2, FullSeconds: 2,
		run: oldDuplicates,
	},
}
