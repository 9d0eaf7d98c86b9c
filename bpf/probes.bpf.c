//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The table of what is attached. A program here unpacks its arguments and calls
 * a handler; tracer/probes.go says which of them attach to what, and why.
 */
#include <stdbool.h>

#include "kernel.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

#include "event.h"
#include "maps.h"
#include "emit.h"
#include "timewait.h"
#include "state.h"
#include "reset.h"
#include "retransmit.h"

/* The helpers bpf_get_stack and bpf_probe_read_kernel ask for a GPL-compatible licence. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(state, struct sock *sk, int old, int new)
{
	return handle_state(ctx, sk, old, new, false);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(state_twin, struct sock *sk, int old, int new)
{
	return handle_state(ctx, sk, old, new, true);
}

SEC("tp_btf/timer_start")
int BPF_PROG(tw_start, struct timer_list *t)
{
	return handle_timer_start(t);
}

SEC("tp_btf/timer_cancel")
int BPF_PROG(tw_cancel, struct timer_list *t)
{
	return handle_timer_cancel(ctx, t);
}

SEC("tp_btf/timer_expire_entry")
int BPF_PROG(tw_expire, struct timer_list *t)
{
	return handle_timer_expire(t);
}

/* Linux 6.10 and later give the reason as third argument. */
SEC("tp_btf/tcp_send_reset")
int BPF_PROG(rst_sent, struct sock *sk, struct sk_buff *skb, int reason)
{
	return handle_send_reset(ctx, sk, skb, reason, false);
}

SEC("tp_btf/tcp_send_reset")
int BPF_PROG(rst_sent_twin, struct sock *sk, struct sk_buff *skb, int reason)
{
	return handle_send_reset(ctx, sk, skb, reason, true);
}

SEC("tp_btf/tcp_send_reset")
int BPF_PROG(rst_sent_plain, struct sock *sk, struct sk_buff *skb)
{
	return handle_send_reset(ctx, sk, skb, 0, false);
}

SEC("tp_btf/tcp_send_reset")
int BPF_PROG(rst_sent_plain_twin, struct sock *sk, struct sk_buff *skb)
{
	return handle_send_reset(ctx, sk, skb, 0, true);
}

SEC("tp_btf/tcp_receive_reset")
int BPF_PROG(rst_received, struct sock *sk)
{
	return handle_receive_reset(ctx, sk, false);
}

SEC("tp_btf/tcp_receive_reset")
int BPF_PROG(rst_received_twin, struct sock *sk)
{
	return handle_receive_reset(ctx, sk, true);
}

/* Newer kernels (6.18 among them) give the error as third argument. */
SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(retransmit, struct sock *sk, struct sk_buff *skb, int err)
{
	return handle_retransmit(ctx, sk, err, false);
}

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(retransmit_twin, struct sock *sk, struct sk_buff *skb, int err)
{
	return handle_retransmit(ctx, sk, err, true);
}

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(retransmit_plain, struct sock *sk, struct sk_buff *skb)
{
	return handle_retransmit(ctx, sk, 0, false);
}

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(retransmit_plain_twin, struct sock *sk, struct sk_buff *skb)
{
	return handle_retransmit(ctx, sk, 0, true);
}

SEC("tp_btf/tcp_retransmit_synack")
int BPF_PROG(synack, struct sock *sk, struct request_sock *req)
{
	return handle_retransmit_synack(ctx, req, false);
}

SEC("tp_btf/tcp_retransmit_synack")
int BPF_PROG(synack_twin, struct sock *sk, struct request_sock *req)
{
	return handle_retransmit_synack(ctx, req, true);
}

/*
 * Run by user space, which knows the time between two calls, to learn how many
 * jiffies a second has (CONFIG_HZ is not in BTF).
 */
SEC("syscall")
int jiffies_now(void *ctx)
{
	return bpf_jiffies64();
}

/* Keeps the wire struct and its enums in the object's BTF for the ABI test. */
struct event *unused_event __attribute__((unused));
enum event_kind *unused_kind __attribute__((unused));
enum tw_cause *unused_cause __attribute__((unused));
enum event_flag *unused_flag __attribute__((unused));
