package grpcclient

import (
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/internal/endpoint"
	"example.com/tandem/kit/internal/lookup"
	"example.com/tandem/kit/retry"
)

// outcomeOf returns what err, the status of an attempt, says about its endpoint.
func outcomeOf(err error, took time.Duration) endpoint.Outcome {
	switch status.Code(err) {
	case codes.Canceled:
		return endpoint.Ignored
	case codes.DeadlineExceeded:
		return endpoint.TimedOutAfter(took)
	case codes.OK, codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.PermissionDenied, codes.Unauthenticated,
		codes.FailedPrecondition, codes.Aborted, codes.OutOfRange, codes.Unimplemented, codes.ResourceExhausted:
		return endpoint.Responded // the cause is the request: any endpoint would respond the same
	default:
		return endpoint.Failed
	}
}

// resultOf returns what err, the status of an attempt, means for a retry. reached
// says whether a server was reached, alone whether the target has only one
// address.
func (c *connState) resultOf(err error, reached, alone bool) retry.Result {
	var wait time.Duration // 0: RetryInfo does not apply to another address
	if alone {
		wait = retryDelay(err)
	}
	switch status.Code(err) {
	case codes.OK:
		return retry.Result{OK: true}
	case codes.Unavailable, codes.DeadlineExceeded:
		_, lookupErr := c.name.Known()
		return retry.Result{
			Retryable: reached || !lookup.IsNotFound(lookupErr),
			Unsent:    !reached,
			After:     wait,
		}
	case codes.ResourceExhausted: // a message is too large, or a quota is used up; the latter may say when to retry
		return retry.Result{Retryable: retryDelay(err) > 0, After: wait}
	default:
		// 0: the duration matters for DEADLINE_EXCEEDED only, which has a case above.
		return retry.Result{OK: outcomeOf(err, 0) == endpoint.Responded}
	}
}

// retryDelay returns the server's RetryInfo, or 0 if it sent none.
func retryDelay(err error) time.Duration {
	for _, detail := range call.StatusOf(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}
