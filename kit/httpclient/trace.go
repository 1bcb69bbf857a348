package httpclient

import (
	"net"
	"net/http"
	"strconv"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"

	"example.com/tandem/kit/telemetry"
)

// newTraced returns a transport that makes a span of each attempt.
func newTraced(tel *telemetry.Telemetry, t *target) http.RoundTripper {
	return otelhttp.NewTransport(tracedSend{t},
		otelhttp.WithTracerProvider(tel.Traces),
		otelhttp.WithPropagators(telemetry.Propagator),
		otelhttp.WithMeterProvider(noop.NewMeterProvider()), // the metrics are Prometheus's
	)
}

type attemptKey struct{}

// tracedSend calls send and adds what only send knows to the span.
type tracedSend struct{ *target }

// RoundTrip sends the attempt of the request's context.
func (t tracedSend) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	a := ctx.Value(attemptKey{}).(*attempt)
	resp, err := t.send(ctx, req, a)
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		span.SetAttributes(attributesOf(a)...)
	}
	return resp, err
}

// attributesOf names the attempt as OpenTelemetry's semantic conventions do.
func attributesOf(a *attempt) (out []attribute.KeyValue) {
	if a.n > 1 {
		out = append(out, attribute.Int("http.request.resend_count", a.n-1))
	}
	if host, port, err := net.SplitHostPort(a.peer); err == nil {
		number, _ := strconv.Atoi(port) // an address of a lookup, so it is a number
		out = append(out, attribute.String("network.peer.address", host), attribute.Int("network.peer.port", number))
	}
	return out
}
