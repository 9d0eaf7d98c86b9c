// Package netlab makes network namespaces for experiments: fresh, unnamed, and
// gone with the process that made them.
//
//	lab, err := netlab.New(netlab.Options{
//		Kind:    netlab.Pair,
//		Sources: 3,
//		Sysctls: []netlab.Sysctl{{Key: "net.ipv4.tcp_tw_reuse", Value: "1"}},
//	})
//	if err != nil {
//		return err
//	}
//	defer lab.Close()
//	var ln net.Listener
//	err = lab.Server().Do(func() (err error) {
//		ln, err = net.Listen("tcp", netip.AddrPortFrom(lab.ServerAddr(), 0).String())
//		return err
//	})
//
// A [Lab] is one of three kinds: [Pair] is two namespaces joined by a veth
// link, [Loopback] is one namespace with its loopback device up, and [Host] is
// the namespace the process already lives in, which is only read, never
// changed.
//
// # Being inside
//
// A namespace belongs to an OS thread, and a socket belongs for life to the
// namespace of the thread that made it. [Namespace.Do] runs a function on a
// thread of its own inside the namespace: sockets made there, and processes
// started there, are inside; afterwards any thread may use the sockets.
// Whatever makes sockets on other goroutines (a resolver, [net.Dial] of a
// host name) would make them outside. A worker that stays inside calls
// [runtime.LockOSThread] and then [Namespace.Enter], and never unlocks: its
// thread ends with its goroutine.
//
// # Nothing is left behind
//
// The namespaces have no names and no bind mounts. They are held by file
// descriptors (close-on-exec) and threads of this process and by sockets made
// inside, so the kernel takes them down, with all links, addresses and
// settings, after [Lab.Close] and after any death of the process, SIGKILL
// included. The veth link is made inside the client's namespace with its peer
// put straight into the server's: the host never sees a link.
//
// Go never ends the process's main thread, not even when a locked goroutine
// returns on it; a namespace entered there would be held until the process
// ends, and /proc/self/net would show it. Do therefore never runs on the main
// thread.
//
// # Settings, and why the host is safe
//
// /proc/sys/net shows each task the settings of its own namespace. Most that
// belong to the whole machine do not appear in other namespaces at all
// (net.ipv4.tcp_mem) or are read-only there (net.core.rmem_max), but not
// all: on Linux 6.18 net.netfilter.nf_hooks_lwtunnel is writable in a fresh
// namespace, changes the whole machine, and can't be set back without a
// reboot. So [Options.Sysctls] accepts only families of settings that are
// known to be per namespace, and each is still compared with the host's: see
// sysctl_linux.go for the rules.
//
// The kernel may load its veth module when the first Pair is made; that is the
// one thing about the host that can change.
//
// # Counters
//
// [Namespace.Counters] reads the SNMP counters of a namespace, the kernel's own
// account against which every run checks itself. One call costs two reads of
// files that are kept open, and no thread.
package netlab
