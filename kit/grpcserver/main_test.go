package grpcserver_test

import (
	"context"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"example.com/tandem/kit/grpcclient"
	"example.com/tandem/kit/grpcserver"
	"example.com/tandem/kit/health"
	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/internal/echo"
	"example.com/tandem/kit/kittest"
	"example.com/tandem/kit/telemetry"
)

func TestMain(m *testing.M) {
	if os.Getenv("TEST_SERVER") != "" {
		serveAlone()
	}
	goleak.VerifyTestMain(m)
}

// aWhile is far more than anything here takes.
const aWhile = 20 * time.Second

// server is a server under test and a client of its.
type server struct {
	*grpcserver.Server
	health *health.Health
	conn   *grpc.ClientConn
	served chan error
}

// start starts a server; what o leaves out does not matter to the test.
func start(t *testing.T, o grpcserver.Options, service echo.Echo) *server {
	t.Helper()
	s := &server{health: health.New(instance.Instance{}), served: make(chan error, 1)}
	o.AddrVar, o.Addr, o.Health = "GRPC_ADDR", "127.0.0.1:0", s.health
	if o.Telemetry == nil {
		o.Telemetry = kittest.Telemetry(t, io.Discard)
	}
	s.Server = grpcserver.New(o)
	service.Register(s)
	require.NoError(t, s.Listen())
	go func() { s.served <- s.Serve() }()
	s.health.Ready()
	s.conn = s.client(t, kittest.Telemetry(t, io.Discard))
	t.Cleanup(s.Stop)
	return s
}

func (s *server) client(t *testing.T, tel *telemetry.Telemetry) *grpc.ClientConn {
	t.Helper()
	conn, err := grpcclient.New("dns:///"+s.Addr().String(), grpcclient.Options{Timeout: time.Minute, Telemetry: tel})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, conn.Close()) })
	return conn
}

func (s *server) say(ctx context.Context) (string, error) {
	return echo.Call(ctx, s.conn, echo.Say, "hello")
}

// gate is a handler's way to say that it has begun, and to be told to go on.
type gate struct {
	began chan struct{}
	opens chan struct{}
	open  func()
}

func newGate(t *testing.T) gate {
	t.Helper()
	g := gate{began: make(chan struct{}, 100), opens: make(chan struct{})}
	g.open = sync.OnceFunc(func() { close(g.opens) })
	t.Cleanup(g.open)
	return g
}

// pass waits, and minds no context.
func (g gate) pass() {
	g.began <- struct{}{}
	<-g.opens
}

func within[T any](t *testing.T, ch <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(aWhile):
		require.Fail(t, what)
	}
	return v
}
