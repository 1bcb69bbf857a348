package grpcclient_test

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/grpcclient"
	"example.com/tandem/kit/internal/echo"
	"example.com/tandem/kit/kittest"
)

// The error about a malformed target contains the target.
func TestNew_MalformedTarget(t *testing.T) {
	_, err := grpcclient.New("dns:///%zz", grpcclient.Options{Telemetry: kittest.Telemetry(t, io.Discard)})
	require.ErrorContains(t, err, `"dns:///%zz"`)
}

// A target that the resolver of this package does not support is an error of New.
func TestNew_UnsupportedTarget(t *testing.T) {
	for _, target := range []string{
		"dns:///no-port.test", "no-port.test", "dns:///no-port.test:", "dns:///:9090", "dns://10.0.0.10/server.test:9090",
		"unix:///tmp/server.sock", "unix-abstract:server", "xds:///server.test", "passthrough:///server.test:9090",
	} {
		_, err := grpcclient.New(target, grpcclient.Options{Telemetry: kittest.Telemetry(t, io.Discard)})
		require.ErrorContains(t, err, "want dns:///HOST:PORT", target)
	}
	for _, target := range []string{"dns:///server.test:9090", "dns:server.test:9090", "server.test:9090"} {
		conn, err := grpcclient.New(target, grpcclient.Options{Telemetry: kittest.Telemetry(t, io.Discard)})
		require.NoError(t, err, target)
		require.NoError(t, conn.Close())
	}
}

// An unknown name is looked up every few seconds. gRPC's own resolver waits longer
// after each failure, up to 2 minutes: ten lookups would take many minutes.
func TestResolver_RetriesUnknownName(t *testing.T) {
	t.Parallel()
	newClient(t, "dns:///again.test:1", grpcclient.Options{}).Connect()
	assert.Eventually(t, func() bool { return names.Queries("again.test") >= 10 }, 90*time.Second, 100*time.Millisecond)
}

// The Record of a call has the addresses of the name, who balances calls over them, the
// address of the server and the number of attempts.
func TestRecord_AddressesPeerAttempts(t *testing.T) {
	host, port := unused(t)
	start(t, join(host, port), 0, echo.Echo{})
	names.Set("record.test", host)
	r := say(t.Context(), newClient(t, "dns:///record.test:"+port, grpcclient.Options{}))
	require.NoError(t, r.err)
	assert.Equal(t, []string{join(host, port)}, r.Addresses)
	assert.Equal(t, call.BalancedByNetwork, r.BalancedBy)
	assert.Equal(t, join(host, port), r.Peer)
	assert.Equal(t, 1, r.Attempts)
	require.Len(t, r.Tries(), 1)
	assert.Positive(t, r.Tries()[0].DurationMS)
}

// Calls to an unknown name fail with class dns, and succeed once the name exists.
func TestClient_UnknownName(t *testing.T) {
	target := local(t, echo.Echo{})
	port := target[strings.LastIndex(target, ":")+1:]
	conn := newClient(t, "dns:///late.test:"+port, grpcclient.Options{})
	r := say(t.Context(), conn)
	assert.Equal(t, call.DNS, r.class, "%v", r.err)
	assert.Equal(t, codes.Unavailable, status.Code(r.err))
	require.ErrorContains(t, r.err, "no such host")
	assert.Empty(t, r.Addresses)
	assert.Empty(t, r.Peer)
	_, err := echo.Open(t.Context(), conn)
	assert.Equal(t, call.DNS, call.ClassOf(err), "a stream")

	names.Set("late.test", "127.0.0.1")
	t.Cleanup(func() { names.Set("late.test") })
	awaitSuccess(t, conn)
}

// While DNS fails, calls fail with class dns. They succeed once DNS responds.
func TestClient_DNSFailure(t *testing.T) {
	target := local(t, echo.Echo{})
	port := target[strings.LastIndex(target, ":")+1:]
	names.Set("trouble.test", "127.0.0.1")
	names.Break(true)
	defer names.Break(false)
	conn := newClient(t, "dns:///trouble.test:"+port, grpcclient.Options{})
	r := say(t.Context(), conn)
	assert.Equal(t, call.DNS, r.class, "%v", r.err)
	require.ErrorContains(t, r.err, "server misbehaving")

	names.Break(false)
	awaitSuccess(t, conn)
}

