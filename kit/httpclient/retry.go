package httpclient

import (
	"context"
	"net/http"
	"time"

	"example.com/tandem/kit/call"
)

// retrier repeats requests that are safe to repeat, where a repeat can help.
type retrier struct {
	budget *call.Budget
	next   *attempt
}

// do gives an attempt that another may follow half of the time that is left.
// Once the budget is spent an attempt has all of it, so that peers which are all
// slow are waited for, and not asked twice.
func (r *retrier) do(req *http.Request, deadline time.Time) (*http.Response, error) {
	ctx := req.Context()
	for n := 1; ; n++ {
		mayRepeat := n < call.MaxAttempts && repeatable(req)
		halfway, until := call.Halfway(deadline), deadline
		promised := mayRepeat && r.budget.Covers()
		if promised {
			until = halfway
		}
		attempt, cancel := context.WithDeadline(ctx, until)
		resp, u, err := r.next.try(attempt, req)
		cancel()
		now := time.Now()

		failed := ctx.Err() == nil && now.Before(deadline) && mendable(resp, err)
		// A pod that fails at once would have its connection free the soonest, and
		// so most calls. (An overloaded one keeps it: it needs no handshakes on top.)
		u.end((failed || err == nil && resp.StatusCode >= http.StatusInternalServerError) && !asksToWait(resp))
		if !failed {
			// What would have been cut off halfway earns nothing, or slow peers
			// would spend in turn what they earned.
			if err == nil && resp.StatusCode < http.StatusInternalServerError && now.Before(halfway) {
				r.budget.Succeed()
			}
			return resp, err
		}
		covered := r.budget.Fail()
		cutOff := promised && err != nil && !now.Before(halfway)
		if !cutOff && (!covered || !mayRepeat || asksToWait(resp) || !call.Pause(ctx, deadline, n)) {
			return resp, err
		}
		if req, err = again(req); err != nil {
			return nil, err
		}
	}
}

// repeatable reports whether a second request does no more than the first: by
// its method (RFC 9110, section 9.2.2, less PUT and DELETE, whose answers may
// change), or because its sender says so with an Idempotency-Key.
func repeatable(req *http.Request) bool {
	switch req.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
	default:
		if req.Header.Get("Idempotency-Key") == "" {
			return false
		}
	}
	return replayable(req)
}

// replayable reports whether a request can be sent twice.
func replayable(req *http.Request) bool {
	return req.Body == nil || req.Body == http.NoBody || req.GetBody != nil
}

// again returns a request that was sent with its body to be sent once more.
func again(req *http.Request) (*http.Request, error) {
	if req.GetBody == nil {
		return req, nil
	}
	body, err := req.GetBody()
	if err != nil {
		return nil, err
	}
	req = req.WithContext(req.Context())
	req.Body = body
	return req, nil
}

// mendable reports whether the same request may fare better a moment later.
func mendable(resp *http.Response, err error) bool {
	switch {
	case notFound(err):
		return false
	case err != nil:
		return call.ClassOf(err) != call.Other
	default:
		return resp.StatusCode == http.StatusBadGateway || resp.StatusCode == http.StatusServiceUnavailable || resp.StatusCode == http.StatusGatewayTimeout
	}
}

// asksToWait reports whether a peer asks by Retry-After for a wait, which is in
// whole seconds or a date. It gets no repeat: it is better to tell the caller
// now than to hold it.
func asksToWait(resp *http.Response) bool {
	if resp == nil {
		return false
	}
	after := resp.Header.Get("Retry-After")
	return after != "" && after != "0"
}
