package report

import (
	"cmp"
	"fmt"
	"io"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/twtrace/twtrace/internal/tcp"
)

// maxLatency is the longest time that is told apart, in microseconds: ten minutes.
const maxLatency = int64(10 * time.Minute / time.Microsecond)

// tooLate is how much later than intended an attempt may begin before it counts as late.
const tooLate = int64(time.Millisecond)

// histograms are the distributions behind Latencies, in microseconds, with three
// significant digits. Their memory does not depend on the number of attempts.
type histograms struct{ lag, connect, firstByte, exchange *hdrhistogram.Histogram }

func newHistograms() histograms {
	h := func() *hdrhistogram.Histogram { return hdrhistogram.New(1, maxLatency, 3) }
	return histograms{h(), h(), h(), h()}
}

// add takes the times that an attempt has, counted from when it was due: who begins late
// because others are slow has waited too.
func (h *histograms) add(a *tcp.Attempt) {
	due := cmp.Or(a.Intended, a.Started)
	record := func(to *hdrhistogram.Histogram, at int64) {
		_ = to.RecordValue(min((at-due)/1000, maxLatency)) // can't fail: it is within the range
	}
	record(h.lag, a.Started)
	if a.Connected > 0 {
		record(h.connect, a.Connected)
	}
	if a.FirstByte > 0 {
		record(h.firstByte, a.FirstByte)
	}
	if !a.Failed() {
		record(h.exchange, a.Closed)
	}
}

// merge moves what from has to h.
func (h *histograms) merge(from *histograms) {
	h.lag.Merge(from.lag)
	h.connect.Merge(from.connect)
	h.firstByte.Merge(from.firstByte)
	h.exchange.Merge(from.exchange)
	from.lag.Reset()
	from.connect.Reset()
	from.firstByte.Reset()
	from.exchange.Reset()
}

func (h *histograms) quantiles() Latencies {
	return Latencies{
		ConnectUS: quantiles(h.connect), FirstByteUS: quantiles(h.firstByte), ExchangeUS: quantiles(h.exchange),
	}
}

func quantiles(h *hdrhistogram.Histogram) Quantiles {
	if h.TotalCount() == 0 {
		return Quantiles{}
	}
	return Quantiles{
		P50: h.ValueAtQuantile(50), P90: h.ValueAtQuantile(90), P99: h.ValueAtQuantile(99),
		P999: h.ValueAtQuantile(99.9), P9999: h.ValueAtQuantile(99.99), Max: h.Max(),
	}
}

// LatencyNames are those that WriteLatency takes.
var LatencyNames = []string{"connect", "first-byte", "exchange"}

// WriteLatency writes one of the distributions of all loops in the text form of
// HdrHistogram (.hgrm), which its plotters read: value in microseconds, percentile, count,
// 1/(1-percentile).
func (b *Builder) WriteLatency(name string, w io.Writer) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := map[string]*hdrhistogram.Histogram{
		"connect": b.all.connect, "first-byte": b.all.firstByte, "exchange": b.all.exchange,
	}[name]
	if h == nil {
		return fmt.Errorf("there is no latency %q", name)
	}
	if _, err := h.PercentilesPrint(w, 5, 1); err != nil {
		return fmt.Errorf("write the %s latency: %w", name, err)
	}
	return nil
}
