package retry_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"example.com/tandem/kit/retry"
)

// together makes n concurrent calls and returns the number of their attempts.
func together(t *testing.T, b *retry.Budget, n int, attempt func(ctx context.Context, n int) retry.Result) int {
	t.Helper()
	var attempts atomic.Int64
	var calls sync.WaitGroup
	for range n {
		calls.Go(func() { attempts.Add(int64(do(t, b, attempt))) })
	}
	calls.Wait()
	return int(attempts.Load())
}

// exhaust makes calls that fail until no retry is left, and returns the number of
// retries. They take some time, in which few retries return to the budget.
func exhaust(t *testing.T, b *retry.Budget) (retries int) {
	t.Helper()
	for {
		n := do(t, b, always(failure))
		if n == 1 {
			return retries
		}
		retries += n - 1
	}
}

// Every call in flight can be retried twice, so that an instance that dies fails no
// call.
func TestBudget_CoversAllInFlight(t *testing.T) {
	for _, inFlight := range []int{1, 10, 50, 500} {
		synctest.Test(t, func(t *testing.T) {
			b := retry.NewBudget()
			together(t, b, inFlight, succeedAfter(10*time.Millisecond))
			var succeeded atomic.Int64
			attempts := together(t, b, inFlight, func(_ context.Context, n int) retry.Result {
				time.Sleep(10 * time.Millisecond)
				if n < retry.MaxAttempts {
					return failure
				}
				succeeded.Add(1)
				return success
			})
			assert.EqualValues(t, inFlight, succeeded.Load())
			assert.Equal(t, retry.MaxAttempts*inFlight, attempts)
		})
	}
}

// While every call fails, the attempts of any second after the first are at most 1.10
// times the calls.
func TestBudget_BoundsAttemptsInOutage(t *testing.T) {
	for _, callers := range []int{50, 200} {
		synctest.Test(t, func(t *testing.T) {
			const seconds = 12
			b := retry.NewBudget()
			together(t, b, callers, succeedAfter(10*time.Millisecond))

			var calls, attempts [seconds]atomic.Int64
			start := time.Now()
			count := func(by *[seconds]atomic.Int64) {
				if second := int(time.Since(start) / time.Second); second < seconds {
					by[second].Add(1)
				}
			}
			var all sync.WaitGroup
			for range callers {
				all.Go(func() {
					for time.Since(start) < seconds*time.Second {
						count(&calls)
						do(t, b, func(context.Context, int) retry.Result {
							count(&attempts)
							time.Sleep(25 * time.Millisecond) // with more calls a second, fewer of them could be retried
							return failure
						})
					}
				})
			}
			all.Wait()
			assert.Greater(t, attempts[0].Load(), calls[0].Load(), "retries are spent in the first second")
			for second := 1; second < seconds; second++ {
				ratio := float64(attempts[second].Load()) / float64(calls[second].Load())
				assert.LessOrEqual(t, ratio, 1.10, "%d callers, second %d", callers, second)
			}
		})
	}
}

// If nothing responds, each call takes as long as its deadline. The retries that return
// to the budget over time are few compared with these calls, too.
func TestBudget_BoundsAttemptsInSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const callers = 50
		b := retry.NewBudget()
		together(t, b, callers, succeedAfter(10*time.Millisecond))
		together(t, b, callers, timeOut)
		together(t, b, callers, timeOut)
		attempts := 0
		for range 30 { // a minute
			attempts += together(t, b, callers, timeOut)
		}
		assert.LessOrEqual(t, float64(attempts)/(30*callers), 1.10)
		assert.Greater(t, attempts, 30*callers, "some retries return over time")
	})
}

// Calls that pile up while nothing succeeds do not raise the limit.
func TestBudget_NotRaisedByPileUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := retry.NewBudget()
		together(t, b, 10, succeedAfter(10*time.Millisecond))
		retries := together(t, b, 1000, timeOut) - 1000
		assert.LessOrEqual(t, retries, 20)
		assert.Positive(t, retries)
	})
}

// A new budget has ten retries.
func TestBudget_StartsWithTen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		assert.Equal(t, 10, exhaust(t, retry.NewBudget()))
	})
}

