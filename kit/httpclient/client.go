// Package httpclient makes an http.Client for calls to other services by their
// names: balanced over every address behind a name, with a deadline, retries of
// idempotent requests within a budget, trace context and metrics.
//
// Use it for requests and responses that fit in memory, to a handful of
// services. Do not use it for large downloads, streams or the open internet:
// responses are read whole, redirects and proxies are not followed.
package httpclient

import (
	"context"
	"crypto/tls"
	"errors"
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

// ErrTooLarge is returned for a response beyond Options.MaxResponse.
var ErrTooLarge = errors.New("the response is too large")

// Options of New. Timeout and Telemetry are required.
type Options struct {
	// Timeout of one call, including its retries and reading its response.
	Timeout time.Duration
	// MaxResponse is the largest response body taken, in bytes; 0 is 1 MiB.
	MaxResponse int64
	// TLS is used for https; nil is the system's root certificates. ServerName is
	// the host of the URL where it is empty.
	TLS       *tls.Config
	Telemetry *telemetry.Telemetry
}

// New makes a client. Responses are read whole before a call returns, so that a
// connection which breaks in the middle is noticed, and the call retried.
//
// Requests go to the addresses behind the host's name in turn, except ejected
// ones (see package endpoint). A ClusterIP is one address, and kube-proxy chooses
// a pod for each connection, so a retry takes another connection.
//
// Errors are those of the transport; call.ClassOf returns their class. A
// response of any status is no error.
func New(o Options) *http.Client {
	if o.MaxResponse == 0 {
		o.MaxResponse = 1 << 20
	}
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &transport{
			Options: o,
			calls:   call.NewCounter(o.Telemetry.Metrics),
			seconds: call.Register(o.Telemetry.Metrics, prometheus.NewHistogramVec(prometheus.HistogramOpts{
				Name:    "http_client_request_duration_seconds",
				Help:    "Time of one attempt until its response was read, by method, peer and status; code is 0 where there was none.",
				Buckets: prometheus.DefBuckets,
			}, []string{"method", "peer", "code"})),
		},
	}
}

// transport makes calls: what is done once for each.
type transport struct {
	Options
	calls   call.Counter
	seconds *prometheus.HistogramVec
	targets sync.Map // of *target, by scheme and host:port
}

// RoundTrip makes one call.
func (t *transport) RoundTrip(req *http.Request) (resp *http.Response, err error) {
	ctx := req.Context()
	deadline := retry.Deadline(ctx, t.Timeout)
	record := call.RecordOf(ctx)
	target := t.target(req.URL)

	// A copy, as a RoundTripper must not change the caller's request.
	req = req.WithContext(ctx)
	req.Header = req.Header.Clone()
	telemetry.Propagator.Inject(ctx, propagation.HeaderCarrier(req.Header))

	var last attempt
	retry.Do(ctx, deadline, idempotent(req), target.budget, func(ctx context.Context, mayRetry bool) retry.Result {
		if last.n > 0 {
			if err = rewind(req); err != nil {
				return retry.Result{}
			}
		}
		start := time.Now()
		last = attempt{n: last.n + 1, avoid: last.addr, mayRetry: mayRetry}
		resp, err = target.send(ctx, req, &last) //nolint:bodyclose // it is read whole
		t.observe(req, resp, start)
		return resultOf(req, resp, err, last.alone)
	})

	outcome := call.ClassOf(err)
	if err == nil {
		outcome = call.ClassOfStatus(resp.StatusCode)
	}
	t.calls.Add(req.URL.Hostname(), "http", outcome)
	record.Attempts, record.Peer = last.n, last.peer
	record.Addresses, _ = target.name.Known()
	return resp, err
}

func (t *transport) observe(req *http.Request, resp *http.Response, start time.Time) {
	code := 0
	if resp != nil {
		code = resp.StatusCode
	}
	t.seconds.WithLabelValues(req.Method, req.URL.Hostname(), strconv.Itoa(code)).Observe(time.Since(start).Seconds())
}

// target returns what is known about the host of a URL.
func (t *transport) target(u *url.URL) *target {
	key := u.Scheme + "://" + u.Host
	if known, ok := t.targets.Load(key); ok {
		return known.(*target)
	}
	known, _ := t.targets.LoadOrStore(key, newTarget(u, t.Options))
	return known.(*target)
}

// CloseIdleConnections makes the method of http.Client work.
func (t *transport) CloseIdleConnections() {
	t.targets.Range(func(_, known any) bool {
		known.(*target).closeIdle()
		return true
	})
}
