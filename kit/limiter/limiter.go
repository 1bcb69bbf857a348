// Package limiter bounds how many requests a process serves at once. Further
// requests are queued for at most QueueTime and then shed: a caller whose request
// is shed early can still try another instance within its deadline.
package limiter

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// ErrFull is returned for a request that is shed. The request was not begun, so
// the caller may safely retry it elsewhere.
var ErrFull = errors.New("too many requests in flight")

const (
	// QueueTime is how long a request is queued at most: long enough for a burst
	// of a few requests to pass, short against any sensible deadline.
	QueueTime = 50 * time.Millisecond
	// RetryAfter is what a server tells the caller of a shed request to wait. A
	// second is the least that the HTTP header can say.
	RetryAfter = time.Second
)

// Limiter is the concurrency limit of one process, whatever the transport. It is
// safe for concurrent use. A nil Limiter never sheds.
//
// A stream counts as one request in flight for as long as it lives, because it
// holds a goroutine and buffers as a request does. Streams live for minutes and
// calls for milliseconds, so streams may take half of the limit at most: however
// many streams there are, calls keep the other half.
type Limiter struct {
	inFlight chan struct{} // one element for each request in flight
	queue    chan struct{} // one element for each queued request
	streams  chan struct{} // one element for each stream in flight
	shed     prometheus.Counter
}

// New returns a Limiter for n requests in flight, with a queue of the same
// length, and registers its metrics. n must be at least 1.
func New(n int, metrics prometheus.Registerer) *Limiter {
	l := &Limiter{
		inFlight: make(chan struct{}, n),
		queue:    make(chan struct{}, n),
		streams:  make(chan struct{}, max(1, n/2)),
		shed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "requests_shed_total",
			Help: "Requests refused because the concurrency limit was reached, over all transports.",
		}),
	}
	metrics.MustRegister(l.shed, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "requests_in_flight",
		Help: "Requests and streams that count towards the concurrency limit now, over all transports.",
	}, func() float64 { return float64(len(l.inFlight)) }))
	return l
}

// Acquire waits up to QueueTime until fewer than n requests are in flight. It
// returns ErrFull if the request is shed, or ctx's error if ctx ends first.
// After a nil error the caller must call Release.
func (l *Limiter) Acquire(ctx context.Context) error {
	if l == nil {
		return nil
	}
	select {
	case l.inFlight <- struct{}{}:
		return nil
	default:
	}
	err := l.wait(ctx)
	if errors.Is(err, ErrFull) {
		l.shed.Inc()
	}
	return err
}

// wait queues a request until another ends, for at most QueueTime. It returns
// ErrFull at once if the queue is full.
func (l *Limiter) wait(ctx context.Context) error {
	select {
	case l.queue <- struct{}{}:
		defer func() { <-l.queue }()
	default:
		return ErrFull
	}
	// A deadline that is nearer than QueueTime needs no second timer.
	var timeout <-chan time.Time
	if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > QueueTime {
		timer := time.NewTimer(QueueTime)
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case l.inFlight <- struct{}{}:
		return nil
	case <-timeout:
		return ErrFull
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Release ends a request that Acquire admitted.
func (l *Limiter) Release() {
	if l != nil {
		<-l.inFlight
	}
}

// AcquireStream is Acquire for a stream. If streams have half of the limit, the
// stream is shed at once: streams are long, so to queue it would rarely help.
// After a nil error the caller must call ReleaseStream.
func (l *Limiter) AcquireStream(ctx context.Context) error {
	if l == nil {
		return nil
	}
	select {
	case l.streams <- struct{}{}:
	default:
		l.shed.Inc()
		return ErrFull
	}
	err := l.Acquire(ctx)
	if err != nil {
		<-l.streams
	}
	return err
}

// ReleaseStream ends a stream that AcquireStream admitted.
func (l *Limiter) ReleaseStream() {
	if l != nil {
		<-l.streams
		l.Release()
	}
}
