package lab

import "slices"

const (
	cookieHistory = "As far as read: a cookie keeps no request, so that nobody repeats its SYN+ACK (tcp_conn_request), and its ACK is dropped without a word " +
		"while the accept queue is full (tcp_get_cookie_sock); any later segment with an ACK is checked again for two minutes (cookie_v4_check)."
	abortHistory = "As far as read: tcp_check_req aborts, and only for requests that are kept; cookies (tcp_get_cookie_sock) and SYNs (tcp_conn_request) are dropped all the same."
)

// settle says what all that comes to.
func (e *queueFindings) settle(s *Session) {
	e.settleCounts(s)
	e.settleEnds(s)
	e.settleProcesses(s)
	e.settleFins(s)
	e.settleErrors(s)
	e.settleCookies(s)
	e.settleTraced(s)
	s.Note("held", e.held)
	s.Answerf("connect() succeeds when the client has the SYN+ACK; if the accept queue is full when its ACK comes, the server forgets a connection by SYN cookie, and accept() never returns it "+
		"(%d of %d here, 0 without cookies) until the client says something: so the count rises when clients close. No held connection sends a FIN that no program closed.",
		e.held["20 threads"].Connected-e.held["20 threads"].Accepted, e.held["20 threads"].Connected)
}

// nearlyAll: accept() has returned what connect() has, or lacks one in a hundred, which are on their way on a machine
// that has too much to do.
func (h *held) nearlyAll() bool { return h.Accepted > 0 && (h.Connected-h.Accepted)*100 <= h.Connected }

// usedUp: those for which there was no port failed, but as many as took the place of one that had timed out.
func (h *held) usedUp() bool {
	no := h.Errors["EADDRNOTAVAIL"]
	return no > 0 && no+h.Errors["ETIMEDOUT"] >= h.Attempts-h.Ports
}

// settleCounts is about connect() and accept() counting differently: observation 1.
func (e *queueFindings) settleCounts(s *Session) {
	usual, off, large, few, many := e.held["20 threads"], e.held["no cookies"], e.held["large backlog"], e.held["200 connections"], e.held["more than ports"]
	counts := func(h *held) Evidence {
		return Evidence{
			"connected": h.Connected, "accepted": h.Accepted, "accepted after the clients closed": h.AcceptedAfter,
			"syncookies sent": h.Cookies, "accept queue overflows": h.Overflows,
		}
	}
	s.Claim(Claim{
		Key: "connected-not-accepted", Text: "connect() returns success, yet accept() counts less, and stops.",
		Holds: holdsOf(usual.Connected*10 > usual.Attempts*9 && usual.Accepted < usual.Connected), Expected: Yes, Evidence: counts(usual),
	})
	s.Claim(Claim{
		Key: "few", Text: "It is so with 200 connections, too.",
		Holds: holdsOf(few.Connected*10 > few.Attempts*9 && few.Accepted < few.Connected), Expected: Yes, Evidence: counts(few),
	})
	s.Claim(Claim{
		Key: "why-cookies", Text: "Those that accept() never returns are handshakes by SYN cookie: without cookies, or with a backlog for all, accept() returns every connection that connect() did.",
		Holds: holdsOf(off.nearlyAll() && large.nearlyAll() && !usual.nearlyAll() && usual.Cookies > 0), Expected: Yes,
		Evidence: Evidence{
			"connected without cookies": off.Connected, "accepted without cookies": off.Accepted,
			"connected with a large backlog": large.Connected, "accepted with a large backlog": large.Accepted,
		},
		History: cookieHistory,
	})
	s.Claim(Claim{
		Key: "rises-on-close", Text: "When the client is stopped (Ctrl-C) the server's count rises: the FIN of a forgotten connection has the ACK that was dropped, and brings it into the accept queue.",
		Holds:    holdsOf(usual.AcceptedAfter > usual.Accepted && off.nearlyAll() && e.cookies.AfterFin == 1 && e.cookies.FinRead == 0),
		Expected: Yes,
		Evidence: Evidence{
			"accepted": usual.Accepted, "accepted after the clients closed": usual.AcceptedAfter, "without cookies": off.Accepted, "without cookies, after": off.AcceptedAfter,
			"one cookie, accepted after its FIN": e.cookies.AfterFin, "bytes it brings": e.cookies.FinRead,
		},
		History: cookieHistory,
	})
	s.Claim(Claim{
		Key: "below-port-limit", Text: "With more connections than ports the count stops below the number of ports, and connect() gives EADDRNOTAVAIL.",
		Holds:    holdsOf(many.Accepted < many.Ports && many.usedUp()),
		Expected: Yes,
		Evidence: Evidence{
			"ports": many.Ports, "attempts": many.Attempts, "connected": many.Connected, "accepted": many.Accepted, "EADDRNOTAVAIL": many.Errors["EADDRNOTAVAIL"], "ETIMEDOUT": many.Errors["ETIMEDOUT"],
		},
		History: "The difference is as many as were forgotten, or whose SYNs are still being dropped: each of these has a port.",
	})
}

