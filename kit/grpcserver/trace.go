package grpcserver

import (
	"context"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc/filters"
	"go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"example.com/tandem/kit/telemetry"
)

// traceOptions returns the options that continue the caller's trace, or start one.
func traceOptions(t *telemetry.Telemetry) []grpc.ServerOption {
	if t.Traces == nil {
		return []grpc.ServerOption{grpc.ChainUnaryInterceptor(continueUnary), grpc.ChainStreamInterceptor(continueStream)}
	}
	return []grpc.ServerOption{grpc.StatsHandler(otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(t.Traces),
		otelgrpc.WithPropagators(telemetry.Propagator),
		otelgrpc.WithMeterProvider(noop.NewMeterProvider()), // metrics go to Prometheus
		otelgrpc.WithFilter(filters.Not(filters.HealthCheck())),
	))}
}

func continueUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	return next(telemetry.Continue(ctx, incoming{ctx}), req)
}

func continueStream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
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
