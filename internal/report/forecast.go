package report

import (
	"fmt"
	"math"

	"github.com/twtrace/twtrace/internal/timeline"
)

// Forecast is what was foretold about the first connect() without a port, and what came of it, for the path (source and
// destination) on which it failed first, or would.
type Forecast struct {
	Source      string  `json:"source"`
	Destination string  `json:"destination"`
	Ports       int     `json:"ports"`        // that connect() could choose from
	HoldSeconds float64 `json:"hold_seconds"` // for which a TIME_WAIT keeps its port
	// Guess was made early in the storm.
	Guess
	// Revised was made when half of the ports were taken, from when on the kernel's search takes longer; null: it did not come to that.
	Revised *Guess `json:"revised"`
	// ObservedSeconds is when the failure came; null: there was none.
	ObservedSeconds *float64 `json:"observed_seconds"`
	// Basis says what the pace was assumed to be.
	Basis string `json:"basis"`
}

// Guess is one forecast. Times are since the run began.
type Guess struct {
	MadeSeconds float64 `json:"made_seconds"`
	PerSecond   float64 `json:"per_second"` // opens of the path, then
	Held        int     `json:"held"`       // ports that were taken
	// FirstFailureSeconds is when it was foretold for; null: it was foretold that there would be none.
	FirstFailureSeconds *float64 `json:"first_failure_seconds"`
	// Error is by how much of the time from the path's first open to the failure it was wrong; null: none was foretold, or came.
	Error *float64 `json:"error"`
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
	if f.First.Made == 0 {
		return nil
	}
	out := &Forecast{
		Source: f.Source.String(), Destination: f.Dest.String(), Ports: f.Ports, HoldSeconds: holdSeconds(s),
		Guess: *b.guess(&f.First), ObservedSeconds: b.since(f.Failed), Basis: "the pace of the moment",
	}
	if f.Revised.Made != 0 {
		out.Revised = b.guess(&f.Revised)
	}
	if s.Options.Rate == 0 {
		out.Basis = "the pace of the moment, in a closed loop, which falls as the search for a port takes longer"
	}
	return out
}

func (b *Builder) guess(g *timeline.Guess) *Guess {
	out := &Guess{MadeSeconds: *b.since(g.Made), PerSecond: g.Rate, Held: g.Held, FirstFailureSeconds: b.since(g.At)}
	if f := &b.forecast; g.At != 0 && f.Failed != 0 {
		wrong := math.Abs(float64(g.At-f.Failed)) / float64(max(1, f.Failed-f.Begun))
		out.Error = &wrong
	}
	return out
}

// since is a moment in the run's seconds; nil: there was none.
func (b *Builder) since(monoNS int64) *float64 {
	if monoNS == 0 {
		return nil
	}
	at := float64(monoNS-b.started) / 1e9
	return &at
}

func (t *Text) forecast(s *Summary) {
	f := s.Forecast
	if f == nil || f.FirstFailureSeconds == nil && f.ObservedSeconds == nil {
		return
	}
	text := fmt.Sprintf("for want of a port the first connect() was to fail %s", f.text(f.Ports, f.HoldSeconds))
	if f.Revised != nil {
		text += "; " + f.Revised.text(0, 0)
	}
	if f.ObservedSeconds == nil {
		text += "; none failed"
	} else {
		text += fmt.Sprintf("; it failed at %.2f s", *f.ObservedSeconds)
	}
	t.item("FORECAST", "%s", text)
}

// text is a forecast for people.
func (g *Guess) text(ports int, hold float64) string {
	when := "never"
	if g.FirstFailureSeconds != nil {
		when = fmt.Sprintf("at %.2f s", *g.FirstFailureSeconds)
	}
	basis := ""
	if ports > 0 {
		basis = fmt.Sprintf(", %d of %d ports taken, each until %g s after its close", g.Held, ports, hold)
	}
	wrong := ""
	if g.Error != nil {
		wrong = fmt.Sprintf(", %.1f %% off", 100**g.Error)
	}
	return fmt.Sprintf("%s (said at %.2f s: %.0f opens a second%s%s)", when, g.MadeSeconds, g.PerSecond, basis, wrong)
}
