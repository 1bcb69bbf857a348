// Package httpclient makes an http.Client for calls to other services by their
// names: balanced over every address behind a name, with a deadline, retries of
// idempotent requests within a budget, trace context and metrics.
//
// Use it for a handful of services whose requests and responses fit in memory. Do
// not use it for large downloads, streams or the internet: responses are read
// whole, redirects are not followed and proxies are not used.
//
// A call passes through the files in this order:
//
//	client.go      New makes the client
//	call.go        RoundTrip: sets the deadline; package retry makes up to three attempts
//	idempotent.go  decides whether the request may be retried
//	attempt.go     makeAttempt: calls send; if the trace is sampled, trace.go wraps that call
//	               in a span
//	attempt.go     send: chooses the endpoint, sends the request, reads the response
//	outcome.go     what the response means for the endpoint, and for a retry
//	call.go        RoundTrip: fills in call.Record: the server's address, the attempts
//
// Skip on a first reading: target.go, which holds the limits and creates what is
// kept of each host, conn.go, which decides which connections are reused, and trace.go.
package httpclient

import (
	"crypto/tls"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/identity"
	"example.com/tandem/kit/telemetry"
)

// ErrTooLarge is returned for a response larger than Options.MaxResponse.
var ErrTooLarge = errors.New("the response is too large")

// Options holds the settings of New. Timeout and Telemetry are required.
type Options struct {
	// Timeout of one call, including its retries and reading the response.
	Timeout time.Duration
	// MaxResponse is the largest response body accepted, in bytes; 0 means 1 MiB.
	MaxResponse int64
	// TLS is used for https; nil means the system's root certificates. An empty
	// ServerName means the host of the URL.
	TLS *tls.Config
	// Token says who calls; nil means that calls do not. Every request of the client has the
	// token, so use a client for one service only: each host can call as this process.
	// Redirects are not followed. A call without a token fails with class call.Token.
	Token     *identity.Source
	Telemetry *telemetry.Telemetry
}

// Endpoints returns the addresses that a client made by New knows now behind the host of
// a URL. It waits for nothing: if no address is known yet, it starts to look the name up.
func Endpoints(c *http.Client, u *url.URL) []call.Endpoint {
	var endpoints []call.Endpoint
	for _, addr := range c.Transport.(*transport).target(u).name.Current() {
		endpoints = append(endpoints, call.Endpoint{Addr: addr})
	}
	return endpoints
}

// New makes a client. It reads a response whole before a call returns, so that a
// connection that breaks in the middle is noticed and the call is retried.
//
// Requests go to the addresses behind the host's name in turn, except to ejected
// ones (see package endpoint). A ClusterIP is one address, behind which kube-proxy
// chooses a pod for each connection, so a retry takes another connection.
//
// Errors are those of the transport; call.ClassOf returns their class. A response
// of any status is not an error.
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
				Help:    "Time of one attempt including reading its response, by method, peer and status; code is 0 if there was no response.",
				Buckets: prometheus.DefBuckets,
			}, []string{"method", "peer", "code"})),
		},
	}
}
