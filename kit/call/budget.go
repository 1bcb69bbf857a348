package call

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// MaxAttempts is how often a call is attempted in all, over either transport.
const MaxAttempts = 3

// Budget keeps retries from making an outage worse. It is gRPC's retry
// throttle (gRFC A6): a failure costs a token, a success earns a tenth of one,
// and there are retries only while the bucket is more than half full. A peer
// that is down gets a handful of retries, then one attempt a call. It is safe
// for concurrent use.
type Budget struct {
	mu     sync.Mutex
	tokens float64
}

// The figures that gRFC A6 gives as an example.
const (
	maxTokens  = 10
	tokenRatio = 0.1
)

// NewBudget makes a full bucket.
func NewBudget() *Budget { return &Budget{tokens: maxTokens} }

// Succeed notes an attempt that did not fail.
func (b *Budget) Succeed() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens = min(b.tokens+tokenRatio, maxTokens)
}

// Fail notes a failed attempt, and reports whether there may be another.
func (b *Budget) Fail() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens = max(b.tokens-1, 0)
	return b.tokens > maxTokens/2
}

// Covers reports whether an attempt that began and failed now might be repeated.
// If so, one that may be repeated has until Halfway; and if that passes it is,
// even if others that were under way have spent the budget meanwhile: it was cut
// off for nothing else.
func (b *Budget) Covers() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.tokens-1 > maxTokens/2
}

// Deadline is when a call that begins now must have ended: after timeout, or
// before, where ctx ends before.
func Deadline(ctx context.Context, timeout time.Duration) time.Time {
	deadline := time.Now().Add(timeout)
	if sooner, ok := ctx.Deadline(); ok && sooner.Before(deadline) {
		return sooner
	}
	return deadline
}

// Halfway to a call's deadline is when an attempt is cut off that is not to be
// the last, so that a peer that is silent leaves time to ask another.
func Halfway(deadline time.Time) time.Time {
	return time.Now().Add(time.Until(deadline) / 2)
}

const (
	baseBackoff = 50 * time.Millisecond
	maxBackoff  = 500 * time.Millisecond
)

// Pause waits after the nth attempt for the next to be due. It reports whether
// it is: there is no next if ctx ends meanwhile, or if the deadline would pass.
func Pause(ctx context.Context, deadline time.Time, n int) bool {
	wait := backoff(n)
	if time.Until(deadline) <= wait {
		return false
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// backoff doubles from attempt to attempt, and is jittered over its whole range
// so that callers that failed together do not come back together.
func backoff(n int) time.Duration {
	return rand.N(min(baseBackoff<<(n-1), maxBackoff)) + time.Millisecond
}
