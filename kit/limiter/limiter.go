// Package limiter limits how many requests a process serves at the same time.
// Further requests are queued for at most QueueTime and then shed. A caller whose
// request is shed early can still retry on another instance within its deadline.
package limiter

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// ErrFull is the error of a request that is shed. The request was not processed, so
// it may be retried.
var ErrFull = errors.New("too many requests in flight")

const (
	// QueueTime is the longest time in the queue: long enough for a burst of a few
	// requests to pass, short compared with any sensible deadline.
	QueueTime = 50 * time.Millisecond
	// RetryAfter is the value of Retry-After in the response to a shed request. One
	// second is the smallest value of that header.
	RetryAfter = time.Second
)

// Limiter is the concurrency limit of one process, over all transports. It is safe
// for concurrent use. A nil Limiter never sheds.
//
// A stream counts as a request in flight until it ends, because it holds a goroutine
// and buffers as a request does. Streams live for minutes and calls for milliseconds,
// so streams may take at most half of the limit. The other half is left to calls.
type Limiter struct {
	inFlight chan struct{} // one element for each request in flight, streams included
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
			Name: "server_requests_shed_total",
			Help: "Requests refused because the concurrency limit was reached, over all transports.",
		}),
	}
	metrics.MustRegister(l.shed, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "server_requests_in_flight",
		Help: "Requests and streams in flight that count towards the concurrency limit, over all transports.",
	}, func() float64 { return float64(len(l.inFlight)) }))
	return l
}

// Acquire admits a request as soon as fewer than n requests are in flight, or returns
// ErrFull after at most QueueTime, or ctx's error if ctx ends first. After a nil
// error the caller must call Release.
func (l *Limiter) Acquire(ctx context.Context) error {
	if l == nil {
		return nil
	}
	select {
	case l.inFlight <- struct{}{}:
		return nil
	default:
	}
	err := l.enqueue(ctx)
	if errors.Is(err, ErrFull) {
		l.shed.Inc()
	}
	return err
}

// enqueue queues a request until another ends, for at most QueueTime. It returns
// ErrFull at once if the queue is full.
func (l *Limiter) enqueue(ctx context.Context) error {
	select {
	case l.queue <- struct{}{}:
		defer func() { <-l.queue }()
	default:
		return ErrFull
	}
	// A deadline before the end of QueueTime has a timer already.
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

// Release marks the end of a request that Acquire admitted.
func (l *Limiter) Release() {
	if l != nil {
		<-l.inFlight
	}
}

// AcquireStream is Acquire for a stream. It returns ErrFull at once if streams take
// half of the limit already: streams are long, so a queue would rarely help. After a
// nil error the caller must call ReleaseStream.
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

// ReleaseStream marks the end of a stream that AcquireStream admitted.
func (l *Limiter) ReleaseStream() {
	if l != nil {
		<-l.streams
		l.Release()
	}
}
