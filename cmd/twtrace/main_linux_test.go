package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"

	"github.com/twtrace/twtrace/internal/testenv"
)

// TestMain makes the test binary twtrace itself: as the scripts have it, and in a world of its
// own for the tests that start it as a child.
func TestMain(m *testing.M) {
	if world := os.Getenv(worldEnv); world != "" {
		os.Exit(child(world))
	}
	mainAsScripts(m)
}

// TestUsageLinux has a wrong value for each flag of the commands that need Linux.
func TestUsageLinux(t *testing.T) {
	testUsage(t, []wrongUse{
		{"run --loops 0", []string{"loops", "at least 1", "0"}},
		{"run --loops -3", []string{"loops", "at least 1", "-3"}},
		{"run --loops x", []string{"--loops", `"x"`, "want a whole number"}},
		{"run --loops 99999999999999999999", []string{"--loops", "99999999999999999999"}},
		{"run --loops 2147483648", []string{"loops", "2^31"}},
		{"run --connections 0", []string{"connections", "at least 1"}},
		{"run --connections 1e4", []string{"--connections", `"1e4"`, "want a whole number"}},
		{"run --clients 0", []string{"--clients", "1 to 64", "0"}},
		{"run --clients 65", []string{"--clients", "1 to 64", "65"}},
		{"run --clients two", []string{"--clients", `"two"`, "want a whole number"}},
		{"client", []string{"twtrace run --clients"}},
		{"client 3", []string{`"3"`}},
		{"run --concurrency -1", []string{"concurrency", "-1"}},
		{"run --bytes -1", []string{"bytes", "0 to 1048576", "-1"}},
		{"run --bytes 1048577", []string{"bytes", "0 to 1048576"}},
		{"run --linger=-1", []string{"--linger=-1", "0 to 65535"}},
		{"run --linger=65536", []string{"--linger=65536", "0 to 65535"}},
		{"run --linger=1s", []string{"--linger=1s", "whole seconds"}},
		{"run --linger=", []string{"--linger", "whole seconds"}},
		{"run --linger 5", []string{`"5"`, "no argument"}}, // not a value: --linger=5 is
		{"run --reuseport=x", []string{"--reuseport", `"x"`}},
		{"run --reuseaddr=x", []string{"--reuseaddr", `"x"`}},
		{"run --sources 0", []string{"--sources", "at least 1", "0"}},
		{"run --sources 5000", []string{"5000 source", "4096"}},
		{"run --sources x", []string{"--sources", "want a whole number"}},
		{"run --sources 2 --net host -6", []string{"2 IPv6 source", "pair or loopback"}},
		{"run --sources 2 --target 192.0.2.1:80 --yes-i-may-load 192.0.2.1", []string{"--sources 2", "192.0.2.1", "--net pair"}},
		{"run --sources 2 --target [::1]:80", []string{"2 IPv6 source", "pair or loopback"}},
		{"run --bind all", []string{"--bind", "none|addr|port"}},
		{"run --no-port", []string{"no-port", "bind addr"}},
		{"run --no-port --bind port", []string{"no-port", "bind port"}},
		{"run --no-port=x", []string{"--no-port", `"x"`}},
		{"run --local-port-range 40000", []string{"--local-port-range 40000", "LO-HI"}},
		{"run --local-port-range 50000-40000", []string{"--local-port-range 50000-40000", "no port is left"}},
		{"run --local-port-range=", []string{"--local-port-range", "LO-HI"}},
		{"run --close me", []string{"--close", "client|server|both"}},
		{"run --interval 5", []string{"--interval", `"5"`, "want a time with its unit"}},
		{"run --interval -1s", []string{"interval", "negative"}},
		{"run --hold -1s", []string{"hold", "negative"}},
		{"run --timeout -1s", []string{"timeout", "negative"}},
		{"run --timeout x", []string{"--timeout", "want a time with its unit"}},
		{"run --backlog 0", []string{"--backlog", "at least 1"}},
		{"run --server deaf", []string{"--server", "echo|rst|never-read|never-accept"}},
		{"run --server never-read --close server", []string{"never-read", "close must be client"}},
		{"run --server never-accept --close both", []string{"never-accept", "close must be client"}},
		{"run --server-first -1", []string{"server-first", "0 to 1048576", "-1"}},
		{"run --server-first 1048577", []string{"server-first", "0 to 1048576"}},
		{"run --accept-delay -1s", []string{"accept-delay", "negative"}},
		{"run --accept-delay 5", []string{"--accept-delay", `"5"`, "want a time with its unit"}},
		{"run --accept-every 0", []string{"--accept-every", "at least 1", "0"}},
		{"run --control 7008", []string{"--control", "--target"}},
		{"run --target 127.0.0.1:80 --control 80", []string{"--control 80", "not the server's"}},
		{"run --target 127.0.0.1:80 --control x", []string{"--control x", "1 to 65535"}},
		{"run --target 127.0.0.1:80 --server rst", []string{"--server", "twtrace serve"}},
		{"run --target 127.0.0.1:80 --accept-delay 1s", []string{"--accept-delay", "twtrace serve"}},
		{"run --target 127.0.0.1:80 --accept-every 2", []string{"--accept-every", "twtrace serve"}},
		{"run --net mars", []string{"--net", "pair|loopback|host"}},
		{"run -6=x", []string{"--ipv6", `"x"`}},
		{"run --target 127.0.0.1", []string{"--target 127.0.0.1", "HOST:PORT"}},
		{"run --target 127.0.0.1:0", []string{"--target 127.0.0.1:0", "1 to 65535"}},
		{"run --target 127.0.0.1:65536", []string{"--target 127.0.0.1:65536", "1 to 65535"}},
		{"run --target 127.0.0.1:http", []string{"--target 127.0.0.1:http", "1 to 65535"}},
		{"run --target 192.0.2.1:80", []string{"--target 192.0.2.1:80", "--yes-i-may-load 192.0.2.1"}},
		{"run --target 192.0.2.1:80 --yes-i-may-load 192.0.2.2", []string{"--yes-i-may-load 192.0.2.1"}},
		{"run --target [2001:db8::1]:80", []string{"--yes-i-may-load 2001:db8::1"}},
		{"run --target [::ffff:192.0.2.1]:80", []string{"--yes-i-may-load ::ffff:192.0.2.1"}},
		{"run --target [2001:db8::1]:80 --yes-i-may-load 2001:db8::2", []string{"--yes-i-may-load 2001:db8::1"}},
		{"run --target [fe80::1%no-such]:80 --yes-i-may-load fe80::1%no-such", []string{"no link no-such"}},
		{"run --target [fe80::1%1]:80", []string{"--yes-i-may-load fe80::1%1"}},
		{"run --target [::127.0.0.1]:80", []string{"--yes-i-may-load ::127.0.0.1"}},
		{"run --target 128.0.0.1:80", []string{"--yes-i-may-load 128.0.0.1"}},
		{"run --target 127.0.0.1:80 -6", []string{"IPv4", "-6"}},
		{"run --duration 1s", []string{"--duration", "--rate", "--max-duration"}},
		{"run --duration 1s --rate 5 --connections 5", []string{"--duration", "--connections"}},
		{"run --duration 1ms --rate 5", []string{"--duration 1ms", "0 connections"}},
		{"run --duration -1s --rate 5", []string{"--duration -1s"}},
		{"run --max-rate x", []string{"--max-rate", `"x"`, "want a number"}},
		{"run --max-rate -1", []string{"max-rate", "0.001", "-1"}},
		{"run --max-rate NaN", []string{"max-rate", "0.001", "NaN"}},
		{"run --max-rate 1000 --rate 1001", []string{"1001", "max-rate", "1000"}},
		{"run --max-rate 1000 --rate 10-2000", []string{"2000", "max-rate", "1000"}},
		{"run --max-duration 5", []string{"--max-duration", `"5"`, "want a time with its unit"}},
		{"run --max-duration -1s", []string{"max-duration", "negative"}},
		{"run --progress loud", []string{"--progress", "auto|plain|never"}},
		{"serve --progress loud", []string{"--progress", "auto|plain|never"}},
		{"run --target 0.0.0.0:80", []string{"--yes-i-may-load 0.0.0.0"}},
		{"run --target 127.0.0.1:80 --net loopback", []string{"--target", "--net"}},
		{"run --target 127.0.0.1:80 --net pair", []string{"--target", "--net"}},
		{"run --target 127.0.0.1:80 --sysctl net.ipv4.tcp_tw_reuse=1", []string{"--target", "--sysctl"}},
		{"run --target 127.0.0.1:80 --tw-reuse 1", []string{"net.ipv4.tcp_tw_reuse", "never on the host"}},
		{"run --sysctl net.ipv4.tcp_tw_reuse=1 --net host", []string{"net.ipv4.tcp_tw_reuse", "never on the host"}},
		{"run --tw-reuse 1 --net host", []string{"net.ipv4.tcp_tw_reuse", "never on the host"}},
		{"run --sysctl tcp_tw_reuse", []string{"--sysctl tcp_tw_reuse", "KEY=VALUE"}},
		{"run --sysctl kernel.panic=1", []string{"--sysctl kernel.panic=1", "net."}},
		{"run --port-range 5-3", []string{"--port-range 5-3", "LO-HI"}},
		{"run --port-range 80-90", []string{"--port-range 80-90", "1024 to 65535"}},
		{"run --port-range abc", []string{"--port-range abc", "LO-HI"}},
		{"run --port-range 40000", []string{"--port-range 40000", "LO-HI"}},
		{"run --port-range 40000-", []string{"--port-range 40000-", "LO-HI"}},
		{"run --port-range 40000-65536", []string{"--port-range 40000-65536", "1024 to 65535"}},
		{"run --port-range 50000-40000", []string{"--port-range 50000-40000", "no port is left"}},
		{"run --port-range=", []string{"--port-range", "LO-HI"}},
		{"run --tw-reuse yes", []string{"--tw-reuse yes", "want 0|1|2"}},
		{"run --tw-reuse 3", []string{"--tw-reuse 3", "want 0|1|2"}},
		{"run --tw-reuse=", []string{"--tw-reuse", "want 0|1|2"}},
		{"run --timestamps 7", []string{"--timestamps 7", "want 0|1"}},
		{"run --syncookies on", []string{"--syncookies on", "want 0|1"}},
		{"run --max-tw-buckets -1", []string{"--max-tw-buckets -1", "want a number"}},
		{"run --max-tw-buckets 99999999999", []string{"--max-tw-buckets", "want a number"}},
		{"run --fin-timeout 60s", []string{"--fin-timeout 60s", "want a number"}},
		{"run --linger-watch -1s", []string{"--linger-watch", "not negative"}},
		{"run --no-trace=x", []string{"--no-trace", `"x"`}},
		{"run --strict=x", []string{"--strict", `"x"`}},
		{"run -o yaml", []string{"--output", "text|json"}},
		{"run --color sometimes", []string{"--color", "auto|always|never"}},
		{"run --loops 0 --bytes -1", []string{"loops", "bytes"}}, // every problem at once, in one line
		{"run --no-such-flag", []string{"--no-such-flag", "twtrace run --help"}},
		{"run -Z", []string{"-Z", "twtrace run --help"}},
		{"run --loops", []string{"--loops", "twtrace run --help"}},
		{"run now", []string{`"now"`, "twtrace run --help"}},
		{"trace -p x", []string{"--pid", `"x"`, "a process number"}},
		{"trace -p 0", []string{"--pid", `"0"`, "a process number"}},
		{"trace -p 1,,2", []string{"--pid", `""`, "a process number"}},
		{"trace --comm 1234567890123456", []string{"1 to 15 bytes"}},
		{"trace --comm=", []string{"--comm", "up to 15 bytes"}},
		{"trace -L 0", []string{"--localport", `"0"`, "1 to 65535"}},
		{"trace -D 65536", []string{"--remoteport", `"65536"`, "1 to 65535"}},
		{"trace -D 80,http", []string{"--remoteport", `"http"`, "1 to 65535"}},
		{"trace -L 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17", []string{"16 local ports"}},
		{"trace --kind fly", []string{`"fly"`, "one of", "state", "rst-sent", "tw-enter", "listen-drop", "snapshot"}},
		{"trace --kind state,", []string{`""`, "one of"}},
		{"trace --kind snapshot --no-snapshot", []string{"--kind snapshot", "--no-snapshot"}},
		{"trace --netns /dev/null", []string{"not a network namespace", "/dev/null", "/run/netns"}},
		{"trace --netns /no/such/file", []string{"not a network namespace", "/no/such/file"}},
		{"trace --netns /proc/self/ns/mnt", []string{"not a network namespace", "/proc/self/ns/mnt"}},
		{"trace --netns=", []string{"--netns", "PATH"}},
		{"trace --cgroup /dev/null", []string{"--cgroup", "/dev/null", "not a cgroup"}},
		{"trace --cgroup no/such", []string{"--cgroup", "no/such", "not a cgroup"}},
		{"trace --duration 5", []string{"--duration", `"5"`, "want a time with its unit"}},
		{"trace --duration -1s", []string{"--duration", "negative"}},
		{"trace --max -1", []string{"--max", `"-1"`, "want a whole number"}},
		{"trace --time lunar", []string{"--time", "relative|wall|mono|delta"}},
		{"trace -o yaml", []string{"--output", "text|json"}},
		{"trace --color sometimes", []string{"--color", "auto|always|never"}},
		{"trace --strict=x", []string{"--strict", `"x"`}},
		{"trace curl", []string{`"curl"`, "-- COMMAND"}},
		{"trace curl -- wget", []string{`"curl"`, "-- COMMAND"}},
		{"trace --", []string{"a command is missing"}},
		{"trace --no-such-flag", []string{"--no-such-flag", "twtrace trace --help"}},
		{"serve --listen here", []string{"--listen here", "ADDRESS:PORT"}},
		{"serve --bytes -1", []string{"bytes"}},
		{"serve --backlog -1", []string{"backlog"}},
		{"serve --close me", []string{"--close", "client|server|both"}},
		{"serve --server deaf", []string{"--server", "echo|rst|never-read|never-accept"}},
		{"serve --server never-accept --close server", []string{"never-accept", "close must be client"}},
		{"serve --server-first -1", []string{"server-first", "-1"}},
		{"serve --accept-delay -1s", []string{"accept-delay", "negative"}},
		{"serve --accept-every 0", []string{"--accept-every", "at least 1"}},
		{"serve --control 0", []string{"--control 0", "1 to 65535"}},
		{"serve --control 7007", []string{"--control 7007", "not the server's"}},
		{"serve now", []string{`"now"`}},
		{"doctor now", []string{`"now"`, "twtrace doctor --help"}},
		{"doctor -o yaml", []string{"--output", "text|json"}},
		{"doctor --color sometimes", []string{"--color", "auto|always|never"}},
	})
}

