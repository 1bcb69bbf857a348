package grpcclient_test

import (
	"context"
	"io"
	"net"
	"sync"
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

// aWhile is far more than anything here takes.
const aWhile = 20 * time.Second

// newClient makes a client; what o leaves out does not matter to the test.
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
	stop   func() // at once
}

// start starts package grpcserver's server at an address. It stops when stop
// is called, or at the end of the test.
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

// local starts a server at any address, and returns a target for it.
func local(t *testing.T, service echo.Echo) string {
	t.Helper()
	return "dns:///" + start(t, "127.0.0.1:0", 0, service).Addr().String()
}

// unused is an address at which nothing listens.
func unused(t *testing.T) (host, port string) {
	t.Helper()
	return kittest.Loopbacks(t, 1)[0], kittest.FreePort()
}

func join(host, port string) string { return net.JoinHostPort(host, port) }

// round makes n calls, which must not fail, and counts them by host.
func round(t *testing.T, conn *grpc.ClientConn, n int) map[string]int {
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