// settleEnds is about who sends what when the client is stopped: observations 2 and 3.
func (e *queueFindings) settleEnds(s *Session) {
	quiet, mix := true, true
	for name, h := range e.held {
		if name == "abort_on_overflow" {
			continue
		}
		quiet = quiet && h.FinBefore+h.RstBefore+h.ServerBefore == 0
		// A few may get through just as the clients are stopped.
		other := h.FinAfter - (h.Connected - h.Accepted)
		mix = mix && max(other, -other) <= h.Connected/100 && h.RstAfter >= h.Accepted
	}
	usual, many := e.held["20 threads"], e.held["more than ports"]
	s.Claim(Claim{
		Key: "quiet-while-held", Text: "Nobody sends FIN or RST before Ctrl-C (100 threads, more connections than ports, cookies on and off).",
		Holds: holdsOf(quiet), Expected: Yes, Evidence: Evidence{"FIN": usual.FinBefore + many.FinBefore, "RST": usual.RstBefore + many.RstBefore},
		History: "With tcp_abort_on_overflow the server does: RST to those whose ACK it drops.",
	})
	c := e.closing
	s.Claim(Claim{
		Key: "close-mix", Text: "After it the client sends RST on connections that were accepted (256 bytes are unread), and FIN on the others.",
		Holds: holdsOf(mix && c.Rst == c.Accepted && c.FinOther == 0 && c.Fin == c.Waiting), Expected: Yes,
		Evidence: Evidence{
			"connected": usual.Connected, "accepted": usual.Accepted, "sent FIN": usual.FinAfter, "sent RST": usual.RstAfter,
			"one by one: accepted, sent RST": c.Rst, "one by one: waiting, sent FIN": c.Fin, "rst reasons": c.Reasons,
		},
		History: "As far as read: tcp_close sends RST where data was not read (TCPAbortOnClose), as RFC 2525, section 2.17 asks for.",
	})
	s.Claim(Claim{
		Key: "data-answered", Text: "Between them the server sends data (PSH), which is answered by RST: it accepts what waited in its queue, and sends to sockets that are closed.",
		Holds:    holdsOf(c.Late == c.Waiting && c.Data == c.Waiting && c.Answers == c.Waiting && c.Second != "ok"),
		Expected: Yes,
		Evidence: Evidence{
			"accepted after the close": c.Late, "data segments": c.Data, "RSTs": c.Answers, "the server's next send gets": c.Second, "data segments of the storm": usual.DataAfter,
		},
	})
	s.Claim(Claim{
		Key: "fin-psh", Text: "FIN+PSH in a segment is data and FIN that were lost and are sent again as one.",
		Holds: holdsOf(e.finPsh > 0), Expected: Yes, Evidence: Evidence{"segments of 256 bytes with FIN and PSH": e.finPsh},
		History: "As far as read: tcp_retrans_try_collapse (net.ipv4.tcp_retrans_collapse).",
	})
}

