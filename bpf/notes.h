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

/*
 * The ports that a connect() was refused: inserted with the first of them,
 * deleted when the socket's next connect() begins, and freed by the kernel with the socket. No
 * room: counted in the object's own untracked.
 */
struct refused {
	__u32 checks;		 /* ports that were asked for in vain */
	__u32 by[REFUSED_TAKEN]; /* of these, by the reason of a TIME_WAIT (enum refusal) */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct refused);
} refused SEC(".maps");

/*
 * What holds the port that a bind() wanted, by the task that wanted it. Inserted
 * when bind() has failed inside the kernel, and taken when the system call returns;
 * freed by the kernel with the task.
 */
struct holder {
	__u64 cookie;  /* 0: nobody had asked for it */
	__u8 addr[16]; /* IPv4 mapped */
	__u16 port;    /* 0: taken */
	__u16 state;   /* 0: nobody was found */
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct holder);
} holders SEC(".maps");

#endif
