/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * One ring a CPU, of fixed slots that user space maps: a program reserves a slot
 * with one compare-and-swap, and CPUs never wait for each other. (The kernel's own ring,
 * BPF_MAP_TYPE_RINGBUF, is one for all, behind a lock.) tracer/ring.go reads.
 */
#ifndef TWTRACE_RING_H
#define TWTRACE_RING_H

/* A program that interrupts between load and swap makes the swap fail. */
#define RESERVE_TRIES 8

/* Set in slot.seq while the event is being written. */
#define SLOT_BUSY (1ULL << 63)

/* The number of a slot of this CPU, or -1 if all are taken. Verified once: see __global. */
__global int ring_reserve(void)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct cursor *c = bpf_map_lookup_elem(&cursors, &cpu);
	struct slot *slot;
	__u64 head;
	__u32 at;

	if (!c)
		return -1;
	for (int i = 0; i < RESERVE_TRIES; i++) {
		head = c->head;
		if (head - c->tail >= ring_slots)
			return -1;
		if (__sync_val_compare_and_swap(&c->head, head, head + 1) != head)
			continue;
		at = cpu * ring_slots + (head & (ring_slots - 1));
		slot = bpf_map_lookup_elem(&slots, &at);
		if (!slot)
			return -1;
		slot->seq = (head + 1) | SLOT_BUSY;
		return at;
	}
	return -1;
}

/* The event before the number that says that it is whole. */
static __always_inline void ring_commit(struct slot *slot)
{
#if defined(__TARGET_ARCH_x86)
	/* Stores are seen in order. */
	*(volatile __u64 *)&slot->seq = slot->seq & ~SLOT_BUSY;
#else
	__sync_lock_test_and_set(&slot->seq, slot->seq & ~SLOT_BUSY);
#endif
}

#endif