// settleProcesses is about several client processes: observations 4, 5 and 8.
func (e *queueFindings) settleProcesses(s *Session) {
	p := e.stopped
	fresh, freed := true, true
	for _, st := range p.Stops {
		fresh = fresh && st.New > 0 && st.Fin+st.Rst > 0
		// Who sent RST has no TIME_WAIT, so its port can be taken at once.
		freed = freed && st.New*10 >= st.Rst*9
	}
	s.Claim(Claim{
		Key: "processes", Text: "Several processes are as one with as many threads: no FIN and no RST while they hold, connect() fails when the ports are used up.",
		Holds:    holdsOf(p.Full.Fin+p.Full.Rst == 0 && p.NoPort > 0 && p.Accepted <= p.Ports),
		Expected: Yes, Evidence: Evidence{"processes": p.Processes, "ports": p.Ports, "accepted": p.Accepted, "EADDRNOTAVAIL": p.NoPort, "FIN": p.Full.Fin, "RST": p.Full.Rst},
	})
	s.Claim(Claim{
		Key: "stop-one", Text: "Stopping the processes one by one lets new SYNs of the others through, as many as connections end by RST and so give their ports back at once.",
		Holds: holdsOf(fresh && freed), Expected: Yes, Evidence: Evidence{"stops": p.Stops, "new connections after the first stop": p.Stops[0].New, "sent RST": p.Stops[0].Rst, "sent FIN": p.Stops[0].Fin},
	})
	s.Claim(Claim{
		Key: "count-passes-ports", Text: "After that the server's count passes the number of ports.",
		Holds: holdsOf(p.AcceptedEnd > p.Ports), Expected: Yes, Evidence: Evidence{"ports": p.Ports, "accepted before": p.Accepted, "accepted at the end": p.AcceptedEnd},
	})
}

// settleFins is the open question of observation 6.
func (e *queueFindings) settleFins(s *Session) {
	unasked, asked, open, closed := 0, true, 0, 0
	for _, w := range e.ways {
		if w.Closed {
			asked = asked && w.Fin == w.Held
			closed += w.Fin
		} else {
			unasked += w.Fin
			open++
		}
	}
	killed := e.stopped.Stops[slices.IndexFunc(e.stopped.Stops, func(st stopSeen) bool { return st.Signal == "SIGKILL" })]
	s.Claim(Claim{
		Key: "fin-unasked", Text: "A held connection that no program closed sends a FIN.",
		Holds: holdsOf(unasked > 0 || e.gaveUp.Fins > 0), Expected: No,
		Evidence: Evidence{"ways in which nobody closes": open, "FINs": unasked, "FINs when the server has given up its SYN+ACK": e.gaveUp.Fins, "ways": e.ways},
		History: "As far as read: tcp_send_fin has two callers, tcp_shutdown and __tcp_close. Keepalive and other timers end a connection by RST or in silence " +
			"(tcp_write_err, tcp_send_active_reset).",
	})
	s.Claim(Claim{
		Key: "fin-closed", Text: "Every FIN of a client comes from a close: by its own calls, by another file on its descriptor, by a garbage collector, or by the kernel when its process ends.",
		Holds: holdsOf(asked && killed.Fin+killed.Rst > 0), Expected: Yes,
		Evidence: Evidence{"FINs after a close": closed, "FINs of a process that was killed": killed.Fin, "RSTs of it": killed.Rst},
	})
	same := true
	for _, r := range e.thousand {
		want := map[bool]int{true: r.Threads, false: 0}[r.Fin > 0]
		same = same && r.Fin == want && r.InARow == want
	}
	s.Claim(Claim{
		Key: "fin-1000", Text: "FINs on exactly 1,000 connections in a row come from the program: two threads that give up with their 500 each when connect() fails, or each of 1,000 threads that closes one " +
			"(which of the two, the notes do not say).",
		Holds: holdsOf(same && len(e.thousand) == 3), Expected: Yes, Evidence: Evidence{"programs": e.thousand, "of 20 threads with 10 connections each, FINs in a row": e.thousand[2].InARow},
		History: "Not reproduced by anything the kernel does alone: no port left, ETIMEDOUT, a full accept queue, a server that gave up, keepalive, an interrupted connect().",
	})
}

