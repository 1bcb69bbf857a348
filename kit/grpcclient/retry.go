package grpcclient

import (
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/call"
)

// repeatable reports whether a method, as gRPC names it ("/pkg.Service/Method"),
// is among those that are safe to repeat.
func repeatable(idempotent []string, method string) bool {
	return slices.ContainsFunc(idempotent, func(full string) bool {
		rest, ok := strings.CutPrefix(method[1:], full)
		return ok && (rest == "" || rest[0] == '/')
	})
}

// repeat asks, and asks again where no server answered (UNAVAILABLE) or none in
// time. gRPC has a retryPolicy of its own, but an attempt of that has no
// time-out: a single pod that is silent would cost the call its whole deadline.
//
// An attempt that another may follow has half of the time that is left. Once
// the budget is spent it has all of it, so that pods which are all slow are
// waited for, and not asked twice.
func repeat(ctx context.Context, deadline time.Time, budget *call.Budget, ask func(context.Context) error) error {
	for n := 1; ; n++ {
		mayRepeat := n < call.MaxAttempts
		halfway, until := call.Halfway(deadline), deadline
		promised := mayRepeat && budget.Covers()
		if promised {
			until = halfway
		}
		attempt, cancel := context.WithDeadline(ctx, until)
		err := ask(attempt)
		cancel()
		now := time.Now()

		code := status.Code(err)
		failed := code == codes.Unavailable || code == codes.DeadlineExceeded
		if !failed || ctx.Err() != nil || !now.Before(deadline) {
			// What would have been cut off halfway earns nothing, or slow pods
			// would spend in turn what they earned.
			if err == nil && now.Before(halfway) {
				budget.Succeed()
			}
			return err
		}
		covered := budget.Fail()
		cutOff := promised && code == codes.DeadlineExceeded // which a server may say a little earlier
		if !cutOff && (!covered || !mayRepeat || !call.Pause(ctx, deadline, n)) {
			return err
		}
	}
}
