package timeline

import (
	"net/netip"
	"sort"
)

// ForecastOptions say what connect() has to choose from; zero Ports: nothing is forecast.
type ForecastOptions struct {
	Ports int // of the range, without those that connect() never takes
	// HoldNS is how long a TIME_WAIT keeps its port from connect(), nanoseconds: its own length, or what tcp_tw_reuse asks for.
	HoldNS int64
}

// Forecast says when connect() will find no port for a destination, from one source: as its ports stand,
// at the pace at which they are taken now, and as they come back.
type Forecast struct {
	Source netip.Addr
	Dest   netip.AddrPort
	Ports  int     // that there are
	Held   int     // of these, taken as it was made
	Rate   float64 // opens a second
	// CLOCK_MONOTONIC ns: the first open of the path, when this was made, the first failure it foretells
	// (0: none while it goes on like this), the first failure that came (0: none so far).
	Begun, Made, At, Failed int64
}

const (
	forecastEvery = int64(100e6)
	// A forecast is made of the opens of this time, and first after forecastAfter, or when a quarter of the
	// ports is taken.
	forecastOver  = 20 * forecastEvery
	forecastAfter = int64(1e9)
)

// forecaster follows the opens of a path.
type forecaster struct {
	begun, failed int64
	opens         int
	next          int64                                 // when it looks next
	past          [forecastOver/forecastEvery + 1]int32 // opens, in a ring, as it looked
	looks         int
	kept          Forecast // the first that was made before a failure; Made 0: none was
	now           Forecast // the latest
}

// opened counts an open.
func (f *forecaster) opened(now int64) {
	if f.begun == 0 {
		f.begun, f.next = now, now+forecastEvery
	}
	f.opens++
}

// foretell has each path look how it stands at its moments until now. It is called before what happened then is taken.
func (j *Joiner) foretell(now int64) {
	next := int64(1<<63 - 1)
	for _, p := range j.paths {
		f := &p.forecast
		for f.begun != 0 && f.next <= now {
			j.look(p, f.next)
			if f.next += forecastEvery; f.next <= now-forecastOver { // nothing happened for long
				f.next = now - forecastOver/2
			}
		}
		if f.begun != 0 {
			next = min(next, f.next)
		} else {
			next = min(next, now+forecastEvery)
		}
	}
	j.nextLook = next
	if len(j.paths) == 0 {
		j.nextLook = now + forecastEvery
	}
}

func (j *Joiner) look(p *pathState, now int64) {
	f := &p.forecast
	f.past[f.looks%len(f.past)] = int32(f.opens)
	f.looks++
	span := min(f.looks, len(f.past)) - 1
	if span == 0 {
		return
	}
	rate := float64(f.opens-int(f.past[(f.looks-1-span)%len(f.past)])) / (float64(int64(span)*forecastEvery) / 1e9)
	held := p.all.Open + p.newer(now-j.opts.Forecast.HoldNS)
	if now-f.begun < forecastAfter && held < j.opts.Forecast.Ports/4 {
		return
	}
	f.now = Forecast{
		Source: p.key.source, Dest: p.key.dest, Ports: j.opts.Forecast.Ports, Held: held, Rate: rate,
		Begun: f.begun, Made: now, Failed: f.failed,
	}
	if in := p.failsIn(now, held, rate, &j.opts.Forecast); in >= 0 {
		f.now.At = now + in
	}
	if f.kept.Made == 0 && f.failed == 0 {
		f.kept = f.now
	}
}

// newer is how many TIME_WAITs the path has that were made after from.
func (p *pathState) newer(from int64) int {
	q := p.queue[p.first:]
	n := len(q) - sort.Search(len(q), func(i int) bool { return q[i].start > from })
	return min(n, p.all.TimeWait)
}

// failsIn is how long it takes at a pace until no port is left, while those come back that TIME_WAITs hold now; below 0: that
// does not happen. After HoldNS what comes back is what was taken at that pace.
func (p *pathState) failsIn(now int64, held int, rate float64, o *ForecastOptions) int64 {
	const steps = 1000
	q := p.queue[p.first:]
	i := sort.Search(len(q), func(i int) bool { return q[i].start > now-o.HoldNS })
	back := 0
	for k := int64(0); k <= steps; k++ {
		in := k * (o.HoldNS / steps)
		for i < len(q) && q[i].start+o.HoldNS <= now+in {
			i, back = i+1, back+1
		}
		if over := float64(held-back) + rate*float64(in)/1e9 - float64(o.Ports); over >= 0 {
			if k > 0 && rate > 0 { // somewhere since the step before
				in -= min(int64(over/rate*1e9), o.HoldNS/steps)
			}
			return in
		}
	}
	return -1
}

// keepForecast is called as a path is forgotten.
func (j *Joiner) keepForecast(p *pathState) {
	f := p.forecast.kept
	f.Failed = p.forecast.failed
	if f.before(&j.forecast) {
		j.forecast = f
	}
}

// before reports whether a forecast is the one to keep of two: of the path that failed first, else of the one that
// will first.
func (f *Forecast) before(other *Forecast) bool {
	switch {
	case f.Made == 0 || other.Made == 0:
		return f.Made != 0
	case f.Failed != other.Failed:
		return f.Failed != 0 && (other.Failed == 0 || f.Failed < other.Failed)
	case f.At != other.At:
		return f.At != 0 && (other.At == 0 || f.At < other.At)
	}
	return f.Source.Less(other.Source)
}

// Forecast returns the first forecast that was made, for the path whose ports ran out first, or will; Made is 0
// if there is none.
func (j *Joiner) Forecast() Forecast {
	j.mu.Lock()
	defer j.mu.Unlock()
	best := j.forecast
	for _, p := range j.paths {
		f := p.forecast.kept
		f.Failed = p.forecast.failed
		if f.before(&best) {
			best = f
		}
	}
	return best
}

// Outlook returns the latest forecast, for the path whose ports will run out first; Made is 0 if there is none.
func (j *Joiner) Outlook() (best Forecast) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, p := range j.paths {
		if f := p.forecast.now; f.before(&best) {
			best = f
		}
	}
	return best
}