// settleErrors is what connect() returns: observations 6 and 7.
func (e *queueFindings) settleErrors(s *Session) {
	t := e.timedOut
	s.Claim(Claim{
		Key: "etimedout", Text: "connect() gives ETIMEDOUT when a full accept queue drops its SYN each time it is sent.",
		Holds: holdsOf(t.Errno == "ETIMEDOUT" && t.Syns == 2 && t.Drops == 2), Expected: Yes,
		Evidence: Evidence{"connect": t.Errno, "SYNs": t.Syns, "dropped": t.Drops, "seconds with tcp_syn_retries=1": t.Seconds},
		History:  "127 s by default until 6.4, about 131 s since, where four SYNs more are sent (tcp_syn_linear_timeouts).",
	})
	many := e.held["more than ports"]
	s.Claim(Claim{
		Key: "eaddrnotavail", Text: "connect() gives EADDRNOTAVAIL when every port of the range is held, also by connections that were never accepted.",
		Holds:    holdsOf(many.usedUp() && many.Connected > many.Accepted),
		Expected: Yes, Evidence: Evidence{"ports": many.Ports, "attempts": many.Attempts, "EADDRNOTAVAIL": many.Errors["EADDRNOTAVAIL"], "connected but not accepted": many.Connected - many.Accepted},
	})
	s.Claim(Claim{
		Key: "long-path", Text: "Over a path to another continent ETIMEDOUT comes soon, and about half of the connections are accepted.",
		Holds: NotObservable, Expected: Yes,
		History: "A path that loses SYNs on its way, or a middlebox, can't be told here from a server that drops them. What is accepted, and what FIN, RST and FIN+PSH mean after Ctrl-C, is the same on a short path (close-mix, fin-psh).",
	})
	s.Claim(Claim{
		Key: "gives-up", Text: "When the server has given up repeating its SYN+ACK the client still believes that it is connected; its next data, or its FIN, is answered by RST.",
		Holds:    holdsOf(e.gaveUp.Established == tooMany && e.gaveUp.Send == "ECONNRESET" && e.gaveUp.Close == "RST" && e.gaveUp.Accepted == room),
		Expected: Yes, Evidence: Evidence{"clients established": e.gaveUp.Established, "one that sends gets": e.gaveUp.Send, "one that closes gets": e.gaveUp.Close, "accepted": e.gaveUp.Accepted},
	})
}

