// Package telemetry sets up the logs (JSON lines), the metrics (one Prometheus
// registry) and the traces (OpenTelemetry) of a service.
package telemetry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
	oteltrace "go.opentelemetry.io/otel/trace"

	"example.com/tandem/kit/config"
	"example.com/tandem/kit/instance"
)

// Telemetry holds the logger, the metrics and the traces of a service.
type Telemetry struct {
	Log     *slog.Logger
	Metrics *prometheus.Registry
	// Traces is nil if spans are not exported.
	Traces oteltrace.TracerProvider

	rootRatio *float64 // see Traced
	flush     func(context.Context) error
}

// Propagator passes the trace from service to service in the W3C headers. It ignores a
// caller's tracestate or baggage that is large.
var Propagator propagation.TextMapPropagator = propagator{propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})}

// New sets up telemetry for one instance. Log lines of level and above go to w. If w
// has a method Flush, the logger calls it after each warning and error: they must not
// be lost in a buffer if the process dies next.
//
// Spans are exported if the standard OTEL_* variables name an OTLP endpoint. Without
// one, spans are not recorded and have ids only. An error means that the variables
// are invalid.
func New(ctx context.Context, me instance.Instance, level slog.Level, environ map[string]string, w io.Writer) (*Telemetry, error) {
	flushLog := func() {}
	if f, ok := w.(interface{ Flush() }); ok {
		flushLog = f.Flush
	}
	log := slog.New(handler{slog.NewJSONHandler(escaper{w}, &slog.HandlerOptions{Level: level}), flushLog}).
		With("service", me.Service, "pod", me.Pod)

	metrics := prometheus.NewRegistry()
	metrics.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name:        "build_info",
			Help:        "Always 1; the labels name the service and its version.",
			ConstLabels: prometheus.Labels{"service": me.Service, "version": me.Version},
		}, func() float64 { return 1 }),
	)

	// OpenTelemetry reports errors in the background, such as a collector that does not respond
	// or a caller's malformed baggage, to this global handler. Its default writes plain text into
	// the JSON log.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("telemetry", "error", Truncate(err.Error())) }))

	t := &Telemetry{Log: log, Metrics: metrics, flush: func(context.Context) error { return nil }}
	if !exporting(environ) {
		return t, nil
	}
	provider, err := newProvider(ctx, me, environ)
	if err != nil {
		return nil, fmt.Errorf("set up traces: %w", err)
	}
	t.Traces, t.flush, t.rootRatio = provider, provider.Shutdown, rootRatio(environ)
	return t, nil
}

// FlushTimeout is the time limit of Flush.
const FlushTimeout = 5 * time.Second

// Flush sends the remaining spans. Call it last: requests that drain record spans, too.
// Spans that cannot be sent within FlushTimeout are dropped, with a warning: without
// a collector, the exit must neither hang nor fail.
func (t *Telemetry) Flush() {
	ctx, cancel := context.WithTimeout(context.Background(), FlushTimeout)
	defer cancel()
	if err := t.flush(ctx); err != nil {
		t.Log.Warn("spans are lost", "error", err.Error())
	}
}

const (
	endpointKey, tracesEndpointKey = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
	samplerKey, samplerArgKey      = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
)

func exporting(environ map[string]string) bool {
	return environ[endpointKey]+environ[tracesEndpointKey] != "" && !strings.EqualFold(environ["OTEL_SDK_DISABLED"], "true") && environ["OTEL_TRACES_EXPORTER"] != "none"
}

func newProvider(ctx context.Context, me instance.Instance, environ map[string]string) (*trace.TracerProvider, error) {
	for _, key := range []string{endpointKey, tracesEndpointKey} {
		// The SDK would replace an invalid URL by https://localhost:4318.
		if u, err := url.Parse(environ[key]); environ[key] != "" && (err != nil || u.Host == "" && u.Scheme != "unix") {
			return nil, config.Invalid(key, environ[key], "want a URL such as http://collector:4318")
		}
	}
	if err := checkSampler(environ); err != nil {
		return nil, err
	}
	exporter, err := newExporter(ctx, environ)
	if err != nil {
		return nil, err
	}
	res, err := resource.New(ctx,
		resource.WithAttributes(
			attribute.String("service.name", me.Service),
			attribute.String("service.version", me.Version),
			attribute.String("service.instance.id", me.Pod),
			attribute.String("k8s.pod.name", me.Pod),
			attribute.String("k8s.node.name", me.Node),
			attribute.String("k8s.namespace.name", me.Namespace),
			attribute.String("cloud.availability_zone", me.Zone),
		),
		resource.WithTelemetrySDK(),
		resource.WithFromEnv(), // last: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence
	)
	if err != nil {
		return nil, err
	}
	options := []trace.TracerProviderOption{trace.WithBatcher(exporter), trace.WithResource(res)}
	if rootRatio(environ) != nil {
		// Traced has decided before a span starts.
		options = append(options, trace.WithSampler(trace.ParentBased(trace.AlwaysSample())))
	} // else the SDK reads OTEL_TRACES_SAMPLER
	return trace.NewTracerProvider(options...), nil
}

