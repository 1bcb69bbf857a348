package endpoint

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// failureWeight is what one failure adds to an endpoint's failure rate:
	// about the last 20 attempts count.
	failureWeight = 0.05
	// silenceWeight is that of an attempt that timed out while no other got a
	// response: two eject an endpoint, since each costs its caller a second.
	silenceWeight = 0.15
	// unreachableWeight is that of a connection that could not be opened: one
	// ejects an endpoint, if the others can be reached.
	unreachableWeight = 0.5
	// margin is by how much the failure rate of an endpoint that is ejected
	// exceeds that of the others: five failures in a row, or a third of some
	// tens of attempts. Where all fail alike, the endpoints are not the cause.
	margin = 0.2
	// negligible is a failure rate that counts as none.
	negligible = 0.001
	// minTrialEvery and trialEvery are the time until the first trial of an
	// endpoint that could not be reached, and the longest time between trials.
	minTrialEvery, trialEvery = time.Second, 10 * time.Second
)

// Outcome is what an attempt tells about its endpoint.
type Outcome int

// The outcomes.
const (
	// Ignored tells nothing: the caller left, or nothing was sent.
	Ignored Outcome = iota
	// Responded is any response that is not the endpoint's fault.
	Responded
	// Failed is a response that is the endpoint's fault, or a broken connection.
	Failed
	// TimedOut is no response in time.
	TimedOut
	// Unreachable is a connection that could not be opened.
	Unreachable
)

// judge compares endpoints with each other.
type judge struct {
	mu    sync.Mutex
	known map[string]*endpoint
	ready []*endpoint
	// connecting is the number of endpoints that are about to be ready.
	connecting int
	changed    func() // called with mu held when an endpoint is ejected or readmitted, or its trial is put off
}

// endpoint is what is known about one address.
type endpoint struct {
	*judge
	addr      string
	pending   atomic.Int32  // attempts without a response yet
	responses atomic.Uint64 // of all attempts
	rate      atomicFloat   // of failures, 0 to 1; written with judge.mu held
	// Written with judge.mu held:
	ejections  atomic.Uint64 // how often it was ejected
	recoveries atomic.Uint64 // how often a trial ended an ejection

	// Guarded by judge.mu:
	ejected     bool
	silent      bool // the last attempt got no response, and neither did any beside it
	unreachable bool // the last connection could not be opened
	trials      int  // trials since it was ejected
	trialAt     time.Time
}

// atomicFloat is a float64 that may be read while it is written.
type atomicFloat struct{ bits atomic.Uint64 }

func (f *atomicFloat) load() float64   { return math.Float64frombits(f.bits.Load()) }
func (f *atomicFloat) store(v float64) { f.bits.Store(math.Float64bits(v)) }

// Attempt is one attempt that was sent to an endpoint. The zero Attempt was sent
// nowhere.
type Attempt struct {
	endpoint  *endpoint
	stream    bool
	trial     bool
	alone     bool   // there was no other endpoint to choose
	responses uint64 // of the endpoint when the attempt began
	era       uint64
}

func (e *endpoint) begin(stream, trial, alone bool) Attempt {
	if !stream {
		e.pending.Add(1)
	}
	return Attempt{e, stream, trial, alone, e.responses.Load(), e.era(trial)}
}

// era identifies the time that an attempt tells about: a trial, this ejection;
// another attempt, the time since the last recovery.
func (e *endpoint) era(trial bool) uint64 {
	if trial {
		return e.ejections.Load()
	}
	return e.recoveries.Load()
}

// Addr returns the address of the endpoint, or "" if there was none.
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
		return // nothing to change: the usual case takes no lock
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if a.era != e.era(a.trial) || e.ejected && !a.trial {
		return // sent before the ejection, which accounts for it already
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

func (e *endpoint) fail(weight float64) {
	rate := e.rate.load()
	rate += weight * (1 - rate)
	e.rate.store(rate)
	if e.ejected {
		e.trialAt = time.Now().Add(e.trialAfter())
		e.changed()
		return
	}
	mean, others := e.others(e)
	if rate-mean > margin && enough(others, len(e.ready), e.silent) {
		e.ejected, e.trials = true, 0
		e.ejections.Add(1)
		e.trialAt = time.Now().Add(e.trialAfter())
		e.readmitWhereTooFewRemain()
		e.changed()
		return
	}
	e.readmitWhereAllFail()
}

// trialAfter returns the time until the next trial.
func (e *endpoint) trialAfter() time.Duration {
	if e.unreachable && e.trials < 4 {
		return min(minTrialEvery<<e.trials, trialEvery)
	}
	return trialEvery
}

func (e *endpoint) readmit() { e.ejected, e.silent = false, false }

// enough reports whether n endpoints in use suffice to eject another.
func enough(n, all int, silent bool) bool { return n > 0 && (silent || n*2 >= all) }

// others returns the mean failure rate and the number of the endpoints in use,
// except e. It is called for failures only, so it may take time.
func (j *judge) others(e *endpoint) (mean float64, n int) {
	for _, other := range j.ready {
		if other != e && !other.ejected {
			mean += other.rate.load()
			n++
		}
	}
	return mean / float64(max(n, 1)), n
}

// readmitWhereAllFail readmits endpoints that by now fail about as often as the
// others. Their failure rate stood still meanwhile, so it is set to the mean.
func (j *judge) readmitWhereAllFail() {
	mean, n := j.others(nil)
	readmitted := false
	for _, e := range j.ready {
		if e.ejected && n > 0 && e.rate.load()-mean < margin/2 {
			e.rate.store(max(e.rate.load(), mean))
			e.readmit()
			readmitted = true
		}
	}
	if readmitted {
		j.changed()
	}
}

// readmitWhereTooFewRemain readmits endpoints that could not be ejected now,
// because too few others remain.
func (j *judge) readmitWhereTooFewRemain() {
	_, inUse := j.others(nil)
	for _, e := range j.ready {
		if e.ejected && !enough(inUse+j.connecting, len(j.ready)+j.connecting, e.silent) {
			e.readmit()
			inUse++
		}
	}
}

// TimedOutAfter returns the outcome of an attempt whose time passed. If that was
// very short, it tells about the caller's deadline, not about the endpoint.
func TimedOutAfter(took time.Duration) Outcome {
	if took < shortTimeout {
		return Ignored
	}
	return TimedOut
}

// shortTimeout is below what any call within a cluster is reasonably given.
const shortTimeout = 100 * time.Millisecond
