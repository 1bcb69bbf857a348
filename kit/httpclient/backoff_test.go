package httpclient

import (
	"context"
	"testing"
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

func TestRetryThatWouldPassTheDeadlineIsNotWaitedFor(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	done := make(chan bool)
	go func() { done <- sleep(ctx, 2*time.Hour) }()
	select {
	case slept := <-done:
		assert.False(t, slept)
	case <-time.After(20 * time.Second):
		assert.Fail(t, "it waits")
		cancel()
		<-done
	}
}

func TestCallerThatLeavesEndsTheBackoff(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan bool)
	go func() { done <- sleep(ctx, time.Hour) }()
	cancel()
	assert.False(t, <-done)
}
