/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef TWTRACE_MAPS_H
#define TWTRACE_MAPS_H

#define MAX_NETNS  8	/* namespaces that one trace can be limited to */
#define MAX_FRAMES 32	/* power of two: the search masks its index */
#define SLOTS	   8192 /* power of two */
#define TWIN_SLOTS 64	/* power of two */

/*
 * Constants that user space writes before load.
 */
const volatile __u64 tw_timer_handler_addr; /* 0: TIME_WAIT can't be seen */
const volatile __u32 netns_count;	    /* 0: every namespace */
const volatile __u64 netns_filter[MAX_NETNS];
const volatile __u32 frame_count;
const volatile struct frame frames[MAX_FRAMES]; /* by address */

/*
 * Written by every program, read by the tracer, which drains it by the clock:
 * programs never wake it, since a wake-up raises an IPI whose softirq can hit
 * the same program again, which the kernel then skips. Full: the event is
 * counted in account.lost. The size is set at load.
 */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 16 << 20);
	__type(value, struct event);
} events SEC(".maps");

/* Counters; never full. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct account);
} accounts SEC(".maps");

/*
 * What a socket did a moment ago, by cookie: the TIME_WAIT made for it and the
 * RST sent for it. Written just before the state change or timer event that
 * asks, mostly on the same CPU; an entry is only overwritten, by another
 * cookie of the same slot (8,192 cookies away, as cookies are given in
 * sequence), never deleted.
 */
struct recent {
	__u64 tw_made;
	__u64 rst_sent;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, struct recent);
} recents SEC(".maps");

/*
 * What the main program of a pair has handled and its twin has not yet looked
 * at, and the minisock whose timer is being moved. One CPU's own; overwritten,
 * never full: a key lost to an overwrite makes the twin record a duplicate,
 * which user space drops.
 */
struct scratch {
	__u64 handled[TWIN_SLOTS];
	__u64 rearming;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratches SEC(".maps");

#endif
