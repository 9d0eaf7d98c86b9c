package export

import (
	"context"
	"io"
	"testing"
)

type written struct{ n int64 }

func (c *written) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

var _ io.Writer = (*written)(nil)

// BenchmarkWrite writes a storm of 100,000 connections, 1.2 million events, in each format.
func BenchmarkWrite(b *testing.B) {
	const connections = 100_000
	r := open(b, writeStorm(b, connections))
	for _, f := range Formats {
		b.Run(f.Name, func(b *testing.B) {
			var out written
			b.ReportAllocs()
			for b.Loop() {
				out.n = 0
				if _, err := Write(context.Background(), r, f.Name, &out, Options{}); err != nil {
					b.Fatal(err)
				}
			}
			events := float64(12 * connections)
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/events, "ns/event")
			b.ReportMetric(float64(out.n)/events, "B/event")
		})
	}
}
