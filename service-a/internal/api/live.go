package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/problem"
	"example.com/tandem/kit/telemetry"
	"example.com/tandem/service-a/internal/backend"
	"example.com/tandem/service-a/internal/live"
)

// Hello is the first event of /api/live.
type Hello struct {
	ServedBy      instance.Instance `json:"servedBy"`
	WindowSeconds int               `json:"windowSeconds"`
	Faults        bool              `json:"faults"`   // whether /api/faults exists
	TraceURL      string            `json:"traceUrl"` // with {traceId} in it; empty if there is no trace UI
	Ways          []live.WayState   `json:"ways"`
	NoLoad        string            `json:"noLoad,omitempty"` // why no calls are made, if some were asked for
}

// Live handles GET /api/live?via=&rate=0..100&n=1..1000&key=: it sends snapshots of this
// instance's calls to service-b as server-sent events, which begin with hello.
//
// With rate it makes calls for as long as the client is connected, and with n it makes n
// calls, whose outcome is the event burst. They are parameters of the stream because
// another request might reach another instance of service-a, whose calls are not in these
// snapshots.
func Live(c *live.Collector, hello Hello, tel *telemetry.Telemetry) http.HandlerFunc {
	backends := c.Backends()
	loads := make(chan struct{}, maxLoads)
	return func(w http.ResponseWriter, r *http.Request) {
		params, rate, n, err := parseLoad(r.URL.Query(), backends)
		if err != nil {
			problem.Error(w, http.StatusBadRequest, err.Error())
			return
		}
		if r.Header.Get("Last-Event-ID") != "" {
			n = 0 // a browser connects again by itself, and has had its burst
		}
		noLoad := ""
		if rate > 0 || n > 0 {
			select {
			case loads <- struct{}{}:
				defer func() { <-loads }()
			default:
				rate, n, noLoad = 0, 0, "Too many pages make calls already; this one makes none."
			}
		}
		viewer, leave, err := c.Join()
		if err != nil {
			problem.Write(w, problem.Problem{Status: http.StatusServiceUnavailable, Detail: err.Error(), RetryAfter: 10})
			return
		}
		defer leave()
		events := newEventWriter(w)
		hello := hello
		hello.WindowSeconds, hello.Ways, hello.NoLoad = live.WindowSeconds, c.Ways(), noLoad
		first, err := json.Marshal(hello)
		if err != nil || events.send(fmt.Sprintf("retry: 1000\n\nevent: hello\nid: 1\ndata: %s\n\n", first)) != nil {
			return
		}
		// Without the cause with which the server ends the context when it drains: calls then
		// end as canceled ones.
		ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
		defer context.AfterFunc(r.Context(), cancel)()
		var calls errgroup.Group
		defer func() {
			cancel()
			_ = calls.Wait()
		}()
		burst := make(chan spreadResponse, 1)
		if rate > 0 {
			calls.Go(func() error { callAtRate(ctx, params, rate, tel); return nil })
		}
		if n > 0 {
			calls.Go(func() error { burst <- callMany(ctx, params, n); return nil })
		}
		for {
			select {
			case snapshot := <-viewer.Snapshots:
				err = events.send("event: snapshot\ndata: ", string(snapshot), "\n\n")
			case response := <-burst:
				response.ServedBy, response.Via = hello.ServedBy, params.via
				var body []byte
				if body, err = json.Marshal(response); err == nil {
					err = events.send(fmt.Sprintf("event: burst\ndata: %s\n\n", body))
				}
			case <-ctx.Done():
				return
			}
			if err != nil {
				return // the viewer has gone, or has read nothing for streamWriteTimeout
			}
		}
	}
}

const (
	// maxRate is the highest rate of /api/live, in calls a second.
	maxRate = 100
	// maxLoads is how many clients of /api/live may make calls at once.
	maxLoads = 10
)

// parseLoad parses what /api/live is to call, at which rate, and how often at once; the
// default is no call.
func parseLoad(query url.Values, backends map[string]backend.Backend) (params params, rate, n int, err error) {
	if params, err = parseParams(query, backends); err != nil {
		return
	}
	if rate, err = parseRate(query); err != nil || !query.Has("n") {
		return
	}
	n, err = parseCount(query)
	return
}

// parseRate parses ?rate=, in calls a second; the default is 0, no calls.
func parseRate(query url.Values) (int, error) {
	if !query.Has("rate") {
		return 0, nil
	}
	rate, err := strconv.Atoi(query.Get("rate"))
	if err != nil || rate < 0 || rate > maxRate {
		return 0, fmt.Errorf("rate is %.20q: want a whole number, 0 to %d", query.Get("rate"), maxRate)
	}
	return rate, nil
}

// callAtRate makes calls until ctx ends, each a trace of its own. If spreadConcurrency
// calls are in flight, it leaves calls out: a slow service-b gets fewer, not a queue.
func callAtRate(ctx context.Context, params params, rate int, tel *telemetry.Telemetry) {
	ticker := time.NewTicker(time.Second / time.Duration(rate))
	defer ticker.Stop()
	var group errgroup.Group
	group.SetLimit(spreadConcurrency)
	defer func() { _ = group.Wait() }()
	for {
		select {
		case <-ticker.C:
			group.TryGo(func() error {
				ctx, end := tel.NewTrace(ctx, "call of the page")
				defer end()
				_, _, _ = params.backend.Get(ctx, params.key) // the collector records it
				return nil
			})
		case <-ctx.Done():
			return
		}
	}
}
