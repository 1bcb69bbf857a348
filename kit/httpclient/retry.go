package httpclient

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"example.com/tandem/kit/call"
)

// The same figures as package grpcclient's, so that the transports compare.
const (
	baseBackoff = 50 * time.Millisecond
	maxBackoff  = 500 * time.Millisecond
)

// retrier repeats requests that are safe to repeat, where a repeat can help.
type retrier struct {
	budget *call.Budget
	next   *attempt
}

func (r *retrier) RoundTrip(req *http.Request) (*http.Response, error) {
	for n := 1; ; n++ {
		resp, err := r.next.RoundTrip(req)
		if !mendable(req.Context(), resp, err) {
			if err == nil && resp.StatusCode < http.StatusInternalServerError {
				r.budget.Succeed()
			}
			return resp, err
		}
		mayRetry := r.budget.Fail()
		wait, ok := backoff(n, resp)
		if n == call.MaxAttempts || !mayRetry || !ok || !repeatable(req) || !sleep(req.Context(), wait) {
			return resp, err
		}
		if req.GetBody != nil {
			body, err := req.GetBody()
			if err != nil {
				return nil, err
			}
			req = req.Clone(req.Context())
			req.Body = body
		}
	}
}

// repeatable reports whether a second request does no more than the first: by
// its method (RFC 9110, section 9.2.2, less PUT and DELETE, whose answers may
// change), or because its sender says so with an Idempotency-Key.
func repeatable(req *http.Request) bool {
	switch req.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return true
	}
	return req.Header.Get("Idempotency-Key") != "" && (req.Body == nil || req.GetBody != nil)
}

// mendable reports whether the same request may fare better a moment later.
func mendable(ctx context.Context, resp *http.Response, err error) bool {
	var dns *net.DNSError
	switch {
	case ctx.Err() != nil: // no one is waiting any more
		return false
	case errors.As(err, &dns) && dns.IsNotFound:
		return false
	case err != nil:
		return call.ClassOf(err) != call.Other
	default:
		return resp.StatusCode == http.StatusBadGateway || resp.StatusCode == http.StatusServiceUnavailable || resp.StatusCode == http.StatusGatewayTimeout
	}
}

// backoff is how long to wait before attempt n+1: doubling, and jittered
// over its whole range so that callers that failed together do not come back
// together. A peer that asks by Retry-After for a wait, which is in whole
// seconds or a date, gets no repeat: it is better to tell the caller now than
// to hold it.
func backoff(n int, resp *http.Response) (time.Duration, bool) {
	wait := rand.N(min(baseBackoff<<(n-1), maxBackoff)) + time.Millisecond
	if resp == nil {
		return wait, true
	}
	after := resp.Header.Get("Retry-After")
	return wait, after == "" || after == "0"
}

// sleep waits, unless the deadline would pass meanwhile.
func sleep(ctx context.Context, d time.Duration) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= d {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
