//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * A second witness of what the tracer records, for its tests: it counts, by network
 * namespace, at the entries and exits of kernel functions, and uses no tracepoint. With
 * bpf/ it shares the kernel's types and nothing else. programs.go says which
 * program gives which fact.
 */
#include <stdbool.h>

#include "../../bpf/kernel.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

/* bpf_probe_read_kernel and bpf_get_func_ret ask for a GPL-compatible licence. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define IPPROTO_TCP 6
#define ETH_P_IP    0x0800
#define TH_RST	    0x04
#define STATES	    16 /* more than there are; a power of two */

/* enum tcp_tw_status, include/net/tcp.h */
enum {
	TW_RST = 1,
	TW_ACK = 2,
	TW_SYN = 3,
};

enum fact {
	FACT_FIN_SENT,
	FACT_FIN_RECEIVED,
	FACT_RST_SENT,
	FACT_RST_RECEIVED,
	FACT_RETRANSMIT,
	FACT_SYNACK_RETRANSMIT,
	FACT_ERROR,
	FACT_MADE_FIN_WAIT2,
	FACT_MADE_TIME_WAIT,
	FACT_OVERFLOW,
	FACT_CONVERTED,
	FACT_EXPIRED,
	FACT_REUSED,
	FACT_REPLACED,
	FACT_KILLED,
	FACT_PURGED,
	FACT_DESTROYED,
	FACT_ENDED_OTHERWISE,
	FACT_PORT_SEARCH,
	FACT_FOUR_TUPLE_BUSY,
	FACT_BIND_FAILED,
	FACT_DROP_ACCEPT_QUEUE, /* a SYN */
	FACT_DROP_LAST_ACK,	/* by the accept queue */
	FACT_DROP_SYN_QUEUE,
	FACT_DROP_OTHER,
	NR_FACTS,
};

struct counts {
	__u64 facts[NR_FACTS];
	__u64 changes[STATES * STATES]; /* old state * STATES + new state */
};

/* By namespace cookie. User space inserts and deletes; others are not counted. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u64);
	__type(value, struct counts);
} watched SEC(".maps");

struct doom {
	__u32 fact;	/* how it is about to end; NR_FACTS: a segment is being looked at */
	__u32 substate; /* before that segment */
};

/*
 * Minisocks by address, of which is known how they will end if they end next. What is
 * about to end one inserts it; its end deletes it, and so does the birth of the next
 * at this address. If it is full, an end counts as FACT_ENDED_OTHERWISE.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 15);
	__type(key, __u64);
	__type(value, struct doom);
} doomed SEC(".maps");

/* Tasks inside inet_twsk_purge(), which there is one of at a time. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u64);
	__type(value, __u64);
} purging SEC(".maps");

/* What this CPU is doing. A listener works in a softirq, which none interrupts. */
struct here {
	bool accept_full; /* the listener's queues, as it is given a segment */
	bool syn_full;
	bool answered; /* the listener has */
	bool inner;    /* __tcp_retransmit_skb() was called, and not inlined */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct here);
} cpus SEC(".maps");

static __always_inline struct here *this_cpu(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&cpus, &zero);
}

static __always_inline void count(__u64 netns, __u32 fact)
{
	struct counts *c = bpf_map_lookup_elem(&watched, &netns);

	if (c && fact < NR_FACTS)
		__sync_fetch_and_add(&c->facts[fact], 1);
}

static __always_inline __u64 netns_of(const struct sock *sk)
{
	return sk->__sk_common.skc_net.net->net_cookie;
}

static __always_inline int returned(void *ctx)
{
	__u64 ret = 0;

	bpf_get_func_ret(ctx, &ret);
	return ret;
}

/* Full sockets. */

static __always_inline int count_change(const struct sock *sk, __u32 new)
{
	__u64 netns = netns_of(sk);
	struct counts *c = bpf_map_lookup_elem(&watched, &netns);
	__u32 change = sk->__sk_common.skc_state * STATES + new;

	barrier_var(change); /* 6.1's verifier wants the limit in one place */
	if (c && sk->sk_protocol == IPPROTO_TCP && change < STATES * STATES)
		__sync_fetch_and_add(&c->changes[change], 1);
	return 0;
}

