// Package retry decides whether, when and how often a failed call is retried.
// Both clients of kit use its one loop, Do; nothing else in kit retries calls. Use
// it for calls to another process. Do not use it around a client that retries by
// itself: the attempts would multiply.
//
// A call has a deadline and at most MaxAttempts attempts. If the call is
// idempotent and a retry is permitted, an attempt gets half of the remaining time,
// so that a silent endpoint leaves time for another. (It gets all of the time if
// successful attempts usually take longer than half.)
//
//	deadline 2 s:  |--- attempt 1: 1 s ---|-- attempt 2: 0.5 s --|-- attempt 3 --|
//
// Each target has a Budget of retries. Before an attempt, Do reserves a retry. If
// the attempt fails and is retried, Do spends the reserved retry; otherwise it
// returns the retry to the budget. If no retry can be reserved, the attempt is the
// last one, and gets all of the remaining time.
//
// Read Do in retry.go first. budget.go says how many retries there are. The size
// of the budget is not needed to understand a call.
package retry

import (
	"context"
	"math/rand/v2"
	"time"
)

// MaxAttempts is the largest number of attempts of one call.
const MaxAttempts = 3

// baseBackoff and maxBackoff are the arguments of Backoff for the pauses of Do.
const (
	baseBackoff = 50 * time.Millisecond
	maxBackoff  = 500 * time.Millisecond
)

// Deadline returns the deadline of a call that starts now: timeout from now, or
// the deadline of ctx if that is sooner.
func Deadline(ctx context.Context, timeout time.Duration) time.Time {
	deadline := time.Now().Add(timeout)
	if sooner, ok := ctx.Deadline(); ok && sooner.Before(deadline) {
		return sooner
	}
	return deadline
}

// Result says how an attempt ended.
type Result struct {
	// OK means that the endpoint responded and was not at fault.
	OK bool
	// Retryable means that the same call may succeed a moment later or at
	// another endpoint.
	Retryable bool
	// Unsent means that nothing was sent, so that a Retryable attempt may be
	// retried even if the call is not idempotent.
	Unsent bool
	// After is the least time before a retry, as the server requested it; usually
	// 0. More than an hour counts as an hour.
	After time.Duration
}

// Do calls attempt, and calls it again while its Result is retryable and the deadline,
// ctx, the budget and MaxAttempts allow a retry. The argument mayRetry is true if a
// failure after the request was sent can be retried. The function attempt stores the
// response or error itself: when Do returns, they are those of the last attempt.
func Do(ctx context.Context, deadline time.Time, idempotent bool, budget *Budget, attempt func(ctx context.Context, mayRetry bool) Result) {
	budget.begin()
	reserved := false
	defer func() { budget.end(reserved) }() // even if attempt panics
	for n := 1; ; n++ {
		var usual time.Duration
		reserved, usual = budget.reserve(n)
		start, until := time.Now(), deadline
		if half := deadline.Sub(start) / 2; reserved && idempotent && usual < half {
			until = start.Add(half)
		}
		attemptCtx, cancel := withDeadline(ctx, until)
		result := attempt(attemptCtx, reserved && idempotent)
		cancel()

		if result.OK {
			budget.succeed(time.Since(start), deadline.Sub(start))
		}
		retryable := result.Retryable && (idempotent || result.Unsent) && ctx.Err() == nil
		if !reserved || !retryable || !pause(ctx, deadline, min(max(result.After, 0), time.Hour)+Backoff(n, baseBackoff, maxBackoff)) {
			return
		}
		budget.spend()
		reserved = false
	}
}

// withDeadline is context.WithDeadline, except that it returns ctx itself if the
// deadline of ctx is not later: a new context would start a timer.
func withDeadline(ctx context.Context, deadline time.Time) (context.Context, context.CancelFunc) {
	if sooner, ok := ctx.Deadline(); ok && !deadline.Before(sooner) {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, deadline)
}

// pause waits, and reports whether another attempt may start. If the deadline
// would pass during the wait, it returns false at once. It also returns false as
// soon as ctx ends.
func pause(ctx context.Context, deadline time.Time, wait time.Duration) bool {
	if time.Until(deadline) <= wait {
		return false
	}
	return Sleep(ctx, wait)
}

// Sleep waits for d and returns true. If ctx ends first, it returns false.
func Sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Backoff returns how long to wait after the nth failure in a row, n from 1: a
// random time between 0 and a ceiling (plus 1 ms). The ceiling starts at base and
// doubles with each failure up to limit. The time is random over the whole range,
// so that callers that failed together do not retry together.
func Backoff(n int, base, limit time.Duration) time.Duration {
	ceiling := limit
	if doublings := min(n-1, 30); base <= limit>>doublings {
		ceiling = base << doublings
	}
	return rand.N(ceiling) + time.Millisecond
}
