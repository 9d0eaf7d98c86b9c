package tracer

import (
	"math"
	"strings"
	"testing"

	"github.com/twtrace/twtrace/internal/tcp"
)

func TestOptionsValidate(t *testing.T) {
	for _, tt := range []struct {
		name string
		o    Options
		says []string // none: valid
	}{
		{name: "zero"},
		{name: "all", o: Options{NetNS: make8(1), RingSize: 4096}},
		{name: "large ring", o: Options{RingSize: 1 << 30}},
		{name: "too many namespaces", o: Options{NetNS: append(make8(1), 9)}, says: []string{"8 network namespaces, not 9"}},
		{name: "no namespace", o: Options{NetNS: []NetNS{1, 0}}, says: []string{"never 0"}},
		{name: "every filter", o: Options{
			Kinds: []Kind{tcp.KindState, tcp.KindSnapshot}, PIDs: []uint32{1}, Comms: []string{"fifteen-bytes-l"}, Cgroups: []uint64{1},
			LocalPorts: []uint16{1, 65535}, RemotePorts: []uint16{80}, IPv4Only: true, IPv6Only: true, FailuresOnly: true,
		}},
		{name: "no kind", o: Options{Kinds: []Kind{0}}, says: []string{"number 0"}},
		{name: "a kind to come", o: Options{Kinds: []Kind{Kind(tcp.NumKinds)}}, says: []string{"no kind"}},
		{name: "no process", o: Options{PIDs: []uint32{0}}, says: []string{"process is never 0"}},
		{name: "long name", o: Options{Comms: []string{"sixteen-bytes-lo"}}, says: []string{"15 bytes, not 16"}},
		{name: "no name", o: Options{Comms: []string{""}}, says: []string{"not 0"}},
		{name: "port 0", o: Options{LocalPorts: []uint16{0}}, says: []string{"port is never 0"}},
		{name: "too many ports", o: Options{RemotePorts: make([]uint16, MaxPorts+1)}, says: []string{"16 remote ports, not 17"}},
		{name: "small ring", o: Options{RingSize: 2048}, says: []string{"not 2048"}},
		{name: "odd ring", o: Options{RingSize: 4097}, says: []string{"not 4097"}},
		{name: "negative ring", o: Options{RingSize: -4096}, says: []string{"not -4096"}},
		{name: "most negative ring", o: Options{RingSize: math.MinInt}, says: []string{"power of two"}},
		{
			name: "every problem at once", o: Options{NetNS: append(make8(0), 1), RingSize: 3},
			says: []string{"8 network namespaces, not 9", "never 0", "not 3"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.o.Validate()
			if (err != nil) != (len(tt.says) > 0) {
				t.Fatalf("error %v, want one about %q", err, tt.says)
			}
			for _, s := range tt.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("error %q does not say %q", err, s)
				}
			}
			if err == nil {
				return
			}
			if _, openErr := Open(tt.o); openErr == nil || openErr.Error() != err.Error() {
				t.Errorf("Open: %v, want %v", openErr, err)
			}
		})
	}
}

// make8 is as many namespaces as one trace can be limited to.
func make8(ns NetNS) []NetNS {
	all := make([]NetNS, MaxNetNS)
	for i := range all {
		all[i] = ns
	}
	return all
}
