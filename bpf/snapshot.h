/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What is there already when a trace begins. Run by user space, once, as iterators. */
#ifndef TWTRACE_SNAPSHOT_H
#define TWTRACE_SNAPSHOT_H

/* Sockets that processes have open: the process with the lowest number that holds one owns it. */
static __always_inline int handle_open_file(struct task_struct *task, struct file *file)
{
	struct socket *socket;
	struct owner *o;
	struct sock *sk;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk || !in_scope(sk->__sk_common.skc_net.net->net_cookie) || !bpf_skc_to_tcp_sock(sk))
		return 0;
	o = bpf_sk_storage_get(&owners, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!o) {
		count_untracked();
		return 0;
	}
	if (!o->pid)
		owner_of_task(o, task, cgroup_of(sk));
	return 0;
}

static __always_inline int handle_existing(struct sock_common *c)
{
	struct tcp_timewait_sock *tw = NULL;
	struct facts f = {};
	struct tcp_sock *tp;
	struct owner *o = NULL;
	struct event *e;
	__u32 ticks = 0;
	__u8 substate = 0;

	if (!c)
		return 0;
	f.netns = c->skc_net.net->net_cookie;
	if (!in_scope(f.netns))
		return 0;
	f.cookie = bpf_get_socket_cookie(c);
	f.old_state = c->skc_state;
	f.local_port = c->skc_num;
	f.peer_port = bpf_ntohs(c->skc_dport);
	tp = bpf_skc_to_tcp_sock(c);
	if (tp) {
		struct sock *sk = (void *)tp;

		o = bpf_sk_storage_get(&owners, sk, NULL, 0);
		if (f.old_state == TCP_LISTEN && wants(KIND_LISTEN_DROP))
			listener_begins(sk, &f);
		if (by_owner()) {
			if (!o || !is_wanted_owner(o, sk))
				return 0;
			select_connection(f.cookie);
		}
	} else if (by_owner()) {
		return 0; /* a minisock that was there has no owner */
	} else {
		tw = bpf_skc_to_tcp_timewait_sock(c);
		if (tw) {
			substate = tw->tw_sk.tw_substate;
			ticks = tw->tw_sk.tw_timer.expires - bpf_jiffies64();
		}
	}
	if (!wants(KIND_SNAPSHOT) || !passes(c->skc_family, f.local_port, f.peer_port))
		return 0;
	e = event_begin(KIND_SNAPSHOT, false);
	if (!e)
		return 0;
	e->cookie = f.cookie;
	e->netns = f.netns;
	put_addresses(e, c);
	e->local_port = f.local_port;
	e->peer_port = f.peer_port;
	e->old_state = e->new_state = f.old_state;
	e->substate = substate;
	e->ticks = ticks;
	if (o)
		put_owner(e, o);
	event_end(e);
	return 0;
}

#endif
