package grpcclient_test

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/grpcclient"
	"example.com/tandem/kit/grpcserver"
	"example.com/tandem/kit/health"
	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/internal/echo"
	"example.com/tandem/kit/kittest"
)

var names *kittest.DNS

func TestMain(m *testing.M) {
	names = kittest.UseDNS()
	goleak.VerifyTestMain(m, goleak.IgnoreCurrent()) // the DNS server stays
}

// aWhile is far more than any call in these tests takes.
const aWhile = 20 * time.Second

// newClient makes a client with defaults for the required options.
func newClient(t *testing.T, target string, o grpcclient.Options) *grpc.ClientConn {
	t.Helper()
	if o.Telemetry == nil {
		o.Telemetry = kittest.Telemetry(t, io.Discard)
	}
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	conn, err := grpcclient.New(target, o)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, conn.Close()) })
	return conn
}

// result is a call that has ended.
type result struct {
	call.Record
	text  string
	err   error
	class call.Class
}

// say calls the idempotent method.
func say(ctx context.Context, conn *grpc.ClientConn) result { return do(ctx, conn, echo.Say) }

func do(ctx context.Context, conn *grpc.ClientConn, method string) result {
	ctx, record := call.WithRecord(ctx)
	text, err := echo.Call(ctx, conn, method, "hello")
	return result{*record, text, err, call.ClassOf(err)}
}

// pod is a server at an address.
type pod struct {
	*grpcserver.Server
	health *health.Health
	stop   func() // ends calls in flight
}

// start starts a server of package grpcserver at an address. It runs until stop is
// called or the test ends.
func start(t *testing.T, addr string, maxAge time.Duration, service echo.Echo) pod {
	t.Helper()
	h := health.New(instance.Instance{})
	s := grpcserver.New(grpcserver.Options{
		AddrVar: "GRPC_ADDR", Addr: addr, MaxConnectionAge: maxAge,
		Telemetry: kittest.Telemetry(t, io.Discard), Health: h,
	})
	service.Register(s)
	require.NoError(t, s.Listen())
	h.Ready()
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	stop := sync.OnceFunc(func() {
		s.Stop()
		assert.NoError(t, <-served)
	})
	t.Cleanup(stop)
	return pod{s, h, stop}
}

// local starts a server on a free port and returns its target.
func local(t *testing.T, service echo.Echo) string {
	t.Helper()
	return "dns:///" + start(t, "127.0.0.1:0", 0, service).Addr().String()
}

// unused returns an address at which nothing listens.
func unused(t *testing.T) (host, port string) {
	t.Helper()
	return kittest.Loopbacks(t, 1)[0], kittest.FreePort()
}

func join(host, port string) string { return net.JoinHostPort(host, port) }

// keepCalling makes calls with 50 callers without pause until stop is called, and
// passes the error of each to report.
func keepCalling(ctx context.Context, conn *grpc.ClientConn, report func(error)) (stop func()) {
	var ended atomic.Bool
	var callers sync.WaitGroup
	for range 50 {
		callers.Go(func() {
			for !ended.Load() {
				report(say(ctx, conn).err)
			}
		})
	}
	return func() {
		ended.Store(true)
		callers.Wait()
	}
}

// countByHost makes n calls and counts them by host. No call may fail.
func countByHost(t *testing.T, conn *grpc.ClientConn, n int) map[string]int {
	t.Helper()
	by := map[string]int{}
	for range n {
		r := say(t.Context(), conn)
		require.NoError(t, r.err)
		host, _, err := net.SplitHostPort(r.Peer)
		require.NoError(t, err)
		by[host]++
	}
	return by
}

// awaitPods waits until the client has connected to n pods.
func awaitPods(t *testing.T, conn *grpc.ClientConn, n int) {
	t.Helper()
	kittest.Eventually(t, func() bool { return len(countByHost(t, conn, 10)) == n }, "calls reach all pods")
}

// awaitSuccess waits until a call succeeds.
func awaitSuccess(t *testing.T, conn *grpc.ClientConn) {
	t.Helper()
	kittest.Eventually(t, func() bool { return say(t.Context(), conn).err == nil }, "a call succeeds")
}
