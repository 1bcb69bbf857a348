package httpclient

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/propagation"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/retry"
	"example.com/tandem/kit/telemetry"
)

// transport does what is done once for each call.
type transport struct {
	Options
	calls   call.Counter
	seconds *prometheus.HistogramVec
	targets sync.Map // *target by scheme and host:port
}

// RoundTrip makes one call.
func (t *transport) RoundTrip(req *http.Request) (resp *http.Response, err error) {
	ctx := req.Context()
	deadline := retry.Deadline(ctx, t.Timeout)
	record := call.RecordOf(ctx)
	target := t.target(req.URL)

	// A copy, because a RoundTripper must not change the caller's request.
	req = req.WithContext(ctx)
	req.Header = req.Header.Clone()
	telemetry.Propagator.Inject(ctx, propagation.HeaderCarrier(req.Header))

	if err := t.authorize(ctx, deadline, req); err != nil {
		t.calls.Add(req.URL.Hostname(), "http", call.ClassOf(err))
		return nil, err
	}

	var a attempt // the latest
	retry.Do(ctx, deadline, idempotent(req), target.budget, func(ctx context.Context, mayRetry bool) retry.Result {
		if a.n > 0 {
			if err = rewind(req); err != nil {
				return retry.Result{}
			}
		}
		start := time.Now()
		a = attempt{n: a.n + 1, avoid: a.addr, mayRetry: mayRetry}
		resp, err = target.makeAttempt(ctx, req, &a) //nolint:bodyclose // send reads and closes it
		t.observe(req, resp, start)
		record.Tried(a.peer, time.Since(start), classOf(resp, err), reasonOf(resp, err))
		return resultOf(req, resp, err, a.alone)
	})

	t.calls.Add(req.URL.Hostname(), "http", classOf(resp, err))
	record.Peer = a.peer
	record.Addresses, _ = target.name.Known()
	record.BalancedBy = call.BalancerOf(record.Addresses)
	return resp, err
}

// authorize adds the token to a request. If there is none, it closes the body, as a
// RoundTripper must.
func (t *transport) authorize(ctx context.Context, deadline time.Time, req *http.Request) error {
	if t.Token == nil {
		return nil
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	authorization, err := t.Token.Authorization(ctx)
	if err != nil {
		if req.Body != nil {
			_ = req.Body.Close() // nothing was read from it
		}
		return err
	}
	req.Header.Set("Authorization", authorization)
	return nil
}

// target returns the target of a URL, and creates it on the first call.
func (t *transport) target(u *url.URL) *target {
	key := u.Scheme + "://" + u.Host
	if known, ok := t.targets.Load(key); ok {
		return known.(*target)
	}
	known, _ := t.targets.LoadOrStore(key, newTarget(u, t.Options))
	return known.(*target)
}

// observe records the duration of one attempt.
func (t *transport) observe(req *http.Request, resp *http.Response, start time.Time) {
	code := 0
	if resp != nil {
		code = resp.StatusCode
	}
	telemetry.Observe(req.Context(), t.seconds.WithLabelValues(req.Method, req.URL.Hostname(), strconv.Itoa(code)), time.Since(start).Seconds())
}

// CloseIdleConnections is called by the method of http.Client.
func (t *transport) CloseIdleConnections() {
	t.targets.Range(func(_, known any) bool {
		known.(*target).closeIdle()
		return true
	})
}
