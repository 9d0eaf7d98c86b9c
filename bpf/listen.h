/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Segments that a listener dropped without a word: SYNs, when its accept queue or
 * its SYN queue is full, and the last ACK of a handshake, whose connect() has
 * returned by then.
 *
 * No tracepoint says so, but each such segment is consumed or freed on the CPU and
 * in the softirq that dropped it, right after sk_drops of the listener was
 * counted up (net/ipv4/tcp_input.c, tcp_conn_request; tcp_ipv4.c,
 * tcp_v4_syn_recv_sock): a segment to a watched port, and sk_drops has
 * changed. A drop that was missed shows in the next difference.
 */
#ifndef TWTRACE_LISTEN_H
#define TWTRACE_LISTEN_H

#define ETH_P_IP   0x0800
#define ETH_P_IPV6 0x86dd

#define TH_FIN 0x01
#define TH_SYN 0x02
#define TH_RST 0x04
#define TH_ACK 0x10

#define MAX_AT_ONCE 4 /* drops that one look reports */

/* Watch a listener; 0 if there is no room. */
__global int watch_listener(__u64 address, __u64 netns, __u64 cookie, __u32 port)
{
	struct port_key key = {.netns = netns, .port = port};
	struct listeners *l = bpf_map_lookup_elem(&listening, &key);
	struct sock *sk = (void *)address;
	struct account *acc;

	if (!l) {
		bpf_map_update_elem(&listening, &key, &no_listeners, BPF_NOEXIST);
		l = bpf_map_lookup_elem(&listening, &key);
	}
	if (!l)
		return 0;
	for (int i = 0; i < MAX_SHARED; i++) {
		struct watched *w = &l->of[i];

		if (w->cookie == cookie)
			return 1;
		if (!__sync_bool_compare_and_swap(&w->cookie, 0, cookie))
			continue;
		w->seen = BPF_CORE_READ(sk, sk_drops.counter);
		w->sk = address;
		acc = this_account();
		if (acc)
			__sync_fetch_and_add(&acc->listeners_begun, 1);
		return 1;
	}
	return 0;
}

static __always_inline void listener_begins(struct sock *sk, const struct facts *f)
{
	if (!watch_listener(address_of(sk), f->netns, f->cookie, f->local_port))
		count_untracked();
}

/* Forget a listener; returns how many drops were not reported yet. */
__global int unwatch_listener(__u64 address, __u64 netns, __u64 cookie, __u32 port)
{
	struct port_key key = {.netns = netns, .port = port};
	struct listeners *l = bpf_map_lookup_elem(&listening, &key);
	struct sock *sk = (void *)address;
	struct account *acc = this_account();
	__u32 n = 0;

	if (!l)
		return 0;
	for (int i = 0; i < MAX_SHARED; i++) {
		struct watched *w = &l->of[i];

		if (w->cookie != cookie)
			continue;
		n = BPF_CORE_READ(sk, sk_drops.counter) - w->seen;
		w->sk = 0;
		w->seen = 0;
		w->cookie = 0;
		if (acc)
			__sync_fetch_and_add(&acc->listeners_ended, 1);
	}
	return n;
}

/*
 * In the order in which tcp_conn_request() asks, of the queues as they are now. A
 * full SYN queue drops only without cookies; below that, it keeps a quarter for
 * peers that are known.
 */
__global int drop_cause(__u64 address, __u32 syn)
{
	struct inet_connection_sock *icsk = (void *)address;
	struct sock *sk = (void *)address;
	struct net *net = BPF_CORE_READ(sk, __sk_common.skc_net.net);
	__u32 max = BPF_CORE_READ(sk, sk_max_ack_backlog);
	int queued = BPF_CORE_READ(icsk, icsk_accept_queue.qlen.counter);
	int limit = BPF_CORE_READ(net, ipv4.sysctl_max_syn_backlog);

	if (syn && !BPF_CORE_READ(net, ipv4.sysctl_tcp_syncookies) &&
	    ((__u32)queued > max || limit - queued < limit >> 2))
		return CAUSE_SYN_QUEUE;
	if (BPF_CORE_READ(sk, sk_ack_backlog) > max)
		return CAUSE_ACCEPT_QUEUE;
	return CAUSE_OTHER;
}

/*
 * How many handshakes sk_drops means that it lost by their last ACK: for one that met
 * a full queue both tcp_listendrop() and tcp_v4_rcv() count, or only the first if
 * it came with a SYN cookie; for one that was held back for its data
 * (TCP_DEFER_ACCEPT) only the second does, and nothing is lost.
 */
__global __u32 lost_acks(__u64 address, __u32 counted, __u32 cause)
{
	struct inet_connection_sock *icsk = (void *)address;

	if (counted == 1 && cause == CAUSE_ACCEPT_QUEUE)
		return BPF_CORE_READ(icsk, icsk_accept_queue.rskq_defer_accept) == 0;
	return counted / 2;
}

