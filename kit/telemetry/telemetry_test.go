package telemetry_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"example.com/tandem/kit/config"
	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/kittest"
	"example.com/tandem/kit/lifecycle"
	"example.com/tandem/kit/telemetry"
)

func TestMain(m *testing.M) {
	if os.Getenv("TEST_EXIT") != "" {
		exit()
	}
	goleak.VerifyTestMain(m)
}

// exit is a service that records one span and exits. It needs its own process: the
// SDK leaves goroutines that wait for a collector which does not respond.
func exit() {
	tel, err := telemetry.New(context.Background(), me, slog.LevelInfo, config.Environ(os.Environ()), os.Stdout)
	if err == nil {
		_, s := tel.Traces.Tracer("test").Start(context.Background(), "the last")
		s.End()
		tel.Flush()
	}
	if err != nil {
		fmt.Println(err)
	}
	os.Exit(lifecycle.ExitCode(err))
}

var me = instance.Instance{Service: "service-b", Version: "v1", Pod: "service-b-7d", Node: "node-1", Zone: "z1", Namespace: "tandem"}

// newTelemetry uses the process's environment, which the exporters read in any case.
func newTelemetry(t *testing.T, w io.Writer) (*telemetry.Telemetry, error) {
	t.Helper()
	return telemetry.New(t.Context(), me, slog.LevelInfo, config.Environ(os.Environ()), w)
}

// received is an OTLP collector, over gRPC and over HTTP.
type received struct {
	collector.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans []*tracev1.ResourceSpans
}

func (r *received) Export(_ context.Context, in *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spans = append(r.spans, in.GetResourceSpans()...)
	return &collector.ExportTraceServiceResponse{}, nil
}

func (r *received) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	var in collector.ExportTraceServiceRequest
	if req.URL.Path != "/v1/traces" || err != nil || proto.Unmarshal(body, &in) != nil {
		http.Error(w, "not OTLP", http.StatusBadRequest)
		return
	}
	_, _ = r.Export(req.Context(), &in) // cannot fail
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// collect starts a collector for a protocol, and returns its URL.
func collect(t *testing.T, protocol string) (*received, string) {
	t.Helper()
	r := &received{}
	if protocol != "grpc" {
		server := httptest.NewServer(r)
		t.Cleanup(server.Close)
		return r, server.URL
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, r)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		require.NoError(t, <-served)
	})
	return r, "http://" + l.Addr().String()
}

// span records one span and returns it.
func span(t *testing.T, tel *telemetry.Telemetry) trace.Span {
	t.Helper()
	_, s := tel.Traces.Tracer("test").Start(t.Context(), "GET /api/data")
	s.End()
	return s
}

