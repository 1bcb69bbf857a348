// Package endpoint chooses one of the endpoints behind a name for each attempt
// (set.go), and ejects endpoints that fail markedly more often than the others
// (outlier.go). Both clients use it. A ClusterIP is one endpoint, whatever the number of
// pods behind it, and a headless Service is one endpoint for each pod.
//
// Attempts go to the endpoints in turn. If far more attempts are in flight at the
// next endpoint than at another one, chosen at random, the other gets the attempt: an
// endpoint that hangs is avoided long before its first attempt times out. (Choosing
// the endpoint with the fewest would favour one that fails at once.) The cost of a
// choice does not depend on the number of endpoints.
//
//	state     attempts it gets       becomes
//	in use    its share              ejected, when its failure rate exceeds the mean of
//	                                 the others by 0.2, and enough others remain in use
//	ejected   one trial every 10 s   in use, when a trial succeeds, when the others fail
//	                                 about as often, or when too few others remain
//
// After an ejection at least half of all endpoints must remain in use; if the ejected
// endpoint gives no response at all, one is enough. The last endpoint in use is never
// ejected. If no connection to an endpoint can be opened, its first trials come after
// 1, 2, 4 and 8 s.
package endpoint

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"
)

// Set holds the endpoints behind one name, each with a value of type T that the
// client needs to send an attempt to it. A Set is safe for concurrent use.
type Set[T any] struct {
	detector
	addr   func(T) string
	values []T // of the endpoints in detector.ready, in the same order; guarded by detector.mu
	view   atomic.Pointer[view[T]]
	turn   atomic.Uint64
}

type member[T any] struct {
	*endpoint
	value T
}

// view is what Pick chooses from. It is replaced as a whole, so that Pick needs no lock.
type view[T any] struct {
	inUse, ejected []member[T]
	nextTrial      *atomic.Int64 // when the next trial is due, in Unix nanoseconds
}

// NewSet returns an empty Set. The function addr returns the address of a value, which
// identifies its endpoint.
func NewSet[T any](addr func(T) string) *Set[T] {
	s := &Set[T]{addr: addr}
	s.view.Store(&view[T]{nextTrial: new(atomic.Int64)})
	s.changed = s.rebuild
	s.known = map[string]*endpoint{}
	return s
}

// Expect sets how many endpoints are connecting. From the next Update on they count as
// in use until they are ready: otherwise an ejected endpoint would be readmitted, and
// get every call, while the others reconnect.
func (s *Set[T]) Expect(connecting int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.connecting = connecting
}

// Update sets the endpoints that attempts can be sent to. Failure rates are kept for
// them and for the addresses in known, and dropped for all others.
func (s *Set[T]) Update(ready []T, known ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.known
	s.known = make(map[string]*endpoint, len(ready)+len(known))
	keep := func(addr string) *endpoint {
		e, ok := before[addr]
		if !ok {
			e = &endpoint{detector: &s.detector, addr: addr}
		}
		s.known[addr] = e
		return e
	}
	for _, addr := range known {
		keep(addr)
	}
	s.values = slices.Clone(ready)
	s.ready = make([]*endpoint, len(ready))
	for i, value := range ready {
		s.ready[i] = keep(s.addr(value))
	}
	s.readmitIfTooFewRemain()
	s.rebuild()
}

// rebuild replaces the view. The caller has locked s.mu.
func (s *Set[T]) rebuild() {
	next := &view[T]{inUse: make([]member[T], 0, len(s.ready)), nextTrial: new(atomic.Int64)}
	for i, e := range s.ready {
		m := member[T]{e, s.values[i]}
		if e.ejected {
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

// Pick chooses an endpoint for an attempt. It returns false if there is none, or if
// all are ejected and others are connecting. For a retry, avoid is the address of
// the failed attempt, and another one is chosen if possible. The caller must call End.
//
// Streams do not count as attempts in flight: they may be silent for a long time.
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
		busy := m.pending.Load() > 2*other.pending.Load()+1
		if m.addr == avoid || busy && other.addr != avoid {
			m = other
		}
	}
	return m.value, m.begin(stream, false, n == 1), true
}

// beginTrial returns an ejected endpoint whose trial is due, and sets the time of its
// next trial. It does not wait for the outcome, as a stream may never end.
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
