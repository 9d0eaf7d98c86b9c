/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The TIME_WAIT that was not made: no room (tcp_max_tw_buckets), or no memory. */
#ifndef TWTRACE_OVERFLOW_H
#define TWTRACE_OVERFLOW_H

/*
 * inet_twsk_alloc() has returned NULL. tcp_time_wait() closes the socket next,
 * and the program of that change of state (state.h) tells.
 */
static __always_inline int handle_tw_denied(struct sock *sk)
{
	struct recent *r;
	__u64 cookie;

	if (sk->sk_protocol != IPPROTO_TCP || !in_scope(sk->__sk_common.skc_net.net->net_cookie))
		return 0;
	cookie = bpf_get_socket_cookie(sk);
	r = recent_of(cookie);
	if (r)
		r->tw_refused = cookie;
	return 0;
}

#endif
