package load

import (
	"maps"
	"math"
	"slices"
	"time"

	"example.com/tandem/deploy/e2e/row"
)

// Elapsed returns the time since the start. The periods of other methods are
// given in it.
func (g *Generator) Elapsed() time.Duration { return time.Since(g.start) }

// Started returns when the Generator was started.
func (g *Generator) Started() time.Time { return g.start }

// Spec returns what the Generator was started with.
func (g *Generator) Spec() Spec { return g.spec }

// Skipped returns the number of requests that an open loop did not make because all
// callers were busy.
func (g *Generator) Skipped() int64 { return g.skipped.Load() }

// Stalled returns the longest time for which the machine kept this process waiting.
// Measured latencies may be too high by as much.
func (g *Generator) Stalled() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stalled
}

// Examples returns one failure of each class.
func (g *Generator) Examples() map[string]string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(g.examples)
}

// Requests returns the requests over a transport that ended in a period.
func (g *Generator) Requests(via string, from, to time.Duration) []Request {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []Request
	for _, r := range g.requests[via] {
		if r.End >= from && r.End < to {
			out = append(out, r)
		}
	}
	return out
}

// Figures summarises the requests over a transport that ended in a period. Calls and
// Failed count the calls of batches; the times are those of requests.
func (g *Generator) Figures(via, during string, from, to time.Duration) row.Figures {
	f := row.Figures{Via: via, During: during, Failed: map[string]int{}}
	last, gap := from, time.Duration(0)
	var times []time.Duration
	var total time.Duration
	for _, r := range g.Requests(via, from, to) {
		total += r.Took
		times = append(times, r.Took)
		if r.Batch == nil {
			f.Calls++
		} else {
			f.Calls += r.Batch.N
			for class, n := range r.Batch.Errors {
				f.Failed[class] += n
			}
		}
		if r.Class != "" {
			f.Failed[r.Class]++
			continue
		}
		gap, last = max(gap, r.End-last), r.End
	}
	f.Gap = Milliseconds(max(gap, to-last))
	f.SucceededPerSecond = float64(f.Calls-f.TotalFailed()) / (to - from).Seconds()
	f.InFlight = total.Seconds() / (to - from).Seconds() // Little's law
	if len(times) > 0 {
		slices.Sort(times)
		f.P50, f.P99, f.Max = Milliseconds(Percentile(times, 0.50)), Milliseconds(Percentile(times, 0.99)), Milliseconds(times[len(times)-1])
	}
	return f
}

// LastFailure returns when the last failed request of a period ended, or from if
// none failed.
func (g *Generator) LastFailure(via string, from, to time.Duration) time.Duration {
	last := from
	for _, r := range g.Requests(via, from, to) {
		if r.Class != "" {
			last = r.End
		}
	}
	return last
}

// Retries returns how many attempts of batches were retries.
func (g *Generator) Retries(via string) int {
	n := 0
	for _, r := range g.Requests(via, 0, g.Elapsed()) {
		if r.Batch != nil {
			n += r.Batch.Attempts - r.Batch.N
		}
	}
	return n
}

// FirstServed returns when each pod of service-b first served a call of a batch that
// ended after from; LastServed when it last did.
func (g *Generator) FirstServed(via string, from time.Duration) map[string]time.Duration {
	first := map[string]time.Duration{}
	for _, r := range slices.Backward(g.batches(via, from)) {
		for pod := range r.Batch.Pods {
			first[pod] = r.End
		}
	}
	return first
}

// LastServed is described at FirstServed.
func (g *Generator) LastServed(via string) map[string]time.Duration {
	last := map[string]time.Duration{}
	for _, r := range g.batches(via, 0) {
		for pod := range r.Batch.Pods {
			last[pod] = r.End
		}
	}
	return last
}

func (g *Generator) batches(via string, from time.Duration) []Request {
	return slices.DeleteFunc(g.Requests(via, from, g.Elapsed()), func(r Request) bool { return r.Batch == nil })
}

// Percentile returns the smallest of sorted times that at least this share of them
// does not exceed (the nearest-rank method).
func Percentile(times []time.Duration, share float64) time.Duration {
	return times[max(int(math.Ceil(share*float64(len(times)))), 1)-1]
}

// Milliseconds returns d in milliseconds, to two decimal places.
func Milliseconds(d time.Duration) float64 {
	return float64(d.Round(10*time.Microsecond)) / float64(time.Millisecond)
}
