package grpcserver

import (
	"context"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc/filters"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"

	"example.com/tandem/kit/telemetry"
)

// traceOptions returns the options that continue the caller's trace, or start one.
func traceOptions(t *telemetry.Telemetry) []grpc.ServerOption {
	continued := []grpc.ServerOption{grpc.ChainUnaryInterceptor(continueUnary), grpc.ChainStreamInterceptor(continueStream)}
	if t.Traces == nil {
		return continued
	}
	return append(continued, grpc.StatsHandler(spans{t, otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(t.Traces),
		otelgrpc.WithPropagators(telemetry.Propagator),
		otelgrpc.WithMeterProvider(noop.NewMeterProvider()), // metrics go to Prometheus
		otelgrpc.WithFilter(filters.Not(filters.HealthCheck())),
	)}))
}

// spans makes spans of the calls in sampled traces.
type spans struct {
	telemetry *telemetry.Telemetry
	stats.Handler
}

// TagRPC starts the span of a call.
func (s spans) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	if !s.telemetry.Traced(trace.SpanContextFromContext(telemetry.Propagator.Extract(ctx, incoming{ctx}))) {
		return ctx
	}
	return s.Handler.TagRPC(ctx, info)
}

// HandleRPC passes on what happens to a call that is a span.
func (s spans) HandleRPC(ctx context.Context, event stats.RPCStats) {
	if trace.SpanContextFromContext(ctx).IsValid() {
		s.Handler.HandleRPC(ctx, event)
	}
}

// continueUnary continues the caller's trace, or starts one, if the call is no span.
func continueUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		ctx = telemetry.Continue(ctx, incoming{ctx})
	}
	return next(ctx, req)
}

func continueStream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if trace.SpanContextFromContext(ss.Context()).IsValid() {
		return next(srv, ss)
	}
	return next(srv, &streamWithContext{ss, telemetry.Continue(ss.Context(), incoming{ss.Context()})})
}

// incoming lets the propagator read a call's metadata as headers.
type incoming struct{ ctx context.Context } //nolint:containedctx // the metadata is in the context

func (i incoming) Get(name string) string {
	if values := metadata.ValueFromIncomingContext(i.ctx, name); len(values) > 0 {
		return values[0]
	}
	return ""
}

// Set and Keys complete the interface; a propagator that reads does not call them.
func (incoming) Set(string, string) {}
func (incoming) Keys() []string     { return nil }
