package grpcclient

import (
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// failureWeight is what one failure adds to an endpoint's rate of them:
	// about the last 20 calls count.
	failureWeight = 0.05
	// silenceWeight is that of an attempt which waited in vain while no other
	// was answered: two make an outlier, since each costs a caller a second.
	silenceWeight = 0.15
	// tooMuch is by how much an outlier's rate exceeds that of the others: five
	// failures in a row, or some tens of calls of which a third fail. Where all
	// fail alike, by overload say, to leave one out would burden the rest.
	tooMuch = 0.2
	// leftOut is for how long an outlier gets no call; then one is a trial, and
	// another each time as long. Package httpclient shuns addresses as long.
	leftOut = 10 * time.Second
	// hurry is a time so short that its passing says more about the caller,
	// whose deadline it was, than about the pod. (So below twice as much a
	// Timeout makes no outliers, as attempts have half of it.)
	hurry = 100 * time.Millisecond
)

// outcome is what an attempt says about the endpoint that it was sent to.
type outcome int

const (
	answered outcome = iota // be it that the request was bad
	failed
	late
	nothing
)

// outcomeOf is the outcome of an attempt that ended without a message.
func outcomeOf(err error, took time.Duration) outcome {
	switch status.Code(err) {
	case codes.DeadlineExceeded:
		if took < hurry {
			return nothing
		}
		return late
	case codes.Canceled: // the caller left
		return nothing
	case codes.OK, codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.PermissionDenied,
		codes.Unauthenticated, codes.FailedPrecondition, codes.Aborted, codes.OutOfRange:
		return answered // the request was at fault, and would be elsewhere
	default:
		// A pod that fails has its answer ready at once, so that the fewest
		// attempts wait there: if it were not left out, it would have most calls.
		return failed
	}
}

// group is the endpoints that calls can be sent to: each is judged by the others.
type group struct {
	mu    sync.Mutex
	ready []*endpoint
}

// endpoint is what the calls to one pod have told about it.
type endpoint struct {
	of      *group
	waiting atomic.Int32              // attempts that were sent and have had no answer
	trialAt atomic.Pointer[time.Time] // nil while it is not left out
	answers atomic.Uint64
	rate    float64 // of failures, 0 to 1; guarded by of.mu
	silent  bool    // left out for giving no answer at all; guarded by of.mu
}

// isOut reports whether an endpoint is left out.
func (e *endpoint) isOut() bool { return e.trialAt.Load() != nil }

// isIn reports whether attempts may be sent to an endpoint, and takes it in
// again where there is no longer a reason to leave it out.
func (e *endpoint) isIn() bool { return !e.isOut() || e.readmit() }

// beginTrial reports whether a trial is due, to one of those that ask. From
// then on the next is due later, whatever becomes of this one: it may be a
// stream that never says a word.
func (e *endpoint) beginTrial() bool {
	due := e.trialAt.Load()
	if due == nil || time.Now().Before(*due) {
		return false
	}
	next := time.Now().Add(leftOut)
	return e.trialAt.CompareAndSwap(due, &next)
}

// readmit takes an endpoint in again if by now the others fail about as often,
// as the cause is not the pod then, or if too few of them are left. It counts
// as no better than they are: its own rate stood still meanwhile.
func (e *endpoint) readmit() bool {
	e.of.mu.Lock()
	defer e.of.mu.Unlock()
	if others := e.others(); e.rate-others < tooMuch/2 || !e.spared() {
		e.rate = max(e.rate, others)
		e.takeIn()
	}
	return !e.isOut()
}

// note notes the outcome of an attempt.
func (e *endpoint) note(a *attempt, o outcome) {
	e.of.mu.Lock()
	defer e.of.mu.Unlock()
	if e.isOut() && !a.trial {
		return // it was sent before, and tells what is known
	}
	switch o {
	case answered:
		e.silent = false
		e.answers.Add(1)
		e.rate -= failureWeight * e.rate
		if a.trial {
			e.rate = 0
			e.takeIn()
		}
	case failed:
		e.silent = false
		e.answers.Add(1)
		e.fail(failureWeight)
	case late:
		if e.silent = e.answers.Load() == a.seen; e.silent {
			e.fail(silenceWeight)
		} else {
			e.fail(failureWeight)
		}
	case nothing:
	}
}

// fail adds to the rate, which may make an outlier.
func (e *endpoint) fail(weight float64) {
	e.rate += weight * (1 - e.rate)
	if !e.isOut() && e.rate-e.others() > tooMuch && e.spared() {
		next := time.Now().Add(leftOut)
		e.trialAt.Store(&next)
	}
}

// others is the mean rate of the others that are not left out.
func (e *endpoint) others() float64 {
	var sum, n float64
	for _, other := range e.of.ready {
		if other != e && !other.isOut() {
			sum += other.rate
			n++
		}
	}
	return sum / max(n, 1)
}

// takeIn ends the leaving out of an endpoint.
func (e *endpoint) takeIn() {
	e.silent = false
	e.trialAt.Store(nil)
}

// spared reports whether an endpoint can be done without: if half are left,
// since those have to bear it, or any where it gives no answer at all.
func (e *endpoint) spared() bool {
	left := 0
	for _, other := range e.of.ready {
		if other != e && !other.isOut() {
			left++
		}
	}
	return left*2 >= len(e.of.ready) || e.silent && left > 0
}
