#!/bin/sh
# Makes the recordings of this directory anew: sudo sh record.sh TWTRACE, in a host name of its own.
set -e
[ "$RECORDED" ] || RECORDED=1 exec unshare -u sh "$0" "$@"
hostname lab
$1 run --loops 2 --connections 5 --port-range 40000-40007 --tw-reuse 1 --interval 1200ms -w reuse.twt
$1 run --loops 1 --connections 12 --port-range 40000-40007 --tw-reuse 0 -w exhausted.twt
$1 run --loops 1 --connections 2 -6 --linger -w linger6.twt
$1 run --loops 1 --connections 2 --close server --net loopback --no-trace -w untraced.twt
unshare -n sh -c "ip link set lo up; $1 trace -w trace.twt -- python3 traffic.py"
