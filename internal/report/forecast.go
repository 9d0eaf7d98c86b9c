package report

import (
	"fmt"
	"math"

	"github.com/twtrace/twtrace/internal/timeline"
)

// Forecast is what was foretold early in the storm about the first connect() without a port, and what came of it, for the path
// (source and destination) on which it failed first, or would.
type Forecast struct {
	Source      string  `json:"source"`
	Destination string  `json:"destination"`
	MadeSeconds float64 `json:"made_seconds"` // since the run began
	PerSecond   float64 `json:"per_second"`   // opens of the path, when it was made
	Ports       int     `json:"ports"`        // that connect() could choose from
	Held        int     `json:"held"`         // of these, then
	HoldSeconds float64 `json:"hold_seconds"` // for which a TIME_WAIT keeps its port
	// FirstFailureSeconds is when it was foretold for, since the run began; null: it was foretold that there would be none.
	FirstFailureSeconds *float64 `json:"first_failure_seconds"`
	// ObservedSeconds is when it came; null: there was none.
	ObservedSeconds *float64 `json:"observed_seconds"`
	// Error is by how much of the time from the path's first open to the failure it was wrong; null: one of the two is.
	Error *float64 `json:"error"`
	// Basis says what the pace was assumed to be.
	Basis string `json:"basis"`
}

// ForecastOptions are what a Joiner needs for forecasts of a run; the zero value if the port range is not known, or connect() does
// not choose ports.
func ForecastOptions(s *Summary) timeline.ForecastOptions {
	lo, hi, ports, ok := portRange(s)
	if !ok || s.Options.Bind == "port" || s.Options.Bind == "addr" && !s.Options.NoPort {
		return timeline.ForecastOptions{}
	}
	for _, b := range s.BoundPorts {
		if lo <= b.Port && b.Port <= hi {
			ports--
		}
	}
	return timeline.ForecastOptions{Ports: max(ports, 1), HoldNS: int64(holdSeconds(s) * 1e9)}
}

// SetForecast notes what was foretold.
func (b *Builder) SetForecast(f timeline.Forecast) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forecast = f
}

func (b *Builder) forecasted(s *Summary) *Forecast {
	f := &b.forecast
	if f.Made == 0 {
		return nil
	}
	since := func(monoNS int64) *float64 {
		if monoNS == 0 {
			return nil
		}
		at := float64(monoNS-b.started) / 1e9
		return &at
	}
	out := &Forecast{
		Source: f.Source.String(), Destination: f.Dest.String(), MadeSeconds: *since(f.Made), PerSecond: f.Rate, Ports: f.Ports, Held: f.Held,
		HoldSeconds: holdSeconds(s), FirstFailureSeconds: since(f.At), ObservedSeconds: since(f.Failed), Basis: "open loop: the pace is kept",
	}
	if s.Options.Rate == 0 {
		out.Basis = "closed loop: the pace of the moment, which falls as the search for a port gets longer"
	} else if s.Options.RateTo != 0 && s.Options.RateTo != s.Options.Rate {
		out.Basis = "open loop: the pace of the moment, which is to change"
	}
	if f.At != 0 && f.Failed != 0 {
		wrong := math.Abs(float64(f.At-f.Failed)) / float64(max(1, f.Failed-f.Begun))
		out.Error = &wrong
	}
	return out
}

func (t *Text) forecast(s *Summary) {
	f := s.Forecast
	if f == nil || f.FirstFailureSeconds == nil && f.ObservedSeconds == nil {
		return
	}
	text := fmt.Sprintf("at %.2f s (%.0f opens a second, %d of %d ports taken, each for %g s after its close) ",
		f.MadeSeconds, f.PerSecond, f.Held, f.Ports, f.HoldSeconds)
	if f.FirstFailureSeconds == nil {
		text += "no failure for want of a port was foretold"
	} else {
		text += fmt.Sprintf("the first failure for want of a port was foretold for %.2f s", *f.FirstFailureSeconds)
	}
	switch {
	case f.ObservedSeconds == nil:
		text += "; there was none"
	case f.Error != nil:
		text += fmt.Sprintf("; it came at %.2f s, %.1f %% off", *f.ObservedSeconds, 100**f.Error)
	default:
		text += fmt.Sprintf("; it came at %.2f s", *f.ObservedSeconds)
	}
	if s.Options.Rate == 0 {
		text += " (" + f.Basis + ")"
	}
	t.item("FORECAST", "%s", text)
}
