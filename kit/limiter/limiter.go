// Package shed refuses work that a server has no room for. Refusing at once is
// kinder than queueing: a caller that is refused can try another instance
// while its deadline still has time left.
package shed

import (
	"context"
	"errors"
	"time"
)

// ErrFull is returned when no place came free in time. The work was not begun,
// so the caller may safely repeat it elsewhere.
var ErrFull = errors.New("too many requests in flight")

// Patience is how long a request waits for a place: long enough to ride out a
// burst of a few requests, short against any sensible deadline.
const Patience = 50 * time.Millisecond

// Limiter is a number of places for work in flight. It is safe for concurrent
// use; a nil Limiter has room for everything.
type Limiter struct {
	places  chan struct{} // holds one token for each place taken
	waiting chan struct{} // and one for each request that waits
}

// New makes a Limiter with n places; as many requests again may wait for one.
// Of 0 it makes nil, which has room for everything.
func New(n int) *Limiter {
	if n == 0 {
		return nil
	}
	return &Limiter{places: make(chan struct{}, n), waiting: make(chan struct{}, n)}
}

// Acquire takes a place, waiting up to Patience for one. It returns ErrFull if
// none came free, or ctx's error if the caller left first. After a nil error
// the place must be given back with Release.
func (l *Limiter) Acquire(ctx context.Context) error {
	if l == nil {
		return nil
	}
	select {
	case l.places <- struct{}{}:
		return nil
	default:
	}
	select {
	case l.waiting <- struct{}{}:
		defer func() { <-l.waiting }()
	default:
		return ErrFull
	}
	timer := time.NewTimer(Patience)
	defer timer.Stop()
	select {
	case l.places <- struct{}{}:
		return nil
	case <-timer.C:
		return ErrFull
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Release gives a place back.
func (l *Limiter) Release() {
	if l != nil {
		<-l.places
	}
}
