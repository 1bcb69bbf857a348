package endpoint

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// failureWeight is the weight of one attempt in an endpoint's failure rate, an
	// exponential moving average over about the last 20 attempts.
	failureWeight = 0.05
	// silenceWeight is the weight of an attempt that timed out while no other attempt
	// at the endpoint got a response. Two of them eject it. Each costs its caller one
	// second: the first attempt has half of a deadline of 2 s.
	silenceWeight = 0.15
	// unreachableWeight is the weight of a connection that could not be opened. One
	// of them ejects the endpoint, if the others can be reached.
	unreachableWeight = 0.5
	// margin is by how much an endpoint's failure rate must exceed the mean of the
	// others for its ejection: five failures in a row, or a third of a few tens of
	// attempts. If all endpoints fail alike, something else is the cause.
	margin = 0.2
	// negligible is a failure rate that counts as 0.
	negligible = 0.001
	// minTrialEvery and trialEvery are the time until the first trial of an
	// endpoint that could not be reached, and the longest time between trials.
	minTrialEvery, trialEvery = time.Second, 10 * time.Second
)

// Outcome is the outcome of an attempt, as far as it depends on the endpoint.
type Outcome int

// The outcomes.
const (
	// Ignored does not depend on the endpoint: the caller canceled, or nothing was sent.
	Ignored Outcome = iota
	// Responded is a response, other than those of Failed.
	Responded
	// Failed is a response that reports a failure of the server, such as status 500,
	// or a connection that broke.
	Failed
	// TimedOut means that no response arrived in time.
	TimedOut
	// Unreachable is a connection that could not be opened.
	Unreachable
)

// detector detects outliers: endpoints that fail markedly more often than the others.
type detector struct {
	mu    sync.Mutex
	known map[string]*endpoint
	ready []*endpoint
	// connecting is the number of endpoints that will be ready soon.
	connecting int
	changed    func() // called with mu locked when an endpoint is ejected or readmitted, or its trial is postponed
}

// endpoint is the state of one address.
type endpoint struct {
	*detector
	addr      string
	pending   atomic.Int32  // attempts in flight
	responses atomic.Uint64 // to all attempts so far
	rate      atomicFloat   // of failures, 0 to 1; written with detector.mu locked
	// Written with detector.mu locked:
	ejections  atomic.Uint64 // how often it was ejected
	recoveries atomic.Uint64 // how often a trial succeeded

	// Guarded by detector.mu:
	ejected     bool
	silent      bool // the last attempt timed out, and no other got a response meanwhile
	unreachable bool // the last connection could not be opened
	trials      int  // trials since the ejection
	trialAt     time.Time
}

// atomicFloat is a float64 that may be read while it is written.
type atomicFloat struct{ bits atomic.Uint64 }

func (f *atomicFloat) load() float64   { return math.Float64frombits(f.bits.Load()) }
func (f *atomicFloat) store(v float64) { f.bits.Store(math.Float64bits(v)) }

// Attempt is one attempt at an endpoint. The zero Attempt has no endpoint.
type Attempt struct {
	endpoint  *endpoint
	stream    bool
	trial     bool
	alone     bool   // there was no other endpoint to choose
	responses uint64 // of the endpoint when the attempt started
	era       uint64
}

func (e *endpoint) begin(stream, trial, alone bool) Attempt {
	if !stream {
		e.pending.Add(1)
	}
	return Attempt{e, stream, trial, alone, e.responses.Load(), e.era(trial)}
}

// era is compared when an attempt ends: if it has changed, the outcome is outdated. A
// trial is outdated by another ejection, any other attempt by a recovery.
func (e *endpoint) era(trial bool) uint64 {
	if trial {
		return e.ejections.Load()
	}
	return e.recoveries.Load()
}

// Addr returns the address of the endpoint, or "" if there is none.
func (a Attempt) Addr() string {
	if a.endpoint == nil {
		return ""
	}
	return a.endpoint.addr
}

// Alone reports whether there was no other endpoint to choose, so that a retry
// goes to the same one.
func (a Attempt) Alone() bool { return a.alone }

