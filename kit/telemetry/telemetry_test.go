package telemetry_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"example.com/tandem/kit/config"
	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/kittest"
	"example.com/tandem/kit/lifecycle"
	"example.com/tandem/kit/telemetry"
)

func TestMain(m *testing.M) {
	if os.Getenv("TEST_EXPORT_AND_EXIT") != "" {
		exportAndExit()
	}
	goleak.VerifyTestMain(m)
}

// exportAndExit makes one span, exports it and exits. It runs in a process of its own:
// the SDK's goroutines that wait for an unreachable collector would outlive a test.
func exportAndExit() {
	tel, err := telemetry.New(context.Background(), testInstance, slog.LevelInfo, config.Environ(os.Environ()), os.Stdout)
	if err == nil {
		_, s := tel.Traces.Tracer("test").Start(context.Background(), "the last span")
		s.End()
		tel.Flush()
	}
	if err != nil {
		fmt.Println(err)
	}
	os.Exit(lifecycle.ExitCode(err))
}

var testInstance = instance.Instance{
	Service:   "service-b",
	Version:   "v1",
	Pod:       "service-b-7d",
	Node:      "node-1",
	Zone:      "z1",
	Namespace: "tandem",
}

// newTelemetry uses the environment of the process, because the SDK's exporters
// always read that.
func newTelemetry(t *testing.T, w io.Writer) (*telemetry.Telemetry, error) {
	t.Helper()
	return telemetry.New(t.Context(), testInstance, slog.LevelInfo, config.Environ(os.Environ()), w)
}

// makeSpan makes and ends one span.
func makeSpan(t *testing.T, tel *telemetry.Telemetry) trace.Span {
	t.Helper()
	_, s := tel.Traces.Tracer("test").Start(t.Context(), "GET /api/data")
	s.End()
	return s
}

// Spans are exported over HTTP (the default) or gRPC, with the attributes of the
// instance. The standard variables, or those for traces only, select the collector.
func TestNew_ExportsSpans(t *testing.T) {
	for name, tt := range map[string]struct {
		protocol string
		signal   string // part of the names of the variables for one signal only
		path     string // of the endpoint
	}{
		"default":                {},
		"HTTP":                   {protocol: "http/protobuf"},
		"gRPC":                   {protocol: "grpc"},
		"HTTP, traces variables": {protocol: "http/protobuf", signal: "TRACES_", path: "/v1/traces"},
		"gRPC, traces variables": {protocol: "grpc", signal: "TRACES_"},
	} {
		t.Run(name, func(t *testing.T) {
			c, url := kittest.StartReceiver(t, tt.protocol)
			t.Setenv("OTEL_EXPORTER_OTLP_"+tt.signal+"ENDPOINT", url+tt.path)
			t.Setenv("OTEL_EXPORTER_OTLP_"+tt.signal+"PROTOCOL", tt.protocol)
			t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
			tel, err := newTelemetry(t, io.Discard)
			require.NoError(t, err)
			made := makeSpan(t, tel)
			tel.Flush()

			spans := c.Spans()
			require.Len(t, spans, 1)
			for key, want := range map[string]string{
				"service.name":            "service-b",
				"service.version":         "v1",
				"service.instance.id":     "service-b-7d",
				"k8s.pod.name":            "service-b-7d",
				"k8s.node.name":           "node-1",
				"k8s.namespace.name":      "tandem",
				"cloud.availability_zone": "z1",
				"telemetry.sdk.language":  "go",
				"deployment.environment":  "test",
			} {
				assert.Equal(t, want, spans[0].Resource[key], key)
			}
			assert.Equal(t, "GET /api/data", spans[0].Name)
			assert.Equal(t, made.SpanContext().TraceID().String(), spans[0].TraceID)
		})
	}
}

// OTEL_SERVICE_NAME takes precedence over the name of the instance.
func TestNew_OTELServiceNameTakesPrecedence(t *testing.T) {
	c, url := kittest.StartReceiver(t, "")
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
	t.Setenv("OTEL_SERVICE_NAME", "renamed")
	tel, err := newTelemetry(t, io.Discard)
	require.NoError(t, err)
	makeSpan(t, tel)
	tel.Flush()
	require.Len(t, c.Spans(), 1)
	assert.Equal(t, "renamed", c.Spans()[0].Resource["service.name"])
}

