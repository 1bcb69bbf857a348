package grpcclient

import (
	"context"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc/filters"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"

	"example.com/tandem/kit/telemetry"
)

// traceOptions make each attempt a span if the trace is sampled. Otherwise they only send
// the caller's trace context to the server.
func traceOptions(t *telemetry.Telemetry) []grpc.DialOption {
	send := []grpc.DialOption{grpc.WithChainUnaryInterceptor(sendTraceUnary), grpc.WithChainStreamInterceptor(sendTraceStream)}
	if t.Traces == nil {
		return send
	}
	return append(send, grpc.WithStatsHandler(spans{t, otelgrpc.NewClientHandler(
		otelgrpc.WithTracerProvider(t.Traces),
		otelgrpc.WithPropagators(telemetry.Propagator),
		otelgrpc.WithMeterProvider(noop.NewMeterProvider()), // metrics go to Prometheus
		otelgrpc.WithFilter(filters.Not(filters.HealthCheck())),
	)}))
}

// spans makes spans of the attempts in sampled traces.
type spans struct {
	telemetry *telemetry.Telemetry
	stats.Handler
}

type spanKey struct{} // in the context of an attempt that is a span

// TagRPC starts the span of an attempt. If the attempt is a retry, the span says how many
// came before it, under the name that gRPC's own tracing uses (gRFC A72).
func (s spans) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	if !s.telemetry.Traced(trace.SpanContextFromContext(ctx)) {
		return ctx
	}
	ctx = context.WithValue(s.Handler.TagRPC(ctx, info), spanKey{}, true)
	if a, ok := ctx.Value(attemptKey{}).(*attempt); ok && a.n > 1 {
		trace.SpanFromContext(ctx).SetAttributes(attribute.Int("previous-rpc-attempts", a.n-1))
	}
	return ctx
}

// HandleRPC passes on what happens to an attempt that is a span.
func (s spans) HandleRPC(ctx context.Context, event stats.RPCStats) {
	if ctx.Value(spanKey{}) != nil {
		s.Handler.HandleRPC(ctx, event)
	}
}

func sendTraceUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(withTrace(ctx), method, req, reply, cc, opts...)
}

func sendTraceStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return open(withTrace(ctx), desc, cc, method, opts...)
}

// withTrace adds the trace context of ctx to its outgoing metadata. For an attempt that is
// a span, spans does that.
func withTrace(ctx context.Context) context.Context {
	if trace.SpanFromContext(ctx).IsRecording() {
		return ctx
	}
	var carrier pairs
	telemetry.Propagator.Inject(ctx, &carrier)
	return metadata.AppendToOutgoingContext(ctx, carrier...)
}

// pairs is a write-only carrier: each key is followed by its value.
type pairs []string

// Set adds a key and its value.
func (p *pairs) Set(key, value string) { *p = append(*p, key, value) }

// Get returns nothing: only readers of trace context call it.
func (*pairs) Get(string) string { return "" }

// Keys returns nothing: only readers of trace context call it.
func (*pairs) Keys() []string { return nil }
