// Package backend is how service-a asks service-b: one interface, and an
// implementation for each transport to lay side by side.
package backend

import (
	"context"
	"errors"
	"iter"
	"time"

	"go.opentelemetry.io/otel/trace"

	"example.com/tandem/kit/call"
	datav1 "example.com/tandem/proto/data/v1"
)

// Backend asks service-b. An error is an *InvalidError if service-b refused
// the request as such; call.ClassOf tells the class of any other.
type Backend interface {
	// Get asks once. What is known of the call comes with an error too.
	Get(ctx context.Context, key string) (*datav1.Data, Call, error)
}

// Watcher asks service-b for a stream, which only gRPC has.
type Watcher interface {
	// Watch yields what service-b sends, once an interval, until ctx ends. A
	// stream that breaks is opened again at once, and goes on with sequence 1;
	// an error is yielded only if that fails, and it is tried on and on.
	Watch(ctx context.Context, key string, interval time.Duration) iter.Seq2[*datav1.WatchDataResponse, error]
}

// InvalidError is a request that service-b refused because it breaks a rule.
type InvalidError struct{ Detail string }

func (e *InvalidError) Error() string { return e.Detail }

// errEmpty is an answer that says nothing, or not who gave it.
var errEmpty = errors.New("the answer holds no data, or does not say who served it")

// Call says how one call went.
type Call struct {
	Transport string `json:"transport"`
	// Target is the name that was called, as configured.
	Target string `json:"target"`
	// Addresses that the name stood for.
	Addresses []string `json:"addresses"`
	// Peer is the address that answered: a pod's, or a Service's.
	Peer       string  `json:"peer,omitempty"`
	Attempts   int     `json:"attempts"`
	DurationMS float64 `json:"durationMs"`
	TraceID    string  `json:"traceId,omitempty"`
}

// describe makes a Call of what a client noted.
func describe(ctx context.Context, transport, target string, start time.Time, r *call.Record) Call {
	c := Call{
		Transport:  transport,
		Target:     target,
		Addresses:  append([]string{}, r.Addresses...), // [] in JSON, never null
		Peer:       r.Peer,
		Attempts:   r.Attempts,
		DurationMS: float64(time.Since(start).Microseconds()) / 1000,
	}
	if span := trace.SpanContextFromContext(ctx); span.IsValid() {
		c.TraceID = span.TraceID().String()
	}
	return c
}