// Spans are exported only if an endpoint is set and neither the SDK nor the exporter
// is disabled.
func TestNew_ExportsOnlyWithEndpoint(t *testing.T) {
	for name, environ := range map[string]map[string]string{
		"no endpoint":  {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
		"SDK disabled": {"OTEL_SDK_DISABLED": "TRUE"},
		"no exporter":  {"OTEL_TRACES_EXPORTER": "none"},
	} {
		t.Run(name, func(t *testing.T) {
			c, url := kittest.StartReceiver(t, "")
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
			for key, value := range environ {
				t.Setenv(key, value)
			}
			tel, err := newTelemetry(t, io.Discard)
			require.NoError(t, err)
			assert.Nil(t, tel.Traces)
			tel.Flush()
			assert.Empty(t, c.Spans())
		})
	}
}

// A parent-based sampler decides where a trace starts, and the others follow. Another
// sampler decides about each span itself.
func TestTraced_FollowsSampler(t *testing.T) {
	_, url := kittest.StartReceiver(t, "")
	ids := trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}}
	dropped := trace.NewSpanContext(ids)
	ids.TraceFlags = trace.FlagsSampled
	sampled := trace.NewSpanContext(ids)
	for name, tt := range map[string]struct {
		sampler, arg string
		roots        float64 // share of the traces that start here
		dropped      bool    // for a caller's trace that is not sampled
	}{
		"default":                         {roots: 1},
		"parent-based, on":                {sampler: "parentbased_always_on", roots: 1},
		"parent-based, off":               {sampler: "parentbased_always_off", roots: 0},
		"parent-based, a quarter":         {sampler: "parentbased_traceidratio", arg: "0.25", roots: 0.25},
		"parent-based, ratio by default":  {sampler: "parentbased_traceidratio", roots: 1},
		"not parent-based: the SDK's own": {sampler: "traceidratio", arg: "0.25", roots: 1, dropped: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
			t.Setenv("OTEL_TRACES_SAMPLER", tt.sampler)
			t.Setenv("OTEL_TRACES_SAMPLER_ARG", tt.arg)
			tel, err := newTelemetry(t, io.Discard)
			require.NoError(t, err)
			defer tel.Flush()
			assert.True(t, tel.Traced(sampled))
			assert.Equal(t, tt.dropped, tel.Traced(dropped))
			const n = 10_000
			kept := 0
			for range n {
				if tel.Traced(trace.SpanContext{}) {
					kept++
				}
			}
			assert.InDelta(t, tt.roots, float64(kept)/n, 0.05) // 11 standard deviations
		})
	}
	tel, err := newTelemetry(t, io.Discard)
	require.NoError(t, err)
	assert.False(t, tel.Traced(sampled), "without an endpoint")
}

// Without a caller's trace, Continue starts a new one, which is not sampled.
func TestContinue_SetsIDs(t *testing.T) {
	ctx := telemetry.Continue(t.Context())
	made := trace.SpanContextFromContext(ctx)
	assert.True(t, made.IsValid(), "the ids are needed in logs and by called services")
	assert.False(t, made.IsSampled())
	other := trace.SpanContextFromContext(telemetry.Continue(t.Context()))
	assert.NotEqual(t, made.TraceID(), other.TraceID())
}

func TestContinue_KeepsSamplingDecision(t *testing.T) {
	const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	in := propagation.MapCarrier{"traceparent": traceparent, "baggage": "tenant=7"}
	ctx := telemetry.Continue(telemetry.Propagator.Extract(t.Context(), in))
	out := propagation.MapCarrier{}
	telemetry.Propagator.Inject(ctx, out)
	assert.Regexp(t, "^00-0af7651916cd43dd8448eb211c80319c-[0-9a-f]{16}-01$", out["traceparent"])
	assert.NotEqual(t, traceparent, out["traceparent"], "the span id must be a new one")
	assert.Equal(t, "tenant=7", out["baggage"])
}

