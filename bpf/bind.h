/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* bind() that failed: no tracepoint of TCP knows of it, only the system call does. */
#ifndef TWTRACE_BIND_H
#define TWTRACE_BIND_H

/* /sys/kernel/tracing/events/syscalls/sys_exit_bind/format */
struct sys_exit_args {
	__u64 common;
	long nr;
	long ret;
};

#define EBADF	 9
#define ENOTSOCK 88

#define IPPROTO_MPTCP 262

/* struct sockaddr_in and the beginning of sockaddr_in6 */
struct address {
	__u16 family;
	__be16 port;
	__u8 ip4[4]; /* sin6_flowinfo */
	__u8 ip6[16];
};

/*
 * What holds the port, if it was looked for (holder.h) and found. Of MPTCP it is the TCP
 * socket below that asked: the port tells that it was for this call.
 */
static __always_inline void put_holder(struct event *e)
{
	__u32 task = this_task();
	struct holder *h = bpf_map_lookup_elem(&holders, &task);

	if (!h || h->port != e->local_port)
		return;
	e->substate = h->state;
	*(__u64 *)e->refusals = h->cookie;
	__builtin_memcpy(e->peer, h->addr, sizeof(e->peer));
	bpf_map_delete_elem(&holders, &task);
}

static __always_inline int handle_bind_exit(struct sys_exit_args *args)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct pt_regs *regs = (void *)bpf_task_pt_regs(task);
	struct address to = {};
	struct socket *socket;
	struct file *file = NULL, **table;
	struct owner own;
	struct fdtable *fdt;
	struct event *e;
	struct sock *sk;
	__u16 family, protocol;
	__u64 netns;
	__u32 fd;

	if (args->ret >= 0 || args->ret == -EBADF || args->ret == -ENOTSOCK)
		return 0;
	fd = SYSCALL_ARG1(regs);
	fdt = BPF_CORE_READ(task, files, fdt);
	if (fd >= BPF_CORE_READ(fdt, max_fds))
		return 0;
	table = BPF_CORE_READ(fdt, fd);
	bpf_probe_read_kernel(&file, sizeof(file), table + fd);
	socket = BPF_CORE_READ(file, private_data);
	sk = BPF_CORE_READ(socket, sk);
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if (family != AF_INET && family != AF_INET6)
		return 0;
	protocol = BPF_CORE_READ(sk, sk_protocol);
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP)
		return 0;
	netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, net_cookie);
	if (!in_scope(netns))
		return 0;
	bpf_probe_read_user(&to, sizeof(to), (void *)SYSCALL_ARG2(regs));
	owner_of_task(&own, task, cgroup_of(sk));
	if (!passes(family, bpf_ntohs(to.port), 0) || (by_owner() && !is_wanted_owner(&own, sk)))
		return 0;
	e = event_begin(KIND_BIND_FAILED, false);
	if (!e)
		return 0;
	e->cookie = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	e->netns = netns;
	e->family = family;
	if (family == AF_INET6)
		__builtin_memcpy(e->local, to.ip6, 16);
	else
		__builtin_memcpy(e->local, to.ip4, 4);
	e->local_port = bpf_ntohs(to.port);
	e->err = -args->ret;
	e->old_state = e->new_state = TCP_CLOSE;
	put_owner(e, &own);
	if (holders_noted && e->err == EADDRINUSE)
		put_holder(e);
	event_end(e);
	return 0;
}

#endif
