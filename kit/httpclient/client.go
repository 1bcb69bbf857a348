// Package httpclient makes an http.Client for calls to another service by its
// name: with a deadline, retries of what is safe to repeat within a budget,
// trace context and metrics.
package httpclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/telemetry"
)

const (
	// maxIdlePerHost connections are kept. net/http keeps 2, and under load
	// opens and closes all the others, one a request.
	maxIdlePerHost = 256
	// idleTimeout is below package httpserver's, so that it is the client who
	// closes an idle connection.
	idleTimeout = 90 * time.Second
)

// ErrTooLarge is returned for an answer beyond Options.MaxAnswer.
var ErrTooLarge = errors.New("the answer is too large")

// Options of New. Timeout and Telemetry are required.
type Options struct {
	// Timeout of one call, its retries and the reading of its answer included.
	Timeout time.Duration
	// MaxAnswer is the most that is read of an answer, in bytes; 0 is 1 MiB.
	MaxAnswer int64
	Telemetry *telemetry.Telemetry
}

// New makes a client. Answers are read whole before a call returns, so that a
// connection that breaks half-way is noticed, and retried, in here.
//
// An attempt that another may follow has half of the time that is left, and the
// connection of a peer that fails is left, too: many pods may be behind a name,
// and one of them be sick.
//
// Errors are the transport's; call.ClassOf tells their class. Answers of any
// status are answers. Redirects are not followed: services answer themselves.
func New(o Options) *http.Client {
	if o.MaxAnswer == 0 {
		o.MaxAnswer = 1 << 20
	}
	dialer := newDialer()
	transport := &http.Transport{
		// No Proxy: a name inside a cluster means nothing to a proxy outside.
		DialContext:            dialer.dial,
		MaxIdleConnsPerHost:    maxIdlePerHost,
		IdleConnTimeout:        idleTimeout,
		TLSHandshakeTimeout:    5 * time.Second,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true, // small answers, short ways
	}
	// A request that cannot be sent a second time must not meet a kept
	// connection that proves to be closed, by the peer or by useOf.
	once := transport.Clone()
	once.DisableKeepAlives = true
	seconds := call.Register(o.Telemetry.Metrics, prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "http_client_request_duration_seconds",
		Help:    "Time of one attempt until its answer was read, by method, peer and status; code is 0 where there was none.",
		Buckets: prometheus.DefBuckets,
	}, []string{"method", "peer", "code"}))

	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		// A call passes these from outside to inside.
		Transport: &caller{
			timeout: o.Timeout,
			calls:   call.NewCounter(o.Telemetry.Metrics),
			dialer:  dialer,
			next: &retrier{
				budget: call.NewBudget(),
				next: &attempt{
					maxAnswer: o.MaxAnswer,
					seconds:   seconds,
					next:      traced(o.Telemetry, transport),
					once:      traced(o.Telemetry, once),
					closeIdle: transport.CloseIdleConnections,
				},
			},
		},
	}
}

// traced makes each attempt a span, where spans are exported.
func traced(t *telemetry.Telemetry, next http.RoundTripper) http.RoundTripper {
	if t.Traces == nil {
		return next
	}
	return otelhttp.NewTransport(next,
		otelhttp.WithTracerProvider(t.Traces),
		otelhttp.WithPropagators(telemetry.Propagator),
		otelhttp.WithMeterProvider(noop.NewMeterProvider()), // metrics are Prometheus's
	)
}

// caller is what is done once a call: the deadline, the count, the record.
type caller struct {
	timeout time.Duration
	calls   call.Counter
	dialer  *dialer
	next    *retrier
}

func (c *caller) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	deadline := call.Deadline(ctx, c.timeout)
	// A copy for what is added: the caller's own must not change.
	req = req.WithContext(ctx)
	req.Header = req.Header.Clone()
	telemetry.Propagator.Inject(ctx, propagation.HeaderCarrier(req.Header))
	resp, err := c.next.do(req, deadline)

	outcome := call.ClassOf(err)
	if err == nil {
		outcome = call.ClassOfStatus(resp.StatusCode)
	}
	c.calls.Add(req.URL.Hostname(), "http", outcome)
	call.RecordOf(ctx).Addresses = c.dialer.addresses(hostPort(req.URL))
	return resp, err
}

// CloseIdleConnections makes http.Client's method of that name work.
func (c *caller) CloseIdleConnections() { c.next.next.closeIdle() }

// attempt is one request and its whole answer.
type attempt struct {
	maxAnswer int64
	seconds   *prometheus.HistogramVec
	next      http.RoundTripper
	once      http.RoundTripper // for a request whose body cannot be had again
	closeIdle func()
}

// try also returns the use that was made of a connection. It is for the caller
// to end.
func (a *attempt) try(ctx context.Context, req *http.Request) (*http.Response, use, error) {
	start := time.Now()
	call.RecordOf(ctx).Attempts++

	code := 0
	resp, u, err := a.send(ctx, req)
	if err == nil {
		code = resp.StatusCode
		if err = a.read(resp); err != nil {
			resp = nil
		}
	}
	a.seconds.WithLabelValues(req.Method, req.URL.Hostname(), strconv.Itoa(code)).Observe(time.Since(start).Seconds())
	return resp, u, err
}

func (a *attempt) send(ctx context.Context, req *http.Request) (resp *http.Response, u use, err error) {
	next := a.next
	if !replayable(req) {
		next = a.once
	}
	record := call.RecordOf(ctx)
	req = req.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(got httptrace.GotConnInfo) {
			record.Peer = got.Conn.RemoteAddr().String()
			u = useOf(got.Conn)
		},
	}))
	for {
		record.Peer, u = "", use{}
		resp, err = next.RoundTrip(req)
		if err == nil || !u.refused {
			return resp, u, err
		}
		// Nothing was sent, so this is the same attempt. net/http sees to that
		// by itself where there is no body (go.dev/issue/81217).
		if req, err = again(req); err != nil {
			return nil, u, err
		}
	}
}

// read replaces an answer's body by what it held.
func (a *attempt) read(resp *http.Response) error {
	defer resp.Body.Close() //nolint:errcheck // nothing that is not known by then
	size := resp.ContentLength
	if resp.Request.Method == http.MethodHead {
		size = 0 // what it says is the length of what GET would answer
	}
	if size > a.maxAnswer {
		return fmt.Errorf("%w: %d bytes, where %d are taken", ErrTooLarge, size, a.maxAnswer)
	}
	var buf bytes.Buffer
	buf.Grow(int(max(size, 0)) + bytes.MinRead) // ReadFrom grows what has less room than MinRead
	if _, err := buf.ReadFrom(io.LimitReader(resp.Body, a.maxAnswer+1)); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if int64(buf.Len()) > a.maxAnswer {
		return fmt.Errorf("%w: more than %d bytes", ErrTooLarge, a.maxAnswer)
	}
	resp.Body = io.NopCloser(&buf)
	return nil
}
