package call

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestBackoffDoublesWithinItsBoundAndIsJitteredOverAllOfIt(t *testing.T) {
	for n, most := range map[int]time.Duration{
		1: 50 * time.Millisecond,
		2: 100 * time.Millisecond,
		3: 200 * time.Millisecond,
		4: 400 * time.Millisecond,
		5: 500 * time.Millisecond,
		9: 500 * time.Millisecond,
	} {
		least, longest := time.Hour, time.Duration(0)
		for range 1000 {
			wait := backoff(n)
			least, longest = min(least, wait), max(longest, wait)
		}
		assert.Positive(t, least)
		assert.Less(t, least, most/10, "n=%d", n)
		assert.Greater(t, longest, most*9/10, "n=%d", n)
		assert.LessOrEqual(t, longest, most+time.Millisecond, "n=%d", n)
	}
}

func TestRepeatThatWouldPassTheDeadlineIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		assert.False(t, Pause(t.Context(), start.Add(time.Millisecond), 9))
		assert.Zero(t, time.Since(start))
	})
}

func TestCallerThatLeavesEndsThePause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		start := time.Now()
		assert.False(t, Pause(ctx, start.Add(time.Hour), 9))
		assert.Zero(t, time.Since(start))
	})
}

func TestPauseIsTheBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		assert.True(t, Pause(t.Context(), start.Add(time.Hour), 1))
		assert.InDelta(t, baseBackoff/2, time.Since(start), float64(baseBackoff/2+time.Millisecond))
	})
}
