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

// resultOf returns what the status of an attempt means for a retry.
func (i *interceptors) resultOf(err error, reached, alone bool) retry.Result {
	var wait time.Duration // a retry at another address need not wait
	if alone {
		wait = retryDelay(err)
	}
	switch status.Code(err) {
	case codes.OK:
		return retry.Result{OK: true}
	case codes.Unavailable, codes.DeadlineExceeded:
		_, lookupErr := i.state.name.Known()
		return retry.Result{
			Retryable: reached || !lookup.IsNotFound(lookupErr),
			Unsent:    !reached,
			After:     wait,
		}
	case codes.ResourceExhausted: // a quota or a message that is too large, unless the server says when to retry
		return retry.Result{Retryable: retryDelay(err) > 0, After: wait}
	default:
		// The duration matters for DEADLINE_EXCEEDED only.
		return retry.Result{OK: outcomeOf(err, 0) == endpoint.Responded}
	}
}

// retryDelay returns how long a server asks its client to wait, 0 if it does not.
func retryDelay(err error) time.Duration {
	for _, detail := range call.StatusOf(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

// outcomeOf returns what the end of an attempt tells about its endpoint.
func outcomeOf(err error, took time.Duration) endpoint.Outcome {
	switch status.Code(err) {
	case codes.Canceled:
		return endpoint.Ignored
	case codes.DeadlineExceeded:
		return endpoint.TimedOutAfter(took)
	case codes.OK, codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.PermissionDenied, codes.Unauthenticated,
		codes.FailedPrecondition, codes.Aborted, codes.OutOfRange, codes.Unimplemented, codes.ResourceExhausted:
		return endpoint.Responded // the request is at fault; any endpoint would respond so
	default:
		return endpoint.Failed
	}
}