// A client's tracestate and baggage are passed on up to a size, so that its call does not exceed
// what the called service accepts as headers.
func TestContinue_LimitsHeaders(t *testing.T) {
	const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	state := func(value int) string { return strings.Repeat("v", value) }
	for name, tt := range map[string]struct {
		tracestate, baggage int // sizes of the values
		value               string
		want                []string
	}{
		"invalid UTF-8":    {tracestate: 200, baggage: 2700, value: "%ff", want: []string{"traceparent", "tracestate"}}, // sent as %EF%BF%BD
		"small":            {tracestate: 200, baggage: 4000, want: []string{"baggage", "traceparent", "tracestate"}},
		"large baggage":    {tracestate: 200, baggage: 4200, want: []string{"traceparent", "tracestate"}},
		"large tracestate": {tracestate: 255, baggage: 4000, want: []string{"baggage", "traceparent"}},
	} {
		t.Run(name, func(t *testing.T) {
			in := http.Header{}
			in.Set("traceparent", traceparent)
			in.Set("tracestate", strings.Join([]string{"a=" + state(tt.tracestate), "b=" + state(tt.tracestate)}, ","))
			value := strings.Repeat(cmp.Or(tt.value, "v"), tt.baggage/2/len(cmp.Or(tt.value, "v")))
			in.Add("baggage", "a="+value) // a client may send several
			in.Add("baggage", "b="+value)
			out := propagation.MapCarrier{}
			telemetry.Propagator.Inject(telemetry.Continue(telemetry.Propagator.Extract(t.Context(), propagation.HeaderCarrier(in))), out)
			assert.Equal(t, tt.want, slices.Sorted(maps.Keys(out)))
			assert.Contains(t, out["traceparent"], "0af7651916cd43dd8448eb211c80319c")
		})
	}
}

// An invalid endpoint, protocol or sampler is a configuration error, with exit status 2.
func TestNew_FailsOnInvalidVariables(t *testing.T) {
	const endpoint = ": want a URL such as http://collector:4318"
	for _, c := range []struct{ key, value, want string }{
		{key: "OTEL_EXPORTER_OTLP_PROTOCOL", value: "http/json", want: ": want grpc or http/protobuf"},
		{key: "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", value: "http/json", want: ": want grpc or http/protobuf"},
		{key: "OTEL_EXPORTER_OTLP_ENDPOINT", value: "collector:4318", want: endpoint},
		{key: "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", value: "10.0.0.1:4318", want: endpoint},
		{key: "OTEL_EXPORTER_OTLP_ENDPOINT", value: "http://", want: endpoint},
		{key: "OTEL_TRACES_SAMPLER", value: "ratio", want: ": want always_on, always_off or traceidratio, or one of these after parentbased_"},
		{key: "OTEL_TRACES_SAMPLER_ARG", value: "1%", want: ": want a number from 0 to 1, such as 0.01"},
		{key: "OTEL_TRACES_SAMPLER_ARG", value: "NaN", want: ": want a number from 0 to 1, such as 0.01"},
		{key: "OTEL_TRACES_SAMPLER_ARG", value: "1.5", want: ": want a number from 0 to 1, such as 0.01"},
	} {
		t.Run(c.key+"="+c.value, func(t *testing.T) {
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
			t.Setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
			t.Setenv(c.key, c.value)
			_, err := newTelemetry(t, io.Discard)
			require.EqualError(t, err, fmt.Sprintf("set up traces: %s=%q%s", c.key, c.value, c.want))
			assert.Equal(t, 2, lifecycle.ExitCode(err))
		})
	}
}

// Flush returns if the collector does not respond or is not reachable.
func TestFlush_EndsWithoutCollector(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts connections and never responds
	require.NoError(t, err)
	defer silent.Close() //nolint:errcheck // nothing was sent
	processes := map[string]*kittest.Process{}
	for state, addr := range map[string]string{
		"silent": silent.Addr().String(),
		"closed": "127.0.0.1:" + kittest.FreePort(),
	} {
		for _, protocol := range []string{"grpc", "http/protobuf"} {
			processes[state+", "+protocol] = kittest.Start(t, os.Args[0],
				"TEST_EXPORT_AND_EXIT=1",
				"OTEL_EXPORTER_OTLP_ENDPOINT=http://"+addr,
				"OTEL_EXPORTER_OTLP_PROTOCOL="+protocol,
			)
		}
	}
	for name, process := range processes {
		assert.Zero(t, process.Wait(t, 25*time.Second), name) // about 5 s on an idle machine
		if strings.HasPrefix(name, "silent") {
			assert.Contains(t, process.Log.String(), "spans are lost", name)
		}
	}
}

