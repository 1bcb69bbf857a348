package api

import (
	"context"
	"errors"
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
	// spreadConcurrency is the maximum number of calls in flight of one request, also of
	// one to /api/live.
	spreadConcurrency = 16
	// spreadTimeout bounds all calls of a request. It is shorter than the server's
	// timeouts, so the response is written even if service-b never responds.
	spreadTimeout = 10 * time.Second
)

// spreadResponse is the response of /api/spread, and the event burst of /api/live.
type spreadResponse struct {
	ServedBy    instance.Instance  `json:"servedBy"` // this instance of service-a
	Via         string             `json:"via"`
	N           int                `json:"n"`
	Concurrency int                `json:"concurrency"`
	DurationMS  float64            `json:"durationMs"`
	Attempts    int                `json:"attempts"` // of all calls
	Pods        map[string]int     `json:"pods"`     // successful calls by pod of service-b
	Errors      map[call.Class]int `json:"errors"`   // failed calls by class
	LatencyMS   latency            `json:"latencyMs"`
	Addresses   []string           `json:"addresses"` // that service-b's name resolved to
}

// latency holds percentiles of the successful calls, in milliseconds.
type latency struct {
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// Spread handles GET /api/spread?via=http|grpc&n=1..1000&key=: it calls service-b
// n times. The status is 200 even if calls fail: the response counts them.
func Spread(me instance.Instance, backends map[string]backend.Backend) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		params, err := parseParams(r.URL.Query(), backends)
		if err != nil {
			problem.Error(w, http.StatusBadRequest, err.Error())
			return
		}
		n, err := parseCount(r.URL.Query())
		if err != nil {
			problem.Error(w, http.StatusBadRequest, err.Error())
			return
		}
		response := callMany(r.Context(), params, n)
		response.ServedBy, response.Via = me, params.via
		writeJSON(w, response)
	}
}

// callMany makes n calls, at most spreadConcurrency at a time, for /api/spread and
// /api/live.
func callMany(ctx context.Context, params params, n int) spreadResponse {
	ctx, cancel := context.WithTimeout(ctx, spreadTimeout)
	defer cancel()
	response := spreadResponse{
		N: n, Concurrency: min(n, spreadConcurrency), Pods: map[string]int{}, Errors: map[call.Class]int{}, Addresses: []string{},
	}
	var mu sync.Mutex
	var times []float64

	start := time.Now()
	var group errgroup.Group
	group.SetLimit(response.Concurrency)
	for range n {
		if errors.Is(ctx.Err(), context.Canceled) {
			break // nobody reads the response
		}
		group.Go(func() error {
			data, info, err := params.backend.Get(ctx, params.key)
			mu.Lock()
			defer mu.Unlock()
			response.Attempts += info.Attempts
			response.Addresses = info.Addresses
			if err != nil {
				response.Errors[call.ClassOf(err)]++
				return nil
			}
			response.Pods[data.GetServedBy().GetPod()]++
			times = append(times, info.DurationMS)
			return nil
		})
	}
	_ = group.Wait() // failed calls are counted, not returned
	response.DurationMS = float64(time.Since(start).Microseconds()) / 1000
	response.LatencyMS = percentiles(times)
	return response
}

func percentiles(times []float64) latency {
	if len(times) == 0 {
		return latency{}
	}
	slices.Sort(times)
	// The nearest-rank method: the smallest time that this share of the calls did not exceed.
	rank := func(share float64) float64 { return times[int(math.Ceil(share*float64(len(times))))-1] }
	return latency{P50: rank(0.50), P90: rank(0.90), P99: rank(0.99), Max: times[len(times)-1]}
}
