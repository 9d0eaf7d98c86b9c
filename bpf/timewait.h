/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * TIME_WAIT is a minisock that lives exactly as long as its timer: the timer's
 * start, cancellation and expiry are its whole life. All three tracepoints fire
 * under the timer base's lock with interrupts off, so these programs are never
 * nested and need no twin.
 */
#ifndef TWTRACE_TIMEWAIT_H
#define TWTRACE_TIMEWAIT_H

#define MAX_DEPTH 16

static __always_inline struct inet_timewait_sock *tw_of(struct timer_list *t)
{
	if (!tw_timer_handler_addr || (__u64)t->function != tw_timer_handler_addr)
		return NULL;
	return (void *)t - bpf_core_field_offset(struct inet_timewait_sock, tw_timer);
}

static __always_inline __u64 tw_netns(struct inet_timewait_sock *tw)
{
	return BPF_CORE_READ(tw, __tw_common.skc_net.net, net_cookie);
}

/*
 * The minisock is reached from its timer, so the verifier knows no type for
 * it: hence the probe reads.
 */
static __always_inline void tw_event(struct inet_timewait_sock *tw, __u64 netns, __u64 cookie,
				     __u8 kind, __u8 cause, __u32 ticks)
{
	__u16 local_port = BPF_CORE_READ(tw, __tw_common.skc_num);
	__u16 peer_port = bpf_ntohs(BPF_CORE_READ(tw, __tw_common.skc_dport));
	__u16 family = BPF_CORE_READ(tw, __tw_common.skc_family);
	struct event *e;

	if (!wants(kind) || !passes(family, local_port, peer_port) || !is_selected(cookie))
		return;
	e = event_begin(kind, false);
	if (!e)
		return;
	e->cookie = cookie;
	e->netns = netns;
	e->family = family;
	if (e->family == AF_INET6) {
		BPF_CORE_READ_INTO(&e->local, tw, __tw_common.skc_v6_rcv_saddr.in6_u.u6_addr8);
		BPF_CORE_READ_INTO(&e->peer, tw, __tw_common.skc_v6_daddr.in6_u.u6_addr8);
	} else {
		BPF_CORE_READ_INTO((__u32 *)e->local, tw, __tw_common.skc_rcv_saddr);
		BPF_CORE_READ_INTO((__u32 *)e->peer, tw, __tw_common.skc_daddr);
	}
	e->local_port = local_port;
	e->peer_port = peer_port;
	e->substate = BPF_CORE_READ(tw, tw_substate);
	e->old_state = kind == KIND_TW_ENTER ? 0 : TCP_TIME_WAIT;
	e->new_state = kind == KIND_TW_END ? TCP_CLOSE : TCP_TIME_WAIT;
	e->cause = cause;
	e->ticks = ticks;
	event_end(e);
}

static __always_inline int handle_timer_start(struct timer_list *t)
{
	struct inet_timewait_sock *tw = tw_of(t);
	struct scratch *s;
	struct recent *r;
	__u64 netns, cookie;

	if (!tw)
		return 0;
	netns = tw_netns(tw);
	if (!in_scope(netns))
		return 0;
	s = this_scratch();
	if (s && s->rearming) {
		/* __mod_timer() took it off one wheel slot and puts it on another, next. */
		bool same = s->rearming == (__u64)tw;

		s->rearming = 0;
		if (same)
			return 0;
	}
	cookie = BPF_CORE_READ(tw, __tw_common.skc_cookie.counter);
	r = recent_of(cookie);
	if (r)
		r->tw_made = cookie;
	selected_time_wait(cookie);
	tw_event(tw, netns, cookie, KIND_TW_ENTER, CAUSE_NONE, t->expires - bpf_jiffies64());
	return 0;
}

/*
 * What the function that holds this address means. Binary search over the
 * table of user space; 0: not in the table.
 */
__global int frame_cause(__u64 ip)
{
	__u32 lo = 0, hi = frame_count;

	for (int i = 0; i < 6 && lo < hi; i++) {
		__u32 mid = (lo + hi) / 2 & (MAX_FRAMES - 1);

		if (ip < frames[mid].start)
			hi = mid;
		else if (ip >= frames[mid].end)
			lo = mid + 1;
		else
			return frames[mid].cause;
	}
	return CAUSE_NONE;
}

/*
 * The nearest known frame decides: a timer softirq can sit on top of a task
 * that is itself inside connect().
 */
static __always_inline __u8 nearest_cause(void *ctx)
{
	__u64 ips[MAX_DEPTH];
	long n = bpf_get_stack(ctx, ips, sizeof(ips), 0);

	for (int i = 0; i < MAX_DEPTH; i++) {
		__u8 cause;

		if (i * 8 >= n)
			break;
		cause = frame_cause(ips[i]);
		if (cause)
			return cause;
	}
	return CAUSE_UNKNOWN;
}

static __always_inline int handle_timer_cancel(void *ctx, struct timer_list *t)
{
	struct inet_timewait_sock *tw = tw_of(t);
	struct scratch *s;
	struct recent *r;
	__u64 netns, cookie;
	__u8 cause;

	if (!tw)
		return 0;
	netns = tw_netns(tw);
	if (!in_scope(netns))
		return 0;
	cause = nearest_cause(ctx);
	if (cause == CAUSE_EXPIRED)
		return 0; /* timer_expire_entry follows */
	if (cause == CAUSE_REARMED) {
		s = this_scratch();
		if (s)
			s->rearming = (__u64)tw;
		return 0;
	}
	cookie = BPF_CORE_READ(tw, __tw_common.skc_cookie.counter);
	if (cause == CAUSE_REPLACED_BY_SYN) {
		/* tcp_v4_rcv() also ends it after answering data with RST (TCP_TW_RST). */
		r = recent_of(cookie);
		if (r && r->rst_sent == cookie)
			cause = CAUSE_KILLED_BY_RST;
	}
	tw_event(tw, netns, cookie, KIND_TW_END, cause, 0);
	forget_time_wait(cookie);
	return 0;
}

static __always_inline int handle_timer_expire(struct timer_list *t)
{
	struct inet_timewait_sock *tw = tw_of(t);
	__u64 netns, cookie;

	if (!tw)
		return 0;
	netns = tw_netns(tw);
	if (!in_scope(netns))
		return 0;
	cookie = BPF_CORE_READ(tw, __tw_common.skc_cookie.counter);
	tw_event(tw, netns, cookie, KIND_TW_END, CAUSE_EXPIRED, 0);
	forget_time_wait(cookie);
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
