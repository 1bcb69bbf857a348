package httpclient

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync/atomic"

	"example.com/tandem/kit/retry"
)

// route is passed in the context of an attempt to addressed and dial. A dial may
// outlive its attempt.
type route struct {
	addr        string
	preferReuse bool         // see reuseHeadStart
	given       atomic.Int32 // changes when the attempt gets a connection, and when it ends
}

type routeKey struct{}

// addressed sends requests to the address in their route. net/http pools idle
// connections by address, so each endpoint has a pool of its own.
type addressed struct{ next *http.Transport }

// RoundTrip changes req, which is a copy made by target.roundTrip or otelhttp.
func (t addressed) RoundTrip(req *http.Request) (*http.Response, error) {
	to := *req.URL
	if req.Host == "" {
		req.Host = to.Host
	}
	to.Host = req.Context().Value(routeKey{}).(*route).addr
	req.URL = &to
	return t.next.RoundTrip(req)
}

// dial opens a connection to an IP address. For a retry that prefers a reused
// connection it first waits, and it returns context.Canceled if the attempt was
// given another connection meanwhile. (Such a connection is not pooled: another retry
// would take it from the pool and discard it as new, its own dial would do the same to a
// third, and so on until their deadlines.)
func dial(ctx context.Context, network, addr string) (net.Conn, error) {
	to := ctx.Value(routeKey{}).(*route)
	given := to.given.Load()
	obsolete := func() bool { return to.preferReuse && to.given.Load() != given }
	if to.preferReuse && !retry.Sleep(ctx, reuseHeadStart) || obsolete() {
		return nil, context.Canceled
	}
	c, err := (&net.Dialer{Timeout: dialTimeout, KeepAlive: tcpKeepAlive}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	if obsolete() {
		_ = c.Close() // never used
		return nil, context.Canceled
	}
	return &conn{Conn: c}, nil
}

// conn is a connection that dial opened.
type conn struct {
	net.Conn
	retired atomic.Bool
	served  atomic.Bool  // a response has arrived on it
	users   atomic.Int32 // attempts that were given it, until each has its response header
}

func connOf(c net.Conn) *conn {
	if secured, ok := c.(*tls.Conn); ok {
		c = secured.NetConn()
	}
	return c.(*conn)
}

// acquire adds a user, and reports whether the user must close c and take another
// connection instead. That is so if c is retired, or if mustHaveServed is set and c
// has not served: when net/http opens a connection for a request that then takes
// another, it pools the new one unused, and nothing is known about its pod.
//
// acquire returns false while c has another user. Once net/http has read a response
// without a body, it passes the connection on, even before the attempt that sent the
// request has the response: closing c would break that attempt.
func (c *conn) acquire(mustHaveServed bool) (discard bool) {
	return c.users.Add(1) == 1 && (c.retired.Load() || mustHaveServed && !c.served.Load())
}

// release removes a user. It does nothing if c is nil.
func (c *conn) release() {
	if c != nil {
		c.users.Add(-1)
	}
}

// retire makes the next attempt that is given c discard it. Otherwise retries would
// stay with the pod behind c, because net/http reuses the latest connection first.
func (c *conn) retire() { c.retired.Store(true) }
