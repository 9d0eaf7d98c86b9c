/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Who holds the port that a bind() wanted. inet_csk_get_port() has said no and
 * does not say because of whom; it is looked for in the same table by the same
 * rule (net/ipv4/inet_connection_sock.c, inet_bind_conflict and
 * inet_rcv_saddr_equal) a moment later, without the table's locks: hence nothing but
 * reads that may fail, and steps that are counted.
 */
#ifndef TWTRACE_HOLDER_H
#define TWTRACE_HOLDER_H

#define MAX_STEPS (1 << 16) /* sockets of one port that are looked at, some ms */

/* Holders that there was no room to note. */
__u64 untracked;

/* A socket as the rule sees it. */
struct place {
	__u64 high, low; /* IPv6 */
	__u32 v4;
	__u32 uid;
	int device;
	bool v6;     /* else only v4 counts */
	bool mapped; /* IPv4, on a socket of either family */
	bool any;
	bool v6only;
	bool reuse, reuseport;
};

struct walk {
	/* hlist_nodes that come next, by address; 0: none */
	__u64 bucket, bucket2, owner;
	__u64 net, binder;
	__u32 rank; /* of what was found */
	struct place want;
	struct holder found;
};

/*
 * The walk of the program that runs on this CPU, of which there is one at a time. In
 * a map and not on the stack, since verifiers before 6.8 take a callback's first
 * step for every step: what is zero there at first would be zero for good.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct walk);
} walks SEC(".maps");

static __always_inline void read_place(struct place *p, struct sock *sk)
{
	__u64 addr[2] = {};

	__builtin_memset(p, 0, sizeof(*p));
	p->v4 = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
	p->device = BPF_CORE_READ(sk, __sk_common.skc_bound_dev_if);
	p->reuse = BPF_CORE_READ_BITFIELD_PROBED(sk, __sk_common.skc_reuse);
	p->reuseport = BPF_CORE_READ_BITFIELD_PROBED(sk, __sk_common.skc_reuseport);
	p->v6 = BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET6;
	p->mapped = true;
	if (!p->v6)
		return;
	BPF_CORE_READ_INTO(&addr, sk, __sk_common.skc_v6_rcv_saddr);
	p->high = addr[0];
	p->low = addr[1];
	p->any = !addr[0] && !addr[1];
	p->mapped = !addr[0] && (__u32)addr[1] == bpf_htonl(0xffff);
	p->v6only = BPF_CORE_READ_BITFIELD_PROBED(sk, __sk_common.skc_ipv6only);
}

/* Whether the addresses of the binder and of another overlap. */
static __always_inline bool same_address(const struct place *a, const struct place *b)
{
	if (!a->v6 || (a->mapped && b->mapped))
		return !b->v6only && (a->v4 == b->v4 || !a->v4 || !b->v4);
	if (a->any && b->any)
		return true;
	if (b->any && !(b->v6only && a->mapped))
		return true;
	if (a->any && !(a->v6only && b->mapped))
		return true;
	return b->v6 && a->high == b->high && a->low == b->low;
}

static __always_inline bool conflicts(const struct place *a, const struct place *b, __u8 state)
{
	if (a->device && b->device && a->device != b->device)
		return false;
	if (a->reuse && b->reuse && state != TCP_LISTEN)
		return false;
	if (a->reuseport && b->reuseport && (state == TCP_TIME_WAIT || a->uid == b->uid))
		return false;
	return same_address(a, b);
}

/* Of several holders the one that says most: what listens, then what is connected. */
static __always_inline __u32 rank_of(__u8 state)
{
	switch (state) {
	case TCP_LISTEN:
		return 4;
	case TCP_CLOSE: /* bound, and no more */
		return 2;
	case TCP_TIME_WAIT:
		return 1;
	}
	return 3;
}

static __always_inline void consider(struct walk *w, struct sock *sk)
{
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);
	__u32 rank = rank_of(state);
	struct place its;

	if (rank <= w->rank || state < TCP_ESTABLISHED || state >= TCP_NEW_SYN_RECV ||
	    (__u64)sk == w->binder)
		return;
	read_place(&its, sk);
	if (state != TCP_TIME_WAIT) /* a minisock has none */
		its.uid = BPF_CORE_READ(sk, sk_uid.val);
	if (!conflicts(&w->want, &its, state))
		return;
	w->rank = rank;
	w->found.state = state;
	w->found.cookie = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	if (its.v6) {
		__builtin_memcpy(w->found.addr, &its.high, 8);
		__builtin_memcpy(w->found.addr + 8, &its.low, 8);
	} else {
		__builtin_memset(w->found.addr, 0, 10);
		__builtin_memset(w->found.addr + 10, 0xff, 2);
		__builtin_memcpy(w->found.addr + 12, &its.v4, 4);
	}
}

