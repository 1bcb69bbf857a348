package telemetry

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
	oteltrace "go.opentelemetry.io/otel/trace"
)

// Exemplar returns the trace id of ctx as the labels of an exemplar, which leads from a
// bucket of a histogram to one of its calls. It returns nil unless the span of ctx is
// sampled and exported: no other trace can be looked up.
func Exemplar(ctx context.Context) prometheus.Labels {
	span := oteltrace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return nil
	}
	return prometheus.Labels{"trace_id": span.SpanContext().TraceID().String()}
}

// Observe adds a value to a histogram, with the Exemplar of ctx.
func Observe(ctx context.Context, histogram prometheus.Observer, value float64) {
	histogram.(prometheus.ExemplarObserver).ObserveWithExemplar(value, Exemplar(ctx)) // every histogram is one
}
