package grpcclient_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
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
	for _, s := range spans[1:] {
		assert.Equal(t, "00-"+s.TraceID+"-"+s.ID+"-01", <-parents)
	}
}
