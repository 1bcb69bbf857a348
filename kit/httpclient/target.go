package httpclient

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/metric/noop"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/internal/endpoint"
	"example.com/tandem/kit/internal/lookup"
	"example.com/tandem/kit/retry"
	"example.com/tandem/kit/telemetry"
)

const (
	// dialTimeout of one address. A dead pod must leave time for another; a lost
	// SYN is sent again only after a second in any case.
	dialTimeout = 400 * time.Millisecond
	// handshakeTimeout of TLS: an attempt's half of the usual deadline of 2 s.
	handshakeTimeout = time.Second
	tcpKeepAlive     = 15 * time.Second
	// keptHeadStart is how long a retry at an only address waits for a kept
	// connection before it opens one. Behind a ClusterIP a kept connection has
	// served a call, while a new one may lead to the pod that has just failed.
	keptHeadStart = 50 * time.Millisecond
	// maxConnsPerAddress is how many connections a client opens to one address, and
	// keeps; more requests wait for one. net/http has no limit and keeps 2. It is
	// the number of streams that package grpcserver takes on a connection: without
	// a limit, slow responses under load open connections by the thousand, which
	// costs memory on both sides.
	maxConnsPerAddress = 512
	// idleTimeout is below package httpserver's, so that the client closes an
	// idle connection: the server might close it as a request arrives.
	idleTimeout = 90 * time.Second
	// maxResponseHeaders is the largest response header taken, in bytes.
	maxResponseHeaders = 64 << 10
)

// target is one host that calls go to.
type target struct {
	maxResponse int64
	budget      *retry.Budget
	name        *lookup.Name
	endpoints   *endpoint.Set[string]
	kept        http.RoundTripper // keeps connections for later requests
	fresh       http.RoundTripper // opens one for each request
	closeIdle   func()
}

func newTarget(u *url.URL, o Options) *target {
	t := &target{
		maxResponse: o.MaxResponse,
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
		config.ServerName = u.Hostname() // requests are sent to an address
	}
	kept := &http.Transport{
		// No Proxy: a name inside a cluster means nothing to a proxy outside.
		DialContext:            dial,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    handshakeTimeout,
		MaxConnsPerHost:        maxConnsPerAddress,
		MaxIdleConnsPerHost:    maxConnsPerAddress,
		IdleConnTimeout:        idleTimeout,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxResponseHeaders,
		DisableCompression:     true, // small responses, short ways
	}
	fresh := kept.Clone()
	fresh.DisableKeepAlives = true
	t.kept, t.fresh, t.closeIdle = traced(o.Telemetry, pinned{kept}), traced(o.Telemetry, pinned{fresh}), kept.CloseIdleConnections
	return t
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

// attempt is one attempt of a call.
type attempt struct {
	n        int    // from 1
	avoid    string // the address of the attempt before
	mayRetry bool   // another may follow
	addr     string // chosen address
	alone    bool   // there is no other address
	peer     string // addr, once there was a connection to it
	conn     *conn
}

// send makes one attempt and reads the response.
func (t *target) send(ctx context.Context, req *http.Request, a *attempt) (*http.Response, error) {
	if _, err := t.name.Addresses(ctx); err != nil {
		return nil, err
	}
	addr, picked, ok := t.endpoints.Pick(a.avoid, false)
	if !ok { // its addresses were dropped just now
		return nil, &call.Error{Class: call.DNS, Err: errors.New("the name has no address any more")}
	}
	a.addr, a.alone = addr, picked.Alone()
	start := time.Now()
	resp, err := t.roundTrip(ctx, req, a)
	if err == nil && resp.StatusCode == http.StatusSwitchingProtocols {
		_ = resp.Body.Close() // the connection itself, which no deadline ends
		resp, err = nil, errors.New("the response switches protocols")
	}
	if err == nil {
		if a.mayRetry && retryableStatus(resp.StatusCode) {
			a.conn.retire() // another connection may lead to another pod
		}
		if err = t.read(resp); err != nil {
			resp = nil
		}
	}
	outcome := outcomeOf(resp, err, time.Since(start))
	if outcome == endpoint.TimedOut && a.peer == "" && req.URL.Scheme == "http" {
		outcome = endpoint.Ignored // it waited for one of the connections: over TLS, perhaps for a handshake
	}
	picked.End(outcome)
	if err == nil && resp.Close {
		t.name.Refresh() // the server may be leaving
	}
	if outcome == endpoint.Unreachable {
		t.name.Refresh()
		if _, lookupErr := t.name.Known(); lookupErr != nil { // so the addresses may be stale
			err = errors.Join(lookupErr, err)
		}
	}
	return resp, err
}

// roundTrip sends a request to the chosen address.
func (t *target) roundTrip(ctx context.Context, req *http.Request, a *attempt) (*http.Response, error) {
	next := t.kept
	if !replayable(req) {
		// Its body cannot be sent again if a kept connection proves to be closed.
		next = t.fresh
	}
	to := &route{addr: a.addr, preferKept: a.n > 1 && a.alone}
	defer to.done.Store(true)
	var retired bool // the connection that RoundTrip was given
	ctx = context.WithValue(ctx, routeKey{}, to)
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn: func(string) { to.done.Store(false) }, // again, if net/http finds a kept connection closed
		GotConn: func(got httptrace.GotConnInfo) {
			a.conn.release() // of a connection that was closed before it was used
			a.peer, a.conn = a.addr, connOf(got.Conn)
			retired = a.conn.use(to.preferKept && got.Reused)
			to.done.Store(!retired)
			if retired {
				_ = a.conn.Close() // it may be closed already
			}
		},
	})
	defer func() { a.conn.release() }()
	for {
		retired = false
		resp, err := next.RoundTrip(req.WithContext(ctx))
		if err == nil {
			a.conn.served.Store(true)
		}
		if err == nil || !retired {
			return resp, err
		}
		// Nothing was sent, so this is the same attempt. net/http takes another
		// connection by itself where the request has no body.
		if err := rewind(req); err != nil {
			return nil, err
		}
	}
}

