// Package grpcserver is a grpc.Server whose limits are set, with health and
// reflection, and with the same telemetry, shedding and draining as package
// httpserver.
package grpcserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	middleware "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/health"
	"example.com/tandem/kit/lifecycle"
	"example.com/tandem/kit/shed"
	"example.com/tandem/kit/telemetry"
)

// ErrDraining is why the context of a stream ends when its server drains.
var ErrDraining = errors.New("the server is draining; connect again")

const (
	// maxMessage is the largest request taken, in bytes.
	maxMessage = 1 << 20
	// maxHeaders is the largest list of headers taken, in bytes; gRPC's own
	// default is 16 MiB, each time anew.
	maxHeaders = 64 << 10
	// maxStreams a connection; gRPC's own default is no limit at all. No more
	// handlers run for one either, however many of its streams it resets.
	maxStreams = 1024
	// connectTimeout is how long a client may take to begin to speak HTTP/2;
	// gRPC's own default lets one that is silent hold a connection for 2 minutes.
	connectTimeout = 5 * time.Second
	// pingEvery is how often an idle connection is asked whether its client is
	// still there, and pingTimeout how long it may take to answer.
	pingEvery, pingTimeout = 30 * time.Second, 10 * time.Second
	// ageGrace is how long calls may go on on a connection that is too old;
	// streams that are longer are cut off then, and opened again elsewhere.
	ageGrace = 30 * time.Second
	// minPing is how often clients may ping: below package grpcclient's 10 s,
	// or they would be sent away with too_many_pings.
	minPing = 5 * time.Second
)

// Options of a Server. Addr, Telemetry and Health are required.
type Options struct {
	// Name is the variable that Addr came from; an error about it names both.
	Name, Addr string
	Telemetry  *telemetry.Telemetry
	Health     *health.Health
	Faults     *fault.Switch
	// MaxConnectionAge after which clients are asked to reconnect, ±10 % (gRPC's
	// own jitter); 0 is never. They ask DNS again then, and find new pods.
	MaxConnectionAge time.Duration
	// MaxInFlight calls are served at once, and as many streams; 0 is no limit.
	MaxInFlight int
	// Reflection lets anyone who can connect list the services and messages, so
	// that grpcurl needs no .proto.
	Reflection bool
}

// Server serves gRPC. It is the grpc.ServiceRegistrar to register services at.
type Server struct {
	*grpc.Server
	name, addr string
	listener   net.Listener
	stopping   context.Context
	stop       context.CancelFunc
}

// New makes a server; Listen and Serve start it.
func New(o Options) *Server {
	s := &Server{name: o.Name, addr: o.Addr}
	s.stopping, s.stop = context.WithCancel(context.Background())

	metrics := middleware.NewServerMetrics(middleware.WithServerHandlingTimeHistogram())
	o.Telemetry.Metrics.MustRegister(metrics)

	s.Server = grpc.NewServer(append(traced(o.Telemetry),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge:      o.MaxConnectionAge,
			MaxConnectionAgeGrace: ageGrace,
			Time:                  pingEvery,
			Timeout:               pingTimeout,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
		grpc.ConnectionTimeout(connectTimeout),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(maxStreams),
		// A call passes these from first to last, its answer from last to first.
		grpc.ChainUnaryInterceptor(
			metrics.UnaryServerInterceptor(),
			observedUnary(o.Telemetry.Log),
			deadlineUnary,
			sheddingUnary(shed.New(o.MaxInFlight)),
			faultyUnary(o.Faults),
		),
		grpc.ChainStreamInterceptor(
			metrics.StreamServerInterceptor(),
			observedStream(o.Telemetry.Log),
			s.drainingStream,
			sheddingStream(shed.New(o.MaxInFlight)),
			faultyStream(o.Faults),
		),
	)...)
	grpc_health_v1.RegisterHealthServer(s.Server, o.Health.GRPC())
	if o.Reflection {
		reflection.RegisterV1(s.Server)
	}
	return s
}

// Listen opens the port, so that a port which is taken stops the start.
func (s *Server) Listen() error {
	l, err := net.Listen("tcp", s.addr)
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	s.listener = l
	return nil
}

// Addr is where the server listens, after Listen.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Serve serves until Shutdown, and then returns nil.
func (s *Server) Serve() error {
	if err := s.Server.Serve(s.listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("%s: serve: %w", s.name, err)
	}
	return nil
}

// StartDraining does nothing: health, which clients watch, has told them to go elsewhere.
func (s *Server) StartDraining() {}

// Shutdown sends GOAWAY, ends streams and waits for calls in flight. When ctx
// ends first it cuts them off and returns ctx's error. (GracefulStop alone has
// no limit in time.)
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	done := make(chan struct{})
	go func() {
		s.GracefulStop()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		s.Stop() // ends the contexts of handlers; GracefulStop still waits for them
		select {
		case <-done:
		case <-time.After(lifecycle.CutOffGrace): // a handler that ignores its context is left behind
		}
		return fmt.Errorf("%s: calls cut off: %w", s.name, ctx.Err())
	}
}
