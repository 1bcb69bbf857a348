package grpcclient

import (
	"regexp"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/internal/endpoint"
	"example.com/tandem/kit/internal/lookup"
	"example.com/tandem/kit/retry"
)

// deniedWatch matches the status of a call that found no usable server because a server
// refused the health watch. Proxies of a mesh do so for a caller that no policy allows.
// gRPC reports the watch's status only as text.
var deniedWatch = regexp.MustCompile(`received health check RPC error: rpc error: code = (PermissionDenied|Unauthenticated) desc = (.*)`)

// resetStream matches gRPC's message for a stream that the peer reset in one of the ways
// in which proxies do. gRPC maps them to INTERNAL and CANCELED.
var resetStream = regexp.MustCompile(`^stream terminated by RST_STREAM with error code: (INTERNAL_ERROR|CANCEL)$`)

// fromProxy returns err, the status of an attempt, with another code if a proxy between
// the client and the server caused it: PERMISSION_DENIED or UNAUTHENTICATED for a denied
// health watch, and UNAVAILABLE for a stream that the proxy reset because its own
// connection to the server broke. reached says whether a server was reached.
func fromProxy(err error, reached bool) error {
	s := status.Convert(err)
	switch s.Code() {
	case codes.Internal, codes.Canceled:
		if resetStream.MatchString(s.Message()) {
			return status.Error(codes.Unavailable, s.Message())
		}
	case codes.Unavailable:
		denied := deniedWatch.FindStringSubmatch(s.Message())
		if denied == nil || reached { // a server may have sent such a text itself
			break
		}
		code := codes.PermissionDenied
		if denied[1] == codes.Unauthenticated.String() {
			code = codes.Unauthenticated
		}
		return status.Error(code, denied[2])
	default:
	}
	return err
}

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
