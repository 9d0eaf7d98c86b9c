/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What one program leaves for another that runs a moment later for the same
 * socket. The programs on functions (enrich.bpf.c) are an object of their own, which
 * many kernels refuse to load: these maps are all that the two objects share.
 */
#ifndef TWTRACE_NOTES_H
#define TWTRACE_NOTES_H

#define SLOTS 8192 /* power of two */

/*
 * What a socket did a moment ago, by cookie: the TIME_WAIT made for it, or
 * not, and the RST sent for it. Written just before the state change or timer event that
 * asks, mostly on the same CPU; an entry is only overwritten, by another
 * cookie of the same slot (8,192 cookies away, as cookies are given in
 * sequence), never deleted.
 */
struct recent {
	__u64 tw_made;
	__u64 rst_sent;
	__u64 tw_refused; /* by enrich.bpf.c: there was no room for a TIME_WAIT */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, struct recent);
} recents SEC(".maps");

static __always_inline struct recent *recent_of(__u64 cookie)
{
	__u32 slot = cookie & (SLOTS - 1);

	return bpf_map_lookup_elem(&recents, &slot);
}

#define MAX_CALLERS 4096 /* tasks in connect() or bind() */

static __always_inline __u32 this_task(void)
{
	return bpf_get_current_pid_tgid();
}

/*
 * The ports that a connect() is refused, by the task that connects: the search for one
 * is a part of the call. Inserted, or begun again, by the change of state before it; what
 * tasks have left that are gone is dropped for others.
 */
struct refused {
	__u64 cookie;		 /* of the socket that is connected */
	__u32 checks;		 /* ports that were asked for in vain */
	__u32 by[REFUSED_TAKEN]; /* of these, by the reason of a TIME_WAIT (enum refusal) */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_CALLERS);
	__type(key, __u32);
	__type(value, struct refused);
} refused SEC(".maps");

/* Of this task's connect() of the socket; NULL: its begin was not seen, or is not wanted. */
static __always_inline struct refused *refused_of(__u64 cookie)
{
	__u32 task = this_task();
	struct refused *r = bpf_map_lookup_elem(&refused, &task);

	return r && r->cookie == cookie ? r : NULL;
}

/*
 * What holds the port that a bind() wanted, by the task that wanted it. Inserted
 * when bind() has failed inside the kernel, and deleted when the system call returns;
 * what no system call took is dropped for others.
 */
struct holder {
	__u64 cookie;  /* 0: nobody had asked for it */
	__u8 addr[16]; /* IPv4 mapped */
	__u16 port;    /* that was wanted */
	__u16 state;   /* 0: nobody was found */
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_CALLERS);
	__type(key, __u32);
	__type(value, struct holder);
} holders SEC(".maps");

#endif
