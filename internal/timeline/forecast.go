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
	Ports  int // that there are
	// CLOCK_MONOTONIC ns: the first open of the path, and the first failure that came (0: none so far).
	Begun, Failed int64
	// First was made early. Revised was made when half of the ports were taken: from there on connect() goes through
	// all of that half before it comes to the other, and what it takes falls. Made is 0 of what was not made.
	First, Revised Guess
}

// Guess is one forecast.
type Guess struct {
	Made int64   // CLOCK_MONOTONIC ns
	Held int     // ports that were taken then
	Rate float64 // opens a second
	At   int64   // the first failure that it foretells; 0: none while it goes on like this
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
	half          int64 // when half of the ports were taken; 0: not yet
	halfOpens     int   // then
	first         Guess
	revised       Guess
	now           Guess // the latest
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
	if span == 0 || f.past[(f.looks-2)%len(f.past)] == int32(f.opens) {
		return // nobody connects
	}
	held := p.all.Open + p.newer(now-j.opts.Forecast.HoldNS)
	if f.half == 0 && held >= j.opts.Forecast.Ports/2 {
		f.half, f.halfOpens = now, f.opens
	}
	if now-f.begun < forecastAfter && held < j.opts.Forecast.Ports/4 {
		return
	}
	over := int64(span) * forecastEvery
	opens := f.opens - int(f.past[(f.looks-1-span)%len(f.past)])
	if f.half != 0 && f.half < now && now-f.half < over { // the pace before was another
		opens, over = f.opens-f.halfOpens, now-f.half
	}
	f.now = Guess{Made: now, Held: held, Rate: float64(opens) / (float64(over) / 1e9)}
	if in := p.failsIn(now, held, f.now.Rate, &j.opts.Forecast); in >= 0 {
		f.now.At = now + in
	}
	switch {
	case f.failed != 0:
	case f.first.Made == 0:
		f.first = f.now
	case f.revised.Made == 0 && f.half != 0 && now > f.half && held >= j.opts.Forecast.Ports*5/8:
		f.revised = f.now
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

// told is what was foretold of a path.
func (j *Joiner) told(p *pathState) Forecast {
	f := &p.forecast
	return Forecast{
		Source: p.key.source, Dest: p.key.dest, Ports: j.opts.Forecast.Ports, Begun: f.begun, Failed: f.failed,
		First: f.first, Revised: f.revised,
	}
}

// keepForecast is called as a path is forgotten.
func (j *Joiner) keepForecast(p *pathState) {
	if f := j.told(p); f.before(&j.forecast) {
		j.forecast = f
	}
}

// before reports whether a forecast is the one to keep of two: of the path that failed first, else of the one that
// will first.
func (f *Forecast) before(other *Forecast) bool {
	switch {
	case f.First.Made == 0 || other.First.Made == 0:
		return f.First.Made != 0
	case f.Failed != other.Failed:
		return f.Failed != 0 && (other.Failed == 0 || f.Failed < other.Failed)
	case f.First.At != other.First.At:
		return f.First.At != 0 && (other.First.At == 0 || f.First.At < other.First.At)
	}
	return f.Source.Less(other.Source)
}

// Forecast returns what was foretold of the path whose ports ran out first, or will; First.Made is 0 if nothing was.
func (j *Joiner) Forecast() Forecast {
	j.mu.Lock()
	defer j.mu.Unlock()
	best := j.forecast
	for _, p := range j.paths {
		if f := j.told(p); f.before(&best) {
			best = f
		}
	}
	return best
}

// Outlook returns when the next path is about to run out of ports, by the latest that is known; ok is false if none
// is, or one has already.
func (j *Joiner) Outlook() (at int64, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, p := range j.paths {
		switch f := &p.forecast; {
		case f.failed != 0:
			return 0, false
		case f.now.At != 0 && (!ok || f.now.At < at):
			at, ok = f.now.At, true
		}
	}
	return at, ok
}