// settleCookies is observation 9.
func (e *queueFindings) settleCookies(s *Session) {
	f, n, c := e.inFlight, e.nobody, e.cookies
	s.Claim(Claim{
		Key: "syn-queue-then-cookies", Text: "SYN_RECV entries fill the SYN queue; SYNs after that get cookies, and no state is kept.",
		Holds:    holdsOf(f.SynRecv == known && int(f.Cookies) == f.Syns-known && int(f.Drops) == f.Syns-known),
		Expected: Yes, Evidence: Evidence{"SYNs at once": f.Syns, "in SYN_RECV": f.SynRecv, "syncookies sent": f.Cookies, "drops without cookies": f.Drops, "backlog": backlog},
	})
	s.Claim(Claim{
		Key: "nobody-accepts", Text: "With nobody accepting it is the SYN queue that fills, and cookies are sent.",
		Holds: holdsOf(n.SynRecv > 0 || n.Cookies > 0), Expected: No,
		Evidence: Evidence{"connected": n.Connected, "in SYN_RECV": n.SynRecv, "syncookies sent": n.Cookies, "SYNs dropped": n.Overflows},
		History:  "What fills is the accept queue, by handshakes that are done. The SYN queue fills only with those whose ACK is on its way, or was dropped.",
	})
	s.Claim(Claim{
		Key: "full-queue-drops-syn", Text: "When the accept queue is full the server drops new SYNs, without even a cookie.",
		Holds:    holdsOf(n.Answers == 0 && n.Always["syncookies_sent_with_a_full_accept_queue"] == 0 && int(n.Overflows) >= n.Clients-room),
		Expected: Yes, Evidence: Evidence{"SYNs": n.Clients - room, "answers": n.Answers, "dropped": n.Overflows, "cookies with tcp_syncookies=2": n.Always["syncookies_sent_with_a_full_accept_queue"]},
	})
	s.Claim(Claim{
		Key: "cookie-not-repeated", Text: "A lost SYN+ACK of a cookie is not repeated.",
		Holds:    holdsOf(e.silent["syn_acks_of_a_cookie"] == 1 && e.silent["syn_acks_with_state"] > 1),
		Expected: Yes, Evidence: Evidence{"SYN+ACKs in 3.5 s": e.silent["syn_acks_of_a_cookie"], "of a request that is kept": e.silent["syn_acks_with_state"]},
	})
	s.Claim(Claim{
		Key: "cookie-believes", Text: "A client whose last ACK to a cookie is lost believes that it is connected, and the server knows nothing of it.",
		Holds:    holdsOf(c.Established == c.Clients && c.SynAcks == 1 && c.Accepted == c.Of && int(c.Cookies) == c.Clients),
		Expected: Yes, Evidence: Evidence{"clients": c.Clients, "established": c.Established, "SYN+ACKs to each": c.SynAcks, "accepted of those that were known": c.Accepted},
	})
	s.Claim(Claim{
		Key: "cookie-revived", Text: "What brings it back is a segment of the client's with an ACK: data, or the FIN; not an RST.",
		Holds:    holdsOf(c.AfterFin == 1 && c.AfterData == 1 && c.AfterRst == 0),
		Expected: Yes, Evidence: Evidence{"accepted after FIN": c.AfterFin, "after data": c.AfterData, "after RST": c.AfterRst}, History: cookieHistory,
	})
	s.Claim(Claim{
		Key: "last-ack-dropped", Text: "With a full accept queue the server drops the last ACK of those who believe that they are connected.",
		Holds:    holdsOf(e.late.Overflows >= tooMany && e.late.SynRecv == tooMany && e.late.Established == tooMany),
		Expected: Yes, Evidence: Evidence{"ACKs dropped": e.late.Overflows, "still in SYN_RECV": e.late.SynRecv, "clients established": e.late.Established},
	})
	s.Claim(Claim{
		Key: "syn-ack-repeated", Text: "It repeats the SYN+ACK until there is room, or it gives up (tcp_synack_retries).",
		Holds:    holdsOf(e.late.Accepted == e.late.Connected && e.gaveUp.SynAcks == 3),
		Expected: Yes,
		Evidence: Evidence{"accepted when there was room": e.late.Accepted, "of": e.late.Connected, "SYN+ACKs to one with tcp_synack_retries=2": e.gaveUp.SynAcks, "accepted at once if they close": e.early.Accepted},
	})
	a := e.cookieAck
	s.Claim(Claim{
		Key: "cookie-ack-dropped", Text: "The ACK of a cookie that finds the accept queue full is dropped, too, and nothing is repeated by the server.",
		Holds:    holdsOf(int(a.Overflows) >= a.Clients && a.Established == a.Clients && a.SynRecv == 0 && a.Accepted == a.Clients+1),
		Expected: Yes, Evidence: Evidence{"ACKs dropped": a.Overflows, "in SYN_RECV": a.SynRecv, "clients established": a.Established, "accepted when the client's data was sent again": a.Accepted},
	})
	s.Claim(Claim{
		Key: "abort", Text: "tcp_abort_on_overflow=1 has the server tell: a client whose last ACK is dropped gets ECONNRESET.",
		Holds:    holdsOf(e.aborted.Reset == tooMany && e.aborted.Accepted == room),
		Expected: Yes, Evidence: Evidence{"clients reset": e.aborted.Reset, "accepted": e.aborted.Accepted},
	})
	s.Claim(Claim{
		Key: "abort-cookies", Text: "It tells those, too, that were connected by cookie.",
		Holds: holdsOf(a.Resets > 0), Expected: No, Evidence: Evidence{"ACKs dropped": a.Overflows, "RSTs": a.Resets}, History: abortHistory,
	})
}

// settleTraced is what `twtrace run` says about it.
func (e *queueFindings) settleTraced(s *Session) {
	explained, agree, fits := true, true, true
	for _, t := range e.traced {
		explained = explained && t.Unexplained == 0 && t.Lost == 0
		agree = agree && len(t.Disagree) == 0
		// All that was sent to the client was accepted; without cookies, all that connected.
		fits = fits && t.Finished <= t.Accepted && (t.Backlog < 1000 || t.Finished == t.Attempts)
	}
	s.Claim(Claim{
		Key: "traced", Text: "Traced, in threads and in processes, over backlogs, syncookies and tcp_abort_on_overflow, every failure has a cause and the kernel's counters agree.",
		Holds: holdsOf(explained && agree && fits), Expected: Yes, Evidence: Evidence{"storms": len(e.traced), "table": e.traced},
	})
}
