package grpcserver_test

import (
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/grpcserver"
	"example.com/tandem/kit/internal/echo"
	"example.com/tandem/kit/kittest"
	"example.com/tandem/kit/limiter"
)

func TestListen_FailsOnPortInUse(t *testing.T) {
	s := start(t, grpcserver.Options{}, echo.Echo{})
	second := grpcserver.New(grpcserver.Options{
		AddrVar: "GRPC_ADDR", Addr: s.Addr().String(), Health: s.health, Telemetry: kittest.Telemetry(t, io.Discard),
	})
	defer second.Stop()
	err := second.Listen()
	require.ErrorContains(t, err, "GRPC_ADDR: ")
	require.ErrorContains(t, err, s.Addr().String())
}

func TestReflection_ListsServicesOnlyIfOn(t *testing.T) {
	for _, on := range []bool{true, false} {
		s := start(t, grpcserver.Options{Reflection: on}, echo.Echo{})
		stream, err := grpc_reflection_v1.NewServerReflectionClient(s.conn).ServerReflectionInfo(t.Context())
		require.NoError(t, err)
		_ = stream.Send(&grpc_reflection_v1.ServerReflectionRequest{ // if it fails, Recv returns the error
			MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{},
		})
		resp, err := stream.Recv()
		if !on {
			require.Equal(t, codes.Unimplemented, status.Code(err), "%v", err)
			continue
		}
		require.NoError(t, err)
		var services []string
		for _, service := range resp.GetListServicesResponse().GetService() {
			services = append(services, service.GetName())
		}
		assert.Subset(t, services, []string{echo.Service, "grpc.health.v1.Health"})
		require.NoError(t, stream.CloseSend())
		_, err = stream.Recv()
		require.ErrorIs(t, err, io.EOF)
	}
}

// A handler's deadline is the caller's if that is earlier than longestCall (15 s), and
// otherwise longestCall.
func TestServer_LimitsTheDeadline(t *testing.T) {
	left := make(chan time.Duration, 1)
	s := start(t, grpcserver.Options{}, echo.Echo{Say: func(ctx context.Context, _ string) (string, error) {
		deadline, ok := ctx.Deadline()
		assert.True(t, ok)
		left <- time.Until(deadline)
		return "", nil
	}})
	conn := dial(t, s) // grpcclient would set a deadline
	for name, tt := range map[string]struct{ timeout, least, most time.Duration }{
		"none":    {timeout: 0, least: 5 * time.Second, most: 15 * time.Second},
		"later":   {timeout: time.Hour, least: 5 * time.Second, most: 15 * time.Second},
		"earlier": {timeout: 4 * time.Second, least: 0, most: 4 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			if tt.timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, tt.timeout)
				defer cancel()
			}
			_, err := echo.Call(ctx, conn, echo.Say, "")
			require.NoError(t, err)
			got := <-left
			assert.LessOrEqual(t, got, tt.most)
			assert.Greater(t, got, tt.least)
		})
	}
}

// The deadline that a caller sends ends the handler's context, and the log says
// DeadlineExceeded.
func TestServer_DeadlineEndsTheHandler(t *testing.T) {
	var log kittest.Buffer
	s := start(t, grpcserver.Options{Telemetry: kittest.Telemetry(t, &log)}, echo.Echo{Say: func(ctx context.Context, _ string) (string, error) {
		<-ctx.Done()
		return "", ctx.Err()
	}})
	kittest.CallWithDeadline(t, s.Addr().String(), echo.Say, 300*time.Millisecond)
	kittest.Eventually(t, func() bool { return len(lines(t, &log, "grpc")) == 1 }, "the call is logged")
	assert.Equal(t, "DeadlineExceeded", lines(t, &log, "grpc")[0]["code"])
}

// A caller that cancels ends the handler's context. The call is logged at INFO with
// code Canceled.
func TestServer_CancelEndsTheHandler(t *testing.T) {
	started, ended := make(chan struct{}), make(chan error, 1)
	wait := func(ctx context.Context) error {
		started <- struct{}{}
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}
	var log kittest.Buffer
	s := start(t, grpcserver.Options{Telemetry: kittest.Telemetry(t, &log)}, echo.Echo{
		Say:   func(ctx context.Context, _ string) (string, error) { return "", wait(ctx) },
		Watch: func(ss grpc.ServerStream) error { return wait(ss.Context()) },
	})
	for name, do := range map[string]func(context.Context) error{
		"unary": func(ctx context.Context) error {
			_, err := s.say(ctx)
			return err
		},
		"stream": func(ctx context.Context) error {
			stream, err := echo.Open(ctx, s.conn)
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				<-started
				cancel()
			}()
			assert.Equal(t, call.Canceled, call.ClassOf(do(ctx)))
			assert.Equal(t, context.Canceled, receive(t, ended, "the handler's context has not ended"))
		})
	}
	kittest.Eventually(t, func() bool { return len(lines(t, &log, "grpc")) == 2 }, "both calls are logged")
	for _, line := range lines(t, &log, "grpc") {
		assert.Equal(t, "Canceled", line["code"])
		assert.Equal(t, "INFO", line["level"], "a canceled call is no error of the server")
	}
}

