package grpcclient_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
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
	for _, c := range []struct {
		name, want string
		watch      func(grpc.ServerStream) error
	}{
		{"ended", "  test client kit.test.Echo/Watch\n", func(ss grpc.ServerStream) error { return echo.Send(ss, "text") }},
		{"canceled", "  test client kit.test.Echo/Watch failed\n", func(ss grpc.ServerStream) error {
			_ = echo.Send(ss, "text")
			<-ss.Context().Done()
			return nil
		}},
		{"refused", "  test client kit.test.Echo/Watch failed\n", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			tel, received := kittest.Traced(t)
			target := "dns:///127.0.0.1:" + kittest.FreePort()
			if c.watch != nil {
				target = local(t, echo.Echo{Watch: c.watch})
			}
			ctx, call := tel.Traces.Tracer("test").Start(t.Context(), "call")
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			stream, err := echo.Open(ctx, newClient(t, target, grpcclient.Options{Telemetry: tel}))
			assert.Equal(t, c.watch == nil, err != nil, err)
			if err == nil {
				_, err = stream.Recv()
				require.NoError(t, err)
				if c.name == "canceled" {
					cancel()
				}
				_, err = stream.Recv()
				require.Error(t, err, "the end")
			}
			call.End()
			tel.Flush()
			assert.Equal(t, "test internal call\n"+c.want, otlp.Tree(received.Trace(call.SpanContext().TraceID().String())))
		})
	}
}
