package limiter_test

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"example.com/tandem/kit/kittest"
	"example.com/tandem/kit/limiter"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The tests use synctest, whose clock advances only when every goroutine waits. The
// times that they assert are exact on any machine.

func newLimiter(n int) *limiter.Limiter { return limiter.New(n, prometheus.NewRegistry()) }

// acquire acquires n requests, each of which must be admitted.
func acquire(t *testing.T, l *limiter.Limiter, n int) {
	t.Helper()
	for range n {
		require.NoError(t, l.Acquire(t.Context()))
	}
}

// Up to n requests are admitted without waiting; the next is shed after QueueTime.
func TestLimiter_AdmitsUpToN(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(3)
		start := time.Now()
		acquire(t, l, 3)
		assert.Zero(t, time.Since(start))
		require.ErrorIs(t, l.Acquire(t.Context()), limiter.ErrFull)
		assert.Equal(t, limiter.QueueTime, time.Since(start))

		l.Release()
		acquire(t, l, 1)
		assert.Equal(t, limiter.QueueTime, time.Since(start), "a request must not wait after Release")
	})
}

// A queued request is admitted when another ends.
func TestLimiter_QueuedRequestIsAdmitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(1)
		acquire(t, l, 1)
		got := make(chan error, 1)
		go func() { got <- l.Acquire(t.Context()) }()
		time.Sleep(limiter.QueueTime - 1)
		l.Release()
		require.NoError(t, <-got)
		require.ErrorIs(t, l.Acquire(t.Context()), limiter.ErrFull)
	})
}

// With n requests queued, the next is shed without waiting.
func TestLimiter_FullQueueShedsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 4
		l := newLimiter(n)
		acquire(t, l, n)
		shed := make(chan error, n)
		for range n {
			go func() { shed <- l.Acquire(t.Context()) }()
		}
		synctest.Wait() // until all are queued

		start := time.Now()
		require.ErrorIs(t, l.Acquire(t.Context()), limiter.ErrFull)
		assert.Zero(t, time.Since(start))
		for range n {
			require.ErrorIs(t, <-shed, limiter.ErrFull)
		}
		assert.Equal(t, limiter.QueueTime, time.Since(start))

		require.ErrorIs(t, l.Acquire(t.Context()), limiter.ErrFull)
		assert.Equal(t, 2*limiter.QueueTime, time.Since(start), "the queue must be empty again")
	})
}

// A request leaves the queue at once when its context is canceled or its deadline
// passes.
func TestLimiter_QueueEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(1)
		acquire(t, l, 1)
		ctx, cancel := context.WithCancel(t.Context())
		left := make(chan error, 1)
		go func() { left <- l.Acquire(ctx) }()
		synctest.Wait()
		start := time.Now()
		cancel()
		require.ErrorIs(t, <-left, context.Canceled)
		assert.Zero(t, time.Since(start))

		ctx, cancel = context.WithTimeout(t.Context(), limiter.QueueTime/2)
		defer cancel()
		require.ErrorIs(t, l.Acquire(ctx), context.DeadlineExceeded)
		assert.Equal(t, limiter.QueueTime/2, time.Since(start))

		l.Release()
		acquire(t, l, 1) // fails if a canceled request still counts
	})
}

// Streams count towards the limit, but leave half of it to calls.
func TestLimiter_StreamsTakeAtMostHalf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(4)
		start := time.Now()
		require.NoError(t, l.AcquireStream(t.Context()))
		require.NoError(t, l.AcquireStream(t.Context()))
		require.ErrorIs(t, l.AcquireStream(t.Context()), limiter.ErrFull)
		acquire(t, l, 2)
		assert.Zero(t, time.Since(start), "no request may be queued")
		require.ErrorIs(t, l.Acquire(t.Context()), limiter.ErrFull, "streams must count towards the limit")

		l.ReleaseStream()
		acquire(t, l, 1)
		require.ErrorIs(t, l.AcquireStream(t.Context()), limiter.ErrFull, "calls must count towards the limit of streams")
		l.Release()
		require.NoError(t, l.AcquireStream(t.Context()), "a stream that was shed must not count")
	})
}

// A nil Limiter sheds nothing.
func TestLimiter_NilNeverSheds(t *testing.T) {
	var l *limiter.Limiter
	acquire(t, l, 10_000)
	l.Release()
	require.NoError(t, l.AcquireStream(t.Context()))
	l.ReleaseStream()
}

// With many goroutines, never more than n requests are in flight.
func TestLimiter_NeverExceedsN(t *testing.T) {
	const n = 3
	l := newLimiter(n)
	var inFlight, most, served atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 500 {
				if l.Acquire(t.Context()) != nil {
					continue
				}
				now := inFlight.Add(1)
				for m := most.Load(); now > m && !most.CompareAndSwap(m, now); m = most.Load() {
				}
				served.Add(1)
				inFlight.Add(-1)
				l.Release()
			}
		})
	}
	wg.Wait()
	assert.LessOrEqual(t, most.Load(), int64(n))
	assert.Positive(t, served.Load())
	acquire(t, l, n) // fails if a request was not released
}

// The metrics count the requests in flight and those that were shed.
func TestLimiter_Metrics(t *testing.T) {
	tel := kittest.Telemetry(t, io.Discard)
	l := limiter.New(2, tel.Metrics)
	acquire(t, l, 1)
	require.NoError(t, l.AcquireStream(t.Context()))
	require.ErrorIs(t, l.AcquireStream(t.Context()), limiter.ErrFull)
	require.ErrorIs(t, l.Acquire(t.Context()), limiter.ErrFull)
	text := kittest.Scrape(t, tel)
	assert.Contains(t, text, "\nserver_requests_in_flight 2\n")
	assert.Contains(t, text, "\nserver_requests_shed_total 2\n")
}
