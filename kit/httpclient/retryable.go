package httpclient

import (
	"errors"
	"math"
	"net"
	"net/http"
	"strconv"
	"time"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/internal/endpoint"
	"example.com/tandem/kit/internal/lookup"
	"example.com/tandem/kit/retry"
)

// idempotent reports whether sending a request twice does no more than sending
// it once: by its method (RFC 9110, section 9.2.2, without PUT and DELETE, whose
// responses may differ), or because it has an Idempotency-Key.
func idempotent(req *http.Request) bool {
	switch req.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return true
	default:
		return req.Header.Get("Idempotency-Key") != ""
	}
}

// resultOf returns what an attempt means for a retry. The wait that a server asks
// for counts only if it has the only address: a retry at another need not wait.
func resultOf(req *http.Request, resp *http.Response, err error, alone bool) retry.Result {
	if err != nil {
		class := call.ClassOf(err)
		unsent := class == call.DNS || isDialError(err)
		return retry.Result{
			Retryable: class != call.Other && class != call.Canceled && !lookup.IsNotFound(err) && replayable(req),
			Unsent:    unsent,
		}
	}
	result := retry.Result{
		OK:        resp.StatusCode < http.StatusInternalServerError,
		Retryable: retryableStatus(resp.StatusCode) && replayable(req),
	}
	if alone {
		result.After = retryAfter(resp)
	}
	return result
}

// retryableStatus reports whether the same request may fare better a moment
// later or at another instance.
func retryableStatus(code int) bool {
	return code == http.StatusBadGateway || code == http.StatusServiceUnavailable || code == http.StatusGatewayTimeout
}

// isDialError reports whether no connection could be opened, so that nothing was
// sent.
func isDialError(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}

// replayable reports whether the body of a request can be sent twice.
func replayable(req *http.Request) bool {
	return req.Body == nil || req.Body == http.NoBody || req.GetBody != nil
}

// rewind gives a request that was sent its whole body again.
func rewind(req *http.Request) (err error) {
	if req.GetBody != nil {
		req.Body, err = req.GetBody()
	}
	return err
}

// retryAfter returns how long a server asks its client to wait: its header is in
// seconds or a date (RFC 9110, section 10.2.3).
func retryAfter(resp *http.Response) time.Duration {
	header := resp.Header.Get("Retry-After")
	if header == "" {
		return 0
	}
	if seconds, err := strconv.ParseUint(header, 10, 64); err == nil {
		return time.Duration(min(seconds, math.MaxInt32)) * time.Second
	}
	if at, err := http.ParseTime(header); err == nil {
		return time.Until(at)
	}
	return 0
}

// outcomeOf returns what an attempt tells about its endpoint.
func outcomeOf(resp *http.Response, err error, took time.Duration) endpoint.Outcome {
	switch {
	case err == nil && resp.StatusCode < http.StatusInternalServerError, errors.Is(err, ErrTooLarge):
		return endpoint.Responded
	case err == nil:
		return endpoint.Failed
	case isDialError(err):
		return endpoint.Unreachable
	case call.ClassOf(err) == call.Canceled:
		return endpoint.Ignored
	case call.ClassOf(err) == call.Timeout:
		return endpoint.TimedOutAfter(took)
	default:
		return endpoint.Failed
	}
}