// read replaces the body of a response by its contents.
func (t *target) read(resp *http.Response) error {
	defer resp.Body.Close() //nolint:errcheck // nothing that is not known by then
	size := resp.ContentLength
	if resp.Request.Method == http.MethodHead {
		size = 0 // the header says what GET would return
	}
	if size > t.maxResponse {
		return fmt.Errorf("%w: %d bytes, limit %d", ErrTooLarge, size, t.maxResponse)
	}
	var buf bytes.Buffer
	buf.Grow(int(max(size, 0)) + bytes.MinRead) // ReadFrom grows a buffer with less room than MinRead
	if _, err := buf.ReadFrom(io.LimitReader(resp.Body, t.maxResponse+1)); err != nil {
		return fmt.Errorf("read response: %w", err)
	}
	if int64(buf.Len()) > t.maxResponse {
		return fmt.Errorf("%w: more than %d bytes", ErrTooLarge, t.maxResponse)
	}
	resp.Body = io.NopCloser(&buf)
	return nil
}

// route tells the transport and its dialer where an attempt goes. A dial may
// outlive its attempt.
type route struct {
	addr       string
	preferKept bool        // see keptHeadStart
	done       atomic.Bool // the attempt has a connection, or has ended
}

type routeKey struct{}

// pinned sends requests to the address that was chosen. net/http keeps its idle
// connections by address, so each address has its own.
type pinned struct{ next *http.Transport }

// RoundTrip changes req, which is a copy made in roundTrip or by otelhttp.
func (p pinned) RoundTrip(req *http.Request) (*http.Response, error) {
	to := *req.URL
	if req.Host == "" {
		req.Host = to.Host
	}
	to.Host = req.Context().Value(routeKey{}).(*route).addr
	req.URL = &to
	return p.next.RoundTrip(req)
}

// conn is a connection that can be retired.
type conn struct {
	net.Conn
	retired atomic.Bool
	served  atomic.Bool  // there was a response on it
	users   atomic.Int32 // attempts that have it, until they have their response header
}

// use begins a use of c, and reports whether c must be closed instead, because it
// is retired, or was to have served and has not: a dial whose request took another
// connection leaves one that nothing is known about. It must not be closed while
// another attempt uses c: net/http passes a connection on when it has read a
// response without a body, before that attempt has the response.
func (c *conn) use(mustHaveServed bool) (closeIt bool) {
	return c.users.Add(1) == 1 && (c.retired.Load() || mustHaveServed && !c.served.Load())
}

// release ends a use of c, which may be nil.
func (c *conn) release() {
	if c != nil {
		c.users.Add(-1)
	}
}

// dial opens a connection to an address that has been looked up.
func dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if to, ok := ctx.Value(routeKey{}).(*route); ok && to.preferKept {
		if !retry.Sleep(ctx, keptHeadStart) || to.done.Load() {
			return nil, context.Canceled // the attempt took another connection
		}
	}
	c, err := (&net.Dialer{Timeout: dialTimeout, KeepAlive: tcpKeepAlive}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c}, nil
}

func connOf(c net.Conn) *conn {
	if secured, ok := c.(*tls.Conn); ok {
		c = secured.NetConn()
	}
	return c.(*conn) // dial makes no others
}

// retire keeps later requests off a connection. Behind a ClusterIP a connection
// leads to one pod, and net/http uses the last one first. The next request that
// is given the connection closes it and takes another.
func (c *conn) retire() { c.retired.Store(true) }
