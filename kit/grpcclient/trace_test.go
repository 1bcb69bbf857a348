package grpcclient_test

import (
	"context"
	"io"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	otelcodes "go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/grpcclient"
	"example.com/tandem/kit/internal/echo"
	"example.com/tandem/kit/kittest"
	"example.com/tandem/kit/kittest/otlp"
)

// Each attempt is a span of the caller's trace. The retries are numbered, and the server
// gets the id of the attempt's span, not of the call's.
func TestTrace_NumbersAttempts(t *testing.T) {
	tel, received := kittest.Traced(t)
	var n atomic.Int32
	parents := make(chan string, 3)
	target := local(t, echo.Echo{Say: func(ctx context.Context, text string) (string, error) {
		parents <- metadata.ValueFromIncomingContext(ctx, "traceparent")[0]
		if n.Add(1) < 3 {
			return "", status.Error(codes.Unavailable, "busy")
		}
		return text, nil
	}})
	ctx, call := tel.Traces.Tracer("test").Start(t.Context(), "call")
	got := say(ctx, newClient(t, target, grpcclient.Options{Telemetry: tel}))
	call.End()
	require.NoError(t, got.err)
	tel.Flush()
	spans := received.Trace(call.SpanContext().TraceID().String())
	assert.Equal(t, `test internal call
  test client kit.test.Echo/Say failed
  test client kit.test.Echo/Say retry 1 failed
  test client kit.test.Echo/Say retry 2
`, otlp.Tree(spans))
	require.Len(t, spans, 4)
	for i, s := range spans[1:] {
		assert.Equal(t, "00-"+s.TraceID+"-"+s.ID+"-01", <-parents)
		assert.Equal(t, "127.0.0.1", s.Attributes["server.address"], "the peer, as in otelgrpc")
		assert.Equal(t, []string{"UNAVAILABLE", "UNAVAILABLE", "OK"}[i], s.Attributes["rpc.response.status_code"])
	}
}

// A stream is one span, until its end: also one that reaches no server, and one whose reader
// goes away.
func TestTrace_StreamIsOneSpan(t *testing.T) {
	first := func(ss grpc.ServerStream) error { return echo.Send(ss, "first") }
	for _, c := range []struct {
		name   string
		watch  func(grpc.ServerStream) error // nil if there is no server
		status otelcodes.Code
	}{
		{"ended", first, otelcodes.Unset},
		{"canceled", func(ss grpc.ServerStream) error {
			_ = first(ss)
			<-ss.Context().Done()
			return nil
		}, otelcodes.Error},
		{"refused", nil, otelcodes.Error},
	} {
		t.Run(c.name, func(t *testing.T) {
			spans := tracetest.NewInMemoryExporter()
			tel := kittest.Telemetry(t, io.Discard)
			tel.Traces = sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
			target := "dns:///127.0.0.1:" + kittest.FreePort()
			if c.watch != nil {
				target = local(t, echo.Echo{Watch: c.watch})
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stream, err := echo.Open(ctx, newClient(t, target, grpcclient.Options{Telemetry: tel}))
			assert.Equal(t, c.watch == nil, err != nil, err)
			if err == nil {
				_, err = stream.Recv()
				require.NoError(t, err)
				assert.Empty(t, spans.GetSpans(), "the stream is open")
				if c.name == "canceled" {
					cancel()
				}
				_, err = stream.Recv()
				require.Error(t, err, "the end")
			}
			kittest.Eventually(t, func() bool { return len(spans.GetSpans()) == 1 }, "the span ends")
			span := spans.GetSpans()[0]
			assert.Equal(t, "kit.test.Echo/Watch", span.Name)
			assert.Equal(t, c.status, span.Status.Code)
		})
	}
}
