/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Segments sent again: what makes connects stall for one, three, seven seconds. */
#ifndef TWTRACE_RETRANSMIT_H
#define TWTRACE_RETRANSMIT_H

static __always_inline int handle_retransmit(void *ctx, struct sock *sk, int err, bool twin)
{
	__u64 netns = sk->__sk_common.skc_net.net->net_cookie;
	struct tcp_sock *tp;
	int state;

	if (handled_by_main(reset_key(argument(ctx, 0), argument(ctx, 1), KIND_RETRANSMIT), twin))
		return 0;
	tp = in_scope(netns) ? bpf_skc_to_tcp_sock(sk) : NULL;
	if (!tp) {
		if (twin)
			skipped_out_of_scope(KIND_RETRANSMIT);
		return 0;
	}
	state = sk->__sk_common.skc_state;
	socket_event(sk, tp, KIND_RETRANSMIT, bpf_get_socket_cookie(sk), netns, state, state, -err,
		     twin ? FLAG_RESCUED : 0);
	return 0;
}

static __always_inline int handle_retransmit_synack(void *ctx, struct request_sock *req, bool twin)
{
	__u64 netns = req->__req_common.skc_net.net->net_cookie;
	struct event *e;

	if (handled_by_main(reset_key(argument(ctx, 0), argument(ctx, 1), KIND_SYNACK_RETRANSMIT),
			    twin))
		return 0;
	if (!in_scope(netns)) {
		if (twin)
			skipped_out_of_scope(KIND_SYNACK_RETRANSMIT);
		return 0;
	}
	e = event_begin(KIND_SYNACK_RETRANSMIT, twin);
	if (!e)
		return 0;
	e->cookie = req->__req_common.skc_cookie.counter;
	e->netns = netns;
	put_addresses(e, &req->__req_common);
	e->local_port = req->__req_common.skc_num;
	e->peer_port = bpf_ntohs(req->__req_common.skc_dport);
	e->old_state = TCP_NEW_SYN_RECV;
	e->new_state = TCP_NEW_SYN_RECV;
	e->flags = twin ? FLAG_RESCUED : 0;
	event_end(e);
	return 0;
}

#endif
