package httpclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"time"

	"go.opentelemetry.io/otel/trace"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/internal/endpoint"
)

// attempt is one attempt of a call.
type attempt struct {
	n        int    // from 1
	avoid    string // address of the previous attempt; empty for the first
	mayRetry bool   // a retry is permitted if this attempt fails
	addr     string // chosen address
	alone    bool   // there is no other address
	peer     string // addr, once the attempt has a connection
	conn     *conn
}

// makeAttempt makes one attempt. If the trace is sampled, the attempt is a span, from the
// lookup of the name to the end of the response.
func (t *target) makeAttempt(ctx context.Context, req *http.Request, a *attempt) (*http.Response, error) {
	if t.traced == nil || !t.telemetry.Traced(trace.SpanContextFromContext(ctx)) {
		return t.send(ctx, req, a)
	}
	resp, err := t.traced.RoundTrip(req.WithContext(context.WithValue(ctx, attemptKey{}, a)))
	if err == nil {
		_ = resp.Body.Close() // ends the span; the body is in memory, and can still be read
	}
	return resp, err
}

// send chooses an endpoint, sends the request and reads the response.
func (t *target) send(ctx context.Context, req *http.Request, a *attempt) (*http.Response, error) {
	if _, err := t.name.Addresses(ctx); err != nil {
		return nil, err
	}
	addr, picked, ok := t.endpoints.Pick(a.avoid, false)
	if !ok { // the addresses were dropped since the line above
		return nil, &call.Error{Class: call.DNS, Err: errors.New("the name has no address any more")}
	}
	a.addr, a.alone = addr, picked.Alone()
	start := time.Now()
	resp, err := t.roundTrip(ctx, req, a)
	if err == nil {
		if a.mayRetry && retryableStatus(resp.StatusCode) {
			a.conn.retire() // the retry's connection may lead to another pod
		}
		if err = t.read(resp); err != nil {
			resp = nil
		}
	}
	outcome := outcomeOf(resp, err, time.Since(start))
	if outcome == endpoint.TimedOut && a.peer == "" && req.URL.Scheme == "http" {
		// The attempt waited for one of maxConnsPerAddress. (Over https, it may have
		// waited for a TLS handshake instead: that is the endpoint's fault.)
		outcome = endpoint.Ignored
	}
	picked.End(outcome)
	if err == nil && resp.Close {
		t.name.Refresh() // the server may be shutting down
	}
	if outcome == endpoint.Unreachable {
		t.name.Refresh()
		if _, lookupErr := t.name.Known(); lookupErr != nil {
			err = errors.Join(lookupErr, err) // the address may be out of date; the class becomes dns
		}
	}
	return resp, err
}

// roundTrip sends a request to the chosen address.
func (t *target) roundTrip(ctx context.Context, req *http.Request, a *attempt) (*http.Response, error) {
	next := t.pooled
	if !replayable(req) {
		// net/http cannot send the body again if a reused connection proves closed.
		next = t.unpooled
	}
	to := &route{addr: a.addr, preferReuse: a.n > 1 && a.alone}
	defer to.given.Add(1)
	var discarded bool // the connection that net/http took was closed unused
	ctx = context.WithValue(ctx, routeKey{}, to)
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(got httptrace.GotConnInfo) { // called again if the connection proves closed
			to.given.Add(1)
			a.conn.release()
			a.peer, a.conn = a.addr, connOf(got.Conn)
			discarded = a.conn.acquire(to.preferReuse && got.Reused)
			if discarded {
				_ = a.conn.Close() // it may be closed already
			}
		},
	})
	defer func() { a.conn.release() }()
	for {
		discarded = false
		resp, err := next.RoundTrip(req.WithContext(ctx))
		if err == nil {
			a.conn.served.Store(true)
		}
		if err == nil || !discarded {
			return resp, err
		}
		// Nothing was sent, so the attempt continues on another connection. (If the
		// request has no body, net/http has done that by itself.)
		if err := rewind(req); err != nil {
			return nil, err
		}
	}
}

// read reads the body of a response into memory.
func (t *target) read(resp *http.Response) error {
	defer resp.Body.Close() //nolint:errcheck // the body has been read, or is not wanted
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return errors.New("the response switches protocols") // its body is the connection, which no deadline ends
	}
	size := resp.ContentLength
	if resp.Request.Method == http.MethodHead {
		size = 0 // the header has the length that GET would return
	}
	if size > t.maxResponse {
		return fmt.Errorf("%w: %d bytes, limit %d", ErrTooLarge, size, t.maxResponse)
	}
	var buf bytes.Buffer
	buf.Grow(int(max(size, 0)) + bytes.MinRead) // ReadFrom grows a buffer that has less than MinRead left
	if _, err := buf.ReadFrom(io.LimitReader(resp.Body, t.maxResponse+1)); err != nil {
		return fmt.Errorf("read response: %w", err)
	}
	if int64(buf.Len()) > t.maxResponse {
		return fmt.Errorf("%w: more than %d bytes", ErrTooLarge, t.maxResponse)
	}
	resp.Body = io.NopCloser(&buf)
	return nil
}
