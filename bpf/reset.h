/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* RST segments, sent and received. */
#ifndef TWTRACE_RESET_H
#define TWTRACE_RESET_H

/*
 * Addresses and ports of the segment that is answered, turned round: what is
 * its destination is our own end.
 */
struct segment {
	unsigned char *ip;
	__u16 local_port;
	__u16 peer_port;
	__u8 family;
};

static __always_inline void read_segment(struct segment *s, const struct sk_buff *skb)
{
	unsigned char *head = BPF_CORE_READ(skb, head);
	__be16 ports[2] = {};
	__u8 version = 0;

	s->ip = head + BPF_CORE_READ(skb, network_header);
	bpf_probe_read_kernel(&version, 1, s->ip);
	bpf_probe_read_kernel(ports, sizeof(ports), head + BPF_CORE_READ(skb, transport_header));
	s->family = version >> 4 == 6 ? AF_INET6 : AF_INET;
	s->peer_port = bpf_ntohs(ports[0]);
	s->local_port = bpf_ntohs(ports[1]);
}

static __always_inline void put_segment(struct event *e, const struct segment *s)
{
	e->family = s->family;
	e->local_port = s->local_port;
	e->peer_port = s->peer_port;
	if (s->family == AF_INET6) {
		bpf_probe_read_kernel(e->peer, 16, s->ip + 8);
		bpf_probe_read_kernel(e->local, 16, s->ip + 24);
	} else {
		bpf_probe_read_kernel(e->peer, 4, s->ip + 12);
		bpf_probe_read_kernel(e->local, 4, s->ip + 16);
	}
}

static __always_inline __u64 skb_netns(const struct sk_buff *skb)
{
	struct net_device *dev = BPF_CORE_READ(skb, dev);

	if (!dev) {
		/* Bits 0-2 of _skb_refdst are flags (SKB_DST_NOREF). */
		struct dst_entry *dst = (void *)(BPF_CORE_READ(skb, _skb_refdst) & ~7UL);

		dev = BPF_CORE_READ(dst, dev);
	}
	return BPF_CORE_READ(dev, nd_net.net, net_cookie);
}

/*
 * Tells the segment from others: buffers are used again at once, but not with the same
 * numbers (seq and ack_seq).
 */
static __always_inline __u64 segment_id(const struct sk_buff *skb)
{
	unsigned char *head = BPF_CORE_READ(skb, head);
	__u64 numbers = 0;

	bpf_probe_read_kernel(&numbers, sizeof(numbers),
			      head + BPF_CORE_READ(skb, transport_header) + 4);
	return (__u64)head ^ numbers;
}

/*
 * sk is the socket that sends: full, minisock or request; NULL if the segment
 * found none. skb is the segment that is answered; NULL if the socket's own
 * side closed it (tcp_send_active_reset).
 */
static __always_inline int handle_send_reset(const struct sock *sk, const struct sk_buff *skb,
					     __u32 reason, bool twin)
{
	__u64 netns = 0, cookie = 0, of;
	struct segment seg = {};
	struct tcp_sock *tp;
	struct event *e = NULL;
	struct recent *r;
	__u8 state = 0;

	if (sk) {
		netns = sk->__sk_common.skc_net.net->net_cookie;
		state = sk->__sk_common.skc_state;
	} else if (skb) {
		netns = skb_netns(skb);
	}
	/* A listener answers for connections that it does not have. */
	if (sk && state != TCP_LISTEN)
		cookie = sk->__sk_common.skc_cookie.counter;
	of = cookie ^ (skb ? segment_id(skb) : 0);
	if (handled_by_main(of, KIND(KIND_RST_SENT), twin))
		return 0;
	if (!in_scope(netns)) {
		not_asked_for(KIND_RST_SENT, twin);
		return 0;
	}
	if (cookie) {
		r = recent_of(cookie);
		if (r)
			r->rst_sent = cookie;
	}
	if (skb) {
		read_segment(&seg, skb);
	} else if (sk) {
		seg.family = sk->__sk_common.skc_family;
		seg.local_port = sk->__sk_common.skc_num;
		seg.peer_port = bpf_ntohs(sk->__sk_common.skc_dport);
		/* skc_num is 0 already when the port was given back. */
		tp = bpf_skc_to_tcp_sock((void *)sk);
		if (tp)
			seg.local_port = bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport);
	}
	if (wants(KIND_RST_SENT) && passes(seg.family, seg.local_port, seg.peer_port) &&
	    is_selected(cookie))
		e = event_begin(KIND_RST_SENT, twin);
	else
		not_asked_for(KIND_RST_SENT, twin);
	if (!e)
		return 0;
	e->cookie = cookie;
	e->netns = netns;
	e->reason = reason;
	e->call = call_of(of, KIND(KIND_RST_SENT));
	e->old_state = state;
	e->new_state = state;
	e->flags = twin ? FLAG_RESCUED : 0;
	if (skb) {
		put_segment(e, &seg);
	} else {
		e->flags |= FLAG_ACTIVE;
		e->local_port = seg.local_port;
		e->peer_port = seg.peer_port;
		if (sk)
			put_addresses(e, &sk->__sk_common);
	}
	event_end(e);
	return 0;
}

#endif
