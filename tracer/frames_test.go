package tracer

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/twtrace/twtrace/bpf"
)

func TestParseSymbols(t *testing.T) {
	const handler = "ffffffff81000000 t tw_timer_handler\n"
	const (
		expired  = uint64(bpf.ProbesCauseCAUSE_EXPIRED)
		replaced = uint64(bpf.ProbesCauseCAUSE_REPLACED_BY_SYN)
	)
	for _, tt := range []struct {
		name, text string
		want       []bpf.ProbesFrame
		err        error
	}{
		{name: "empty", err: ErrNoKallsyms},
		{name: "hidden", text: "0000000000000000 t tw_timer_handler\n0000000000000000 T tcp_v4_rcv\n", err: ErrNoKallsyms},
		{name: "without the handler", text: "ffffffff81000100 T tcp_v4_rcv\n", err: ErrNoKallsyms},
		{name: "the handler split only", text: "ffffffff81000100 t tw_timer_handler.cold\n", err: ErrNoKallsyms},
		{name: "the handler as data", text: "ffffffff81000100 d tw_timer_handler\n", err: ErrNoKallsyms},
		{name: "no frames", text: handler},
		{
			name: "a function reaches to the next symbol, data included",
			text: handler + "ffffffff81000100 T tcp_v4_rcv\nffffffff81000180 d something\nffffffff81000200 T other\n",
			want: []bpf.ProbesFrame{{Start: 0xffffffff81000100, End: 0xffffffff81000180, Cause: replaced}},
		},
		{
			name: "the last symbol",
			text: handler + "ffffffff81000100 T tcp_v4_rcv\n",
			want: []bpf.ProbesFrame{{Start: 0xffffffff81000100, End: 0xffffffff81010100, Cause: replaced}},
		},
		{
			name: "a hole after the function",
			text: handler + "ffffffff81000100 T tcp_v4_rcv\nffffffffc0000000 t other\t[mod]\n",
			want: []bpf.ProbesFrame{{Start: 0xffffffff81000100, End: 0xffffffff81010100, Cause: replaced}},
		},
		{
			name: "in any order",
			text: "ffffffff81000300 t end\nffffffff81000200 T tcp_v6_rcv\n" + handler + "ffffffff81000100 t __run_timers\n",
			want: []bpf.ProbesFrame{
				{Start: 0xffffffff81000100, End: 0xffffffff81000200, Cause: expired},
				{Start: 0xffffffff81000200, End: 0xffffffff81000300, Cause: replaced},
			},
		},
		{
			name: "what compilers split",
			text: handler + "ffffffff81000100 t __run_timers.part.0\nffffffff81000200 t expire_timers.isra.0\n" +
				"ffffffff81000300 t tcp_v4_rcv.cold\nffffffff81000400 t tcp_v6_rcv.constprop.0.isra.1\nffffffff81000500 t end\n",
			want: []bpf.ProbesFrame{
				{Start: 0xffffffff81000100, End: 0xffffffff81000200, Cause: expired},
				{Start: 0xffffffff81000200, End: 0xffffffff81000300, Cause: expired},
				{Start: 0xffffffff81000300, End: 0xffffffff81000400, Cause: replaced},
				{Start: 0xffffffff81000400, End: 0xffffffff81000500, Cause: replaced},
			},
		},
		{
			name: "names that only look alike",
			text: handler + "ffffffff81000100 t __pfx_tcp_v4_rcv\nffffffff81000110 T tcp_v4_rcv_not\nffffffff81000120 d tcp_v4_rcv\n" +
				"ffffffff81000130 T tcp_v4_rcv\nffffffff81000140 T tcp_v4_rc\n",
			want: []bpf.ProbesFrame{{Start: 0xffffffff81000130, End: 0xffffffff81000140, Cause: replaced}},
		},
		{
			name: "of a module",
			text: handler + "ffffffffc0000100 t tcp_v6_rcv\t[ipv6]\nffffffffc0000200 t end\t[ipv6]\n",
			want: []bpf.ProbesFrame{{Start: 0xffffffffc0000100, End: 0xffffffffc0000200, Cause: replaced}},
		},
		{
			name: "lines that are none",
			text: handler + "\nx\nffffffff8100\nzzzz T tcp_v4_rcv\nffffffff81000100 T\nffffffff81000100 T \nffffffff81000200 T tcp_v4_rcv\nffffffff81000210 T x",
			want: []bpf.ProbesFrame{{Start: 0xffffffff81000200, End: 0xffffffff81000210, Cause: replaced}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseSymbols(strings.NewReader(tt.text))
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if err == nil && got.twTimerHandler != 0xffffffff81000000 {
				t.Errorf("tw_timer_handler at %#x", got.twTimerHandler)
			}
			if !reflect.DeepEqual(got.frames, tt.want) {
				t.Errorf("frames %x, want %x", got.frames, tt.want)
			}
		})
	}
}

// TestParseSymbolsRoom: more pieces than the kernel side has room for are an
// error, not a table cut short.
func TestParseSymbolsRoom(t *testing.T) {
	for n, ok := range map[int]bool{maxFrames: true, maxFrames + 1: false} {
		lines := []string{"ffffffff81000000 t tw_timer_handler\n"}
		for i := range n {
			lines = append(lines, fmt.Sprintf("ffffffff82%06x t tcp_v4_rcv.part.%d\n", i<<8, i))
		}
		rand.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
		syms, err := parseSymbols(strings.NewReader(strings.Join(lines, "")))
		if (err == nil) != ok || errors.Is(err, ErrNoKallsyms) {
			t.Fatalf("%d pieces: error %v", n, err)
		}
		if ok && len(syms.frames) != n {
			t.Errorf("%d pieces: %d frames", n, len(syms.frames))
		}
		// The kernel side searches by halves.
		for i := 1; i < len(syms.frames); i++ {
			if syms.frames[i-1].End > syms.frames[i].Start {
				t.Errorf("frames %x and %x overlap", syms.frames[i-1], syms.frames[i])
			}
		}
	}
}

func TestParseSymbolsReadError(t *testing.T) {
	long := "ffffffff81000000 t tw_timer_handler\nffffffff81000100 T " + strings.Repeat("x", 1<<20)
	if _, err := parseSymbols(strings.NewReader(long)); err == nil {
		t.Error("no error for a line that can't be read")
	}
}

// TestFrames: the causes of the table are those that a cancelled timer can have,
// each known by some function.
func TestFrames(t *testing.T) {
	causes := make(map[bpf.ProbesCause]int)
	names := make(map[string]bool)
	for _, f := range frames {
		causes[f.cause]++
		if names[f.function] || stripSuffix(f.function) != f.function {
			t.Errorf("%s is there twice, or has a suffix", f.function)
		}
		names[f.function] = true
	}
	for _, c := range []bpf.ProbesCause{
		bpf.ProbesCauseCAUSE_EXPIRED, bpf.ProbesCauseCAUSE_REUSED_BY_CONNECT, bpf.ProbesCauseCAUSE_REPLACED_BY_SYN,
		bpf.ProbesCauseCAUSE_KILLED_BY_RST, bpf.ProbesCauseCAUSE_PURGED, bpf.ProbesCauseCAUSE_DESTROYED,
		bpf.ProbesCauseCAUSE_REARMED, bpf.ProbesCauseCAUSE_DONE,
	} {
		if causes[c] == 0 {
			t.Errorf("cause %d is known by no function", c)
		}
		delete(causes, c)
	}
	if len(causes) > 0 {
		t.Errorf("causes %v are none that a kernel function can mean", causes)
	}
}
