package retry

import (
	"sync"
	"time"
)

const (
	// minLimit is the smallest limit: that of a target with few calls in flight.
	minLimit = 10
	// perSuccess is the part of a spent retry that a successful attempt returns.
	perSuccess = 0.05
	// perSecond is the part of the limit that each second returns, with or without
	// calls. An example: n calls in flight, each ending at its deadline of 2 s. The
	// limit is 2n. In each second n/2 calls end, and 0.02n retries are returned: 4 % of
	// them.
	perSecond = 0.01
	// peakWindow is the least time for which a peak of calls in flight counts.
	peakWindow = 10 * time.Second
	// latencyWeight is the weight of one attempt in Budget.latency.
	latencyWeight = 0.1
)

// Budget limits the retries to one target. It is safe for concurrent use.
//
// The limit of spent retries is twice the largest number of calls in flight at a
// recent success, and at least 10. If an instance dies, each of its calls can be
// retried twice. Calls that pile up in an outage do not raise the limit, since none
// of them succeeds. (Until the first attempt has ended, all calls in flight count,
// so that a client that starts under load has a budget.)
//
// Each successful attempt returns 0.05 of a spent retry, and each second returns
// 1 % of the limit. With a deadline of up to 2 s and at least 5 calls in flight, this is
// less than 0.10 for each call: once the budget is spent, there are at most 1.10
// attempts per call. (The retry throttle of gRFC A6 has a fixed limit instead: 10
// tokens in its example.)
type Budget struct {
	mu       sync.Mutex
	inFlight int
	reserved int
	spent    float64
	updated  time.Time // the time up to which perSecond has been returned

	attempted      bool      // an attempt has ended
	peak, lastPeak int       // largest inFlight at a success, in this window and the previous one
	window         time.Time // start of this window

	latency time.Duration // moving average of the successful attempts
}

// NewBudget returns a Budget with no retry spent.
func NewBudget() *Budget {
	now := time.Now()
	return &Budget{updated: now, window: now}
}

// begin records the start of a call.
func (b *Budget) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.inFlight++
	if !b.attempted {
		b.peak = max(b.peak, b.inFlight)
	}
}

// reserve reserves a retry for the nth attempt of a call. It returns false for the
// last attempt, and if no retry is left. It also returns how long a successful
// attempt usually takes.
func (b *Budget) reserve(n int) (reserved bool, usual time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.spent > 0 {
		now := time.Now()
		// The limit falls with the traffic. Without this bound, the retries spent
		// in a past burst would prevent retries for hours.
		b.spent = min(max(b.spent-now.Sub(b.updated).Seconds()*perSecond*b.limit(), 0), b.limit())
		b.updated = now
	}
	if n == MaxAttempts || b.spent+float64(b.reserved)+1 > b.limit() {
		return false, b.latency
	}
	b.reserved++
	return true, b.latency
}

// limit returns how many retries may be spent; b.mu is held.
func (b *Budget) limit() float64 { return float64(max(minLimit, 2*max(b.peak, b.lastPeak))) }

// succeed records a successful attempt: the time it took, and the time it had
// until the deadline. An attempt that took more than half of its time returns
// nothing to the budget: where all attempts are that slow, retries do not help.
func (b *Budget) succeed(took, had time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.latency == 0 {
		b.latency = took
	}
	b.latency += time.Duration(latencyWeight * float64(took-b.latency))
	if took < had/2 {
		b.spent = max(b.spent-perSuccess, 0)
	}
	if b.inFlight > b.peak {
		b.peak = b.inFlight
	}
	if now := time.Now(); now.Sub(b.window) > peakWindow {
		b.lastPeak, b.peak, b.window = b.peak, b.inFlight, now
	}
}

// spend spends the reserved retry.
func (b *Budget) spend() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.spent == 0 {
		b.updated = time.Now()
	}
	b.attempted = true
	b.reserved--
	b.spent++
}

// end records the end of a call, and returns the retry that it still has reserved.
func (b *Budget) end(reserved bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.attempted = true
	b.inFlight--
	if reserved {
		b.reserved--
	}
}
