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
#include "scope.h"
#include "notes.h"
#include "maps.h"
#include "emit.h"
#include "owner.h"
#include "socket.h"
#include "timewait.h"
#include "reset.h"
#include "listen.h"
#include "state.h"
#include "retransmit.h"
#include "error.h"
#include "bind.h"
#include "snapshot.h"

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
	return handle_send_reset(sk, skb, reason, false);
}

SEC("tp_btf/tcp_send_reset")
int BPF_PROG(rst_sent_twin, struct sock *sk, struct sk_buff *skb, int reason)
{
	return handle_send_reset(sk, skb, reason, true);
}

SEC("tp_btf/tcp_send_reset")
int BPF_PROG(rst_sent_plain, struct sock *sk, struct sk_buff *skb)
{
	return handle_send_reset(sk, skb, 0, false);
}

SEC("tp_btf/tcp_send_reset")
int BPF_PROG(rst_sent_plain_twin, struct sock *sk, struct sk_buff *skb)
{
	return handle_send_reset(sk, skb, 0, true);
}

SEC("tp_btf/tcp_receive_reset")
int BPF_PROG(rst_received, struct sock *sk)
{
	return plain_event(sk, KIND_RST_RECEIVED, 0, true, false);
}

SEC("tp_btf/tcp_receive_reset")
int BPF_PROG(rst_received_twin, struct sock *sk)
{
	return plain_event(sk, KIND_RST_RECEIVED, 0, true, true);
}

/* Newer kernels (6.18 among them) give the error as third argument. */
SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(retransmit, struct sock *sk, struct sk_buff *skb, int err)
{
	return plain_event(sk, KIND_RETRANSMIT, -err, true, false);
}

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(retransmit_twin, struct sock *sk, struct sk_buff *skb, int err)
{
	return plain_event(sk, KIND_RETRANSMIT, -err, true, true);
}

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(retransmit_plain, struct sock *sk, struct sk_buff *skb)
{
	return plain_event(sk, KIND_RETRANSMIT, 0, true, false);
}

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(retransmit_plain_twin, struct sock *sk, struct sk_buff *skb)
{
	return plain_event(sk, KIND_RETRANSMIT, 0, true, true);
}

SEC("tp_btf/tcp_retransmit_synack")
int BPF_PROG(synack, struct sock *sk, struct request_sock *req)
{
	return handle_retransmit_synack(req, false);
}

SEC("tp_btf/tcp_retransmit_synack")
int BPF_PROG(synack_twin, struct sock *sk, struct request_sock *req)
{
	return handle_retransmit_synack(req, true);
}

SEC("tp_btf/inet_sk_error_report")
int BPF_PROG(error_report, struct sock *sk)
{
	return handle_error(sk, false);
}

SEC("tp_btf/inet_sk_error_report")
int BPF_PROG(error_report_twin, struct sock *sk)
{
	return handle_error(sk, true);
}

/* Attached only where a trace is limited to processes. */
SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(destroyed, struct sock *sk)
{
	return handle_destroy(sk);
}

/* Attached only as long as there is a listener to watch. */
SEC("tp_btf/consume_skb")
int BPF_PROG(skb_consumed, struct sk_buff *skb)
{
	return handle_segment_gone(skb, true);
}

SEC("tp_btf/kfree_skb")
int BPF_PROG(skb_freed, struct sk_buff *skb)
{
	return handle_segment_gone(skb, false);
}

/* 6.12 and later give the socket that dropped the segment as fourth argument. */
SEC("tp_btf/kfree_skb")
int BPF_PROG(tw_segment, struct sk_buff *skb, void *location, int reason, struct sock *rx_sk)
{
	if (!rx_sk || rx_sk->__sk_common.skc_state != TCP_TIME_WAIT)
		return 0;
	return handle_tw_segment(skb, rx_sk);
}

SEC("tracepoint/syscalls/sys_exit_bind")
int bind_exit(struct sys_exit_args *args)
{
	return handle_bind_exit(args);
}

SEC("iter/task_file")
int open_files(struct bpf_iter__task_file *ctx)
{
	return handle_open_file(ctx->task, ctx->file);
}

SEC("iter/tcp")
int existing(struct bpf_iter__tcp *ctx)
{
	return handle_existing(ctx->sk_common);
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
enum cause *unused_cause __attribute__((unused));
enum event_flag *unused_flag __attribute__((unused));
enum refusal *unused_refusal __attribute__((unused));
struct owner *unused_owner __attribute__((unused));
struct slot *unused_slot __attribute__((unused));
struct cursor *unused_cursor __attribute__((unused));
