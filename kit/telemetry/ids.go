package telemetry

import (
	"context"
	"encoding/binary"
	"math/rand/v2"

	"go.opentelemetry.io/otel/propagation"
	oteltrace "go.opentelemetry.io/otel/trace"
)

// Continue is what a server does with its caller's trace when it exports no
// spans of its own: it goes on with the trace, or begins one, under a new span
// id, for logs and for the next service. What the caller said of sampling is
// passed on, so that a trace does not end here.
func Continue(ctx context.Context, headers propagation.TextMapCarrier) context.Context {
	ctx = Propagator.Extract(ctx, headers)
	caller := oteltrace.SpanContextFromContext(ctx)
	ids := oteltrace.SpanContextConfig{
		TraceID:    caller.TraceID(),
		TraceFlags: caller.TraceFlags(),
		TraceState: caller.TraceState(),
	}
	// An id of nothing but zeros would not be valid.
	if !caller.IsValid() {
		binary.BigEndian.PutUint64(ids.TraceID[:8], rand.Uint64())
		binary.BigEndian.PutUint64(ids.TraceID[8:], rand.Uint64()|1)
	}
	binary.BigEndian.PutUint64(ids.SpanID[:], rand.Uint64()|1)
	return oteltrace.ContextWithSpanContext(ctx, oteltrace.NewSpanContext(ids))
}