// Each second returns 1 % of the limit, even without calls.
func TestBudget_RefillsOverTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := retry.NewBudget()
		exhaust(t, b)
		time.Sleep(8 * time.Second) // less than 10 s together with the time of exhaust
		assert.Zero(t, exhaust(t, b))
		time.Sleep(20 * time.Second)
		assert.Equal(t, 2, exhaust(t, b))
		time.Sleep(time.Hour)
		assert.Equal(t, 10, exhaust(t, b), "no more than the limit")
	})
}

// Twenty successful calls return one retry.
func TestBudget_RefillsBySuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := retry.NewBudget()
		exhaust(t, b)
		for range 10 {
			do(t, b, always(success))
		}
		assert.Zero(t, exhaust(t, b))
		for range 20 {
			do(t, b, always(success))
		}
		assert.Equal(t, 1, exhaust(t, b))
		for range 10_000 {
			do(t, b, always(success))
		}
		assert.Equal(t, 10, exhaust(t, b), "no more than the limit")
	})
}

// A successful attempt that takes more than half of its time does not refill the
// budget.
func TestBudget_SlowSuccessEarnsNothing(t *testing.T) {
	for name, tt := range map[string]struct {
		took    time.Duration
		refills bool
	}{
		"fast": {took: 4 * time.Millisecond, refills: true},
		"slow": {took: 6 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := retry.NewBudget()
				exhaust(t, b)
				for range 100 { // within a second, so that little returns over time
					doUntil(t.Context(), time.Now().Add(10*time.Millisecond), true, b, succeedAfter(tt.took))
				}
				assert.Equal(t, tt.refills, exhaust(t, b) > 0)
			})
		})
	}
}

// The reserved retry of a call that succeeds returns to the budget when the call ends.
func TestBudget_ReturnsUnusedRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := retry.NewBudget()
		do(t, b, always(success)) // the first attempt has ended, so calls in flight no longer raise the limit
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() { do(t, b, succeedAfter(time.Second)) })
		}
		synctest.Wait()
		assert.Equal(t, 1, do(t, b, always(failure)), "all retries are reserved")
		all.Wait()
		assert.Equal(t, retry.MaxAttempts, do(t, b, always(failure)))
	})
}

// However concurrent calls end, no retry is lost: reserved retries return at the end of
// a call, spent ones over time.
func TestBudget_LosesNoRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := retry.NewBudget()
		var all sync.WaitGroup
		for i := range 40 {
			all.Go(func() {
				for j := range 100 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+j)*10*time.Millisecond)
					results := []retry.Result{success, failure, {}, {Retryable: true, After: time.Second}, {Unsent: true, Retryable: true}}
					doUntil(ctx, time.Now().Add(deadline), i%2 == 0, b, func(_ context.Context, n int) retry.Result {
						time.Sleep(time.Duration(i) * time.Millisecond)
						return results[(i+j+n)%len(results)]
					})
					cancel()
				}
			})
		}
		all.Wait()
		for range 30 { // the peak of calls in flight expires
			time.Sleep(time.Second)
			do(t, b, always(success))
		}
		time.Sleep(time.Hour)
		assert.Equal(t, 10, exhaust(t, b))
	})
}

// After a burst of calls, the retries that it spent do not prevent the retries of later
// calls for long.
func TestBudget_SpentFallsWithTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := retry.NewBudget()
		together(t, b, 500, succeedAfter(10*time.Millisecond))
		assert.Greater(t, together(t, b, 500, always(failure))+exhaust(t, b), 1400)
		for range 30 { // the peak of calls in flight expires
			time.Sleep(time.Second)
			do(t, b, always(success))
		}
		exhaust(t, b)
		time.Sleep(20 * time.Second)
		assert.Positive(t, exhaust(t, b))
	})
}

// Budgets are independent of each other.
func TestBudget_IsSeparateForEachTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := retry.NewBudget(), retry.NewBudget()
		exhaust(t, a)
		assert.Equal(t, 10, exhaust(t, b))
	})
}

// The race detector finds no fault with concurrent calls, and no retry is lost.
func TestBudget_IsSafeForConcurrentUse(t *testing.T) {
	b := retry.NewBudget()
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := range 500 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
				doUntil(ctx, time.Now().Add(deadline), true, b, always([]retry.Result{success, failure}[(i+j)%2]))
				cancel()
			}
		})
	}
	all.Wait()
	assert.Equal(t, retry.MaxAttempts, do(t, b, always(failure)))
}