// TestSysctlRefused: what the kernel says of a setting decides about the exit code.
func TestSysctlRefused(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS, testenv.Veth)
	for _, tt := range []struct {
		setting string
		code    int
		says    string
	}{
		{"net.ipv4.tcp_tw_reuse=7", exitUsage, "refuses the value"},
		{"net.core.rmem_max=4096", exitUsage, "could change the whole host"},
		{"net.ipv4.no_such_setting=1", exitMachine, "no such setting"},
	} {
		t.Run(tt.setting, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := Main(t.Context(), []string{"run", "--no-trace", "--sysctl", tt.setting}, &stdout, &stderr)
			if code != tt.code || stdout.Len() != 0 || !isOneLine(stderr.String()) || !strings.Contains(stderr.String(), tt.says) {
				t.Errorf("exit code %d, want %d; stdout %q, stderr %q", code, tt.code, firstLine(stdout.String()), stderr.String())
			}
		})
	}
}

// TestCanceled: a run that was stopped before it began is done, and says so.
func TestCanceled(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var stdout, stderr bytes.Buffer
	if code := Main(ctx, []string{"run", "--no-trace", "--net", "loopback"}, &stdout, &stderr); code != exitDone || stderr.Len() > 0 {
		t.Errorf("exit code %d, stderr %q", code, stderr.String())
	}
	if !strings.Contains(stdout.String(), "stopped before it was done") {
		t.Errorf("stdout:\n%s", stdout.String())
	}
}
