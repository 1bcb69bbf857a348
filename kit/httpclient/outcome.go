package httpclient

import (
	"errors"
	"fmt"
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

// outcomeOf returns what an attempt says about its endpoint.
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

// classOf returns the class of an attempt.
func classOf(resp *http.Response, err error) call.Class {
	if err != nil {
		return call.ClassOf(err)
	}
	return call.ClassOfStatus(resp.StatusCode)
}

// reasonOf returns why an attempt failed, or nil.
func reasonOf(resp *http.Response, err error) error {
	if err == nil && call.ClassOfStatus(resp.StatusCode) != call.OK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return err
}

// resultOf returns what an attempt means for a retry. Retry-After is observed only
// if there is no other address: a retry at another address need not wait.
func resultOf(req *http.Request, resp *http.Response, err error, alone bool) retry.Result {
	if err != nil {
		class := call.ClassOf(err)
		return retry.Result{
			Retryable: class != call.Other && class != call.Canceled && !lookup.IsNotFound(err) && replayable(req),
			Unsent:    class == call.DNS || isDialError(err),
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

// isDialError reports whether no connection could be opened, and so nothing was
// sent.
func isDialError(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}

// retryableStatus reports whether the same request may succeed a moment later or
// at another instance.
func retryableStatus(code int) bool {
	return code == http.StatusBadGateway || code == http.StatusServiceUnavailable || code == http.StatusGatewayTimeout
}

// retryAfter returns the time in the Retry-After header, which is a number of
// seconds or a date (RFC 9110, section 10.2.3). It returns 0 if there is none.
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
