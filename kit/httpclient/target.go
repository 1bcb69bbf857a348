package httpclient

import (
	"crypto/tls"
	"net/http"
	"net/url"
	"time"

	"example.com/tandem/kit/internal/endpoint"
	"example.com/tandem/kit/internal/lookup"
	"example.com/tandem/kit/retry"
	"example.com/tandem/kit/telemetry"
)

const (
	// dialTimeout is for one address. A dial to a dead pod must leave time for
	// another address. Longer gains little: TCP sends a lost SYN again after 1 s.
	dialTimeout = 400 * time.Millisecond
	// handshakeTimeout is for TLS: the first attempt's half of the usual deadline
	// of 2 s.
	handshakeTimeout = time.Second
	tcpKeepAlive     = 15 * time.Second
	// reuseHeadStart is how long a retry at the only address waits for an idle
	// connection before it opens a new one. Behind a ClusterIP, an idle connection
	// has served a call, while a new one may lead to the pod that has just failed.
	reuseHeadStart = 50 * time.Millisecond
	// maxConnsPerAddress is how many connections a client opens to one address, and
	// keeps; further requests wait for one. net/http has no limit and keeps 2.
	// Without a limit, slow responses under load open thousands of connections,
	// which costs memory on both sides. 512 is the number of streams that package
	// grpcserver accepts on a connection.
	maxConnsPerAddress = 512
	// idleTimeout is below that of package httpserver, so that the client closes an
	// idle connection first: the server might close it just as a request arrives.
	idleTimeout = 90 * time.Second
	// maxResponseHeaders is the largest response header accepted, in bytes.
	maxResponseHeaders = 64 << 10
)

// target is one host that is called.
type target struct {
	maxResponse int64
	budget      *retry.Budget
	name        *lookup.Name
	endpoints   *endpoint.Set[string]
	pooled      http.RoundTripper // reuses connections
	unpooled    http.RoundTripper // opens a connection for each request
	traced      http.RoundTripper // send as a span; nil if spans are not exported
	telemetry   *telemetry.Telemetry
	closeIdle   func()
}

func newTarget(u *url.URL, o Options) *target {
	t := &target{
		maxResponse: o.MaxResponse,
		telemetry:   o.Telemetry,
		budget:      retry.NewBudget(),
		endpoints:   endpoint.NewSet(func(addr string) string { return addr }),
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	t.name = lookup.New(u.Hostname(), port, func(addrs []string) { t.endpoints.Update(addrs) })

	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.TLS != nil {
		config = o.TLS.Clone()
	}
	if config.ServerName == "" {
		config.ServerName = u.Hostname() // net/http would use the address
	}
	pooled := &http.Transport{
		// No Proxy: a proxy outside the cluster cannot resolve its names.
		DialContext:            dial,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    handshakeTimeout,
		MaxConnsPerHost:        maxConnsPerAddress,
		MaxIdleConnsPerHost:    maxConnsPerAddress,
		IdleConnTimeout:        idleTimeout,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxResponseHeaders,
		DisableCompression:     true, // responses are small, and the network is near
	}
	unpooled := pooled.Clone()
	unpooled.DisableKeepAlives = true
	t.pooled, t.unpooled = addressed{pooled}, addressed{unpooled}
	if o.Telemetry.Traces != nil {
		t.traced = newTraced(o.Telemetry, t)
	}
	t.closeIdle = pooled.CloseIdleConnections
	return t
}
