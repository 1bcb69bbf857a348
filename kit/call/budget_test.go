package call_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"example.com/tandem/kit/call"
)

func TestABudgetIsSpentByFailuresAndEarnedBySuccesses(t *testing.T) {
	b := call.NewBudget()
	allowed := 0
	for range 100 {
		assert.Equal(t, b.Covers(), func() bool { ok := b.Fail(); allowed += btoi(ok); return ok }())
	}
	assert.Equal(t, 4, allowed, "a peer that is down gets a handful of retries")
	for range 59 {
		b.Succeed()
	}
	assert.False(t, b.Covers(), "5.9 tokens: a failure would leave no more than half")
	for range 2 {
		b.Succeed()
	}
	assert.True(t, b.Covers())
	for range 1000 {
		b.Succeed()
	}
	for range 4 {
		assert.True(t, b.Fail(), "full is full")
	}
	assert.False(t, b.Fail())
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestACallEndsWithItsTimeOrWithItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		assert.Equal(t, 2*time.Second, call.Deadline(t.Context(), 2*time.Second).Sub(start))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		assert.Equal(t, time.Second, call.Deadline(ctx, 2*time.Second).Sub(start))
		assert.Equal(t, time.Second/2, call.Deadline(ctx, time.Second/2).Sub(start))
	})
}

func TestHalfwayLeavesTheOtherHalf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		deadline := start.Add(2 * time.Second)
		for _, want := range []time.Duration{time.Second, 1500 * time.Millisecond, 1750 * time.Millisecond} {
			half := call.Halfway(deadline)
			assert.Equal(t, want, half.Sub(start))
			time.Sleep(time.Until(half))
		}
	})
}
