package loadgen

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestPortRing takes and gives back in an order of its own; the ring must always
// give the port that has been free for longest.
func TestPortRing(t *testing.T) {
	r := newPortRing([]uint16{1, 2, 3})
	steps := []struct {
		put  uint16 // 0: take
		want uint16
	}{
		{0, 1}, {0, 2}, {2, 0}, {0, 3}, {0, 2}, {3, 0}, {2, 0}, {1, 0}, {0, 3}, {0, 2}, {0, 1},
	}
	for i, s := range steps {
		if s.put != 0 {
			r.put(s.put)
			continue
		}
		if got := r.take(); got != s.want {
			t.Fatalf("step %d: port %d, want %d", i, got, s.want)
		}
	}
	if r.free != 0 {
		t.Errorf("%d are free, and all were taken", r.free)
	}
}

func TestPortRangeWithin(t *testing.T) {
	all := PortRange{1000, 2000}
	for _, c := range []struct{ asked, want PortRange }{
		{PortRange{1200, 1300}, PortRange{1200, 1300}},
		{PortRange{1000, 2000}, PortRange{1000, 2000}},
		{PortRange{500, 1300}, PortRange{1000, 1300}},
		{PortRange{1200, 3000}, PortRange{1200, 2000}},
		{PortRange{500, 3000}, PortRange{1000, 2000}},
		{PortRange{500, 600}, PortRange{1000, 2000}}, // the kernel passes it over
	} {
		if got := c.asked.within(all); got != c.want {
			t.Errorf("%v within %v is %v, want %v", c.asked, all, got, c.want)
		}
	}
}

func TestParsePortList(t *testing.T) {
	for _, c := range []struct {
		text string
		want []int
	}{
		{"\n", nil}, {"8080\n", []int{8080}}, {"7,9-11,65535\n", []int{7, 9, 10, 11, 65535}},
	} {
		got, err := parsePortList(c.text)
		if err != nil || !slices.Equal(slices.Sorted(maps.Keys(got)), c.want) {
			t.Errorf("%q: %v, %v, want %v", c.text, got, err, c.want)
		}
	}
	for _, text := range []string{"x", "1-", "-1", "1,,2", "65536"} {
		if got, err := parsePortList(text); err == nil {
			t.Errorf("%q: %v, want an error", text, got)
		}
	}
}

// TestNoPortRange stands for a kernel before 6.3 by a filter of system calls that
// answers as such a kernel does (do_ip_setsockopt: ENOPROTOOPT).
func TestNoPortRange(t *testing.T) {
	plan := NewPlan(netip.MustParseAddrPort("127.0.0.1:7"))
	plan.LocalPorts = PortRange{40000, 40010}
	result := make(chan error, 1)
	go onDisposableThread(func() {
		if err := refuseSockopt(unix.IP_LOCAL_PORT_RANGE, unix.ENOPROTOOPT); err != nil {
			result <- err
			return
		}
		_, err := NewStorm(plan)
		result <- err
	})
	if err := <-result; !errors.Is(err, ErrNoPortRange) {
		t.Errorf("%v, want %v", err, ErrNoPortRange)
	}
	plan.LocalPorts = PortRange{}
	if err := plan.CheckKernel(); err != nil {
		t.Errorf("a plan that does not ask for it: %v", err)
	}
}

// refuseSockopt has setsockopt() of an option fail on the calling thread from now on.
func refuseSockopt(name uint32, errno unix.Errno) error {
	const nr, arg2 = 0, 32 // offsets in struct seccomp_data; the low half of the third argument
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: nr},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_SETSOCKOPT, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: arg2},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: name, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
}
