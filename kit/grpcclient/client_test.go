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

func TestTargetThatIsNoTargetIsAnErrorThatNamesIt(t *testing.T) {
	_, err := grpcclient.New("dns:///%zz", grpcclient.Options{Telemetry: kittest.Telemetry(t, io.Discard)})
	require.ErrorContains(t, err, `"dns:///%zz"`)
}

func TestTargetThatOurResolverCannotUseIsAnErrorAtTheStart(t *testing.T) {
	for _, target := range []string{"dns:///no-port.test", "no-port.test", "dns:///no-port.test:", "dns:///:9090", "dns://10.0.0.10/server.test:9090", "unix:///tmp/server.sock", "unix-abstract:server", "xds:///server.test", "passthrough:///server.test:9090"} {
		_, err := grpcclient.New(target, grpcclient.Options{Telemetry: kittest.Telemetry(t, io.Discard)})
		require.ErrorContains(t, err, "want dns:///HOST:PORT", target)
	}
	for _, target := range []string{"dns:///server.test:9090", "dns:server.test:9090", "server.test:9090"} {
		conn, err := grpcclient.New(target, grpcclient.Options{Telemetry: kittest.Telemetry(t, io.Discard)})
		require.NoError(t, err, target)
		require.NoError(t, conn.Close())
	}
}

// gRPC's own resolver would wait up to 2 minutes, more with every failure: ten
// lookups would take it many minutes.
func TestUnknownNameIsLookedUpAgainAndAgain(t *testing.T) {
	t.Parallel()
	newClient(t, "dns:///again.test:1", grpcclient.Options{}).Connect()
	assert.Eventually(t, func() bool { return names.Queries("again.test") >= 10 }, 90*time.Second, 100*time.Millisecond)
}

func TestRecordSaysWhatHappened(t *testing.T) {
	host, port := unused(t)
	start(t, join(host, port), 0, echo.Echo{})
	names.Set("record.test", host)
	r := say(t.Context(), newClient(t, "dns:///record.test:"+port, grpcclient.Options{}))
	require.NoError(t, r.err)
	assert.Equal(t, call.Record{Addresses: []string{join(host, port)}, Peer: join(host, port), Attempts: 1}, r.Record)
}

func TestUnknownNameIsDNSAndWorksOnceItExists(t *testing.T) {
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
	kittest.Eventually(t, func() bool { return say(t.Context(), conn).err == nil }, "it works")
}

func TestResolverInTroubleIsDNSAndWorksOnceItIsNot(t *testing.T) {
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
	kittest.Eventually(t, func() bool { return say(t.Context(), conn).err == nil }, "it works")
}

func TestServerThatIsDownIsRefusedAndWorksOnceItIsBack(t *testing.T) {
	host, port := unused(t)
	names.Set("back.test", host)
	conn := newClient(t, "dns:///back.test:"+port, grpcclient.Options{})
	for range 2 {
		kittest.Eventually(t, func() bool {
			r := say(t.Context(), conn)
			require.Error(t, r.err)
			return r.class == call.Refused
		}, "refused")
		r := say(t.Context(), conn)
		assert.Equal(t, []string{join(host, port)}, r.Addresses)
		assert.Empty(t, r.Peer)
		_, err := echo.Open(t.Context(), conn)
		assert.Equal(t, call.Refused, call.ClassOf(err), "a stream")

		s := start(t, join(host, port), 0, echo.Echo{})
		kittest.Eventually(t, func() bool { return say(t.Context(), conn).err == nil }, "it works")
		s.stop()
	}
}

// A process that stands still, say: its kernel takes connections, and nobody
// speaks. That is given up long before a deadline of this length.
func TestServerThatNeverGreetsIsUnavailableAndWorksOnceItDoes(t *testing.T) {
	t.Parallel()
	host, port := unused(t)
	mute, err := net.Listen("tcp", join(host, port))
	require.NoError(t, err)
	defer mute.Close() //nolint:errcheck // it is closed below
	conn := newClient(t, "dns:///"+join(host, port), grpcclient.Options{Timeout: 20 * time.Second})
	r := say(t.Context(), conn)
	assert.Equal(t, call.Unavailable, r.class, "%v", r.err)
	require.NoError(t, mute.Close())
	start(t, join(host, port), 0, echo.Echo{})
	kittest.Eventually(t, func() bool { return say(t.Context(), conn).err == nil }, "works")
}

func TestHandlerThatHangsIsATimeoutAndTheNextCallWorks(t *testing.T) {
	release := make(chan struct{})
	conn := newClient(t, local(t, echo.Echo{Say: func(context.Context, string) (string, error) {
		<-release // and minds no deadline
		return "", nil
	}}), grpcclient.Options{Timeout: 200 * time.Millisecond})
	begin := time.Now()
	r := say(t.Context(), conn)
	assert.Equal(t, call.Timeout, r.class, "%v", r.err)
	assert.Equal(t, codes.DeadlineExceeded, status.Code(r.err))
	assert.Less(t, time.Since(begin), aWhile)
	close(release)
	kittest.Eventually(t, func() bool { return say(t.Context(), conn).err == nil }, "it works")
}

func TestShorterDeadlineOfTheCallerWins(t *testing.T) {
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

func TestServerThatStopsMidCallIsUnavailableAndWorksOnceItIsBack(t *testing.T) {
	for name, ask := range map[string]func(*testing.T, *grpc.ClientConn) error{
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
			err := ask(t, conn)
			assert.Equal(t, call.Unavailable, call.ClassOf(err), "%v", err)
			assert.Equal(t, codes.Unavailable, status.Code(err))

			start(t, join(host, port), 0, echo.Echo{})
			kittest.Eventually(t, func() bool { return say(t.Context(), conn).err == nil }, "it works")
		})
	}
}

