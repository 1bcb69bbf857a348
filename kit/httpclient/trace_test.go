package httpclient_test

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/httpclient"
	"example.com/tandem/kit/kittest"
	"example.com/tandem/kit/kittest/otlp"
)

// Each attempt is a span of the caller's trace. The retries are numbered, and the server
// gets the id of the attempt's span, not of the call's.
func TestTrace_NumbersAttempts(t *testing.T) {
	tel, received := kittest.Traced(t)
	var n atomic.Int32
	parents := make(chan string, 3)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		parents <- r.Header.Get("Traceparent")
		if n.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = w.Write([]byte("body"))
	}))
	defer server.Close()

	ctx, call := tel.Traces.Tracer("test").Start(t.Context(), "call")
	got := do(newClient(t, httpclient.Options{Telemetry: tel}), request(t, ctx, http.MethodGet, server.URL, nil))
	call.End()
	require.NoError(t, got.err)
	assert.Equal(t, "body", got.body, "the body can be read after its span has ended")
	tel.Flush()
	spans := received.Trace(call.SpanContext().TraceID().String())
	assert.Equal(t, `test internal call
  test client HTTP GET failed
  test client HTTP GET retry 1 failed
  test client HTTP GET retry 2
`, otlp.Tree(spans))
	require.Len(t, spans, 4)
	for _, s := range spans[1:] {
		assert.Equal(t, "00-"+s.TraceID+"-"+s.ID+"-01", <-parents)
	}
}
