//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The table of what is attached to kernel functions, where the kernel allows that
 * (lockdown does not): an object of its own, so that the one of the tracepoints
 * loads everywhere. Programs here make no events; they leave notes (notes.h) for those
 * that do. tracer/enrich.go says which of them belong together, and for what.
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
#include "refusal.h"
#include "overflow.h"
#include "holder.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("fexit/tcp_twsk_unique")
int BPF_PROG(tw_refused, struct sock *sk, struct sock *sktw, void *twp, int unique)
{
	return unique ? 0 : handle_tw_refused(sk, sktw, twp);
}

SEC("fexit/__inet_check_established")
int port_checked(unsigned long long *ctx)
{
	return handle_port_checked(ctx);
}

SEC("fexit/__inet6_check_established")
int port_checked6(unsigned long long *ctx)
{
	return handle_port_checked(ctx);
}

SEC("fexit/inet_twsk_alloc")
int BPF_PROG(tw_denied, struct sock *sk, void *death_row, int state, void *tw)
{
	return tw ? 0 : handle_tw_denied(sk);
}

/*
 * A program that a softirq interrupts is not run again in it. Of two the softirq
 * interrupts one at most, and twice the same note is one.
 */
SEC("fexit/inet_twsk_alloc")
int BPF_PROG(tw_denied_twin, struct sock *sk, void *death_row, int state, void *tw)
{
	return tw ? 0 : handle_tw_denied(sk);
}

SEC("fexit/inet_csk_get_port")
int BPF_PROG(port_denied, struct sock *sk, unsigned short port, int err)
{
	return err ? handle_port_denied(sk, port) : 0;
}
