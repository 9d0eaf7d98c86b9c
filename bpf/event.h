/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The wire between kernel and user space: one record for every kind of event.
 * tracer/decode.go reads it; bpf/abi_test.go compares this file's BTF with the
 * Go side: sizes, offsets and enum values.
 */
#ifndef TWTRACE_EVENT_H
#define TWTRACE_EVENT_H

/* Numbers are those of internal/tcp.Kind. */
enum event_kind {
	KIND_STATE = 1,
	KIND_RST_SENT = 2,
	KIND_RST_RECEIVED = 3,
	KIND_TW_ENTER = 4,
	KIND_TW_END = 5,
	KIND_TW_OVERFLOW = 6,
	KIND_RETRANSMIT = 7,
	KIND_SYNACK_RETRANSMIT = 8,
	KIND_ERROR = 9,
	KIND_TW_CONVERT = 10,
	KIND_CONNECT_FAILED = 11,
	KIND_BIND_FAILED = 12,
	KIND_LISTEN_DROP = 13,
	KIND_SNAPSHOT = 14,
	KIND_MAX = 16, /* room of the counters, not a kind */
};

/* Why; numbers are those of internal/tcp.Cause. */
enum cause {
	CAUSE_NONE = 0,
	/* how a TIME_WAIT ended */
	CAUSE_EXPIRED = 1,
	CAUSE_REUSED_BY_CONNECT = 2,
	CAUSE_REPLACED_BY_SYN = 3,
	CAUSE_KILLED_BY_RST = 4,
	CAUSE_PURGED = 5,
	CAUSE_DESTROYED = 6,
	CAUSE_UNKNOWN = 7,
	/* why connect() sent nothing */
	CAUSE_PORT_SEARCH = 8,
	CAUSE_FOUR_TUPLE_BUSY = 9,
	CAUSE_NOT_SENT = 10,
	/* what a listener had no room in */
	CAUSE_ACCEPT_QUEUE = 11,
	CAUSE_SYN_QUEUE = 12,
	CAUSE_OTHER = 13,
	/* Not an end: the timer was only moved. Never leaves the kernel side. */
	CAUSE_REARMED = 254,
	/* Of a full socket: tcp_done() closes it. Never leaves the kernel side either. */
	CAUSE_DONE = 255,
};

/* Bits of struct event.flags; those of internal/tcp.Flags. */
enum event_flag {
	FLAG_RESCUED = 1,
	FLAG_NO_SEGMENT = 2,
	FLAG_LINGER0 = 4,
	FLAG_TW_MADE = 8,
	FLAG_ACTIVE = 16,
	FLAG_OWNER = 32,
	FLAG_LATE = 64,
	FLAG_REFUSALS = 128,
};

/* What connect() tried in vain; as internal/tcp.Refusals. */
enum refusal {
	REFUSED_TOO_YOUNG = 0,
	REFUSED_NOT_ALLOWED = 1,
	REFUSED_NO_TIMESTAMPS = 2,
	REFUSED_TAKEN = 3,
	REFUSALS = 4,
};

/*
 * Every byte is written for every event. Widest member first, no holes.
 *
 * BIND_FAILED says what holds the port where others say something else: its state
 * in substate (0: not known), its cookie in the eight bytes of refusals, its address
 * as IPv6, or IPv4 mapped, in peer.
 */
struct event {
	__u64 mono_ns;	/* bpf_ktime_get_ns: CLOCK_MONOTONIC */
	__u64 cookie;	/* socket cookie, 0: not known */
	__u64 netns;	/* network namespace cookie */
	__u64 cgroup;	/* of the socket, with FLAG_OWNER */
	__u8 local[16]; /* network byte order; IPv4 in the first 4 bytes */
	__u8 peer[16];
	__u8 comm[16];		  /* with FLAG_OWNER */
	__u16 refusals[REFUSALS]; /* with FLAG_REFUSALS */
	__u32 reason;		  /* of an RST: enum sk_rst_reason of this kernel */
	__u32 ticks;		  /* of TW_ENTER and SNAPSHOT: jiffies until the timer expires */
	__u32 pid;		  /* thread group, with FLAG_OWNER */
	__u32 call;		  /* the same in main program and twin: tells copies of an event */
	__u16 local_port;	  /* host byte order */
	__u16 peer_port;
	__u16 err; /* sk_err; of a retransmit: why it could not be sent */
	__u8 kind; /* enum event_kind */
	__u8 old_state;
	__u8 new_state;
	__u8 substate; /* of a TIME_WAIT minisock: TCP_FIN_WAIT2 or TCP_TIME_WAIT */
	__u8 cause;    /* enum cause */
	__u8 flags;    /* enum event_flag */
	__u8 family;   /* AF_INET or AF_INET6 */
	__u8 nth;      /* of the events that one call of a program made; from 0 */
	__u8 pad[2];
};

/*
 * Room for one event. seq is its number among the events of its CPU, from 1; SLOT_BUSY
 * is set as long as it is being written. One cache line or two, never three.
 */
struct slot {
	__u64 seq;
	struct event event;
};

/* How far the ring of one CPU is written, by programs, and read, by user space. */
struct cursor {
	__u64 head; /* events that have got a slot */
	__u64 pad[7];
	__u64 tail; /* of these, read */
	__u64 pad2[7];
};

/* Counters of one CPU; user space sums them. */
struct account {
	__u64 lost[KIND_MAX];	 /* events not recorded: the ring was full */
	__u64 foreign[KIND_MAX]; /* main program skipped, event not asked for */
	__u64 untracked;	 /* connections and listeners that a table had no room for */
	__u64 listeners_begun;
	__u64 listeners_ended;
};

/* Whose a connection is. */
struct owner {
	__u64 cgroup;
	__u32 pid;
	__u32 pad;
	__u8 comm[16];
};

/* A kernel function, and what it means as the nearest known frame below timer_cancel. */
struct frame {
	__u64 start;
	__u64 end;
	__u64 cause; /* enum cause */
};

#endif
