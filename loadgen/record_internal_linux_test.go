package loadgen

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/clock"
)

// BenchmarkRecord is what the record of an attempt costs a connection of BenchmarkStorm:
// the two system calls that nothing else needs, the four times, and handing it over.
func BenchmarkRecord(b *testing.B) {
	s := &shard{plan: &Plan{}}
	c := newCollector(s.plan, 1)
	s.out = newOutlet(c)
	go c.run()
	fd, e := sysSocket(unix.AF_INET)
	if e != 0 {
		b.Fatal(e)
	}
	defer sysClose(fd)
	b.ReportAllocs()
	for b.Loop() {
		a := Attempt{Started: clock.Mono()}
		if _, e := sysGetsockopt(fd, unix.SOL_SOCKET, unix.SO_COOKIE, unsafe.Pointer(&s.scratch.cookie), 8); e != 0 {
			b.Fatal(e)
		}
		a.Cookie = Cookie(s.scratch.cookie)
		if e := sysGetsockname(fd, &s.scratch.name); e != 0 {
			b.Fatal(e)
		}
		a.LocalPort = s.scratch.name.port()
		a.Connected, a.FirstByte, a.Closed = clock.Mono(), clock.Mono(), clock.Mono()
		s.out.put(&a, a.Closed)
	}
}
