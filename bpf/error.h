/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Errors that the kernel reports to a socket's owner. */
#ifndef TWTRACE_ERROR_H
#define TWTRACE_ERROR_H

/* inet_sk_error_report() also wakes those who wait without an error, as after a failed connect().
 */
static __always_inline int handle_error(struct sock *sk, bool twin)
{
	int err = sk->sk_err;

	return plain_event(sk, KIND_ERROR, err, err != 0, twin);
}

#endif