/* Every change of state is made in one of these two (net/ipv4/af_inet.c). */
SEC("fentry/inet_sk_state_store")
int BPF_PROG(state_store, struct sock *sk, int state)
{
	return count_change(sk, state);
}

SEC("fentry/inet_sk_set_state")
int BPF_PROG(state_set, struct sock *sk, int state)
{
	return count_change(sk, state);
}

SEC("fentry/tcp_send_fin")
int BPF_PROG(fin_sent, struct sock *sk)
{
	count(netns_of(sk), FACT_FIN_SENT);
	return 0;
}

SEC("fentry/tcp_fin")
int BPF_PROG(fin_received, struct sock *sk)
{
	count(netns_of(sk), FACT_FIN_RECEIVED);
	return 0;
}

SEC("fentry/tcp_reset")
int BPF_PROG(rst_received, struct sock *sk)
{
	count(netns_of(sk), FACT_RST_RECEIVED);
	return 0;
}

/*
 * Compilers put the whole of __tcp_retransmit_skb() into tcp_retransmit_skb() (6.1), which
 * then counts by itself. A loss probe that such a kernel sends is not counted.
 */
SEC("fentry/tcp_retransmit_skb")
int BPF_PROG(retransmits)
{
	struct here *h = this_cpu();

	if (h)
		h->inner = false;
	return 0;
}

SEC("fexit/__tcp_retransmit_skb")
int BPF_PROG(retransmitted_inner, struct sock *sk)
{
	struct here *h = this_cpu();

	if (h)
		h->inner = true;
	if (returned(ctx) == 0)
		count(netns_of(sk), FACT_RETRANSMIT);
	return 0;
}

SEC("fexit/tcp_retransmit_skb")
int BPF_PROG(retransmitted, struct sock *sk)
{
	struct here *h = this_cpu();

	if (h && !h->inner && returned(ctx) == 0)
		count(netns_of(sk), FACT_RETRANSMIT);
	return 0;
}

SEC("fexit/tcp_rtx_synack")
int BPF_PROG(synack_again, struct sock *sk)
{
	if (returned(ctx) == 0)
		count(netns_of(sk), FACT_SYNACK_RETRANSMIT);
	return 0;
}

/* On entry: who waits for the error is told inside, and can take it at once. */
SEC("fentry/sk_error_report")
int BPF_PROG(error_reported, struct sock *sk)
{
	__u16 family = sk->__sk_common.skc_family;

	if (sk->sk_err && sk->sk_protocol == IPPROTO_TCP &&
	    (family == AF_INET || family == AF_INET6))
		count(netns_of(sk), FACT_ERROR);
	return 0;
}

/* RST segments. */

SEC("fentry/tcp_send_active_reset")
int BPF_PROG(rst_active, struct sock *sk)
{
	count(netns_of(sk), FACT_RST_SENT);
	return 0;
}

/*
 * The kernel answers an RST with none. (It also keeps silent to what was not sent to an
 * address of its own, and to a wrong signature; there is neither in the tests.)
 */
static __always_inline int rst_answer(const struct sock *sk, const struct sk_buff *skb)
{
	struct net_device *dev = skb->dev;
	struct dst_entry *dst;
	__u8 flags = 0;

	bpf_probe_read_kernel(&flags, 1, skb->head + skb->transport_header + 13);
	if (flags & TH_RST)
		return 0;
	if (sk) {
		count(netns_of(sk), FACT_RST_SENT);
		return 0;
	}
	if (!dev) {
		/* Bit 0 of _skb_refdst is a flag (SKB_DST_NOREF). */
		dst = (void *)(skb->_skb_refdst & ~7UL);
		dev = BPF_CORE_READ(dst, dev);
	}
	count(BPF_CORE_READ(dev, nd_net.net, net_cookie), FACT_RST_SENT);
	return 0;
}

SEC("fentry/tcp_v4_send_reset")
int BPF_PROG(rst_answer4, struct sock *sk, struct sk_buff *skb)
{
	return rst_answer(sk, skb);
}

SEC("fentry/tcp_v6_send_reset")
int BPF_PROG(rst_answer6, struct sock *sk, struct sk_buff *skb)
{
	return rst_answer(sk, skb);
}

/* TIME_WAIT: the minisock. */

static __always_inline void doom(__u64 tw, __u32 fact, __u32 substate)
{
	struct doom d = {.fact = fact, .substate = substate};

	bpf_map_update_elem(&doomed, &tw, &d, 0);
}

