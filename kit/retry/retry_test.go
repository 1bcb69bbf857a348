package retry_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"example.com/tandem/kit/retry"
)

const deadline = 2 * time.Second

var (
	success = retry.Result{OK: true}
	failure = retry.Result{Retryable: true}
)

// do makes an idempotent call with the deadline above, and returns the number of its
// attempts.
func do(t *testing.T, b *retry.Budget, attempt func(ctx context.Context, n int) retry.Result) int {
	t.Helper()
	return doUntil(t.Context(), time.Now().Add(deadline), true, b, attempt)
}

func doUntil(ctx context.Context, until time.Time, idempotent bool, b *retry.Budget, attempt func(ctx context.Context, n int) retry.Result) (n int) {
	retry.Do(ctx, until, idempotent, b, func(ctx context.Context, _ bool) retry.Result {
		n++
		return attempt(ctx, n)
	})
	return n
}

// always returns an attempt that ends at once with r.
func always(r retry.Result) func(context.Context, int) retry.Result {
	return func(context.Context, int) retry.Result { return r }
}

// succeedAfter returns an attempt that succeeds after d.
func succeedAfter(d time.Duration) func(context.Context, int) retry.Result {
	return func(context.Context, int) retry.Result {
		time.Sleep(d)
		return success
	}
}

// timeOut is an attempt that gets no response.
func timeOut(ctx context.Context, _ int) retry.Result {
	<-ctx.Done()
	return failure
}

// Only retryable attempts are retried: those of idempotent calls, and those that sent
// nothing.
func TestDo_RetriesOnlyRetryable(t *testing.T) {
	unsent := retry.Result{Retryable: true, Unsent: true}
	for name, tt := range map[string]struct {
		idempotent bool
		result     retry.Result
		attempts   int
	}{
		"idempotent, success":       {idempotent: true, result: success, attempts: 1},
		"idempotent, failure":       {idempotent: true, result: failure, attempts: retry.MaxAttempts},
		"idempotent, not retryable": {idempotent: true, result: retry.Result{}, attempts: 1},
		"unsent, not retryable":     {idempotent: true, result: retry.Result{Unsent: true}, attempts: 1},
		"not idempotent, success":   {result: success, attempts: 1},
		"not idempotent, failure":   {result: failure, attempts: 1},
		"not idempotent, unsent":    {result: unsent, attempts: retry.MaxAttempts},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := doUntil(t.Context(), time.Now().Add(deadline), tt.idempotent, retry.NewBudget(), always(tt.result))
				assert.Equal(t, tt.attempts, n)
			})
		})
	}
}

func TestDo_StopsAtSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := do(t, retry.NewBudget(), func(_ context.Context, n int) retry.Result {
			return []retry.Result{failure, success}[n-1]
		})
		assert.Equal(t, 2, n)
	})
}

// An attempt that may be retried gets half of the remaining time, any other attempt
// gets all of it.
func TestDo_SharesTheRemainingTime(t *testing.T) {
	unsentOnce := func(ctx context.Context, n int) retry.Result {
		if n == 1 {
			return retry.Result{Retryable: true, Unsent: true}
		}
		return timeOut(ctx, n)
	}
	for name, tt := range map[string]struct {
		idempotent bool
		usual      time.Duration // duration of a successful attempt
		spent      bool          // no retry is left
		attempt    func(context.Context, int) retry.Result
		parts      []float64 // of the remaining time, by attempt
	}{
		"idempotent": {
			idempotent: true,
			attempt:    timeOut,
			parts:      []float64{0.5, 0.5, 1},
		},
		"not idempotent": {
			attempt: timeOut,
			parts:   []float64{1},
		},
		"not idempotent but unsent": {
			attempt: unsentOnce,
			parts:   []float64{1, 1},
		},
		"usually takes less than half": {
			idempotent: true,
			usual:      900 * time.Millisecond,
			attempt:    timeOut,
			parts:      []float64{0.5, 1}, // half of what remains for attempt 2 is less than usual
		},
		"usually takes more than half": {
			idempotent: true,
			usual:      1100 * time.Millisecond,
			attempt:    timeOut,
			parts:      []float64{1},
		},
		"no retry left": {
			idempotent: true,
			spent:      true,
			attempt:    timeOut,
			parts:      []float64{1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := retry.NewBudget()
				if tt.usual > 0 {
					doUntil(t.Context(), time.Now().Add(time.Minute), true, b, succeedAfter(tt.usual))
				}
				for tt.spent && do(t, b, always(failure)) > 1 {
					continue
				}
				var parts []float64
				until := time.Now().Add(deadline)
				doUntil(t.Context(), until, tt.idempotent, b, func(ctx context.Context, n int) retry.Result {
					end, ok := ctx.Deadline()
					assert.True(t, ok)
					parts = append(parts, float64(time.Until(end))/float64(time.Until(until)))
					return tt.attempt(ctx, n)
				})
				assert.InDeltaSlice(t, tt.parts, parts, 1e-6)
				assert.Equal(t, time.Now(), until, "the call ends at its deadline")
			})
		})
	}
}

// A retry waits for Result.After, plus a random time.
func TestDo_HonoursAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const after = 700 * time.Millisecond
		waits := map[time.Duration]bool{}
		for range 20 {
			start := time.Now()
			n := do(t, retry.NewBudget(), func(_ context.Context, n int) retry.Result {
				if n == 1 {
					return retry.Result{Retryable: true, After: after}
				}
				return success
			})
			assert.Equal(t, 2, n)
			assert.Greater(t, time.Since(start), after)
			waits[time.Since(start)] = true
		}
		assert.Greater(t, len(waits), 10, "the waits differ")
	})
}

