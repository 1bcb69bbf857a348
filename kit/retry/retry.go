// Package retry decides whether, when and how long a failed call is attempted
// again. Both clients use its one loop; nothing else in kit retries. Use it for
// calls to another process. Do not use it around a client that retries by
// itself: the attempts would multiply.
//
// A call has a deadline and at most MaxAttempts attempts. If the call is
// idempotent and may be retried, an attempt gets half of the remaining time, so
// that a silent endpoint leaves time for another. (It gets all of the time where
// successful attempts usually take longer than half.)
//
//	deadline 2 s:  |--- attempt 1: 1 s ---|-- attempt 2: 0.5 s --|-- attempt 3 --|
//
// Retries come out of a Budget, one for each target. Before each attempt the
// call reserves a retry. It spends the retry if the attempt fails, and returns
// it otherwise. When none is left, calls get one attempt with all of their time.
package retry

import (
	"context"
	"math/rand/v2"
	"time"
)

// MaxAttempts is how often one call is attempted at most.
const MaxAttempts = 3

const (
	baseBackoff = 50 * time.Millisecond
	maxBackoff  = 500 * time.Millisecond
)

// Result says how an attempt ended.
type Result struct {
	// OK means that the endpoint responded and the attempt did not fail.
	OK bool
	// Retryable means that the same call may succeed a moment later or at
	// another endpoint.
	Retryable bool
	// Unsent means that nothing was sent. Such an attempt is retryable even if
	// the call is not idempotent.
	Unsent bool
	// After is how long the server asked not to be called again; usually 0. More
	// than an hour counts as an hour.
	After time.Duration
}

// Do calls attempt until a Result is OK or not retryable, or until the deadline,
// ctx or the budget permits no further attempt. The argument mayRetry reports
// whether the attempt may be retried even though something was sent. The attempt
// keeps its response and error; when Do returns, they are those of the last one.
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
		if !reserved || !retryable || !pause(ctx, deadline, min(max(result.After, 0), time.Hour)+backoff(n)) {
			return
		}
		budget.spend()
		reserved = false
	}
}

// withDeadline returns ctx with a deadline, or ctx itself if it ends sooner: a
// context with a deadline starts a timer.
func withDeadline(ctx context.Context, deadline time.Time) (context.Context, context.CancelFunc) {
	if sooner, ok := ctx.Deadline(); ok && !deadline.Before(sooner) {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, deadline)
}

// Deadline returns the deadline of a call that starts now: after timeout, or
// that of ctx where it is sooner.
func Deadline(ctx context.Context, timeout time.Duration) time.Time {
	deadline := time.Now().Add(timeout)
	if sooner, ok := ctx.Deadline(); ok && sooner.Before(deadline) {
		return sooner
	}
	return deadline
}

// pause waits, and reports whether another attempt may start. It returns false
// at once if the deadline would pass meanwhile, and as soon as ctx ends.
func pause(ctx context.Context, deadline time.Time, wait time.Duration) bool {
	if time.Until(deadline) <= wait {
		return false
	}
	return Sleep(ctx, wait)
}

// Sleep waits for d. It returns false as soon as ctx ends.
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

// backoff is the wait after the nth attempt.
func backoff(n int) time.Duration { return Backoff(n, baseBackoff, maxBackoff) }

// Backoff returns how long to wait after the nth failure in a row, n from 1: a
// random time up to base, which doubles with each failure up to limit. The
// jitter covers the whole range, so that callers that failed together do not
// return together.
func Backoff(n int, base, limit time.Duration) time.Duration {
	ceiling := limit
	if doublings := min(n-1, 30); base <= limit>>doublings {
		ceiling = base << doublings
	}
	return rand.N(ceiling) + time.Millisecond
}