/* The bucket of a port: its sockets come next, or since 6.8 its buckets by address. */
static __always_inline void enter_bucket(struct walk *w, struct inet_bind_bucket *b)
{
	if (BPF_CORE_READ(b, port) != w->found.port ||
	    (__u64)BPF_CORE_READ(b, ib_net.net) != w->net)
		return;
	/* Of another VRF (inet_sk_bound_l3mdev). */
	if (!w->want.device && BPF_CORE_READ(b, l3mdev))
		return;
	if (bpf_core_field_exists(b->owners))
		w->owner = (__u64)BPF_CORE_READ(b, owners.first);
	else
		w->bucket2 = (__u64)BPF_CORE_READ(b, bhash2.first);
}

/* The address of what a list's node is in, and the node after it. */
#define entry(node, type, member) ((void *)(node)-bpf_core_field_offset(type, member))
#define after(node)		  ((__u64)BPF_CORE_READ((struct hlist_node *)(node), next))

/* One node of the three lists that lie within each other; 1: enough. */
static long walk_step(__u32 i, void *ctx)
{
	__u32 zero = 0;
	struct walk *w = bpf_map_lookup_elem(&walks, &zero);
	__u64 at;

	if (!w)
		return 1;
	if (w->owner) {
		at = w->owner;
		w->owner = after(at);
		consider(w, entry(at, struct sock, __sk_common.skc_bind_node));
		return w->rank == rank_of(TCP_LISTEN);
	}
	if (bpf_core_field_exists(struct inet_bind2_bucket, bhash_node) && w->bucket2) {
		struct inet_bind2_bucket *b;

		at = w->bucket2;
		b = entry(at, struct inet_bind2_bucket, bhash_node);
		w->bucket2 = after(at);
		w->owner = (__u64)BPF_CORE_READ(b, owners.first);
		return 0;
	}
	if (!w->bucket)
		return 1;
	at = w->bucket;
	w->bucket = after(at);
	enter_bucket(w, entry(at, struct inet_bind_bucket, node));
	return 0;
}

/* include/net/inet_hashtables.h, inet_bhashfn */
static __always_inline __u64 first_bucket(struct net *net, __u16 port)
{
	struct inet_hashinfo *ports = BPF_CORE_READ(net, ipv4.tcp_death_row.hashinfo);
	__u32 slot = (port + BPF_CORE_READ(net, hash_mix)) & (BPF_CORE_READ(ports, bhash_size) - 1);
	struct inet_bind_hashbucket *b = BPF_CORE_READ(ports, bhash);

	b = (void *)b + (__u64)slot * bpf_core_type_size(struct inet_bind_hashbucket);
	return (__u64)BPF_CORE_READ(b, chain.first);
}

/*
 * inet_csk_get_port(sk, port) has failed. listen() asks too, in state LISTEN. The
 * task's bind() returns next and takes what is noted here (bind.h).
 */
static __always_inline int handle_port_denied(struct sock *sk, __u16 port)
{
	struct net *net = sk->__sk_common.skc_net.net;
	__u32 zero = 0, task = this_task();
	struct walk *w;

	if (!port || sk->sk_protocol != IPPROTO_TCP || sk->__sk_common.skc_state != TCP_CLOSE ||
	    !in_scope(net->net_cookie))
		return 0;
	w = bpf_map_lookup_elem(&walks, &zero);
	if (!w)
		return 0;
	__builtin_memset(w, 0, sizeof(*w));
	w->net = address_of(net);
	w->binder = address_of(sk);
	w->bucket = first_bucket(net, port);
	w->found.port = port;
	read_place(&w->want, sk);
	w->want.uid = sk->sk_uid.val;
	bpf_loop(MAX_STEPS, walk_step, NULL, 0);
	if (bpf_map_update_elem(&holders, &task, &w->found, 0))
		__sync_fetch_and_add(&untracked, 1);
	return 0;
}

#endif