// If the wait before a retry would end after the deadline, there is no retry and the
// call returns at once.
func TestDo_NoRetryPastDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		assert.Equal(t, 1, do(t, retry.NewBudget(), always(retry.Result{Retryable: true, After: deadline})))
		assert.Equal(t, 1, doUntil(t.Context(), start.Add(time.Millisecond), true, retry.NewBudget(), always(failure)))
		assert.Zero(t, time.Since(start), "the calls return at once")
	})
}

// A call whose context is canceled ends at once and is not retried.
func TestDo_EndsWithContext(t *testing.T) {
	for name, tt := range map[string]struct {
		cancelAfter time.Duration
		attempt     func(context.Context, int) retry.Result
	}{
		"before the call": {attempt: timeOut},
		"in an attempt":   {cancelAfter: 10 * time.Millisecond, attempt: timeOut},
		"in a pause": {
			cancelAfter: 10 * time.Millisecond,
			attempt:     always(retry.Result{Retryable: true, After: time.Second}),
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if tt.cancelAfter == 0 {
					cancel()
				}
				time.AfterFunc(tt.cancelAfter, cancel)
				start := time.Now()
				assert.Equal(t, 1, doUntil(ctx, start.Add(deadline), true, retry.NewBudget(), tt.attempt))
				assert.Equal(t, tt.cancelAfter, time.Since(start))
			})
		})
	}
}

// If the context of the call ends before the deadline, the attempt is given that context
// and nothing is allocated.
func TestDo_ReusesContextThatEndsSooner(t *testing.T) {
	sooner, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	b := retry.NewBudget()
	var given context.Context
	attempt := func(ctx context.Context, _ bool) retry.Result {
		given = ctx //nolint:fatcontext // compared below
		return success
	}
	allocs := func(ctx context.Context, until time.Time) float64 {
		return testing.AllocsPerRun(100, func() { retry.Do(ctx, until, true, b, attempt) })
	}
	assert.Zero(t, allocs(sooner, time.Now().Add(time.Hour)))
	assert.Equal(t, sooner, given)
	assert.Positive(t, allocs(t.Context(), time.Now().Add(time.Hour)), "a context with a later deadline is replaced")
}

// A call that panics returns its reserved retry.
func TestDo_ReturnsRetryAfterPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := retry.NewBudget()
		for range 20 {
			assert.Panics(t, func() {
				do(t, b, func(context.Context, int) retry.Result { panic("test") })
			})
		}
		assert.Equal(t, retry.MaxAttempts, do(t, b, always(failure)))
	})
}

// Deadline returns the sooner of the timeout and the deadline of the context.
func TestDeadline_ReturnsTheSooner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		assert.Equal(t, 2*time.Second, retry.Deadline(t.Context(), 2*time.Second).Sub(start))
		assert.Equal(t, time.Second, retry.Deadline(ctx, 2*time.Second).Sub(start))
		assert.Equal(t, time.Second/2, retry.Deadline(ctx, time.Second/2).Sub(start))
	})
}

// Sleep returns false as soon as its context ends.
func TestSleep_EndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		assert.True(t, retry.Sleep(ctx, 700*time.Millisecond))
		assert.Equal(t, 700*time.Millisecond, time.Since(start))
		assert.False(t, retry.Sleep(ctx, time.Hour))
		assert.Equal(t, time.Second, time.Since(start))
	})
}

// The longest wait doubles with each failure up to the limit. Waits are random between 0
// and the longest.
func TestBackoff_DoublesUpToLimit(t *testing.T) {
	const base, limit = 50 * time.Millisecond, 500 * time.Millisecond
	for n, most := range map[int]time.Duration{
		1:       base,
		2:       2 * base,
		3:       4 * base,
		4:       8 * base,
		5:       limit,
		9:       limit,
		64:      limit,
		1 << 40: limit,
	} {
		least, longest := time.Hour, time.Duration(0)
		for range 1000 {
			wait := retry.Backoff(n, base, limit)
			least, longest = min(least, wait), max(longest, wait)
		}
		assert.Positive(t, least)
		assert.Less(t, least, most/10, "n=%d", n)
		assert.Greater(t, longest, most*9/10, "n=%d", n)
		assert.LessOrEqual(t, longest, most+time.Millisecond, "n=%d", n)
	}
	assert.LessOrEqual(t, retry.Backoff(64, time.Hour, 2*time.Hour), 3*time.Hour, "the wait does not overflow")
}

// Do pauses for up to 50 ms before the first retry, and up to 100 ms before the second.
func TestDo_BacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var longest [retry.MaxAttempts - 1]time.Duration
		for range 500 {
			last := time.Now()
			do(t, retry.NewBudget(), func(_ context.Context, n int) retry.Result {
				if n > 1 {
					longest[n-2] = max(longest[n-2], time.Since(last))
				}
				last = time.Now()
				return failure
			})
		}
		assert.InDelta(t, 50*time.Millisecond, longest[0], float64(5*time.Millisecond))
		assert.InDelta(t, 100*time.Millisecond, longest[1], float64(10*time.Millisecond))
	})
}