// End records the outcome. It must be called once.
func (a Attempt) End(o Outcome) {
	e := a.endpoint
	if e == nil {
		return
	}
	if !a.stream {
		e.pending.Add(-1)
	}
	if o == Responded || o == Failed {
		e.responses.Add(1)
	}
	if o == Ignored || o == Responded && !a.trial && e.rate.load() == 0 {
		return // nothing changes: the usual case needs no lock
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if a.era != e.era(a.trial) || e.ejected && !a.trial {
		return // sent before the last ejection or recovery: it no longer counts
	}
	e.silent = o == Unreachable || o == TimedOut && e.responses.Load() == a.responses
	e.unreachable = o == Unreachable
	switch {
	case o == Responded:
		e.succeed(a.trial)
	case o == Unreachable:
		e.fail(unreachableWeight)
	case e.silent:
		e.fail(silenceWeight)
	default:
		e.fail(failureWeight)
	}
}

// succeed records a response. The caller has locked detector.mu.
func (e *endpoint) succeed(trial bool) {
	rate := (1 - failureWeight) * e.rate.load()
	if rate < negligible || trial {
		rate = 0
	}
	e.rate.store(rate)
	if trial && e.ejected {
		e.recoveries.Add(1)
		e.readmit()
		e.changed()
	}
}

// fail records a failure of the given weight, and ejects the endpoint if it has become
// an outlier. The caller has locked detector.mu.
func (e *endpoint) fail(weight float64) {
	rate := e.rate.load()
	rate += weight * (1 - rate)
	e.rate.store(rate)
	if e.ejected {
		e.trialAt = time.Now().Add(e.trialAfter())
		e.changed()
		return
	}
	mean, inUse := e.others(e)
	if rate-mean > margin && canEject(inUse, len(e.ready), e.silent) {
		e.ejected, e.trials = true, 0
		e.ejections.Add(1)
		e.trialAt = time.Now().Add(e.trialAfter())
		e.readmitIfTooFewRemain()
		e.changed()
		return
	}
	e.readmitIfAllFail()
}

// trialAfter returns the time until the next trial of an ejected endpoint.
func (e *endpoint) trialAfter() time.Duration {
	if e.unreachable && e.trials < 4 {
		return min(minTrialEvery<<e.trials, trialEvery)
	}
	return trialEvery
}

func (e *endpoint) readmit() { e.ejected, e.silent = false, false }

// canEject reports whether an endpoint can be ejected if n of all endpoints remain in
// use; silent means that it gives no response at all.
func canEject(n, all int, silent bool) bool { return n > 0 && (silent || n*2 >= all) }

// others returns the mean failure rate and the number of the endpoints in use other
// than e, in O(n). It is called for failures only.
func (d *detector) others(e *endpoint) (mean float64, n int) {
	for _, other := range d.ready {
		if other != e && !other.ejected {
			mean += other.rate.load()
			n++
		}
	}
	return mean / float64(max(n, 1)), n
}

// readmitIfAllFail readmits the ejected endpoints if the others now fail about as
// often. The failure rate of an ejected endpoint is outdated, so it becomes the mean.
func (d *detector) readmitIfAllFail() {
	mean, n := d.others(nil)
	readmitted := false
	for _, e := range d.ready {
		if e.ejected && n > 0 && e.rate.load()-mean < margin/2 {
			e.rate.store(max(e.rate.load(), mean))
			e.readmit()
			readmitted = true
		}
	}
	if readmitted {
		d.changed()
	}
}

// readmitIfTooFewRemain readmits ejected endpoints until enough are in use.
func (d *detector) readmitIfTooFewRemain() {
	_, inUse := d.others(nil)
	for _, e := range d.ready {
		if e.ejected && !canEject(inUse+d.connecting, len(d.ready)+d.connecting, e.silent) {
			e.readmit()
			inUse++
		}
	}
}

// TimedOutAfter returns the outcome of an attempt that timed out after took. If
// that is very short, the caller's deadline is the cause, not the endpoint.
func TimedOutAfter(took time.Duration) Outcome {
	if took < shortTimeout {
		return Ignored
	}
	return TimedOut
}

// shortTimeout is shorter than any reasonable timeout of a call within a cluster.
const shortTimeout = 100 * time.Millisecond
