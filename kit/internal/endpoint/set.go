// Package endpoint chooses one of the endpoints behind a name for each attempt,
// and ejects endpoints that fail markedly more often than the others. Both
// clients use it: a ClusterIP is one endpoint, a headless Service is one for
// each pod.
//
// Attempts go to the endpoints in turn. If far more attempts are pending at one
// than at another endpoint, chosen at random, the other gets the attempt: an
// endpoint that hangs is avoided long before its first attempt times out. (To
// choose the one with the fewest pending would favour an endpoint that fails at
// once.) The cost of a choice does not depend on the number of endpoints.
//
//	state     attempts it gets       becomes
//	in use    its share              ejected, when its failure rate exceeds the mean of
//	                                 the others by 0.2, and enough others remain in use
//	ejected   one trial every 10 s   in use, when a trial succeeds, when the others fail
//	                                 about as often, or when too few others remain
//
// Enough is half of all endpoints, or a single one if the endpoint gives no
// response at all. The last endpoint in use is never ejected. If the last
// connection to an endpoint could not be opened, its trials come sooner: after 1,
// 2, 4, 8 and then every 10 s.
package endpoint

import (
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// Set is the endpoints behind one name. T is what a client needs in order to
// send an attempt to an endpoint. A Set is safe for concurrent use.
type Set[T any] struct {
	judge
	addr  func(T) string
	ready []member[T] // guarded by judge.mu
	view  atomic.Pointer[view[T]]
	turn  atomic.Uint64
}

type member[T any] struct {
	*endpoint
	value T
}

// view is the choice for the next attempts. It is never changed, only replaced.
type view[T any] struct {
	inUse, ejected []member[T]
	nextTrial      *atomic.Int64 // when the first trial is due, in Unix nanoseconds
}

// NewSet returns an empty Set. The function addr returns an endpoint's address,
// which identifies it.
func NewSet[T any](addr func(T) string) *Set[T] {
	s := &Set[T]{addr: addr}
	s.view.Store(&view[T]{nextTrial: new(atomic.Int64)})
	s.changed = s.rebuild
	s.known = map[string]*endpoint{}
	return s
}

// Expect sets how many endpoints are about to be ready, from the next Update on.
// While there are some, no ejected endpoint need replace them: one that hangs
// would get every call in the moment in which the others reconnect.
func (s *Set[T]) Expect(connecting int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.connecting = connecting
}

// Update sets the endpoints that attempts can be sent to. What is known about
// failures is kept for them and for the other addresses in known, and forgotten
// for all that are in neither.
func (s *Set[T]) Update(ready []T, known ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.known
	s.known = make(map[string]*endpoint, len(ready)+len(known))
	keep := func(addr string) *endpoint {
		e, ok := before[addr]
		if !ok {
			e = &endpoint{judge: &s.judge, addr: addr}
		}
		s.known[addr] = e
		return e
	}
	for _, addr := range known {
		keep(addr)
	}
	s.ready = make([]member[T], len(ready))
	s.judge.ready = make([]*endpoint, len(ready))
	for i, value := range ready {
		e := keep(s.addr(value))
		s.ready[i] = member[T]{e, value}
		s.judge.ready[i] = e
	}
	s.readmitWhereTooFewRemain()
	s.rebuild()
}

// rebuild replaces the view; s.mu is held.
func (s *Set[T]) rebuild() {
	next := &view[T]{inUse: make([]member[T], 0, len(s.ready)), nextTrial: new(atomic.Int64)}
	for _, m := range s.ready {
		if m.ejected {
			next.ejected = append(next.ejected, m)
		} else {
			next.inUse = append(next.inUse, m)
		}
	}
	next.scheduleTrial()
	s.view.Store(next)
}

func (v *view[T]) scheduleTrial() {
	first := int64(math.MaxInt64)
	for _, m := range v.ejected {
		first = min(first, m.trialAt.UnixNano())
	}
	v.nextTrial.Store(first)
}

// Pick chooses an endpoint for an attempt. It returns false if there is none, or
// if all are ejected and others are about to be ready.
// Avoid is the address that failed before, or empty for a first attempt: another
// address is chosen if there is one. The Attempt must be ended.
//
// Attempts of streams do not count as pending: a stream may rightly be silent.
func (s *Set[T]) Pick(avoid string, stream bool) (value T, a Attempt, ok bool) {
	v := s.view.Load()
	n := uint64(len(v.inUse))
	if avoid == "" && len(v.ejected) > 0 {
		if m, due := s.beginTrial(v); due {
			return m.value, m.begin(stream, true, n == 0), true
		}
	}
	if n == 0 {
		return value, a, false
	}
	turn := s.turn.Add(1)
	m := v.inUse[turn%n]
	if n > 1 {
		other := v.inUse[(turn+1+rand.Uint64N(n-1))%n]
		crowded := m.pending.Load() > 2*other.pending.Load()+1
		if m.addr == avoid || crowded && other.addr != avoid {
			m = other
		}
	}
	return m.value, m.begin(stream, false, n == 1), true
}

// beginTrial returns an ejected endpoint whose trial is due. Its next trial is
// due later, whatever becomes of this one: a stream may never end.
func (s *Set[T]) beginTrial(v *view[T]) (m member[T], due bool) {
	now := time.Now()
	if now.UnixNano() < v.nextTrial.Load() {
		return m, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range v.ejected {
		if m.ejected && !now.Before(m.trialAt) {
			m.trials++
			m.trialAt = now.Add(m.trialAfter())
			v.scheduleTrial()
			return m, true
		}
	}
	v.scheduleTrial()
	return m, false
}
