package telemetry

import (
	"context"
	"encoding/binary"
	"math/rand/v2"

	oteltrace "go.opentelemetry.io/otel/trace"
)

// Continue is for a server that makes no span of a request (see Traced). It continues the
// trace that Propagator has extracted into ctx, or starts one, with a new span id for the
// logs and for calls to other services. The caller's sampling decision is kept, so that
// the trace does not end here.
func Continue(ctx context.Context) context.Context {
	caller := oteltrace.SpanContextFromContext(ctx)
	ids := oteltrace.SpanContextConfig{
		TraceID:    caller.TraceID(),
		TraceFlags: caller.TraceFlags(),
		TraceState: caller.TraceState(),
	}
	// |1, because an id of zeros is invalid.
	if !caller.IsValid() {
		binary.BigEndian.PutUint64(ids.TraceID[:8], rand.Uint64())
		binary.BigEndian.PutUint64(ids.TraceID[8:], rand.Uint64()|1)
	}
	binary.BigEndian.PutUint64(ids.SpanID[:], rand.Uint64()|1)
	return oteltrace.ContextWithSpanContext(ctx, oteltrace.NewSpanContext(ids))
}

// NewTrace is for work that no request asks for, such as calls at a rate: it starts a
// trace, whatever ctx belongs to. Call end when the work has ended.
func (t *Telemetry) NewTrace(ctx context.Context, name string) (_ context.Context, end func()) {
	if !t.Traced(oteltrace.SpanContext{}) {
		return Continue(oteltrace.ContextWithSpanContext(ctx, oteltrace.SpanContext{})), func() {}
	}
	ctx, span := t.Traces.Tracer("example.com/tandem/kit/telemetry").Start(ctx, name, oteltrace.WithNewRoot())
	return ctx, func() { span.End() }
}