// While a server is down, calls fail with class refused. They succeed once it is
// back.
func TestClient_ServerDown(t *testing.T) {
	host, port := unused(t)
	names.Set("back.test", host)
	conn := newClient(t, "dns:///back.test:"+port, grpcclient.Options{})
	for range 2 {
		kittest.Eventually(t, func() bool {
			r := say(t.Context(), conn)
			require.Error(t, r.err)
			return r.class == call.Refused
		}, "the class is refused")
		r := say(t.Context(), conn)
		assert.Equal(t, []string{join(host, port)}, r.Addresses)
		assert.Empty(t, r.Peer)
		_, err := echo.Open(t.Context(), conn)
		assert.Equal(t, call.Refused, call.ClassOf(err), "a stream")

		s := start(t, join(host, port), 0, echo.Echo{})
		awaitSuccess(t, conn)
		s.stop()
	}
}

// A process that is stopped accepts connections, but sends no HTTP/2 handshake. A
// call fails with class unavailable long before a deadline of 20 s, and calls
// succeed once a server responds.
func TestClient_NoHandshake(t *testing.T) {
	t.Parallel()
	host, port := unused(t)
	mute, err := net.Listen("tcp", join(host, port))
	require.NoError(t, err)
	defer mute.Close() //nolint:errcheck // closed again below
	conn := newClient(t, "dns:///"+join(host, port), grpcclient.Options{Timeout: 20 * time.Second})
	r := say(t.Context(), conn)
	assert.Equal(t, call.Unavailable, r.class, "%v", r.err)
	require.NoError(t, mute.Close())
	start(t, join(host, port), 0, echo.Echo{})
	awaitSuccess(t, conn)
}

// A call to a handler that ignores its deadline fails with class timeout, and later
// calls succeed.
func TestClient_HungHandler(t *testing.T) {
	release := make(chan struct{})
	conn := newClient(t, local(t, echo.Echo{Say: func(context.Context, string) (string, error) {
		<-release // ignores the deadline
		return "", nil
	}}), grpcclient.Options{Timeout: 200 * time.Millisecond})
	begin := time.Now()
	r := say(t.Context(), conn)
	assert.Equal(t, call.Timeout, r.class, "%v", r.err)
	assert.Equal(t, codes.DeadlineExceeded, status.Code(r.err))
	assert.Less(t, time.Since(begin), aWhile)
	close(release)
	awaitSuccess(t, conn)
}

// A call ends at the deadline of its context if that is sooner than the timeout.
func TestClient_CallerDeadline(t *testing.T) {
	conn := newClient(t, local(t, echo.Echo{Say: func(ctx context.Context, _ string) (string, error) {
		<-ctx.Done()
		return "", ctx.Err()
	}}), grpcclient.Options{Timeout: time.Minute})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	assert.Equal(t, call.Timeout, say(ctx, conn).class)
	assert.Less(t, time.Since(begin), aWhile)
}

// A call fails with class unavailable if the server stops during the call. Later calls
// succeed once the server is back.
func TestClient_ServerStopsMidCall(t *testing.T) {
	for name, makeCall := range map[string]func(*testing.T, *grpc.ClientConn) error{
		"unary": func(t *testing.T, conn *grpc.ClientConn) error { return do(t.Context(), conn, echo.Write).err },
		"stream": func(t *testing.T, conn *grpc.ClientConn) error {
			stream, err := echo.Open(t.Context(), conn)
			require.NoError(t, err)
			_, err = stream.Recv()
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			host, port := unused(t)
			began := make(chan struct{})
			wait := func(ctx context.Context) error {
				close(began)
				<-ctx.Done()
				return ctx.Err()
			}
			s := start(t, join(host, port), 0, echo.Echo{
				Say:   func(ctx context.Context, _ string) (string, error) { return "", wait(ctx) },
				Watch: func(ss grpc.ServerStream) error { return wait(ss.Context()) },
			})
			conn := newClient(t, "dns:///"+join(host, port), grpcclient.Options{})
			go func() {
				<-began
				s.stop()
			}()
			err := makeCall(t, conn)
			assert.Equal(t, call.Unavailable, call.ClassOf(err), "%v", err)
			assert.Equal(t, codes.Unavailable, status.Code(err))

			start(t, join(host, port), 0, echo.Echo{})
			awaitSuccess(t, conn)
		})
	}
}

