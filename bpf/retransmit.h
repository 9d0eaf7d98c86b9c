/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Segments sent again: what makes connects stall for one, three, seven seconds. */
#ifndef TWTRACE_RETRANSMIT_H
#define TWTRACE_RETRANSMIT_H

static __always_inline int handle_retransmit_synack(struct request_sock *req, bool twin)
{
	__u64 netns = req->__req_common.skc_net.net->net_cookie;
	__u16 local_port = req->__req_common.skc_num;
	__u16 peer_port = bpf_ntohs(req->__req_common.skc_dport);
	__u64 cookie = req->__req_common.skc_cookie.counter;
	/* A request has no cookie unless someone asked for it. */
	__u64 of = cookie ^ (__u64)peer_port << 48 ^ (__u64)local_port << 32 ^
		   req->__req_common.skc_daddr;
	struct event *e = NULL;

	if (handled_by_main(of, KIND(KIND_SYNACK_RETRANSMIT), twin))
		return 0;
	if (in_scope(netns) && !by_owner() &&
	    passes(req->__req_common.skc_family, local_port, peer_port))
		e = event_begin(KIND_SYNACK_RETRANSMIT, twin);
	else
		not_asked_for(KIND_SYNACK_RETRANSMIT, twin);
	if (!e)
		return 0;
	e->cookie = cookie;
	e->netns = netns;
	put_addresses(e, &req->__req_common);
	e->local_port = local_port;
	e->peer_port = peer_port;
	e->call = call_of(of, KIND(KIND_SYNACK_RETRANSMIT));
	e->old_state = TCP_NEW_SYN_RECV;
	e->new_state = TCP_NEW_SYN_RECV;
	e->flags = twin ? FLAG_RESCUED : 0;
	event_end(e);
	return 0;
}

#endif
