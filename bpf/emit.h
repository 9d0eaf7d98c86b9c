/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Accounting and the ring: what every handler uses. */
#ifndef TWTRACE_EMIT_H
#define TWTRACE_EMIT_H

/*
 * Functions that are not static are verified once, and not again on every path that
 * leads to them: without that, 6.1's verifier gives up on the larger programs.
 */
#define __global __attribute__((noinline))

#include "ring.h"

static __always_inline struct account *this_account(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&accounts, &zero);
}

static __always_inline struct scratch *this_scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratches, &zero);
}

static __always_inline bool wants(__u8 kind)
{
	return kinds & 1U << kind;
}

/* The twin found an event that nobody asked for: that its main program was skipped is no loss. */
static __always_inline void not_asked_for(__u8 kind, bool twin)
{
	struct account *acc = this_account();

	if (acc && twin)
		__sync_fetch_and_add(&acc->foreign[kind], 1);
}

static __always_inline void count_untracked(void)
{
	struct account *acc = this_account();

	if (acc)
		__sync_fetch_and_add(&acc->untracked, 1);
}

static __always_inline bool port_in(const volatile __u16 *filter, __u32 count, __u16 port)
{
	if (count == 0)
		return true;
	for (__u32 i = 0; i < MAX_PORTS; i++) {
		if (i >= count)
			return false;
		if (filter[i] == port)
			return true;
	}
	return false;
}

static __always_inline bool by_owner(void)
{
	return pid_count || comm_count || cgroup_count;
}

static __always_inline bool is_selected(__u64 cookie)
{
	return !by_owner() || bpf_map_lookup_elem(&selected, &cookie);
}

__global int passes_filters(__u32 family, __u32 lport, __u32 rport)
{
	if (family_filter && family != family_filter)
		return false;
	return port_in(lport_filter, lport_count, lport) &&
	       port_in(rport_filter, rport_count, rport);
}

/* Whether the options ask for events of this connection. */
static __always_inline bool passes(__u16 family, __u16 lport, __u16 rport)
{
	if (!family_filter && !lport_count && !rport_count)
		return true;
	return passes_filters(family, lport, rport);
}

/*
 * Counters are of one CPU, but a softirq can interrupt the addition and add
 * too: hence the atomics.
 */
static __always_inline void count_lost(__u8 kind, bool twin)
{
	struct account *acc = this_account();

	/* What a twin can't record stays among the skipped. */
	if (acc && !twin)
		__sync_fetch_and_add(&acc->lost[kind], 1);
}

static __always_inline struct event *event_begin(__u8 kind, bool twin)
{
	struct slot *slot;
	struct event *e;
	__u32 at;

	if (!recording)
		return NULL;
	at = ring_reserve();
	/* A reservation that failed is no slot's number. */
	slot = bpf_map_lookup_elem(&slots, &at);
	if (!slot) {
		count_lost(kind, twin);
		return NULL;
	}
	e = &slot->event;
	/* Eight-byte stores of zero first: no byte leaves unwritten. */
	__builtin_memset(e, 0, sizeof(*e));
	e->mono_ns = bpf_ktime_get_ns();
	e->kind = kind;
	return e;
}

static __always_inline void event_end(struct event *e)
{
	ring_commit((void *)e - offsetof(struct slot, event));
}

/*
 * A raw tracepoint program that is interrupted by a softirq which reaches the
 * same tracepoint is not run again (prog->active, since 6.1; counted in
 * recursion_misses). Each such program has therefore a twin, attached after it
 * on the same tracepoint, with a guard of its own: the main program leaves a
 * note of each event that it handles, and the twin, which the kernel calls next
 * for the same event, records the event if it finds none.
 *
 * Whatever interrupts the two leaves the stack as it found it, but for the notes
 * of twins that were skipped themselves: these lie above, and go with the
 * search, or below, and are left out when they have filled the stack. Where
 * a tracepoint can be preempted (7.x) a task can move between main program and
 * twin; the copy is then dropped in user space, which knows it by event.call.
 *
 * What an event is of is a number that is never used again, a cookie: a note that stays,
 * of an address, would be taken for one of the next socket there. An event of one socket
 * is never interrupted by the same event of the same socket.
 *
 * handled_by_main() returns true if the caller has nothing to do.
 */
#define STATES(old, new) (((old)&15) << 4 | ((new) & 15))
#define KIND(kind)	 (0xf0 | (kind))

static __always_inline bool handled_by_main(__u64 of, __u32 what, bool twin)
{
	struct scratch *s = this_scratch();
	struct note *n;
	__u32 top;

	if (!s)
		return true;
	top = s->top;
	if (!twin) {
		if (top >= TWIN_SLOTS) {
			for (int i = 0; i < TWIN_DEPTH; i++)
				s->handled[i] = s->handled[TWIN_SLOTS - TWIN_DEPTH + i];
			top = TWIN_DEPTH;
		}
		n = &s->handled[top & (TWIN_SLOTS - 1)];
		/* First, so that what interrupts writes above. */
		*(volatile __u32 *)&s->top = top + 1;
		n->what = what;
		n->of = of;
		return !recording;
	}
	for (int i = 0; i < 8; i++) {
		if (top == 0)
			break;
		top--;
		n = &s->handled[top & (TWIN_SLOTS - 1)];
		if (n->of == of && n->what == what) {
			s->top = top;
			return true;
		}
	}
	return !recording;
}

/* The same in both copies of an event, and in no other event of the next moment. */
static __always_inline __u32 call_of(__u64 of, __u32 what)
{
	return (of ^ of >> 32) + what * 0x9e3779b1;
}

#endif