SEC("fexit/inet_twsk_alloc")
int BPF_PROG(tw_made, struct sock *sk, struct inet_timewait_death_row *row, int state)
{
	__u64 tw = 0;

	bpf_get_func_ret(ctx, &tw);
	if (!tw) {
		count(netns_of(sk), FACT_OVERFLOW);
		return 0;
	}
	bpf_map_delete_elem(&doomed, &tw);
	count(netns_of(sk), state == TCP_FIN_WAIT2 ? FACT_MADE_FIN_WAIT2 : FACT_MADE_TIME_WAIT);
	return 0;
}

/* A minisock that ends inside this function got an RST. */
SEC("fentry/tcp_timewait_state_process")
int BPF_PROG(tw_segment, struct inet_timewait_sock *tw)
{
	doom((__u64)tw, FACT_KILLED, tw->tw_substate);
	return 0;
}

SEC("fexit/tcp_timewait_state_process")
int BPF_PROG(tw_segment_done, struct inet_timewait_sock *tw)
{
	__u64 address = (__u64)tw;
	struct doom *d = bpf_map_lookup_elem(&doomed, &address);
	int status = returned(ctx);

	if (!d)
		return 0; /* it has ended */
	if (status == TW_ACK && d->substate == TCP_FIN_WAIT2 && tw->tw_substate == TCP_TIME_WAIT)
		count(BPF_CORE_READ(tw, __tw_common.skc_net.net, net_cookie), FACT_CONVERTED);
	/* What tcp_v4_rcv() does next: it answers with RST, or gives a listener the SYN. */
	if (status == TW_RST)
		d->fact = FACT_KILLED;
	else if (status == TW_SYN)
		d->fact = FACT_REPLACED;
	else
		bpf_map_delete_elem(&doomed, &address);
	return 0;
}

/* connect() takes the four-tuple of each minisock that this lets it take. */
SEC("fexit/tcp_twsk_unique")
int BPF_PROG(tw_unique, struct sock *sk, struct sock *sktw)
{
	if (returned(ctx))
		doom((__u64)sktw, FACT_REUSED, 0);
	return 0;
}

SEC("fentry/tw_timer_handler")
int BPF_PROG(tw_expires, struct timer_list *t)
{
	void *tw = (void *)t - bpf_core_field_offset(struct inet_timewait_sock, tw_timer);

	doom((__u64)tw, FACT_EXPIRED, 0);
	return 0;
}

SEC("fentry/tcp_abort")
int BPF_PROG(tw_aborted, struct sock *sk)
{
	if (sk->__sk_common.skc_state == TCP_TIME_WAIT)
		doom((__u64)sk, FACT_DESTROYED, 0);
	return 0;
}

SEC("fentry/inet_twsk_purge")
int BPF_PROG(purge_begins)
{
	__u64 task = bpf_get_current_pid_tgid();

	bpf_map_update_elem(&purging, &task, &task, 0);
	return 0;
}

SEC("fexit/inet_twsk_purge")
int BPF_PROG(purge_ends)
{
	__u64 task = bpf_get_current_pid_tgid();

	bpf_map_delete_elem(&purging, &task);
	return 0;
}

/* The end of every minisock. */
SEC("fentry/inet_twsk_kill")
int BPF_PROG(tw_ends, struct inet_timewait_sock *tw)
{
	__u64 address = (__u64)tw, task = bpf_get_current_pid_tgid();
	struct doom *d = bpf_map_lookup_elem(&doomed, &address);
	__u32 fact = d ? d->fact : FACT_ENDED_OTHERWISE;

	/* A timer that runs out meanwhile, on top of the task, is none of its doing. */
	if (fact != FACT_EXPIRED && bpf_map_lookup_elem(&purging, &task))
		fact = FACT_PURGED;
	count(BPF_CORE_READ(tw, __tw_common.skc_net.net, net_cookie), fact);
	bpf_map_delete_elem(&doomed, &address);
	return 0;
}

/* connect() and bind() that failed. */

static __always_inline int connect_done(void *ctx, const struct sock *sk)
{
	if (returned(ctx) < 0)
		count(netns_of(sk),
		      sk->__sk_common.skc_num ? FACT_FOUR_TUPLE_BUSY : FACT_PORT_SEARCH);
	return 0;
}

