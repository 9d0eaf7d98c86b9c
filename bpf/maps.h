/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef TWTRACE_MAPS_H
#define TWTRACE_MAPS_H

#define MAX_PORTS  16 /* local ports, and as many remote ports */
#define MAX_TASKS  16 /* processes, names and cgroups, each */
#define MAX_SHARED 8  /* listeners of one port that are watched (SO_REUSEPORT) */
#define MAX_FRAMES 32 /* power of two: the search masks its index */
#define TWIN_SLOTS 32 /* power of two */
#define TWIN_DEPTH 8  /* as deep as interrupts go */

/*
 * Constants that user space writes before load.
 */
const volatile __u32 ring_slots;	    /* of one CPU, a power of two */
const volatile __u64 tw_timer_handler_addr; /* 0: TIME_WAIT can't be seen */
const volatile __u32 kinds;		    /* a bit for each kind that is wanted */
const volatile __u32 lport_count, rport_count;
const volatile __u16 lport_filter[MAX_PORTS], rport_filter[MAX_PORTS];
const volatile __u8 family_filter; /* AF_INET, AF_INET6; 0: both */
const volatile bool failures_only;
/* Any of the three: connections are kept in table selected. */
const volatile __u32 pid_count, comm_count, cgroup_count;
const volatile __u32 pid_filter[MAX_TASKS];
const volatile __u64 comm_filter[MAX_TASKS][2]; /* 16 bytes of comm */
const volatile __u64 cgroup_filter[MAX_TASKS];
const volatile __u32 pidns; /* inode of the pid namespace whose numbers are meant */
/* What programs on functions (enrich.bpf.c) tell these; false: they are not there. */
const volatile bool overflows_noted, refusals_noted, holders_noted;
const volatile __u32 frame_count;
const volatile struct frame frames[MAX_FRAMES]; /* by address */

/*
 * Set by user space once every program is attached, and cleared before the first is taken
 * off: all of them begin and end at the same moment.
 */
volatile bool recording;

/*
 * The rings, drained by the clock: programs never wake the tracer, since a wake-up
 * raises an IPI whose softirq can hit the same program again, which the kernel
 * then skips. CPU n has slots n * ring_slots and up. Full: the event is counted in
 * account.lost. Sizes are set at load.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct slot);
} slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cursor);
} cursors SEC(".maps");

/* Counters; never full. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct account);
} accounts SEC(".maps");

/*
 * The owner of a socket that listens, inherited by what it accepts
 * (BPF_F_CLONE), and of each socket that was there before the trace. Freed by
 * the kernel with the socket.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct owner);
} owners SEC(".maps");

/*
 * Where a trace is limited to processes: the connections that are theirs, by
 * cookie, TIME_WAIT included. Inserted by what shows the owner (connect, listen,
 * accept, snapshot), deleted when the socket is freed or, if there was one, with its
 * TIME_WAIT. Full: counted in account.untracked.
 */
enum selection {
	SELECTED_SOCKET = 1,
	SELECTED_TIME_WAIT = 2,
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 17);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, __u8);
} selected SEC(".maps");

/*
 * Listeners, by namespace and port. Inserted by listen() and the snapshot, deleted
 * with the last of the port. Full, or more than MAX_SHARED for a port: counted
 * in account.untracked.
 */
struct port_key {
	__u64 netns;
	__u32 port;
	__u32 pad;
};

struct watched {
	__u64 sk;
	__u64 cookie;
	__u32 seen; /* sk_drops that have been reported */
	__u32 pad;
};

struct listeners {
	struct watched of[MAX_SHARED];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct port_key);
	__type(value, struct listeners);
} listening SEC(".maps");

/* An empty value for the table above: too large for the stack. */
const struct listeners no_listeners;

/*
 * The events that main programs have handled and their twins have not yet looked at:
 * a stack, as programs that interrupt others end before these go on. And the
 * minisock whose timer is being moved. One CPU's own.
 */
struct note {
	__u64 of;   /* mostly a cookie */
	__u64 what; /* its old and new state, or 0xf0 and the kind */
};

struct scratch {
	struct note handled[TWIN_SLOTS];
	__u64 rearming;
	__u32 top;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratches SEC(".maps");

#endif
