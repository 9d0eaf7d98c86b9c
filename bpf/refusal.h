/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Why a connect() could not have the ports that it tried. __inet_hash_connect() asks
 * for one after the other (net/ipv4/inet_hashtables.c); ports that are reserved, or
 * that somebody bound, it passes over without asking. All of it happens in the
 * task that connects, which holds the socket's lock.
 */
#ifndef TWTRACE_REFUSAL_H
#define TWTRACE_REFUSAL_H

#define LOOPBACK_IFINDEX 1 /* include/net/flow.h */

/* 127.0.0.0/8, in network byte order. */
static __always_inline bool is_loopback4(__be32 addr)
{
	return (addr & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
}

static __always_inline bool is_loopback6(const __be32 *addr)
{
	if (addr[0] || addr[1])
		return false;
	return (addr[2] == 0 && addr[3] == bpf_htonl(1)) ||
	       (addr[2] == bpf_htonl(0xffff) && is_loopback4(addr[3]));
}

/* What tcp_tw_reuse=2 takes for loopback (net/ipv4/tcp_ipv4.c, tcp_twsk_unique). */
static __always_inline bool is_loopback(struct sock *tw)
{
	__be32 addr[4];

	if (BPF_CORE_READ(tw, __sk_common.skc_bound_dev_if) == LOOPBACK_IFINDEX)
		return true;
	if (BPF_CORE_READ(tw, __sk_common.skc_family) == AF_INET)
		return is_loopback4(BPF_CORE_READ(tw, __sk_common.skc_daddr)) ||
		       is_loopback4(BPF_CORE_READ(tw, __sk_common.skc_rcv_saddr));
	BPF_CORE_READ_INTO(&addr, tw, __sk_common.skc_v6_daddr);
	if (is_loopback6(addr))
		return true;
	BPF_CORE_READ_INTO(&addr, tw, __sk_common.skc_v6_rcv_saddr);
	return is_loopback6(addr);
}

/*
 * Why tcp_twsk_unique() refused. What nothing can change comes first: without timestamps
 * no setting helps. A socket with a port of its own (no twp) may have every other TIME_WAIT
 * but one that is just being made, and has no reference count yet.
 */
static __always_inline enum refusal why_refused(struct sock *sk, struct sock *sktw, void *twp)
{
	struct tcp_timewait_sock *tw = (void *)sktw;
	__u8 reuse;

	if (!BPF_CORE_READ(tw, tw_ts_recent_stamp))
		return REFUSED_NO_TIMESTAMPS;
	if (!twp)
		return REFUSED_TOO_YOUNG;
	reuse = BPF_CORE_READ(sk, __sk_common.skc_net.net, ipv4.sysctl_tcp_tw_reuse);
	if (reuse == 0 || BPF_CORE_READ(tw, tw_sk.tw_substate) == TCP_FIN_WAIT2 ||
	    (reuse == 2 && !is_loopback(sktw)))
		return REFUSED_NOT_ALLOWED;
	return REFUSED_TOO_YOUNG;
}

/* tcp_twsk_unique(), which __inet_check_established() asks, has returned 0. */
static __always_inline int handle_tw_refused(struct sock *sk, struct sock *sktw, void *twp)
{
	struct refused *r = refused_of(sk->__sk_common.skc_cookie.counter);
	enum refusal why;

	if (!r)
		return 0;
	why = why_refused(sk, sktw, twp);
	if (why < REFUSED_TAKEN)
		r->by[why]++;
	return 0;
}

/*
 * __inet_check_established(death_row, sk, lport, twp) or its twin for IPv6 has
 * returned. Since 6.15 there are two more arguments (rcu_lookup, hash): a look without
 * lock comes first, which fails for live connections only, and then nobody asks
 * again; where it does not fail the other call decides. So each port fails once.
 */
static __always_inline int handle_port_checked(unsigned long long *ctx)
{
	struct sock *sk = (void *)ctx[1];
	struct refused *r;
	__u64 ret = 0;

	bpf_get_func_ret(ctx, &ret);
	if ((int)ret == 0)
		return 0;
	r = refused_of(sk->__sk_common.skc_cookie.counter);
	if (r)
		r->checks++;
	return 0;
}

#endif