func TestNew_ExportsSpans(t *testing.T) {
	for _, c := range []struct{ name, protocol, endpointKey, protocolKey, path string }{
		{"HTTP is the default", "", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL", ""},
		{"HTTP", "http/protobuf", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL", ""},
		{"gRPC", "grpc", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL", ""},
		{"HTTP, by the variables for traces alone", "http/protobuf", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "/v1/traces"},
		{"gRPC, by the variables for traces alone", "grpc", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, url := collect(t, c.protocol)
			t.Setenv(c.endpointKey, url+c.path)
			t.Setenv(c.protocolKey, c.protocol)
			t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
			tel, err := newTelemetry(t, io.Discard)
			require.NoError(t, err)
			made := span(t, tel)
			tel.Flush()

			require.Len(t, r.spans, 1)
			attributes := map[string]string{}
			for _, a := range r.spans[0].GetResource().GetAttributes() {
				attributes[a.GetKey()] = a.GetValue().GetStringValue()
			}
			for key, want := range map[string]string{
				"service.name": "service-b", "service.version": "v1", "service.instance.id": "service-b-7d",
				"k8s.pod.name": "service-b-7d", "k8s.node.name": "node-1", "k8s.namespace.name": "tandem", "cloud.availability_zone": "z1",
				"telemetry.sdk.language": "go", "deployment.environment": "test",
			} {
				assert.Equal(t, want, attributes[key], key)
			}
			require.Len(t, r.spans[0].GetScopeSpans(), 1)
			require.Len(t, r.spans[0].GetScopeSpans()[0].GetSpans(), 1)
			got, want := r.spans[0].GetScopeSpans()[0].GetSpans()[0], made.SpanContext()
			assert.Equal(t, "GET /api/data", got.GetName())
			id := want.TraceID()
			assert.Equal(t, id[:], got.GetTraceId())
		})
	}
}

func TestNew_OTELServiceNameTakesPrecedence(t *testing.T) {
	r, url := collect(t, "")
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
	t.Setenv("OTEL_SERVICE_NAME", "renamed")
	tel, err := newTelemetry(t, io.Discard)
	require.NoError(t, err)
	span(t, tel)
	tel.Flush()
	require.Len(t, r.spans, 1)
	assert.Contains(t, r.spans[0].GetResource().String(), "renamed")
}

func TestNew_ExportsOnlyWithEndpoint(t *testing.T) {
	for name, environ := range map[string]map[string]string{
		"no endpoint":          {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
		"the SDK switched off": {"OTEL_SDK_DISABLED": "TRUE"},
		"no exporter":          {"OTEL_TRACES_EXPORTER": "none"},
	} {
		t.Run(name, func(t *testing.T) {
			r, url := collect(t, "")
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
			for key, value := range environ {
				t.Setenv(key, value)
			}
			tel, err := newTelemetry(t, io.Discard)
			require.NoError(t, err)
			assert.Nil(t, tel.Traces)
			tel.Flush()
			assert.Empty(t, r.spans)
		})
	}
}

func TestContinue_SetsIDs(t *testing.T) {
	ctx := telemetry.Continue(t.Context(), propagation.MapCarrier{})
	made := trace.SpanContextFromContext(ctx)
	assert.True(t, made.IsValid(), "for logs and for the next service")
	assert.False(t, made.IsSampled())
	other := trace.SpanContextFromContext(telemetry.Continue(t.Context(), propagation.MapCarrier{}))
	assert.NotEqual(t, made.TraceID(), other.TraceID())
}

func TestContinue_KeepsSamplingDecision(t *testing.T) {
	const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	in := propagation.MapCarrier{"traceparent": traceparent, "baggage": "tenant=7"}
	ctx := telemetry.Continue(t.Context(), in)
	out := propagation.MapCarrier{}
	telemetry.Propagator.Inject(ctx, out)
	assert.Regexp(t, "^00-0af7651916cd43dd8448eb211c80319c-[0-9a-f]{16}-01$", out["traceparent"])
	assert.NotEqual(t, traceparent, out["traceparent"], "by a span of our own")
	assert.Equal(t, "tenant=7", out["baggage"])
}

func TestNew_FailsOnInvalidEndpoint(t *testing.T) {
	const endpoint = ": want a URL such as http://collector:4318"
	for _, c := range []struct{ key, value, want string }{
		{"OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", ": want grpc or http/protobuf"},
		{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", ": want grpc or http/protobuf"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", endpoint},
		{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "10.0.0.1:4318", endpoint},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://", endpoint},
	} {
		t.Run(c.key+"="+c.value, func(t *testing.T) {
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
			t.Setenv(c.key, c.value)
			_, err := newTelemetry(t, io.Discard)
			require.EqualError(t, err, fmt.Sprintf("set up traces: %s=%q%s", c.key, c.value, c.want))
			assert.Equal(t, 2, lifecycle.ExitCode(err), "as for any bad value")
		})
	}
}

func TestFlush_EndsWithoutCollector(t *testing.T) {
	hole, err := net.Listen("tcp", "127.0.0.1:0") // accepts connections and never responds
	require.NoError(t, err)
	defer hole.Close() //nolint:errcheck // nothing was said
	children := map[string]*kittest.Process{}
	for where, addr := range map[string]string{"silent": hole.Addr().String(), "closed": "127.0.0.1:" + kittest.FreePort()} {
		for _, protocol := range []string{"grpc", "http/protobuf"} {
			children[where+", "+protocol] = kittest.Start(t, os.Args[0], "TEST_EXIT=1", "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+addr, "OTEL_EXPORTER_OTLP_PROTOCOL="+protocol)
		}
	}
	for name, child := range children {
		assert.Zero(t, child.Wait(t, 25*time.Second), name) // which is 5 s, on a machine that is not busy
		if strings.HasPrefix(name, "silent") {
			assert.Contains(t, child.Log.String(), "spans are lost", name)
		}
	}
}

func TestLog_IsJSONWithTraceID(t *testing.T) {
	log := &kittest.Buffer{}
	tel, err := telemetry.New(t.Context(), me, slog.LevelInfo, nil, log)
	require.NoError(t, err)
	defer tel.Flush()
	ctx := telemetry.Continue(t.Context(), propagation.MapCarrier{})
	s := trace.SpanFromContext(ctx)

	tel.Log.DebugContext(ctx, "not at this level")
	tel.Log.InfoContext(ctx, "in a span", "key", "line\nbreak")
	tel.Log.With("more", 1).InfoContext(ctx, "with attributes")
	tel.Log.WithGroup("group").InfoContext(ctx, "in a group", "key", "x")
	tel.Log.Info("outside")

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

// flushed counts how often what was written has been flushed.
type flushed struct {
	kittest.Buffer
	times int
}

func (f *flushed) Flush() { f.times++ }

// A warning or an error is flushed at once, by loggers derived from Log as well;
// lines below do not pay for it.
func TestLog_FlushesFromWarnUp(t *testing.T) {
	log := &flushed{}
	tel, err := telemetry.New(t.Context(), me, slog.LevelInfo, nil, log)
	require.NoError(t, err)
	tel.Log.Info("request")
	assert.Zero(t, log.times)
	tel.Log.Warn("trouble")
	assert.Equal(t, 1, log.times)
	tel.Log.With("key", "value").WithGroup("group").Error("more")
	assert.Equal(t, 2, log.times)
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
