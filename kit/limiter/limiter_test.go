package shed_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"example.com/tandem/kit/shed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The tests run in bubbles of synctest, whose clock moves only when everything
// waits: what they say of time is exact on any machine.

func take(t *testing.T, l *shed.Limiter, n int) {
	t.Helper()
	for range n {
		require.NoError(t, l.Acquire(t.Context()))
	}
}

func TestThereArePlacesForN(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := shed.New(3)
		start := time.Now()
		take(t, l, 3)
		assert.Zero(t, time.Since(start), "a free place is taken without waiting")
		require.ErrorIs(t, l.Acquire(t.Context()), shed.ErrFull)
		assert.Equal(t, shed.Patience, time.Since(start))

		l.Release()
		take(t, l, 1)
		assert.Equal(t, shed.Patience, time.Since(start), "what was released is free")
	})
}

func TestAPlaceThatComesFreeGoesToTheOneThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := shed.New(1)
		take(t, l, 1)
		got := make(chan error, 1)
		go func() { got <- l.Acquire(t.Context()) }()
		time.Sleep(shed.Patience - 1)
		l.Release()
		require.NoError(t, <-got)

		require.ErrorIs(t, l.Acquire(t.Context()), shed.ErrFull, "it took the place, and its waiting ended")
	})
}

func TestBeyondAsManyWaitingTheRefusalIsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 4
		l := shed.New(n)
		take(t, l, n)
		refused := make(chan error, n)
		for range n {
			go func() { refused <- l.Acquire(t.Context()) }()
		}
		synctest.Wait() // all of them wait now

		start := time.Now()
		require.ErrorIs(t, l.Acquire(t.Context()), shed.ErrFull)
		assert.Zero(t, time.Since(start), "the one more did not wait")
		for range n {
			require.ErrorIs(t, <-refused, shed.ErrFull)
		}
		assert.Equal(t, shed.Patience, time.Since(start), "the others did")

		require.ErrorIs(t, l.Acquire(t.Context()), shed.ErrFull)
		assert.Equal(t, 2*shed.Patience, time.Since(start), "and there is room to wait again")
	})
}

func TestACallerThatLeavesStopsWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := shed.New(1)
		take(t, l, 1)
		ctx, cancel := context.WithCancel(t.Context())
		left := make(chan error, 1)
		go func() { left <- l.Acquire(ctx) }()
		synctest.Wait()
		start := time.Now()
		cancel()
		require.ErrorIs(t, <-left, context.Canceled)
		assert.Zero(t, time.Since(start))

		l.Release()
		take(t, l, 1) // which fails if the one that left took the place along
	})
}

func TestWithoutALimitThereIsAlwaysRoom(t *testing.T) {
	l := shed.New(0)
	require.Nil(t, l)
	take(t, l, 10_000)
	l.Release()
}

func TestNeverMoreThanNAtOnce(t *testing.T) {
	const n = 3
	l := shed.New(n)
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
	take(t, l, n) // every place was given back
}
