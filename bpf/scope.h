/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The namespaces that a trace is limited to: what the programs of both objects ask first. */
#ifndef TWTRACE_SCOPE_H
#define TWTRACE_SCOPE_H

#define MAX_NETNS 8 /* namespaces that one trace can be limited to */

/* Written by user space before load. */
const volatile __u32 netns_count; /* 0: every namespace */
const volatile __u64 netns_filter[MAX_NETNS];

static __always_inline bool in_scope(__u64 netns)
{
	if (netns_count == 0)
		return true;
	for (__u32 i = 0; i < MAX_NETNS; i++) {
		if (i >= netns_count)
			return false;
		if (netns_filter[i] == netns)
			return true;
	}
	return false;
}

/*
 * A pointer as a number: the verifier lets nobody calculate with the pointer itself, nor
 * hand it to a function that is verified alone.
 */
static __always_inline __u64 address_of(const void *p)
{
	const void *at = p;
	__u64 address = 0;

	bpf_probe_read_kernel(&address, sizeof(address), &at);
	return address;
}

#endif