/* What is left when a listener closes; the segments are not known any more. */
static __always_inline void listener_ends(struct sock *sk, struct facts *f, bool asked_for,
					  __u8 *nth)
{
	__u32 n = unwatch_listener(address_of(sk), f->netns, f->cookie, f->local_port);

	if (!asked_for)
		return;
	f->flags |= FLAG_LATE;
	f->owner = NULL;
	f->err = 0;
	f->old_state = f->new_state = TCP_LISTEN;
	for (__u32 i = 0; i < MAX_AT_ONCE && i < n; i++)
		socket_event(sk, KIND_LISTEN_DROP, CAUSE_OTHER, nth, f);
}

/* A segment that is gone for good; consumed: after it was handled (consume_skb). */
static __always_inline int handle_segment_gone(const struct sk_buff *skb, bool consumed)
{
	__u16 offset = skb->transport_header;
	struct port_key key = {};
	struct segment seg = {};
	struct listeners *l;
	__u8 th[14], ip[10];
	__u8 flags;

	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6))
		return 0;
	if (offset == (__u16)~0U)
		return 0;
	if (bpf_probe_read_kernel(th, sizeof(th), skb->head + offset))
		return 0;
	flags = th[13] & (TH_FIN | TH_SYN | TH_RST | TH_ACK);
	if (consumed ? flags != TH_SYN : (flags & (TH_SYN | TH_RST | TH_ACK)) != TH_ACK)
		return 0;
	if (bpf_probe_read_kernel(ip, sizeof(ip), skb->head + skb->network_header))
		return 0;
	if ((ip[0] >> 4 == 6 ? ip[6] : ip[9]) != IPPROTO_TCP)
		return 0;
	key.netns = skb_netns(skb);
	key.port = th[2] << 8 | th[3];
	if (!in_scope(key.netns))
		return 0;
	l = bpf_map_lookup_elem(&listening, &key);
	if (!l)
		return 0;
	for (int i = 0; i < MAX_SHARED; i++) {
		struct watched *w = &l->of[i];
		__u64 address = w->sk;
		struct sock *sk = (void *)address;
		__u32 seen = w->seen, drops, n;
		__u8 cause;

		if (!address)
			continue;
		drops = BPF_CORE_READ(sk, sk_drops.counter);
		if (drops == seen || __sync_val_compare_and_swap(&w->seen, seen, drops) != seen)
			continue;
		n = drops - seen;
		cause = drop_cause(address, consumed);
		if (!consumed)
			n = lost_acks(address, n, cause);
		for (__u32 j = 0; j < MAX_AT_ONCE && j < n; j++) {
			struct event *e;

			if (!is_selected(w->cookie))
				break;
			read_segment(&seg, skb);
			if (!passes(seg.family, seg.local_port, seg.peer_port))
				break;
			e = event_begin(KIND_LISTEN_DROP, false);
			if (!e)
				break;
			e->cookie = w->cookie;
			e->netns = key.netns;
			put_segment(e, &seg);
			e->cause = cause;
			e->old_state = e->new_state = TCP_LISTEN;
			/* Where the peer is: it waits, or it takes itself for connected. */
			e->substate = consumed ? TCP_SYN_SENT : TCP_ESTABLISHED;
			if (j)
				e->flags = FLAG_LATE;
			event_end(e);
		}
	}
	return 0;
}

/*
 * 6.12 and later give the socket that dropped the segment. A minisock in FIN_WAIT2
 * takes the peer's FIN for what makes it TIME_WAIT, acknowledges it and frees it
 * (net/ipv4/tcp_minisocks.c, tcp_timewait_state_process); its timer is mostly left
 * where it is. A FIN that is sent again looks the same: user space knows which
 * minisocks began in FIN_WAIT2, and takes the first.
 */
static __always_inline int handle_tw_segment(const struct sk_buff *skb, struct sock *sk)
{
	struct inet_timewait_sock *tw = (void *)sk;
	__u64 netns, cookie;
	__u8 flags = 0;

	if (BPF_CORE_READ(tw, tw_substate) != TCP_TIME_WAIT)
		return 0;
	if (bpf_probe_read_kernel(&flags, 1, skb->head + skb->transport_header + 13))
		return 0;
	if ((flags & (TH_FIN | TH_SYN | TH_RST)) != TH_FIN)
		return 0;
	netns = tw_netns(tw);
	if (!in_scope(netns))
		return 0;
	cookie = BPF_CORE_READ(tw, __tw_common.skc_cookie.counter);
	tw_event(tw, netns, cookie, KIND_TW_CONVERT, CAUSE_NONE, 0);
	return 0;
}

#endif
