/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Full sockets: every change of state, and the TIME_WAIT that was not made. */
#ifndef TWTRACE_STATE_H
#define TWTRACE_STATE_H

/*
 * A socket has each transition once, so that its cookie and the states name an
 * event; where there is no cookie the socket's address must do.
 */
static __always_inline __u64 state_key(__u64 id, int old, int new)
{
	return id << 8 | (old & 15) << 4 | (new & 15);
}

static __always_inline void put_addresses(struct event *e, const struct sock_common *c)
{
	e->family = c->skc_family;
	if (e->family == AF_INET6) {
		__builtin_memcpy(e->local, (void *)&c->skc_v6_rcv_saddr, 16);
		__builtin_memcpy(e->peer, (void *)&c->skc_v6_daddr, 16);
	} else {
		*(__u32 *)e->local = c->skc_rcv_saddr;
		*(__u32 *)e->peer = c->skc_daddr;
	}
}

/*
 * tcp_time_wait() calls tcp_done() whether or not it got a minisock. Without
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
	return nearest_cause(ctx) == TW_DONE;
}

/* An event of a full socket. */
static __always_inline void socket_event(struct sock *sk, struct tcp_sock *tp, __u8 kind,
					 __u64 cookie, __u64 netns, int old, int new, int err,
					 __u8 flags)
{
	struct event *e = event_begin(kind, flags & FLAG_RESCUED);

	if (!e)
		return;
	e->cookie = cookie;
	e->netns = netns;
	put_addresses(e, &sk->__sk_common);
	/* skc_num is 0 already when an auto-bound socket closes. */
	e->local_port = bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport);
	e->peer_port = bpf_ntohs(sk->__sk_common.skc_dport);
	e->err = err;
	e->old_state = old;
	e->new_state = new;
	e->flags = flags;
	event_end(e);
}

static __always_inline int handle_state(void *ctx, struct sock *sk, int old, int new, bool twin)
{
	struct net *net = sk->__sk_common.skc_net.net;
	__u64 netns = net->net_cookie;
	__u8 flags = twin ? FLAG_RESCUED : 0;
	struct tcp_sock *tp = NULL;
	bool overflow = false;
	struct recent *r;
	__u64 cookie = 0;
	int err;

	/* NULL for all but full TCP sockets, MPTCP's own sockets included. */
	if (in_scope(netns))
		tp = bpf_skc_to_tcp_sock(sk);
	/*
	 * Until 6.12 a child's ports, addresses and cookie are set after LISTEN >
	 * SYN_RECV; asking for the cookie would make one that is overwritten.
	 */
	if (tp && old == TCP_LISTEN && new == TCP_SYN_RECV)
		cookie = sk->__sk_common.skc_cookie.counter;
	else if (tp)
		cookie = bpf_get_socket_cookie(sk);

	if (handled_by_main(state_key(cookie ? cookie : argument(ctx, 0), old, new), twin))
		return 0;
	if (!tp) {
		if (twin)
			skipped_out_of_scope(KIND_STATE);
		return 0;
	}

	err = sk->sk_err;
	if (new == TCP_CLOSE) {
		if (old == TCP_SYN_SENT && tp->segs_out == 0)
			flags |= FLAG_NO_SEGMENT;
		if (sk->sk_lingertime == 0 &&
		    has_flag(sk, bpf_core_enum_value(enum sock_flags, SOCK_LINGER)))
			flags |= FLAG_LINGER0;
		if (old == TCP_FIN_WAIT2 || old == TCP_CLOSING) {
			r = recent_of(cookie);
			if (r && r->tw_made == cookie)
				flags |= FLAG_TW_MADE;
			else if (r && r->rst_sent != cookie && !err)
				overflow = tw_overflowed(net) && by_time_wait(ctx, sk, tp, old);
		}
	}

	socket_event(sk, tp, KIND_STATE, cookie, netns, old, new, err, flags);
	if (overflow)
		socket_event(sk, tp, KIND_TW_OVERFLOW, cookie, netns, old, new, err, flags);
	return 0;
}

#endif