SEC("fexit/inet_hash_connect")
int BPF_PROG(connect4, struct inet_timewait_death_row *row, struct sock *sk)
{
	return connect_done(ctx, sk);
}

SEC("fexit/inet6_hash_connect")
int BPF_PROG(connect6, struct inet_timewait_death_row *row, struct sock *sk)
{
	return connect_done(ctx, sk);
}

static __always_inline int bind_done(void *ctx, const struct socket *sock)
{
	const struct sock *sk = sock->sk;

	if (returned(ctx) < 0 && sk->sk_protocol == IPPROTO_TCP)
		count(netns_of(sk), FACT_BIND_FAILED);
	return 0;
}

SEC("fexit/inet_bind")
int BPF_PROG(bind4, struct socket *sock)
{
	return bind_done(ctx, sock);
}

SEC("fexit/inet6_bind")
int BPF_PROG(bind6, struct socket *sock)
{
	return bind_done(ctx, sock);
}

/* What a listener drops. */

/* As the kernel is about to ask, in its order (net/ipv4/tcp_input.c, tcp_conn_request). */
static __always_inline int queues(const struct sock *sk)
{
	const struct inet_connection_sock *icsk = (const void *)sk;
	struct net *net = sk->__sk_common.skc_net.net;
	struct here *h = this_cpu();
	__u32 max = sk->sk_max_ack_backlog;
	int waiting = BPF_CORE_READ(icsk, icsk_accept_queue.qlen.counter);
	int limit = net->ipv4.sysctl_max_syn_backlog;

	if (!h)
		return 0;
	h->answered = false;
	h->accept_full = sk->sk_ack_backlog > max;
	h->syn_full = !net->ipv4.sysctl_tcp_syncookies &&
		      ((__u32)waiting > max || limit - waiting < limit >> 2);
	return 0;
}

SEC("fentry/tcp_conn_request")
int BPF_PROG(syn, void *ops, void *af_ops, struct sock *sk)
{
	return queues(sk);
}

static __always_inline int answered(void)
{
	struct here *h = this_cpu();

	if (h)
		h->answered = true;
	return 0;
}

SEC("fentry/inet_csk_reqsk_queue_hash_add")
int BPF_PROG(syn_queued)
{
	return answered();
}

SEC("fentry/cookie_v4_init_sequence")
int BPF_PROG(syn_cookie4)
{
	return answered();
}

SEC("fentry/cookie_v6_init_sequence")
int BPF_PROG(syn_cookie6)
{
	return answered();
}

SEC("fexit/tcp_conn_request")
int BPF_PROG(syn_done, void *ops, void *af_ops, struct sock *sk)
{
	struct here *h = this_cpu();

	if (!h || h->answered)
		return 0;
	count(netns_of(sk), h->syn_full	     ? FACT_DROP_SYN_QUEUE
			    : h->accept_full ? FACT_DROP_ACCEPT_QUEUE
					     : FACT_DROP_OTHER);
	return 0;
}

/* Seven arguments: not before 6.6. */
SEC("fentry/tcp_v4_syn_recv_sock")
int BPF_PROG(ack4, struct sock *sk)
{
	return queues(sk);
}

SEC("fentry/tcp_v6_syn_recv_sock")
int BPF_PROG(ack6, struct sock *sk)
{
	return queues(sk);
}

/* No child: only a full queue is what is looked for, and not a second ACK with one cookie. */
static __always_inline int ack_done(void *ctx, const struct sock *sk)
{
	struct here *h = this_cpu();
	__u64 child = 0;

	bpf_get_func_ret(ctx, &child);
	if (!child && h && h->accept_full)
		count(netns_of(sk), FACT_DROP_LAST_ACK);
	return 0;
}

SEC("fexit/tcp_v4_syn_recv_sock")
int BPF_PROG(ack4_done, struct sock *sk)
{
	return ack_done(ctx, sk);
}

/* For IPv4 on an IPv6 socket it calls the other. */
SEC("fexit/tcp_v6_syn_recv_sock")
int BPF_PROG(ack6_done, struct sock *sk, struct sk_buff *skb)
{
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return 0;
	return ack_done(ctx, sk);
}

/* Keeps the enum and the struct in the object's BTF, for bpf2go. */
enum fact *unused_fact __attribute__((unused));
struct counts *unused_counts __attribute__((unused));