// A response larger than MaxResponse fails the call with class other, and not the
// next call.
func TestClient_ResponseTooLarge(t *testing.T) {
	var size int
	conn := newClient(t, local(t, echo.Echo{Say: func(context.Context, string) (string, error) {
		return strings.Repeat("x", size), nil
	}}), grpcclient.Options{})
	size = 1 << 20
	r := say(t.Context(), conn)
	assert.Equal(t, call.Other, r.class, "%v", r.err)
	assert.Equal(t, codes.ResourceExhausted, status.Code(r.err))
	size = 1<<20 - 10
	r = say(t.Context(), conn)
	require.NoError(t, r.err)
	assert.Len(t, r.text, size)
}

// A call whose context is canceled has class canceled, and the next call succeeds.
func TestClient_CallerCancels(t *testing.T) {
	began := make(chan struct{}, 1)
	var wait sync.Once
	conn := newClient(t, local(t, echo.Echo{Say: func(ctx context.Context, _ string) (string, error) {
		wait.Do(func() {
			began <- struct{}{}
			<-ctx.Done()
		})
		return "", nil
	}}), grpcclient.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-began
		cancel()
	}()
	assert.Equal(t, call.Canceled, say(ctx, conn).class)
	assert.NoError(t, say(t.Context(), conn).err)
}

// A stream is counted as one call, by how it ended.
func TestStream_CountedOnceByOutcome(t *testing.T) {
	tel := kittest.Telemetry(t, io.Discard)
	end := make(chan error, 1)
	target := local(t, echo.Echo{Watch: func(ss grpc.ServerStream) error {
		if err := echo.Send(ss, "first"); err != nil {
			return err
		}
		return <-end
	}})
	conn := newClient(t, target, grpcclient.Options{Telemetry: tel})
	watch := func(how error) error {
		stream, err := echo.Open(t.Context(), conn)
		require.NoError(t, err)
		text, err := stream.Recv()
		require.NoError(t, err)
		assert.Equal(t, "first", text)
		end <- how
		_, err = stream.Recv()
		_, again := stream.Recv()
		require.Error(t, again)
		return err
	}
	require.ErrorIs(t, watch(nil), io.EOF)
	err := watch(status.Error(codes.Unavailable, "draining"))
	assert.Equal(t, call.Unavailable, call.ClassOf(err))
	assert.Equal(t, codes.Unavailable, status.Code(err))
	require.ErrorContains(t, err, "draining")

	// A client stream has one response, and no io.EOF after it.
	put, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true}, echo.Put)
	require.NoError(t, err)
	require.NoError(t, put.SendMsg(wrapperspb.String("last")))
	require.NoError(t, put.CloseSend())
	var last wrapperspb.StringValue
	require.NoError(t, put.RecvMsg(&last))
	assert.Equal(t, "last", last.GetValue())

	text := kittest.Scrape(t, tel)
	assert.Contains(t, text, `client_calls_total{outcome="ok",peer="127.0.0.1",transport="grpc"} 2`+"\n")
	assert.Contains(t, text, `client_calls_total{outcome="unavailable",peer="127.0.0.1",transport="grpc"} 1`+"\n")
}

// A stream whose context is canceled before RecvMsg returned an error is counted once,
// as canceled.
func TestStream_CountsAbandoned(t *testing.T) {
	tel := kittest.Telemetry(t, io.Discard)
	conn := newClient(t, local(t, echo.Echo{Watch: func(ss grpc.ServerStream) error {
		err := echo.Send(ss, "first")
		<-ss.Context().Done()
		return err
	}}), grpcclient.Options{Telemetry: tel})
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := echo.Open(ctx, conn)
	require.NoError(t, err)
	_, err = stream.Recv()
	require.NoError(t, err)
	cancel()
	kittest.Eventually(t, func() bool {
		return strings.Contains(kittest.Scrape(t, tel), `client_calls_total{outcome="canceled",peer="127.0.0.1",transport="grpc"} 1`+"\n")
	}, "the stream is counted")
	_, err = stream.Recv()
	assert.Equal(t, call.Canceled, call.ClassOf(err))
	assert.Contains(t, kittest.Scrape(t, tel), `client_calls_total{outcome="canceled",peer="127.0.0.1",transport="grpc"} 1`+"\n", "the stream is counted once")
}

