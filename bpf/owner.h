/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Whose a connection is. The task that happens to be on the CPU says nothing in
 * a softirq: an owner is taken where a process is known to be at work on its own
 * socket (connect, listen, bind), and inherited from the listener by what it
 * accepts. User space carries it on to the other events of the cookie.
 */
#ifndef TWTRACE_OWNER_H
#define TWTRACE_OWNER_H

#define MAX_PIDNS_LEVEL	 8
#define PIDNS_FIRST	 0xeffffffc /* PROC_PID_INIT_INO: the inode of the first pid namespace */
#define MAX_CGROUP_LEVEL 16

/*
 * The number of the task's process in the reader's pid namespace, which is not the first;
 * 0: it has none there.
 */
__global __u32 pid_in_namespace(__u64 task_address)
{
	struct task_struct *task = (void *)task_address;
	struct pid *pid = BPF_CORE_READ(task, group_leader, thread_pid);
	void *number = (void *)pid + bpf_core_field_offset(struct pid, numbers);
	__u32 level = BPF_CORE_READ(pid, level);

	for (__u32 i = 0; i < MAX_PIDNS_LEVEL; i++) {
		struct upid *u = number;

		if (i > level)
			break;
		if (BPF_CORE_READ(u, ns, ns.inum) == pidns)
			return BPF_CORE_READ(u, nr);
		number += bpf_core_type_size(struct upid);
	}
	return 0;
}

static __always_inline __u64 cgroup_of(struct sock *sk)
{
	return BPF_CORE_READ(sk, sk_cgrp_data.cgroup, kn, id);
}

static __always_inline void owner_of_task(struct owner *o, struct task_struct *task, __u64 cgroup)
{
	o->pid = pidns == PIDNS_FIRST ? (__u32)task->tgid : pid_in_namespace(address_of(task));
	o->pad = 0;
	o->cgroup = cgroup;
	__builtin_memcpy(o->comm, task->group_leader->comm, sizeof(o->comm));
}

__global int in_cgroup(__u64 sk_address)
{
	struct sock *sk = (void *)sk_address;
	struct cgroup *cg = BPF_CORE_READ(sk, sk_cgrp_data.cgroup);

	for (int level = 0; level < MAX_CGROUP_LEVEL && cg; level++) {
		__u64 id = BPF_CORE_READ(cg, kn, id);
		struct cgroup_subsys_state *parent;

		for (__u32 i = 0; i < MAX_TASKS && i < cgroup_count; i++) {
			if (cgroup_filter[i] == id)
				return true;
		}
		parent = BPF_CORE_READ(cg, self.parent);
		if (!parent)
			break;
		cg = (void *)parent - bpf_core_field_offset(struct cgroup, self);
	}
	return false;
}

__global int is_wanted_task(__u32 pid, __u64 comm0, __u64 comm1)
{
	bool ok = pid_count == 0;

	for (__u32 i = 0; i < MAX_TASKS && i < pid_count; i++)
		ok |= pid_filter[i] == pid;
	if (!ok)
		return false;
	ok = comm_count == 0;
	for (__u32 i = 0; i < MAX_TASKS && i < comm_count; i++)
		ok |= comm_filter[i][0] == comm0 && comm_filter[i][1] == comm1;
	return ok;
}

/* Whether the options ask for connections of this owner. */
static __always_inline bool is_wanted_owner(const struct owner *o, struct sock *sk)
{
	const __u64 *comm = (const void *)o->comm;

	return is_wanted_task(o->pid, comm[0], comm[1]) &&
	       (cgroup_count == 0 || in_cgroup(address_of(sk)));
}

static __always_inline void select_connection(__u64 cookie)
{
	__u8 as = SELECTED_SOCKET;

	if (bpf_map_update_elem(&selected, &cookie, &as, 0))
		count_untracked();
}

/* RST and error can come after the socket is closed: it is forgotten when it is freed. */
static __always_inline int handle_destroy(struct sock *sk)
{
	__u64 cookie = sk->__sk_common.skc_cookie.counter;
	__u8 *as = bpf_map_lookup_elem(&selected, &cookie);

	if (as && *as == SELECTED_SOCKET)
		bpf_map_delete_elem(&selected, &cookie);
	return 0;
}

static __always_inline void selected_time_wait(__u64 cookie)
{
	__u8 *as = by_owner() ? bpf_map_lookup_elem(&selected, &cookie) : NULL;

	if (as)
		*as = SELECTED_TIME_WAIT;
}

static __always_inline void forget_time_wait(__u64 cookie)
{
	if (by_owner())
		bpf_map_delete_elem(&selected, &cookie);
}

static __always_inline void put_owner(struct event *e, const struct owner *o)
{
	e->pid = o->pid;
	e->cgroup = o->cgroup;
	__builtin_memcpy(e->comm, o->comm, sizeof(e->comm));
	e->flags |= FLAG_OWNER;
}

#endif
