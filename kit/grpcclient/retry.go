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

// askAgain asks, and asks again where no answer came in time. gRPC's own
// retryPolicy, which repeats what failed at once, has no time-out of an
// attempt: a single pod that is silent would cost the call its whole deadline.
//
// An attempt that may be repeated gets half of the time that is left. Where
// the budget covers no repeat it gets all of it, so that a peer which is
// merely slow, wherever it is asked, is still heard out.
func askAgain(ctx context.Context, budget *call.Budget, ask func(context.Context) error) error {
	for n := 1; ; n++ {
		half, cancel := call.Half(ctx)
		attempt, last := half, n == call.MaxAttempts || !budget.Covers()
		if last {
			attempt = ctx
		}
		err := ask(attempt)
		inTime := half.Err() == nil
		cancel()

		late := status.Code(err) == codes.DeadlineExceeded
		switch {
		case late:
			budget.Fail()
		case err == nil && inTime: // one that half of the time would have cut off earns nothing
			budget.Succeed()
		}
		// Whether there may be another was asked before: it is why this attempt
		// got no more than half.
		if !late || last || ctx.Err() != nil {
			return err
		}
	}
}
