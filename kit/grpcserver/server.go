// Package grpcserver is a grpc.Server with limits on time, sizes and memory, with
// health and reflection, and with the same telemetry, load shedding and draining
// as package httpserver.
//
// A call passes setDeadline when its headers arrive, and then the interceptors in
// the order in which New lists them: trace, metrics, log, authentication, concurrency
// limit, injected faults, handler.
//
// Do not use it for services whose requests are larger than some megabytes, or
// whose clients upload in long streams: package connlimit would close their
// connections first when memory is short.
package grpcserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"time"

	middleware "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/reflection"

	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/health"
	"example.com/tandem/kit/identity"
	"example.com/tandem/kit/internal/connlimit"
	"example.com/tandem/kit/lifecycle"
	"example.com/tandem/kit/limiter"
	"example.com/tandem/kit/telemetry"
)

const (
	// defaultMaxMessage is the size of the largest request message, in bytes.
	defaultMaxMessage = 64 << 10
	// maxHeaders is the size of the largest list of headers, in bytes. grpc-go
	// announced it as its future default; its present one is 16 MiB for each stream.
	maxHeaders = 8 << 10
	// maxStreams is the limit of streams for each connection, and of handlers that
	// run for it, even if the client resets streams; grpc-go's default is no limit.
	// It is twice the streams that a server admits by default (256, half of
	// MAX_IN_FLIGHT), so that a client's streams leave room for its calls.
	maxStreams = 512
	// window is the flow-control window of streams and connections in bytes, the
	// smallest that grpc-go accepts. With a set window, grpc-go does not estimate the
	// bandwidth-delay product, which would let windows grow to 16 MiB each. Requests
	// are small here, and responses use the client's windows.
	window = 64 << 10
	// readBuffer is the read buffer of a connection in bytes; grpc-go's is 32 KiB.
	readBuffer = 8 << 10
	// connMemory is how many bytes all connections may hold together, as package
	// connlimit estimates it: about 800 idle ones. Package httpserver's connMemory
	// has the sum of both.
	connMemory = 32 << 20
	// memoryPerConn is how many bytes one of them may hold: maxStreams calls with
	// headers of 4 KiB each.
	memoryPerConn = 12 << 20
	// workersPerCPU is how many goroutines are kept to serve calls: their stacks have
	// already grown, those of a new goroutine would have to. Further calls get new
	// goroutines. With 50 callers on 2 CPUs (BenchmarkServer), 32
	// save a tenth of the CPU time of client and server; 1 and 4 save nothing.
	workersPerCPU = 32
	// connectTimeout is the limit of the HTTP/2 handshake; grpc-go's is 2 minutes.
	connectTimeout = 5 * time.Second
	// pingEvery is how often an idle connection is pinged, and pingTimeout the limit
	// for the response. A dead client is detected after their sum.
	pingEvery, pingTimeout = 30 * time.Second, 10 * time.Second
	// ageGrace is how long calls may continue once their connection is too old.
	// Longer streams are then ended, and clients open them again.
	ageGrace = 30 * time.Second
	// minPing is the shortest permitted interval between pings of a client. It is
	// below package grpcclient's 10 s, or its connections would be closed with
	// too_many_pings.
	minPing = 5 * time.Second
)

// Options of a Server. Addr, Telemetry and Health are required.
type Options struct {
	// AddrVar is the environment variable that Addr came from; errors name both.
	AddrVar, Addr string
	Telemetry     *telemetry.Telemetry
	Health        *health.Health
	Faults        *fault.Switch
	// MaxConnectionAge is the age at which a connection is closed with GOAWAY,
	// ±10 % (grpc-go's jitter); 0 is no limit. Clients then query DNS again, and
	// find new pods.
	MaxConnectionAge time.Duration
	// Reflection lists the services and messages to every client, so that grpcurl
	// needs no .proto.
	Reflection bool
	// Limiter is the concurrency limit, shared with the process's other servers;
	// nil is no limit.
	Limiter *limiter.Limiter
	// Callers says who may call the registered services; nil is everybody. Health and
	// reflection need no token.
	Callers *identity.Verifier
	// MaxMessage is the size of the largest request message, in bytes; 0 is 64 KiB.
	MaxMessage int
}

// Server serves gRPC. Register services on it before Serve.
type Server struct {
	*grpc.Server
	addrVar, addr  string
	connLimit      connlimit.Options
	listener       net.Listener
	unary          map[string]bool // full names of the unary methods, from Serve on
	shutdownCtx    context.Context // ends when Shutdown is called
	cancelShutdown context.CancelFunc
}