func TestAnswerThatIsTooLargeIsOtherAndTheNextCallWorks(t *testing.T) {
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

func TestCallerThatLeavesIsCanceledAndTheNextCallWorks(t *testing.T) {
	began := make(chan struct{}, 1)
	var wait sync.Once
	conn := newClient(t, local(t, echo.Echo{Say: func(ctx context.Context, _ string) (string, error) {
		wait.Do(func() {
			began <- struct{}{}
			<-ctx.Done()
		})
		return "", nil
	}}), grpcclient.Options{})
	ctx, leave := context.WithCancel(t.Context())
	go func() {
		<-began
		leave()
	}()
	assert.Equal(t, call.Canceled, say(ctx, conn).class)
	assert.NoError(t, say(t.Context(), conn).err)
}

func TestStreamsAreCountedOnceByHowTheyEnd(t *testing.T) {
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

	// A stream from the client has one answer, and no io.EOF after it.
	put, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true}, echo.Put)
	require.NoError(t, err)
	require.NoError(t, put.SendMsg(wrapperspb.String("last")))
	require.NoError(t, put.CloseSend())
	var last wrapperspb.StringValue
	require.NoError(t, put.RecvMsg(&last))
	assert.Equal(t, "last", last.GetValue())

	text := kittest.Scrape(t, tel)
	assert.Contains(t, text, `calls_total{outcome="ok",peer="127.0.0.1",transport="grpc"} 2`+"\n")
	assert.Contains(t, text, `calls_total{outcome="unavailable",peer="127.0.0.1",transport="grpc"} 1`+"\n")
}

// A stream whose reader leaves without reading its end counts once, as canceled.
func TestStream_CountsAbandoned(t *testing.T) {
	tel := kittest.Telemetry(t, io.Discard)
	conn := newClient(t, local(t, echo.Echo{Watch: func(ss grpc.ServerStream) error {
		err := echo.Send(ss, "first")
		<-ss.Context().Done()
		return err
	}}), grpcclient.Options{Telemetry: tel})
	ctx, leave := context.WithCancel(t.Context())
	stream, err := echo.Open(ctx, conn)
	require.NoError(t, err)
	_, err = stream.Recv()
	require.NoError(t, err)
	leave()
	kittest.Eventually(t, func() bool {
		return strings.Contains(kittest.Scrape(t, tel), `calls_total{outcome="canceled",peer="127.0.0.1",transport="grpc"} 1`+"\n")
	}, "it is not counted")
	_, err = stream.Recv()
	assert.Equal(t, call.Canceled, call.ClassOf(err))
	assert.Contains(t, kittest.Scrape(t, tel), `calls_total{outcome="canceled",peer="127.0.0.1",transport="grpc"} 1`+"\n", "counted twice")
}

// The addresses of a name that is gone are dropped: an address may be another
// pod's by then.
func TestClient_DropsAddressesOfNameThatIsGone(t *testing.T) {
	t.Parallel()
	host, port := unused(t)
	p := start(t, join(host, port), 0, echo.Echo{})
	names.Set("vanished.test", host)
	conn := newClient(t, "dns:///vanished.test:"+port, grpcclient.Options{})
	require.NoError(t, say(t.Context(), conn).err)
	names.Set("vanished.test")
	p.stop()
	kittest.Eventually(t, func() bool { return len(say(t.Context(), conn).Addresses) == 0 }, "its address is kept")

	start(t, join(host, port), 0, echo.Echo{}) // a stranger
	for until := time.Now().Add(3 * time.Second); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		require.Equal(t, call.DNS, say(t.Context(), conn).class)
	}
}

// A stream that is given up for silence counts as a timeout.
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
	assert.Contains(t, kittest.Scrape(t, tel), `calls_total{outcome="timeout",peer="127.0.0.1",transport="grpc"} 50`+"\n")
}

// A stream that is given up for silence while DNS does not respond has class
// dns, not canceled.
func TestStream_SilentDNSIsDNS(t *testing.T) {
	names.Break(true)
	defer names.Break(false)
	conn := newClient(t, "dns:///silent-stream.test:9090", grpcclient.Options{})
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	time.AfterFunc(50*time.Millisecond, func() { cancel(context.DeadlineExceeded) })
	_, err := echo.Open(ctx, conn)
	assert.Equal(t, call.DNS, call.ClassOf(err), "%v", err)
}

func TestMetricsCountCallsByOutcomeAndMethod(t *testing.T) {
	tel := kittest.Telemetry(t, io.Discard)
	target := local(t, echo.Echo{})
	for range 2 { // two clients share their metrics
		require.NoError(t, say(t.Context(), newClient(t, target, grpcclient.Options{Telemetry: tel})).err)
	}
	require.Error(t, say(t.Context(), newClient(t, "dns:///metrics.test:1", grpcclient.Options{Telemetry: tel})).err)
	text := kittest.Scrape(t, tel)
	for _, line := range []string{
		`calls_total{outcome="ok",peer="127.0.0.1",transport="grpc"} 2`,
		`calls_total{outcome="dns",peer="metrics.test",transport="grpc"} 1`,
		`grpc_client_handled_total{grpc_code="OK",grpc_method="Say",grpc_service="kit.test.Echo",grpc_type="unary"} 2`,
		`grpc_client_handling_seconds_count{grpc_method="Say",grpc_service="kit.test.Echo",grpc_type="unary"} 3`,
	} {
		assert.Contains(t, text, line+"\n")
	}
}

func TestTraceGoesOnAtTheServer(t *testing.T) {
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
	require.Len(t, spans.GetSpans(), 1, "the call, and none of the health checks")
	assert.Equal(t, parent.SpanContext().SpanID(), spans.GetSpans()[0].Parent.SpanID())
}