// A call beyond the concurrency limit is shed after QueueTime, with a RetryInfo, and a
// stream beyond half of the limit immediately. Health checks are never shed.
func TestServer_ShedsBeyondTheLimit(t *testing.T) {
	unary, streams := newGate(t), newGate(t)
	s := start(t, grpcserver.Options{Limiter: limiter.New(2, prometheus.NewRegistry())}, echo.Echo{
		Say: func(context.Context, string) (string, error) {
			unary.pass()
			return "served", nil
		},
		Watch: func(grpc.ServerStream) error {
			streams.pass()
			return nil
		},
	})
	assertShed := func(err error) {
		t.Helper()
		assert.Equal(t, codes.Unavailable, status.Code(err))
		require.ErrorContains(t, err, limiter.ErrFull.Error())
		require.Len(t, status.Convert(err).Details(), 1)
		info, ok := status.Convert(err).Details()[0].(*errdetails.RetryInfo)
		require.True(t, ok)
		assert.Equal(t, limiter.RetryAfter, info.GetRetryDelay().AsDuration())
	}
	conn := dial(t, s) // grpcclient would retry
	firstStream, err := echo.Open(t.Context(), conn)
	require.NoError(t, err)
	<-streams.started
	secondStream, err := echo.Open(t.Context(), conn)
	require.NoError(t, err)
	_, err = secondStream.Recv()
	assertShed(err)

	firstCall := make(chan error, 1)
	go func() {
		_, err := echo.Call(t.Context(), conn, echo.Say, "hello")
		firstCall <- err
	}()
	<-unary.started
	begin := time.Now()
	_, err = echo.Call(t.Context(), conn, echo.Say, "hello")
	assertShed(err)
	assert.GreaterOrEqual(t, time.Since(begin), limiter.QueueTime)

	health, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	require.NoError(t, err)
	assert.Equal(t, grpc_health_v1.HealthCheckResponse_SERVING, health.GetStatus())

	unary.open()
	streams.open()
	require.NoError(t, <-firstCall)
	_, err = firstStream.Recv()
	require.ErrorIs(t, err, io.EOF)
	for range 100 { // fails if an earlier call still counted
		_, err = echo.Call(t.Context(), conn, echo.Say, "hello")
		require.NoError(t, err)
	}
}

// Both servers of a process share one concurrency limit.
func TestServer_SharesItsLimiter(t *testing.T) {
	shared := limiter.New(1, prometheus.NewRegistry())
	s := start(t, grpcserver.Options{Limiter: shared}, echo.Echo{})
	require.NoError(t, shared.Acquire(t.Context())) // as package httpserver does
	_, err := echo.Call(t.Context(), dial(t, s), echo.Say, "hello")
	assert.Equal(t, codes.Unavailable, status.Code(err))
	shared.Release()
	_, err = echo.Call(t.Context(), dial(t, s), echo.Say, "hello")
	require.NoError(t, err)
}