// The addresses of a name that no longer exists are dropped: another pod may have an
// address by then.
func TestResolver_DropsAddressesOfLostName(t *testing.T) {
	t.Parallel()
	host, port := unused(t)
	p := start(t, join(host, port), 0, echo.Echo{})
	names.Set("vanished.test", host)
	conn := newClient(t, "dns:///vanished.test:"+port, grpcclient.Options{})
	require.NoError(t, say(t.Context(), conn).err)
	names.Set("vanished.test")
	p.stop()
	kittest.Eventually(t, func() bool { return len(say(t.Context(), conn).Addresses) == 0 }, "the address is dropped")

	start(t, join(host, port), 0, echo.Echo{}) // another pod
	for until := time.Now().Add(3 * time.Second); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		require.Equal(t, call.DNS, say(t.Context(), conn).class)
	}
}

// A stream that its reader cancels for silence is counted as a timeout.
func TestStream_CountsSilenceAsTimeout(t *testing.T) {
	tel := kittest.Telemetry(t, io.Discard)
	conn := newClient(t, local(t, echo.Echo{Watch: func(ss grpc.ServerStream) error {
		<-ss.Context().Done()
		return nil
	}}), grpcclient.Options{Telemetry: tel})
	for range 50 {
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(2*time.Millisecond, func() { cancel(context.DeadlineExceeded) })
		stream, err := echo.Open(ctx, conn)
		if err == nil {
			_, err = stream.Recv()
		}
		assert.Equal(t, call.Timeout, call.ClassOf(err))
		cancel(nil)
	}
	assert.Contains(t, kittest.Scrape(t, tel), `client_calls_total{outcome="timeout",peer="127.0.0.1",transport="grpc"} 50`+"\n")
}

// A stream that its reader cancels for silence while DNS fails has class dns, not
// canceled.
func TestStream_CanceledWhileDNSFails(t *testing.T) {
	names.Break(true)
	defer names.Break(false)
	conn := newClient(t, "dns:///silent-stream.test:9090", grpcclient.Options{})
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	time.AfterFunc(50*time.Millisecond, func() { cancel(context.DeadlineExceeded) })
	_, err := echo.Open(ctx, conn)
	assert.Equal(t, call.DNS, call.ClassOf(err), "%v", err)
}

// Calls are counted by outcome and by method, in the same metrics for all clients.
func TestMetrics_ByOutcomeAndMethod(t *testing.T) {
	tel := kittest.Telemetry(t, io.Discard)
	target := local(t, echo.Echo{})
	for range 2 {
		require.NoError(t, say(t.Context(), newClient(t, target, grpcclient.Options{Telemetry: tel})).err)
	}
	require.Error(t, say(t.Context(), newClient(t, "dns:///metrics.test:1", grpcclient.Options{Telemetry: tel})).err)
	text := kittest.Scrape(t, tel)
	for _, line := range []string{
		`client_calls_total{outcome="ok",peer="127.0.0.1",transport="grpc"} 2`,
		`client_calls_total{outcome="dns",peer="metrics.test",transport="grpc"} 1`,
		`grpc_client_handled_total{grpc_code="OK",grpc_method="Say",grpc_service="kit.test.Echo",grpc_type="unary"} 2`,
		`grpc_client_handling_seconds_count{grpc_method="Say",grpc_service="kit.test.Echo",grpc_type="unary"} 3`,
	} {
		assert.Contains(t, text, line+"\n")
	}
}

// The server is given the trace of the caller. Each call is a span; health checks are
// not.
func TestTrace_ContinuesAtServer(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	tel := kittest.Telemetry(t, io.Discard)
	tel.Traces = provider
	seen := make(chan trace.SpanContext, 1)
	conn := newClient(t, local(t, echo.Echo{Say: func(ctx context.Context, _ string) (string, error) {
		seen <- trace.SpanContextFromContext(ctx)
		return "", nil
	}}), grpcclient.Options{Telemetry: tel})
	ctx, parent := provider.Tracer("test").Start(t.Context(), "parent")
	defer parent.End()
	require.NoError(t, say(ctx, conn).err)
	got := <-seen
	assert.Equal(t, parent.SpanContext().TraceID(), got.TraceID())
	assert.NotEqual(t, parent.SpanContext().SpanID(), got.SpanID())
	assert.True(t, got.IsSampled())
	require.Len(t, spans.GetSpans(), 1, "only the call is a span")
	assert.Equal(t, parent.SpanContext().SpanID(), spans.GetSpans()[0].Parent.SpanID())
}
