package retry

import (
	"sync"
	"time"
)

const (
	// minLimit is how many retries may be made at once to a target that has
	// few calls in flight.
	minLimit = 10
	// perSuccess is how much of a spent retry one successful call earns back.
	perSuccess = 0.05
	// perSecond is the part of the limit that is earned back in a second, with
	// or without calls. With a deadline of 2 s it amounts to at most 0.02 × 2
	// = 4 % of the calls while all of them fail.
	perSecond = 0.01
	// peakWindow is how long a number of calls in flight is remembered, at least.
	peakWindow = 10 * time.Second
	// latencyWeight of the last successful attempt in the usual latency.
	latencyWeight = 0.1
)

// Budget limits the retries to one target. It is safe for concurrent use.
//
// At most limit retries may be spent: twice the largest number of calls in flight
// at a recent success, and at least 10. That suffices to retry every call of an
// instance that dies, twice. Only successes raise the limit, so the calls that
// pile up in an outage do not. (Until the first attempt has ended, all calls in
// flight count, so that a client which starts under load has a budget.)
//
// A success returns 0.05 of a spent retry, and each second 1 % of the limit. Once
// the budget is spent, attempts therefore stay within 1.10 times the calls. (The
// retry throttle of gRFC A6 has a fixed limit instead: 10 tokens in its example.)
type Budget struct {
	mu       sync.Mutex
	inFlight int
	reserved int
	spent    float64
	updated  time.Time // when spent was last reduced by the time that passed

	attempted      bool // an attempt has ended
	peak, lastPeak int  // largest inFlight at a success, in this window and in the last
	window         time.Time

	latency time.Duration // moving average over the successful attempts
}

// NewBudget returns a Budget of which nothing is spent.
func NewBudget() *Budget {
	now := time.Now()
	return &Budget{updated: now, window: now}
}

func (b *Budget) limit() float64 { return float64(max(minLimit, 2*max(b.peak, b.lastPeak))) }

func (b *Budget) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.inFlight++
	if !b.attempted {
		b.peak = max(b.peak, b.inFlight)
	}
}

// reserve sets a retry aside for the nth attempt of a call, if there may be
// another and a retry is left. It also returns how long attempts usually take.
func (b *Budget) reserve(n int) (reserved bool, usual time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.spent > 0 {
		now := time.Now()
		// At most the limit, which may have fallen: a past burst would prevent
		// retries for hours once there is little traffic.
		b.spent = min(max(b.spent-now.Sub(b.updated).Seconds()*perSecond*b.limit(), 0), b.limit())
		b.updated = now
	}
	if n == MaxAttempts || b.spent+float64(b.reserved)+1 > b.limit() {
		return false, b.latency
	}
	b.reserved++
	return true, b.latency
}

// end ends a call, and returns its last reserved retry if it has one.
func (b *Budget) end(reserved bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.attempted = true
	b.inFlight--
	if reserved {
		b.reserved--
	}
}

// spend uses a reserved retry up.
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

// succeed notes a successful attempt that took some of the time it had left.
// One that took more than half earns nothing: where everything is that slow,
// retries help nobody.
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