// New returns a server, which Listen and Serve start.
func New(o Options) *Server {
	s := &Server{addrVar: o.AddrVar, addr: o.Addr, connLimit: connlimit.Options{
		Name: "grpc", HTTP2: true, Budget: connMemory, PerConn: memoryPerConn, Metrics: o.Telemetry.Metrics,
	}}
	s.shutdownCtx, s.cancelShutdown = context.WithCancel(context.Background())

	metrics := middleware.NewServerMetrics(middleware.WithServerHandlingTimeHistogram())
	o.Telemetry.Metrics.MustRegister(metrics)

	traces := newTracer(o.Telemetry)
	s.Server = grpc.NewServer(
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge:      o.MaxConnectionAge,
			MaxConnectionAgeGrace: ageGrace,
			Time:                  pingEvery,
			Timeout:               pingTimeout,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
		grpc.ConnectionTimeout(connectTimeout),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxRecvMsgSize(cmp.Or(o.MaxMessage, defaultMaxMessage)),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(window),
		grpc.ReadBufferSize(readBuffer),
		experimental.BufferPool(buffers),
		grpc.InTapHandle(s.setDeadline),
		grpc.NumStreamWorkers(uint32(workersPerCPU*runtime.GOMAXPROCS(0))), //nolint:gosec // a few thousand at most
		// A call passes these from first to last, and its response from last to first.
		grpc.ChainUnaryInterceptor(
			traces.unary,
			metrics.UnaryServerInterceptor(middleware.WithExemplarFromContext(telemetry.Exemplar)),
			logUnary(o.Telemetry.Log),
			guardUnary(authenticate(o.Callers), nothing), // before the limit, so that an unknown caller does not count towards it
			guardUnary(o.Limiter.Acquire, o.Limiter.Release),
			guardUnary(o.Faults.Inject, nothing),
		),
		grpc.ChainStreamInterceptor(
			traces.stream,
			metrics.StreamServerInterceptor(middleware.WithExemplarFromContext(telemetry.Exemplar)),
			logStream(o.Telemetry.Log),
			s.endOnShutdown,
			authenticateStream(o.Callers),
			guardStream(o.Limiter.AcquireStream, o.Limiter.ReleaseStream),
			guardStream(o.Faults.Inject, nothing),
		),
	)
	grpc_health_v1.RegisterHealthServer(s.Server, o.Health.GRPC())
	if o.Reflection {
		reflection.RegisterV1(s.Server)
	}
	return s
}

// buffers is the pool for frames of more than 1 KiB, in powers of two. In grpc-go's
// own pool a frame of 1,025 bytes takes a buffer of 4 KiB.
var buffers = mem.NewTieredBufferPool(2<<10, 4<<10, 8<<10, 16<<10, 32<<10, 64<<10, 128<<10, 1<<20)

// Listen opens the port. It is apart from Serve so that a port in use fails the
// start, before any server serves.
func (s *Server) Listen() error {
	l, err := net.Listen("tcp", s.addr)
	if err != nil {
		return fmt.Errorf("%s: %w", s.addrVar, err)
	}
	s.listener = connlimit.New(l, s.connLimit)
	return nil
}

// Addr returns the address of the port, after Listen.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Serve serves until Shutdown, after which it returns nil.
func (s *Server) Serve() error {
	s.unary = map[string]bool{}
	for service, info := range s.GetServiceInfo() {
		for _, m := range info.Methods {
			s.unary["/"+service+"/"+m.Name] = !m.IsClientStream && !m.IsServerStream
		}
	}
	if err := s.Server.Serve(s.listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("%s: serve: %w", s.addrVar, err)
	}
	return nil
}

// StartDraining does nothing: clients that balance calls watch gRPC health, which is
// NOT_SERVING while the process drains. The others get GOAWAY from Shutdown.
func (s *Server) StartDraining() {}

// Shutdown sends GOAWAY, ends streams and waits for calls in flight. If ctx ends
// first, it cancels them and returns ctx's error. (GracefulStop alone has no time
// limit.)
func (s *Server) Shutdown(ctx context.Context) error {
	s.cancelShutdown()
	done := make(chan struct{})
	go func() {
		s.GracefulStop()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		s.Stop() // ends the handlers' contexts; GracefulStop still waits for the handlers
		select {
		case <-done:
		case <-time.After(lifecycle.CutOffGrace): // do not wait for a handler that ignores its context
		}
		return fmt.Errorf("%s: calls canceled: %w", s.addrVar, ctx.Err())
	}
}
