package grpcclient

import (
	"context"
	"slices"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/stats"

	"example.com/tandem/kit/telemetry"
)

// tracer makes each attempt a span if the trace is sampled. Otherwise it only sends the
// caller's trace context to the server.
//
// OpenTelemetry's spans are a stats handler. gRPC would report several events of each call
// to it, which costs more than all else that a call does for traces. So tracer reports
// what a span needs, of sampled attempts only.
type tracer struct {
	telemetry *telemetry.Telemetry
	spans     stats.Handler // nil if spans are not exported
}

func newTracer(t *telemetry.Telemetry) tracer {
	if t.Traces == nil {
		return tracer{t, nil}
	}
	return tracer{t, otelgrpc.NewClientHandler(
		otelgrpc.WithTracerProvider(t.Traces),
		otelgrpc.WithPropagators(telemetry.Propagator),
		otelgrpc.WithMeterProvider(noop.NewMeterProvider()), // metrics go to Prometheus
	)}
}

// unary traces an attempt of a unary call.
func (t tracer) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	ctx, opts = t.attempt(ctx, method, opts)
	return invoke(ctx, method, req, reply, cc, opts...)
}

// stream traces a stream.
func (t tracer) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	ctx, opts = t.attempt(ctx, method, opts)
	return open(ctx, desc, cc, method, opts...)
}

// attempt starts the span of an attempt, and adds an option that ends it. If the attempt is
// a retry, the span says how many came before it, under the name that gRPC's own tracing
// uses (gRFC A72).
func (t tracer) attempt(ctx context.Context, method string, opts []grpc.CallOption) (context.Context, []grpc.CallOption) {
	if !t.telemetry.Traced(trace.SpanContextFromContext(ctx)) {
		return withTrace(ctx), opts
	}
	ctx = t.spans.TagRPC(ctx, &stats.RPCTagInfo{FullMethodName: method})
	if a, ok := ctx.Value(attemptKey{}).(*attempt); ok && a.n > 1 {
		trace.SpanFromContext(ctx).SetAttributes(attribute.Int("previous-rpc-attempts", a.n-1))
	}
	var server peer.Peer
	end := func(err error) {
		if server.Addr != nil {
			t.spans.HandleRPC(ctx, &stats.OutHeader{Client: true, RemoteAddr: server.Addr})
		}
		t.spans.HandleRPC(ctx, &stats.End{Client: true, Error: err})
	}
	return ctx, slices.Concat(opts, []grpc.CallOption{grpc.Peer(&server), grpc.OnFinish(end)})
}

// withTrace adds the trace context of ctx to its outgoing metadata.
func withTrace(ctx context.Context) context.Context {
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
