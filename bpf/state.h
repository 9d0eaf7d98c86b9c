/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Full sockets: every change of state, the TIME_WAIT that was not made, and the
 * connect() that sent nothing.
 */
#ifndef TWTRACE_STATE_H
#define TWTRACE_STATE_H

/*
 * tcp_time_wait() calls tcp_done() whether or not it got a minisock. Where nobody
 * sees inet_twsk_alloc() itself (overflow.h) it is told by what follows: without
 * one the socket leaves FIN_WAIT2 or CLOSING for CLOSE with no error, no RST of
 * its own and no timer started, while the namespace is at its limit. The
 * limit is read after the fact and other CPUs free minisocks meanwhile: hence
 * the slack.
 */
#define TW_LIMIT_SLACK 64

static __always_inline bool tw_overflowed(struct net *net)
{
	struct inet_timewait_death_row *row = &net->ipv4.tcp_death_row;
	int max = row->sysctl_max_tw_buckets;
	int now;

	if (bpf_core_field_exists(row->tw_refcount))
		now = row->tw_refcount.refs.counter - 1;
	else
		now = ((struct inet_timewait_death_row___tw_count *)row)->tw_count.counter;
	return now + TW_LIMIT_SLACK >= max;
}

static __always_inline bool has_flag(struct sock *sk, __u64 bit)
{
	return sk->__sk_common.skc_flags & 1UL << bit;
}

/*
 * Who else takes a socket from FIN_WAIT2 or CLOSING to CLOSE, without an error and
 * before its RST: close() and connect(AF_UNSPEC) set the state themselves
 * (tcp_disconnect, __tcp_close), tcp_time_wait() through tcp_done(). So does
 * tcp_rcv_state_process() when an orphan with TCP_LINGER2 below 0 gets to
 * FIN_WAIT2; such a one never gets to tcp_time_wait() from there.
 */
static __always_inline bool by_time_wait(void *ctx, struct sock *sk, struct tcp_sock *tp, int old)
{
	if (old == TCP_FIN_WAIT2 && tp->linger2 < 0 &&
	    has_flag(sk, bpf_core_enum_value(enum sock_flags, SOCK_DEAD)))
		return false;
	return nearest_cause(ctx) == CAUSE_DONE;
}

/*
 * Why a socket left SYN_SENT without having sent a segment: the search for a port
 * leaves inet_sport 0; a bound socket has one four-tuple only to try
 * (net/ipv4/inet_hashtables.c, __inet_hash_connect).
 */
static __always_inline __u8 connect_cause(struct sock *sk, __u16 local_port)
{
	if (!local_port)
		return CAUSE_PORT_SEARCH;
	return BPF_CORE_READ_BITFIELD(sk, sk_userlocks) & SOCK_BINDPORT_LOCK ? CAUSE_FOUR_TUPLE_BUSY
									     : CAUSE_NOT_SENT;
}

/* connect() looks for a port next, and is refused some. */
static __always_inline void begin_search(__u64 cookie)
{
	struct refused none = {.cookie = cookie};
	__u32 task = this_task();
	struct refused *r = bpf_map_lookup_elem(&refused, &task);

	if (r)
		*r = none;
	else if (bpf_map_update_elem(&refused, &task, &none, 0))
		count_untracked();
}

/* The owner, at the changes of state that show one; NULL at the others. */
static __always_inline struct owner *owner_at(struct owner *o, struct sock *sk, int old, int new)
{
	if (old == TCP_CLOSE && (new == TCP_SYN_SENT || new == TCP_LISTEN)) {
		owner_of_task(o, bpf_get_current_task_btf(), sk->sk_cgrp_data.cgroup->kn->id);
		return o;
	}
	if ((old == TCP_SYN_RECV && new == TCP_ESTABLISHED) ||
	    (old == TCP_LISTEN && new == TCP_SYN_RECV))
		return bpf_sk_storage_get(&owners, sk, NULL, 0);
	return NULL;
}

