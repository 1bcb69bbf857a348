package telemetry

import (
	"context"
	"encoding/binary"
	"math/rand/v2"

	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/propagation"
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

// The largest tracestate and baggage that are passed on, in bytes. The called service limits its
// headers (package grpcserver to 8 KiB), and a call must not fail for what is only passed on.
// W3C's Trace Context wants at least 512 bytes of tracestate.
const maxTracestate, maxBaggage = 512, 4 << 10

// propagator extracts what limited lets through.
type propagator struct{ propagation.TextMapPropagator }

func (p propagator) Extract(ctx context.Context, carrier propagation.TextMapCarrier) context.Context {
	ctx = p.TextMapPropagator.Extract(ctx, limited{carrier})
	// Encoded again, baggage may be longer than it was.
	if b := baggage.FromContext(ctx); b.Len() > 0 && len(b.String()) > maxBaggage {
		ctx = baggage.ContextWithoutBaggage(ctx)
	}
	return ctx
}

// limited hides the headers of a carrier that are too large.
type limited struct{ propagation.TextMapCarrier }

func (c limited) Get(key string) string {
	value := c.TextMapCarrier.Get(key)
	if key == "tracestate" && len(value) > maxTracestate {
		return ""
	}
	return value
}

// Values implements propagation.ValuesGetter, which Baggage uses.
func (c limited) Values(key string) []string {
	values := []string{c.TextMapCarrier.Get(key)}
	if all, ok := c.TextMapCarrier.(propagation.ValuesGetter); ok {
		values = all.Values(key)
	}
	size := 0
	for _, value := range values {
		size += len(value)
	}
	if size == 0 || size > maxBaggage {
		return nil
	}
	return values
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