// Faults are injected into calls and streams, not into health checks.
func TestServer_InjectsNoFaultsInHealth(t *testing.T) {
	faults := fault.NewSwitch(true, func(bool) {})
	s := start(t, grpcserver.Options{Faults: faults}, echo.Echo{Watch: func(grpc.ServerStream) error { return nil }})
	faults.Set(fault.Fault{ErrorRate: 1})
	_, err := s.say(t.Context())
	assert.Equal(t, codes.Unavailable, status.Code(err))
	require.ErrorContains(t, err, fault.ErrInjected.Error())
	stream, err := echo.Open(t.Context(), s.conn)
	require.NoError(t, err)
	_, err = stream.Recv()
	assert.Equal(t, codes.Unavailable, status.Code(err))
	require.ErrorContains(t, err, fault.ErrInjected.Error())
	_, err = grpc_health_v1.NewHealthClient(s.conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	require.NoError(t, err)

	faults.Set(fault.Fault{})
	_, err = s.say(t.Context())
	require.NoError(t, err)
}

// A handler that panics fails its call with INTERNAL, and the panic is logged with its
// stack. The server continues.
func TestServer_PanicIsInternal(t *testing.T) {
	var log kittest.Buffer
	s := start(t, grpcserver.Options{Telemetry: kittest.Telemetry(t, &log)}, echo.Echo{
		Say: func(_ context.Context, said string) (string, error) {
			if said == "panic" {
				panicNow()
			}
			return said, nil
		},
		Watch: func(grpc.ServerStream) error {
			panicNow()
			return nil
		},
	})
	_, err := echo.Call(t.Context(), s.conn, echo.Say, "panic")
	assert.Equal(t, codes.Internal, status.Code(err))
	assert.NotContains(t, err.Error(), "boom", "the caller does not get the text of the panic")
	said, err := echo.Call(t.Context(), s.conn, echo.Say, "next")
	require.NoError(t, err)
	assert.Equal(t, "next", said)

	stream, err := echo.Open(t.Context(), s.conn)
	require.NoError(t, err)
	_, err = stream.Recv()
	assert.Equal(t, codes.Internal, status.Code(err))

	panics := lines(t, &log, "panic")
	require.Len(t, panics, 2)
	for _, line := range panics {
		assert.Equal(t, "ERROR", line["level"])
		assert.Equal(t, "boom", line["error"])
		assert.Contains(t, line["stack"], "panicNow")
	}
}

func panicNow() { panic("boom") }

// The spans of the client and the server, and the server's log line, belong to the
// caller's trace. Health checks have no spans.
func TestTrace_ContinuesCallers(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	var log kittest.Buffer
	serverTel, clientTel := kittest.Telemetry(t, &log), kittest.Telemetry(t, io.Discard)
	serverTel.Traces, clientTel.Traces = provider, provider
	inHandler := make(chan trace.SpanContext, 1)
	s := start(t, grpcserver.Options{Telemetry: serverTel}, echo.Echo{Say: func(ctx context.Context, _ string) (string, error) {
		inHandler <- trace.SpanContextFromContext(ctx)
		return "", nil
	}})
	conn := s.client(t, clientTel)

	ctx, parent := provider.Tracer("test").Start(t.Context(), "parent")
	_, err := echo.Call(ctx, conn, echo.Say, "")
	require.NoError(t, err)
	parent.End()
	got := <-inHandler
	assert.Equal(t, parent.SpanContext().TraceID(), got.TraceID())
	assert.NotEqual(t, parent.SpanContext().SpanID(), got.SpanID())

	byKind := map[trace.SpanKind]tracetest.SpanStub{}
	kittest.Eventually(t, func() bool {
		for _, span := range spans.GetSpans() {
			byKind[span.SpanKind] = span
		}
		return len(byKind) == 3
	}, "the spans of the parent, the client and the server ended")
	assert.Len(t, spans.GetSpans(), 3, "health checks have no spans")
	client, server := byKind[trace.SpanKindClient], byKind[trace.SpanKindServer]
	assert.Equal(t, parent.SpanContext().SpanID(), client.Parent.SpanID())
	assert.Equal(t, client.SpanContext.SpanID(), server.Parent.SpanID())
	assert.Equal(t, got.SpanID(), server.SpanContext.SpanID())

	logged := lines(t, &log, "grpc")
	require.Len(t, logged, 1)
	assert.Equal(t, got.TraceID().String(), logged[0]["trace_id"])
	assert.Equal(t, echo.Say, logged[0]["method"])
	assert.Equal(t, "OK", logged[0]["code"])
	assert.Contains(t, logged[0]["from"], "127.0.0.1:")
}

// A handler may return its context's error as it is. The span has the code that the caller
// gets, and no failure of the server.
func TestTrace_ContextErrorIsNoFailure(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	tel := kittest.Telemetry(t, io.Discard)
	tel.Traces = sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	s := start(t, grpcserver.Options{Telemetry: tel}, echo.Echo{Say: func(context.Context, string) (string, error) {
		return "", context.Canceled
	}})
	_, err := echo.Call(t.Context(), s.conn, echo.Say, "")
	assert.Equal(t, codes.Canceled, status.Code(err))
	kittest.Eventually(t, func() bool { return len(spans.GetSpans()) == 1 }, "the span ends")
	span := spans.GetSpans()[0]
	assert.Contains(t, span.Attributes, attribute.String("rpc.response.status_code", "CANCELLED"))
	assert.Empty(t, span.Status.Description)
}

func TestMetrics_CountByMethodAndCode(t *testing.T) {
	tel := kittest.Telemetry(t, io.Discard)
	s := start(t, grpcserver.Options{Telemetry: tel}, echo.Echo{Say: func(_ context.Context, said string) (string, error) {
		if said == "panic" {
			panicNow()
		}
		return "", nil
	}})
	for _, text := range []string{"", "", "panic"} {
		_, _ = echo.Call(t.Context(), s.conn, echo.Say, text)
	}
	text := kittest.Scrape(t, tel)
	for _, line := range []string{
		`grpc_server_handled_total{grpc_code="OK",grpc_method="Say",grpc_service="kit.test.Echo",grpc_type="unary"} 2`,
		`grpc_server_handled_total{grpc_code="Internal",grpc_method="Say",grpc_service="kit.test.Echo",grpc_type="unary"} 1`,
		`grpc_server_handling_seconds_count{grpc_method="Say",grpc_service="kit.test.Echo",grpc_type="unary"} 3`,
	} {
		assert.Contains(t, text, line+"\n")
	}
}

// A request message may have 64 KiB, or MaxMessage bytes if that is set.
func TestServer_LimitsMessages(t *testing.T) {
	for limit, o := range map[int]grpcserver.Options{64 << 10: {}, 1 << 20: {MaxMessage: 1 << 20}} {
		s := start(t, o, echo.Echo{Say: func(context.Context, string) (string, error) { return "", nil }})
		_, err := echo.Call(t.Context(), s.conn, echo.Say, strings.Repeat("x", limit))
		assert.Equal(t, codes.ResourceExhausted, status.Code(err))
		_, err = echo.Call(t.Context(), s.conn, echo.Say, strings.Repeat("x", limit-10))
		require.NoError(t, err)
	}
}

// At MaxConnectionAge the client reconnects, and no call fails.
func TestMaxConnectionAge_LosesNoCall(t *testing.T) {
	s := start(t, grpcserver.Options{MaxConnectionAge: 300 * time.Millisecond}, echo.Echo{Say: func(ctx context.Context, _ string) (string, error) {
		p, _ := peer.FromContext(ctx)
		return p.Addr.String(), nil
	}})
	addrs := map[string]bool{}
	kittest.Eventually(t, func() bool {
		from, err := s.say(t.Context())
		assert.NoError(t, err)
		addrs[from] = true
		return len(addrs) == 4
	}, "the client has used four connections")
}

// A connection of package grpcclient stays open, although the client pings more often
// than grpc-go's servers permit by default.
func TestServer_AcceptsPingsOfGRPCClient(t *testing.T) {
	t.Parallel()
	s := start(t, grpcserver.Options{}, echo.Echo{Say: func(ctx context.Context, _ string) (string, error) {
		p, _ := peer.FromContext(ctx)
		return p.Addr.String(), nil
	}})
	before, err := s.say(t.Context())
	require.NoError(t, err)
	// An idle client pings every 10 s, and a server that does not permit this closes
	// the connection at the third ping.
	time.Sleep(35 * time.Second)
	after, err := s.say(t.Context())
	require.NoError(t, err)
	assert.Equal(t, before, after, "the address of the client's connection")
}

// Values that a client sends are truncated to 256 bytes in log lines.
func TestLog_TruncatesValues(t *testing.T) {
	var log kittest.Buffer
	s := start(t, grpcserver.Options{Telemetry: kittest.Telemetry(t, &log)}, echo.Echo{Say: func(_ context.Context, said string) (string, error) {
		return "", status.Error(codes.InvalidArgument, said)
	}})
	_, err := echo.Call(t.Context(), s.conn, echo.Say, strings.Repeat("x", 10_000))
	require.Equal(t, codes.InvalidArgument, status.Code(err))
	kittest.Eventually(t, func() bool { return len(lines(t, &log, "grpc")) == 1 }, "the call is logged")
	assert.Equal(t, strings.Repeat("x", 256), lines(t, &log, "grpc")[0]["error"])
}

// lines returns the log lines with the message msg.
func lines(t *testing.T, log *kittest.Buffer, msg string) []map[string]any {
	t.Helper()
	var out []map[string]any
	for text := range strings.Lines(log.String()) {
		var line map[string]any
		require.NoError(t, json.Unmarshal([]byte(text), &line))
		if line["msg"] == msg {
			out = append(out, line)
		}
	}
	return out
}
