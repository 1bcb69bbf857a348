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
	if t.Traces == nil {
		return []grpc.ServerOption{grpc.ChainUnaryInterceptor(continueUnary), grpc.ChainStreamInterceptor(continueStream)}
	}
	return []grpc.ServerOption{grpc.StatsHandler(spans{t, otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(t.Traces),
		otelgrpc.WithPropagators(telemetry.Propagator),
		otelgrpc.WithMeterProvider(noop.NewMeterProvider()), // metrics go to Prometheus
	)})}
}

// spans makes spans of the calls in sampled traces, but health checks.
type spans struct {
	telemetry *telemetry.Telemetry
	stats.Handler
}

// TagRPC starts the span of a call, or continues the caller's trace.
func (s spans) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	extracted := extract(ctx)
	if isHealthCheck(info) || !s.telemetry.Traced(trace.SpanContextFromContext(extracted)) {
		return telemetry.Continue(extracted)
	}
	return s.Handler.TagRPC(ctx, info)
}

// isHealthCheck reports whether a call is one to gRPC's health service.
var isHealthCheck = filters.HealthCheck()

// HandleRPC passes on what happens to a call that is a span.
func (s spans) HandleRPC(ctx context.Context, event stats.RPCStats) {
	if trace.SpanFromContext(ctx).IsRecording() {
		s.Handler.HandleRPC(ctx, event)
	}
}

// continueUnary continues the caller's trace, or starts one.
func continueUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	return next(telemetry.Continue(extract(ctx)), req)
}

func continueStream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return next(srv, &streamWithContext{ss, telemetry.Continue(extract(ss.Context()))})
}

func extract(ctx context.Context) context.Context {
	return telemetry.Propagator.Extract(ctx, incoming{ctx})
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
