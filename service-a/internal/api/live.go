package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"sync"
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
	NoLoad        string            `json:"noLoad,omitempty"` // why the requested calls are not made
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
		requested, err := parseLoad(r.URL.Query(), backends)
		if err != nil {
			problem.Error(w, http.StatusBadRequest, err.Error())
			return
		}
		if r.Header.Get("Last-Event-ID") != "" {
			requested.n = 0 // a browser connects again by itself, and has had its burst
		}
		admitted, noLoad, release := admitLoad(requested, loads)
		defer release()
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
		burst, stop := startLoad(r.Context(), admitted, tel)
		defer stop()
		for err == nil { // else the viewer has gone, or has read nothing for streamWriteTimeout
			select {
			case snapshot := <-viewer.Snapshots:
				err = events.send("event: snapshot\ndata: ", string(snapshot), "\n\n")
			case response := <-burst:
				response.ServedBy, response.Via = hello.ServedBy, admitted.via
				var body []byte
				if body, err = json.Marshal(response); err == nil {
					err = events.send(fmt.Sprintf("event: burst\ndata: %s\n\n", body))
				}
			case <-r.Context().Done():
				return
			}
		}
	}
}

// load holds the calls that service-a makes for a client of /api/live: rate calls a second,
// and n calls at once.
type load struct {
	params
	rate, n int
}

// admitLoad returns the load, or one without calls and the reason if maxLoads clients have
// loads already. The caller must call release when the load has ended.
func admitLoad(l load, loads chan struct{}) (admitted load, noLoad string, release func()) {
	if l.rate == 0 && l.n == 0 {
		return l, "", func() {}
	}
	select {
	case loads <- struct{}{}:
		return l, "", func() { <-loads }
	default:
		return load{}, "Too many pages make calls already; this one makes none.", func() {}
	}
}

// startLoad starts to make the calls of a load. They end with ctx, or when stop is called,
// which waits for them. burst receives the outcome of the n calls.
func startLoad(ctx context.Context, l load, tel *telemetry.Telemetry) (burst <-chan spreadResponse, stop func()) {
	// WithoutCancel drops the cause with which the server ends ctx when it drains, so that
	// the calls end as canceled.
	callCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	unlink := context.AfterFunc(ctx, cancel)
	var calls sync.WaitGroup
	if l.rate > 0 {
		calls.Go(func() { callAtRate(callCtx, l.params, l.rate, tel) })
	}
	outcome := make(chan spreadResponse, 1)
	if l.n > 0 {
		calls.Go(func() { outcome <- callMany(callCtx, l.params, l.n) })
	}
	return outcome, func() {
		unlink()
		cancel()
		calls.Wait()
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
func parseLoad(query url.Values, backends map[string]backend.Backend) (l load, err error) {
	if l.params, err = parseParams(query, backends); err != nil {
		return load{}, err
	}
	if l.rate, err = parseRate(query); err != nil || !query.Has("n") {
		return l, err
	}
	l.n, err = parseCount(query)
	return l, err
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

// callAtRate makes calls until ctx ends, each a trace of its own. While spreadConcurrency
// calls are in flight, it skips calls: a slow service-b gets fewer, not a queue.
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
