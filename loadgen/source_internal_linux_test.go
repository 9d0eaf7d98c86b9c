package loadgen

import (
	"maps"
	"slices"
	"testing"
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
