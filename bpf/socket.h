/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What every event of a full socket has. */
#ifndef TWTRACE_SOCKET_H
#define TWTRACE_SOCKET_H

/*
 * The socket's cookie, which it gets now if nobody has asked for it yet: main program and
 * twin must see the same.
 */
static __always_inline __u64 cookie_of(struct sock *sk)
{
	__u64 cookie = sk->__sk_common.skc_cookie.counter;

	return cookie ? cookie : bpf_get_socket_cookie(sk);
}

/* What is known of an event before it has a place in the ring. */
struct facts {
	__u64 cookie;
	__u64 netns;
	const struct owner *owner;     /* NULL: not known here */
	const struct refused *refused; /* of a connect() that failed; NULL: not known */
	__u32 call;
	int old_state;
	int new_state;
	int err;
	__u16 local_port;
	__u16 peer_port;
	__u8 flags;
};

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

/* Whatever was not refused for a TIME_WAIT has a live connection. */
static __always_inline void put_refusals(struct event *e, const struct refused *r)
{
	__u32 taken = r->checks;

	for (int why = 0; why < REFUSED_TAKEN; why++) {
		__u32 n = r->by[why];

		e->refusals[why] = n < 0xffff ? n : 0xffff;
		taken -= n < taken ? n : taken;
	}
	e->refusals[REFUSED_TAKEN] = taken < 0xffff ? taken : 0xffff;
	e->flags |= FLAG_REFUSALS;
}

/* nth counts the events of one call, which are one for the account of what was skipped. */
static __always_inline void socket_event(struct sock *sk, __u8 kind, __u8 cause, __u8 *nth,
					 const struct facts *f)
{
	struct event *e = event_begin(kind, f->flags & FLAG_RESCUED);
	__u8 n = (*nth)++; /* an event that found no room was asked for all the same */

	if (!e)
		return;
	e->cookie = f->cookie;
	e->netns = f->netns;
	put_addresses(e, &sk->__sk_common);
	e->local_port = f->local_port;
	e->peer_port = f->peer_port;
	e->err = f->err;
	e->call = f->call;
	e->cause = cause;
	e->old_state = f->old_state;
	e->new_state = f->new_state;
	e->flags = f->flags;
	e->nth = n;
	if (f->owner)
		put_owner(e, f->owner);
	if (kind == KIND_CONNECT_FAILED && f->refused)
		put_refusals(e, f->refused);
	event_end(e);
}

/*
 * An event of a socket that changes nothing; wanted: as far as the caller knows. It is
 * counted as not asked for if the options leave it out.
 */
static __always_inline int plain_event(struct sock *sk, __u8 kind, int err, bool wanted, bool twin)
{
	__u64 netns = sk->__sk_common.skc_net.net->net_cookie;
	bool ours = sk->sk_protocol == IPPROTO_TCP && in_scope(netns);
	__u64 of = cookie_of(sk);
	struct facts f = {.netns = netns};
	struct tcp_sock *tp;
	__u8 nth = 0;

	if (handled_by_main(of, KIND(kind), twin))
		return 0;
	tp = wanted && ours ? bpf_skc_to_tcp_sock(sk) : NULL;
	if (tp) {
		f.cookie = of;
		f.call = call_of(of, KIND(kind));
		f.old_state = f.new_state = sk->__sk_common.skc_state;
		f.err = err;
		/* skc_num is 0 already when an auto-bound socket closes. */
		f.local_port = bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport);
		f.peer_port = bpf_ntohs(sk->__sk_common.skc_dport);
		f.flags = twin ? FLAG_RESCUED : 0;
		if (passes(sk->__sk_common.skc_family, f.local_port, f.peer_port) &&
		    is_selected(f.cookie)) {
			if (failures_only)
				f.owner = bpf_sk_storage_get(&owners, sk, NULL, 0);
			socket_event(sk, kind, CAUSE_NONE, &nth, &f);
			return 0;
		}
	}
	not_asked_for(kind, twin);
	return 0;
}

#endif
