//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * What happens to segments on their way into a network namespace: one that fits a rule
 * is counted, and those that the rule names by their number are dropped, or taken off the
 * wire and kept for user space.
 */
#include "../../bpf/kernel.h"

/* include/uapi/linux/bpf.h: what a program on a link is given, as far as it is read. */
struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol;
};

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define ETH_HLEN   14
#define ETH_P_IP   0x0800
#define ETH_P_IPV6 0x86dd

#define TC_ACT_OK   0
#define TC_ACT_SHOT 2

enum action {
	ACTION_COUNT,
	ACTION_DROP,
	ACTION_HOLD,
};

enum payload {
	PAYLOAD_ANY,
	PAYLOAD_SOME,
	PAYLOAD_NONE,
};

#define RULES 8

/* Which segments, and what becomes of the first-th to the last-th of them. */
struct rule {
	__u64 matched; /* so far, also those that nothing happened to */
	__u64 acted;   /* of them: dropped or held */
	__u32 first;   /* counted from 1 */
	__u32 last;
	enum action action;
	enum payload payload;
	__u16 from; /* ports in the host's order; 0: any */
	__u16 to;
	__u8 flags;
	__u8 mask; /* of the flags that are compared */
	__u8 used;
	__u8 pad;
};

/* User space writes the rules before the program is attached. All are counted; the
 * first that acts decides. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, RULES);
	__type(key, __u32);
	__type(value, struct rule);
} rules SEC(".maps");

#define FRAME 2048
#define HELD  64

struct frame {
	__u32 len; /* written last: 0 while the bytes are not all there */
	__u32 rule;
	__u8 bytes[FRAME];
};

/* Frames that were taken off the wire, in their order. One that finds no room here, or is
 * longer than FRAME, goes on its way, and is counted in tally. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, HELD);
	__type(key, __u32);
	__type(value, struct frame);
} held SEC(".maps");

struct tally {
	__u64 held;   /* slots given out */
	__u64 unheld; /* had to be let go */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tally);
} tallies SEC(".maps");

struct segment {
	__u16 from, to;
	__u8 flags;
	__u32 payload; /* bytes */
};

struct tcp {
	__be16 source, dest;
	__be32 seq, ack;
	__u8 offset; /* upper half: words of the header */
	__u8 flags;
};

/* Finds the segment in a frame. IPv6 extension headers are not looked into: a namespace of
 * an experiment sends none. */
static __always_inline int parse(struct __sk_buff *skb, struct segment *s)
{
	__u32 at, end;
	struct tcp th;
	__u8 ip[40];

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN, ip, 20) || ip[9] != IPPROTO_TCP)
			return -1;
		at = ETH_HLEN + (ip[0] & 15) * 4;
		end = ETH_HLEN + (ip[2] << 8 | ip[3]);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN, ip, 40) || ip[6] != IPPROTO_TCP)
			return -1;
		at = ETH_HLEN + 40;
		end = at + (ip[4] << 8 | ip[5]);
	} else {
		return -1;
	}
	if (bpf_skb_load_bytes(skb, at, &th, sizeof(th)))
		return -1;
	s->from = bpf_ntohs(th.source);
	s->to = bpf_ntohs(th.dest);
	s->flags = th.flags;
	at += (th.offset >> 4) * 4;
	s->payload = end > at ? end - at : 0;
	return 0;
}

static __always_inline int fits(const struct rule *r, const struct segment *s)
{
	if (!r->used || (s->flags & r->mask) != r->flags)
		return 0;
	if ((r->from && r->from != s->from) || (r->to && r->to != s->to))
		return 0;
	if (r->payload == PAYLOAD_SOME)
		return s->payload > 0;
	if (r->payload == PAYLOAD_NONE)
		return s->payload == 0;
	return 1;
}

/* Keeps a frame; 0: there was no room. */
static __always_inline int hold(struct __sk_buff *skb, __u32 rule)
{
	__u32 zero = 0, len = skb->len, slot;
	struct tally *t = bpf_map_lookup_elem(&tallies, &zero);
	struct frame *f;

	if (!t)
		return 0;
	if (len == 0 || len > FRAME) {
		__sync_fetch_and_add(&t->unheld, 1);
		return 0;
	}
	slot = __sync_fetch_and_add(&t->held, 1);
	f = bpf_map_lookup_elem(&held, &slot);
	/* The same number, in a way that verifiers until 6.1 see both bounds of. */
	barrier_var(len);
	len = ((len - 1) & (FRAME - 1)) + 1;
	if (!f || bpf_skb_load_bytes(skb, 0, f->bytes, len)) {
		__sync_fetch_and_add(&t->unheld, 1);
		return 0;
	}
	f->rule = rule;
	__sync_lock_test_and_set(&f->len, len); /* ordered after the bytes */
	return 1;
}

SEC("tc")
int fault(struct __sk_buff *skb)
{
	struct segment s = {};
	int verdict = TC_ACT_OK;

	if (parse(skb, &s))
		return TC_ACT_OK;
#pragma unroll
	for (__u32 i = 0; i < RULES; i++) {
		__u32 key = i;
		struct rule *r = bpf_map_lookup_elem(&rules, &key);
		__u64 n;

		if (!r || !fits(r, &s))
			continue;
		n = __sync_fetch_and_add(&r->matched, 1) + 1;
		if (verdict != TC_ACT_OK || r->action == ACTION_COUNT || n < r->first ||
		    n > r->last)
			continue;
		if (r->action == ACTION_HOLD && !hold(skb, i))
			continue;
		__sync_fetch_and_add(&r->acted, 1);
		verdict = TC_ACT_SHOT;
	}
	return verdict;
}
