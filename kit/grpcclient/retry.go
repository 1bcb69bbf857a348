package grpcclient

import (
	"context"
	"slices"
	"strings"

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
// An attempt that another may follow gets half of the time that is left. Once
// the budget is spent it gets all of it, so that pods which are all slow are
// waited for, and not asked twice.
func repeat(ctx context.Context, budget *call.Budget, ask func(context.Context) error) error {
	for n := 1; ; n++ {
		mayRepeat := n < call.MaxAttempts
		attempt := ctx
		half, cancel := call.Half(ctx)
		if mayRepeat && budget.Covers() {
			attempt = half
		}
		err := ask(attempt)
		inTime := half.Err() == nil
		cancel()

		code := status.Code(err)
		cutOff := attempt == half && code == codes.DeadlineExceeded // which a server may say a little earlier
		if failed := code == codes.Unavailable || code == codes.DeadlineExceeded; !failed || ctx.Err() != nil {
			// What half of the time would have cut off earns nothing, or slow
			// pods would spend in turn what they earned.
			if err == nil && inTime {
				budget.Succeed()
			}
			return err
		}
		covered := budget.Fail()
		if !cutOff && (!covered || !mayRepeat || !call.Pause(ctx, n)) {
			return err
		}
	}
}
