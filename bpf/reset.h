/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* RST segments, sent and received. */
#ifndef TWTRACE_RESET_H
#define TWTRACE_RESET_H

/*
 * Addresses and ports of the segment that is answered, turned round: what is
 * its destination is our own end.
 */
static __always_inline void put_segment(struct event *e, const struct sk_buff *skb)
{
	unsigned char *head = BPF_CORE_READ(skb, head);
	unsigned char *ip = head + BPF_CORE_READ(skb, network_header);
	unsigned char *th = head + BPF_CORE_READ(skb, transport_header);
	__u8 version = 0;
	__be16 ports[2] = {};

	bpf_probe_read_kernel(&version, 1, ip);
	bpf_probe_read_kernel(ports, sizeof(ports), th);
	e->peer_port = bpf_ntohs(ports[0]);
	e->local_port = bpf_ntohs(ports[1]);
	if (version >> 4 == 6) {
		e->family = AF_INET6;
		bpf_probe_read_kernel(e->peer, 16, ip + 8);
		bpf_probe_read_kernel(e->local, 16, ip + 24);
	} else {
		e->family = AF_INET;
		bpf_probe_read_kernel(e->peer, 4, ip + 12);
		bpf_probe_read_kernel(e->local, 4, ip + 16);
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
 * sk is the socket that sends: full, minisock or request; NULL if the segment
 * found none. skb is the segment that is answered; NULL if the socket's own
 * side closed it (tcp_send_active_reset).
 */
static __always_inline int handle_send_reset(const struct sock *sk, const struct sk_buff *skb,
					     __u32 reason, bool twin)
{
	__u64 netns = 0, cookie = 0, key;
	struct tcp_sock *tp = NULL;
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
	key = kind_key(cookie ^ (skb ? (__u64)BPF_CORE_READ(skb, head) : 0), KIND_RST_SENT);
	if (handled_by_main(key, twin))
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
	if (wants(KIND_RST_SENT) && is_selected(cookie))
		e = event_begin(KIND_RST_SENT, twin);
	else
		not_asked_for(KIND_RST_SENT, twin);
	if (!e)
		return 0;
	e->cookie = cookie;
	e->netns = netns;
	e->reason = reason;
	e->call = call_of(key);
	e->old_state = state;
	e->new_state = state;
	e->flags = twin ? FLAG_RESCUED : 0;
	if (skb) {
		put_segment(e, skb);
	} else {
		e->flags |= FLAG_ACTIVE;
		if (sk) {
			put_addresses(e, &sk->__sk_common);
			e->local_port = sk->__sk_common.skc_num;
			e->peer_port = bpf_ntohs(sk->__sk_common.skc_dport);
			/* skc_num is 0 already when the port was given back. */
			tp = bpf_skc_to_tcp_sock((void *)sk);
			if (tp)
				e->local_port = bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport);
		}
	}
	event_end(e);
	return 0;
}

#endif