// rootRatio returns which share of the traces that start here a parent-based sampler keeps,
// or nil for another sampler, which decides about each span. The default is
// parentbased_always_on.
func rootRatio(environ map[string]string) *float64 {
	ratio := 1.0
	switch sampler, ok := strings.CutPrefix(environ[samplerKey], "parentbased_"); {
	case !ok && sampler != "":
		return nil
	case sampler == "always_off":
		ratio = 0
	case sampler == "traceidratio" && environ[samplerArgKey] != "":
		ratio, _ = strconv.ParseFloat(environ[samplerArgKey], 64) // checkSampler has checked it
	}
	return &ratio
}

// Traced reports whether work in a trace becomes spans. parent is the caller's span, for a
// server, or the current span, for a client. If it is invalid, the trace starts here, and
// each call of Traced decides anew.
//
// If Traced returns false, servers use Continue, and clients pass on the ids of their context:
// OpenTelemetry's instrumentation costs almost as much for a span that it drops as for one
// that it keeps.
func (t *Telemetry) Traced(parent oteltrace.SpanContext) bool {
	switch {
	case t.Traces == nil:
		return false
	case t.rootRatio == nil:
		return true
	case parent.IsValid():
		return parent.IsSampled()
	default:
		return rand.Float64() < *t.rootRatio
	}
}

// checkSampler returns an error for a sampler that the SDK would replace by its default,
// which samples every call.
func checkSampler(environ map[string]string) error {
	switch sampler := environ[samplerKey]; sampler {
	case "", "always_on", "always_off", "parentbased_always_on", "parentbased_always_off":
		return nil
	case "traceidratio", "parentbased_traceidratio":
		if arg := environ[samplerArgKey]; arg != "" {
			if ratio, err := strconv.ParseFloat(arg, 64); err != nil || !(ratio >= 0 && ratio <= 1) {
				return config.Invalid(samplerArgKey, arg, "want a number from 0 to 1, such as 0.01")
			}
		}
		return nil
	default:
		return config.Invalid(samplerKey, sampler, "want always_on, always_off or traceidratio, or one of these after parentbased_")
	}
}

func newExporter(ctx context.Context, environ map[string]string) (*otlptrace.Exporter, error) {
	key := "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
	if environ[key] == "" {
		key = "OTEL_EXPORTER_OTLP_PROTOCOL"
	}
	switch protocol := environ[key]; protocol {
	case "", "http/protobuf": // the specification's default
		return otlptracehttp.New(ctx)
	case "grpc":
		return otlptracegrpc.New(ctx)
	default:
		return nil, config.Invalid(key, protocol, "want grpc or http/protobuf")
	}
}

// handler adds the trace id and span id of the context to every log line, and
// flushes the log after warnings and errors.
type handler struct {
	slog.Handler
	flush func()
}

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	if span := oteltrace.SpanContextFromContext(ctx); span.IsValid() {
		r.AddAttrs(slog.String("trace_id", span.TraceID().String()), slog.String("span_id", span.SpanID().String()))
	}
	err := h.Handler.Handle(ctx, r)
	if r.Level >= slog.LevelWarn {
		h.flush()
	}
	return err
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.Handler.WithAttrs(attrs), h.flush}
}

func (h handler) WithGroup(name string) slog.Handler {
	return handler{h.Handler.WithGroup(name), h.flush}
}

// escaper writes JSON lines, and escapes the control characters that slog does not: DEL and
// U+0080 to U+009F. Terminals take U+009B for the start of an escape sequence, and clients
// determine parts of a log line.
type escaper struct{ io.Writer }

func (e escaper) Write(line []byte) (int, error) {
	if bytes.IndexByte(line, 0x7f) < 0 && bytes.IndexByte(line, 0xc2) < 0 { // 0xc2 begins U+0080 to U+00BF
		return e.Writer.Write(line)
	}
	var out []byte
	for _, r := range string(line) {
		if r >= 0x7f && r <= 0x9f {
			out = fmt.Appendf(out, `\u%04x`, r)
		} else {
			out = utf8.AppendRune(out, r)
		}
	}
	_, err := e.Writer.Write(out)
	return len(line), err
}

// maxLogged is the length limit of a client's text in a log line, in bytes.
const maxLogged = 256

// Truncate returns the first 256 bytes of s. Use it for texts from clients in log
// lines, whose length a client must not determine.
func Truncate(s string) string { return s[:min(len(s), maxLogged)] }

// Tail returns the last 256 bytes of s. Use it in place of Truncate where the
// end matters.
func Tail(s string) string { return s[max(0, len(s)-maxLogged):] }