static __always_inline int handle_state(void *ctx, struct sock *sk, int old, int new, bool twin)
{
	struct net *net = sk->__sk_common.skc_net.net;
	__u64 netns = net->net_cookie;
	struct facts f = {.netns = netns, .old_state = old, .new_state = new};
	struct tcp_sock *tp = NULL;
	bool overflow = false, failed = false, ours, asked_for;
	struct owner own, *stored;
	struct recent *r;
	__u8 nth = 0;
	__u64 of;

	/* MPTCP's own sockets have a protocol of their own. */
	ours = sk->sk_protocol == IPPROTO_TCP && in_scope(netns);
	of = cookie_of(sk);
	if (handled_by_main(of, STATES(old, new), twin))
		return 0;
	if (!ours) {
		not_asked_for(KIND_STATE, twin);
		return 0;
	}
	if (new == TCP_CLOSE) {
		tp = bpf_skc_to_tcp_sock(sk);
		if (!tp)
			return 0;
		/* skc_num is 0 already when an auto-bound socket closes. */
		f.local_port = bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport);
	} else {
		f.local_port = sk->__sk_common.skc_num;
	}
	/*
	 * Until 6.12 a child's ports, addresses and cookie are set after LISTEN >
	 * SYN_RECV: the cookie that it has now is overwritten.
	 */
	if (old != TCP_LISTEN || new != TCP_SYN_RECV)
		f.cookie = of;
	f.call = call_of(of, STATES(old, new));
	f.flags = twin ? FLAG_RESCUED : 0;
	f.err = sk->sk_err;
	f.peer_port = bpf_ntohs(sk->__sk_common.skc_dport);
	f.owner = owner_at(&own, sk, old, new);

	/* What fails later is all that is recorded, and has to know whose it is. */
	if (new == TCP_LISTEN || (failures_only && new == TCP_SYN_SENT)) {
		stored = bpf_sk_storage_get(&owners, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
		if (stored)
			__builtin_memcpy(stored, &own, sizeof(own));
		else
			count_untracked();
	}
	if (new == TCP_LISTEN && wants(KIND_LISTEN_DROP))
		listener_begins(sk, &f);
	if (refusals_noted && old == TCP_CLOSE && new == TCP_SYN_SENT)
		begin_search(f.cookie);
	asked_for = passes(sk->__sk_common.skc_family, f.local_port, f.peer_port);
	if (by_owner() && asked_for) {
		if (f.owner)
			asked_for = is_wanted_owner(f.owner, sk);
		else
			asked_for = is_selected(f.cookie);
		if (f.owner && asked_for && f.cookie)
			select_connection(f.cookie);
	}

	if (tp) {
		if (old == TCP_SYN_SENT && tp->segs_out == 0) {
			f.flags |= FLAG_NO_SEGMENT;
			failed = true;
		}
		if (sk->sk_lingertime == 0 &&
		    has_flag(sk, bpf_core_enum_value(enum sock_flags, SOCK_LINGER)))
			f.flags |= FLAG_LINGER0;
		if (old == TCP_FIN_WAIT2 || old == TCP_CLOSING) {
			r = recent_of(f.cookie);
			if (overflows_noted && r && r->tw_refused == f.cookie) {
				r->tw_refused = 0; /* the socket may be connected again */
				overflow = true;
			} else if (r && r->tw_made == f.cookie) {
				f.flags |= FLAG_TW_MADE;
			} else if (!overflows_noted && r && r->rst_sent != f.cookie && !f.err) {
				overflow = tw_overflowed(net) && by_time_wait(ctx, sk, tp, old);
			}
		}
	}

	if (asked_for) {
		if (failures_only && new == TCP_CLOSE)
			f.owner = bpf_sk_storage_get(&owners, sk, NULL, 0);
		if (wants(KIND_STATE) && (!failures_only || (new == TCP_CLOSE &&f.err)))
			socket_event(sk, KIND_STATE, CAUSE_NONE, &nth, &f);
		if (overflow && wants(KIND_TW_OVERFLOW))
			socket_event(sk, KIND_TW_OVERFLOW, CAUSE_NONE, &nth, &f);
		if (failed && wants(KIND_CONNECT_FAILED)) {
			__u8 cause = connect_cause(sk, f.local_port);

			if (cause != CAUSE_NOT_SENT)
				f.err = EADDRNOTAVAIL;
			if (refusals_noted)
				f.refused = refused_of(f.cookie);
			socket_event(sk, KIND_CONNECT_FAILED, cause, &nth, &f);
		}
	}
	if (old == TCP_LISTEN && new == TCP_CLOSE && wants(KIND_LISTEN_DROP))
		listener_ends(sk, &f, asked_for, &nth);
	if (!nth)
		not_asked_for(KIND_STATE, twin);
	return 0;
}

#endif
