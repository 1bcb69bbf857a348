package grpcserver

import (
	"context"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/telemetry"
)

// tracer continues the caller's trace, or starts one, and makes a span of a call if the
// trace is sampled. gRPC's own calls get none, nor do those that gRPC rejects before it
// calls interceptors, such as a malformed request.
//
// OpenTelemetry's spans are a stats handler. gRPC would report several events of each call
// to it, which costs more than all else that a call does for traces. So tracer reports
// what a span needs, of sampled calls only.
type tracer struct {
	telemetry *telemetry.Telemetry
	spans     stats.Handler // nil if spans are not exported
}

func newTracer(t *telemetry.Telemetry) tracer {
	if t.Traces == nil {
		return tracer{t, nil}
	}
	return tracer{t, otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(t.Traces),
		otelgrpc.WithPropagators(telemetry.Propagator),
		otelgrpc.WithMeterProvider(noop.NewMeterProvider()), // metrics go to Prometheus
	)}
}

// unary traces a unary call.
func (t tracer) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	ctx, end := t.call(ctx, info.FullMethod)
	resp, err := next(ctx, req)
	end(err)
	return resp, err
}

// stream traces a stream.
func (t tracer) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx, end := t.call(ss.Context(), info.FullMethod)
	err := next(srv, &streamWithContext{ss, ctx})
	end(err)
	return err
}

// call starts the span of a call, which end ends, or only continues the caller's trace.
func (t tracer) call(ctx context.Context, method string) (_ context.Context, end func(error)) {
	caller := telemetry.Propagator.Extract(ctx, incoming{ctx})
	if isInternal(method) || !t.telemetry.Traced(trace.SpanContextFromContext(caller)) {
		return telemetry.Continue(caller), func(error) {}
	}
	ctx = t.spans.TagRPC(ctx, &stats.RPCTagInfo{FullMethodName: method})
	if p, ok := peer.FromContext(ctx); ok {
		t.spans.HandleRPC(ctx, &stats.InHeader{LocalAddr: p.LocalAddr})
	}
	return ctx, func(err error) {
		if _, ok := status.FromError(err); !ok {
			err = status.FromContextError(err).Err() // as gRPC does
		}
		t.spans.HandleRPC(ctx, &stats.End{Error: err})
	}
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