// Each log line is JSON with the instance, and with the trace and span ids of the
// context.
func TestLog_IsJSONWithTraceID(t *testing.T) {
	log := &kittest.Buffer{}
	tel, err := telemetry.New(t.Context(), testInstance, slog.LevelInfo, nil, log)
	require.NoError(t, err)
	defer tel.Flush()
	ctx := telemetry.Continue(t.Context())
	s := trace.SpanFromContext(ctx)

	tel.Log.DebugContext(ctx, "below the level")
	tel.Log.InfoContext(ctx, "in a span", "key", "line\nbreak")
	tel.Log.With("more", 1).InfoContext(ctx, "with attributes")
	tel.Log.WithGroup("group").InfoContext(ctx, "in a group", "key", "x")
	tel.Log.Info("outside a span")

	var lines []map[string]any
	for text := range strings.Lines(log.String()) {
		var line map[string]any
		require.NoError(t, json.Unmarshal([]byte(text), &line), "%q", text)
		assert.Equal(t, "service-b", line["service"])
		assert.Equal(t, "service-b-7d", line["pod"])
		delete(line, "time")
		lines = append(lines, line)
	}
	require.Len(t, lines, 4)
	traceID, spanID := s.SpanContext().TraceID().String(), s.SpanContext().SpanID().String()
	for _, line := range []map[string]any{lines[0], lines[1], lines[2]["group"].(map[string]any)} {
		assert.Equal(t, traceID, line["trace_id"])
		assert.Equal(t, spanID, line["span_id"])
	}
	assert.Equal(t, "line\nbreak", lines[0]["key"])
	assert.NotContains(t, lines[3], "trace_id")
}

// What OpenTelemetry itself reports is a line of the log, also without an endpoint: a client
// can send baggage that is malformed.
func TestLog_HasErrorsOfOpenTelemetry(t *testing.T) {
	log := &kittest.Buffer{}
	tel, err := telemetry.New(t.Context(), testInstance, slog.LevelInfo, nil, log)
	require.NoError(t, err)
	defer tel.Flush()
	otel.Handle(errors.New("invalid key"))
	var line map[string]any
	require.NoError(t, json.Unmarshal([]byte(log.String()), &line), "%q", log)
	assert.Equal(t, "telemetry", line["msg"])
	assert.Equal(t, "invalid key", line["error"])
}

// flushBuffer counts the calls of Flush.
type flushBuffer struct {
	kittest.Buffer
	flushes int
}

func (b *flushBuffer) Flush() { b.flushes++ }

// Warnings and errors are flushed at once, also by loggers derived from Log. Lines of
// lower levels are not.
func TestLog_FlushesFromWarnUp(t *testing.T) {
	log := &flushBuffer{}
	tel, err := telemetry.New(t.Context(), testInstance, slog.LevelInfo, nil, log)
	require.NoError(t, err)
	tel.Log.Info("request")
	assert.Zero(t, log.flushes)
	tel.Log.Warn("warning")
	assert.Equal(t, 1, log.flushes)
	tel.Log.With("key", "value").WithGroup("group").Error("error")
	assert.Equal(t, 2, log.flushes)
}

func TestMetrics_HaveProcessAndBuildInfo(t *testing.T) {
	tel := kittest.Telemetry(t, io.Discard)
	require.NoError(t, testutil.GatherAndCompare(tel.Metrics, strings.NewReader(`
# HELP build_info Always 1; the labels name the service and its version.
# TYPE build_info gauge
build_info{service="test",version="test"} 1
`), "build_info"))
	n, err := testutil.GatherAndCount(tel.Metrics, "go_goroutines", "process_start_time_seconds")
	require.NoError(t, err)
	assert.Equal(t, 2, n)
}
