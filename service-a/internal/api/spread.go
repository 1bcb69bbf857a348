package api

import (
	"context"
	"math"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/problem"
	"example.com/tandem/service-a/internal/backend"
)

const (
	// spreadConcurrency is how many calls of one spread are under way at once.
	spreadConcurrency = 16
	// spreadTimeout bounds a whole spread: below the server's time-outs, so
	// that the counts still arrive when service-b does not answer.
	spreadTimeout = 10 * time.Second
)

// spread says how many calls each pod answered, how fast, and what failed.
type spread struct {
	ServedBy    instance.Instance  `json:"servedBy"`
	Via         string             `json:"via"`
	N           int                `json:"n"`
	Concurrency int                `json:"concurrency"`
	DurationMS  float64            `json:"durationMs"`
	Attempts    int                `json:"attempts"`
	Pods        map[string]int     `json:"pods"`
	Errors      map[call.Class]int `json:"errors"`
	LatencyMS   latency            `json:"latencyMs"`
	Addresses   []string           `json:"addresses"`
}

// latency of the calls that were answered, in milliseconds.
type latency struct {
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// Spread is GET /api/spread?via=http|grpc&n=1..1000&key=: it asks service-b n
// times. It answers 200 whatever became of the calls: they are the answer.
func Spread(me instance.Instance, backends map[string]backend.Backend) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		q, err := questionOf(r.URL.Query(), backends)
		if err != nil {
			problem.Error(w, http.StatusBadRequest, err.Error())
			return
		}
		n, err := countOf(r.URL.Query())
		if err != nil {
			problem.Error(w, http.StatusBadRequest, err.Error())
			return
		}
		result := ask(r.Context(), q, n)
		result.ServedBy, result.Via = me, q.via
		writeJSON(w, result)
	}
}

// ask makes n calls, a bounded number at once.
func ask(ctx context.Context, q question, n int) spread {
	ctx, cancel := context.WithTimeout(ctx, spreadTimeout)
	defer cancel()
	result := spread{N: n, Concurrency: min(n, spreadConcurrency), Pods: map[string]int{}, Errors: map[call.Class]int{}, Addresses: []string{}}
	var mu sync.Mutex
	var times []float64

	start := time.Now()
	var group errgroup.Group
	group.SetLimit(result.Concurrency)
	for range n {
		group.Go(func() error {
			data, how, err := q.backend.Get(ctx, q.key)
			mu.Lock()
			defer mu.Unlock()
			result.Attempts += how.Attempts
			result.Addresses = how.Addresses
			if err != nil {
				result.Errors[call.ClassOf(err)]++
				return nil
			}
			result.Pods[data.GetServedBy().GetPod()]++
			times = append(times, how.DurationMS)
			return nil
		})
	}
	_ = group.Wait() // failures are counted, not returned
	result.DurationMS = float64(time.Since(start).Microseconds()) / 1000
	result.LatencyMS = percentiles(times)
	return result
}

func percentiles(times []float64) latency {
	if len(times) == 0 {
		return latency{}
	}
	slices.Sort(times)
	// The nearest rank: the smallest time that at least this share did not exceed.
	rank := func(share float64) float64 { return times[int(math.Ceil(share*float64(len(times))))-1] }
	return latency{P50: rank(0.50), P90: rank(0.90), P99: rank(0.99), Max: times[len(times)-1]}
}
