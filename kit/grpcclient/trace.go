package grpcclient

import (
	"context"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc/filters"
	"go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"example.com/tandem/kit/telemetry"
)

// traced makes each attempt a span, or only tells the server the caller's.
func traced(t *telemetry.Telemetry) []grpc.DialOption {
	if t.Traces == nil {
		return []grpc.DialOption{grpc.WithChainUnaryInterceptor(tellUnary), grpc.WithChainStreamInterceptor(tellStream)}
	}
	return []grpc.DialOption{grpc.WithStatsHandler(otelgrpc.NewClientHandler(
		otelgrpc.WithTracerProvider(t.Traces),
		otelgrpc.WithPropagators(telemetry.Propagator),
		otelgrpc.WithMeterProvider(noop.NewMeterProvider()), // metrics are Prometheus's
		otelgrpc.WithFilter(filters.Not(filters.HealthCheck())),
	))}
}

func tellUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(tell(ctx), method, req, reply, cc, opts...)
}

func tellStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return open(tell(ctx), desc, cc, method, opts...)
}

// tell puts the trace that a call belongs to into its metadata.
func tell(ctx context.Context) context.Context {
	headers := outgoing{}
	telemetry.Propagator.Inject(ctx, &headers)
	return metadata.AppendToOutgoingContext(ctx, headers...)
}

// outgoing is names and values in turn, as the propagator writes headers.
type outgoing []string

// Set adds a header.
func (o *outgoing) Set(name, value string) { *o = append(*o, name, value) }

// Get is empty, as is Keys: they are for readers.
func (*outgoing) Get(string) string { return "" }

// Keys is empty.
func (*outgoing) Keys() []string { return nil }
