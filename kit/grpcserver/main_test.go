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
		serveProcess()
	}
	goleak.VerifyTestMain(m)
}

// testTimeout is far more than any step of a test takes, unless it hangs.
const testTimeout = 20 * time.Second

// server is a server under test, with a client.
type server struct {
	*grpcserver.Server
	health *health.Health
	conn   *grpc.ClientConn
	served chan error
}

// start starts a server with the options o, and its client. Both stop when the test ends.
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

// gate blocks handlers in pass until the test calls open.
type gate struct {
	started chan struct{} // receives a value for each handler in pass
	opened  chan struct{}
	open    func()
}

func newGate(t *testing.T) gate {
	t.Helper()
	g := gate{started: make(chan struct{}, 100), opened: make(chan struct{})}
	g.open = sync.OnceFunc(func() { close(g.opened) })
	t.Cleanup(g.open)
	return g
}

// pass blocks until open, even if the handler's context ends.
func (g gate) pass() {
	g.started <- struct{}{}
	<-g.opened
}

// receive returns the next value from ch. After testTimeout the test fails with message.
func receive[T any](t *testing.T, ch <-chan T, message string) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(testTimeout):
		require.Fail(t, message)
	}
	return v
}
