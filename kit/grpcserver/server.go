// Package grpcserver is a grpc.Server whose time, sizes and memory are bounded,
// with health and reflection, and with the same telemetry, shedding and draining
// as package httpserver.
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
	"example.com/tandem/kit/internal/connlimit"
	"example.com/tandem/kit/lifecycle"
	"example.com/tandem/kit/limiter"
	"example.com/tandem/kit/telemetry"
)

// ErrDraining is why the context of a stream ends when its server drains.
var ErrDraining = errors.New("the server is draining; connect again")

const (
	// defaultMaxMessage is the size of the largest request message, in bytes.
	defaultMaxMessage = 64 << 10
	// maxHeaders is the size of the largest list of headers, in bytes. It is what
	// grpc-go will have as its default; today's default is 16 MiB for each stream.
	maxHeaders = 8 << 10
	// maxStreams a connection; grpc-go's own default is no limit at all. No more
	// handlers run for a connection either, however many of its streams it resets.
	// It is also twice the places that the concurrency limit has for streams by
	// default, so that a client's streams leave room for its calls.
	maxStreams = 512
	// window is the flow-control window of streams and connections: the smallest
	// that grpc-go takes. To set it turns off the estimate of the bandwidth-delay
	// product, by which windows would grow to 16 MiB each; requests are small here,
	// and responses have the client's windows.
	window = 64 << 10
	// readBuffer is what each connection holds for reading; grpc-go's own is 32 KiB.
	readBuffer = 8 << 10
	// connMemory is what all connections may hold, by package connlimit's
	// estimate: some 800 idle ones. See httpserver's for the sum.
	connMemory = 32 << 20
	// memoryPerConn is what one of them may hold: maxStreams calls with headers of
	// 4 KiB each.
	memoryPerConn = 12 << 20
	// workersPerCPU goroutines serve one call after the other: they keep their
	// stacks, which a new goroutine for each call would have to grow. Calls beyond
	// them get new goroutines. With 50 callers on 2 CPUs (BenchmarkServer), 32 save
	// a tenth of the CPU time of client and server; 1 and 4 save nothing.
	workersPerCPU = 32
	// connectTimeout is how long a client may take to begin to speak HTTP/2;
	// gRPC's own default lets one that is silent hold a connection for 2 minutes.
	connectTimeout = 5 * time.Second
	// pingEvery is how often an idle connection is pinged, and pingTimeout how long
	// its client may take to respond. A dead client is detected after their sum.
	pingEvery, pingTimeout = 30 * time.Second, 10 * time.Second
	// ageGrace is how long calls may go on after their connection became too old;
	// streams that take longer are cut off then, and clients open them again.
	ageGrace = 30 * time.Second
	// minPing is how often clients may ping: below package grpcclient's 10 s,
	// or they would be sent away with too_many_pings.
	minPing = 5 * time.Second
)

// Options of a Server. Addr, Telemetry and Health are required.
type Options struct {
	// AddrVar is the variable that Addr came from; an error about it names both.
	AddrVar, Addr string
	Telemetry     *telemetry.Telemetry
	Health        *health.Health
	Faults        *fault.Switch
	// MaxConnectionAge is after how long clients are asked to reconnect, ±10 %
	// (gRPC's own jitter); 0 is never. They query DNS again then, and find new pods.
	MaxConnectionAge time.Duration
	// Reflection lets anyone who can connect list the services and messages, so
	// that grpcurl needs no .proto.
	Reflection bool
	// Limiter is the concurrency limit, shared with the process's other servers;
	// nil is no limit.
	Limiter *limiter.Limiter
	// MaxMessage is the size of the largest request message, in bytes; 0 is 64 KiB.
	MaxMessage int
}

// Server serves gRPC. It is the grpc.ServiceRegistrar to register services at.
type Server struct {
	*grpc.Server
	name, addr string
	limit      connlimit.Options
	listener   net.Listener
	unary      map[string]bool // full names of the unary methods, from Serve on
	stopping   context.Context
	stop       context.CancelFunc
}

// New makes a server; Listen and Serve start it.
func New(o Options) *Server {
	s := &Server{name: o.AddrVar, addr: o.Addr, limit: connlimit.Options{
		Name: "grpc", HTTP2: true, Budget: connMemory, PerConn: memoryPerConn, Metrics: o.Telemetry.Metrics,
	}}
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
		grpc.MaxRecvMsgSize(cmp.Or(o.MaxMessage, defaultMaxMessage)),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(window),
		grpc.ReadBufferSize(readBuffer),
		experimental.BufferPool(buffers),
		grpc.InTapHandle(s.bounded),
		grpc.NumStreamWorkers(uint32(workersPerCPU*runtime.GOMAXPROCS(0))), //nolint:gosec // some thousands at most
		// A call passes these from first to last, its response from last to first.
		grpc.ChainUnaryInterceptor(
			metrics.UnaryServerInterceptor(),
			observedUnary(o.Telemetry.Log),
			sheddingUnary(o.Limiter),
			faultyUnary(o.Faults),
		),
		grpc.ChainStreamInterceptor(
			metrics.StreamServerInterceptor(),
			observedStream(o.Telemetry.Log),
			s.drainingStream,
			sheddingStream(o.Limiter),
			faultyStream(o.Faults),
		),
	)...)
	grpc_health_v1.RegisterHealthServer(s.Server, o.Health.GRPC())
	if o.Reflection {
		reflection.RegisterV1(s.Server)
	}
	return s
}

// buffers hold frames of more than 1 KiB, in powers of two up to the largest
// frame. grpc-go's own pool would hold a frame of 1,025 bytes in 4 KiB.
var buffers = mem.NewTieredBufferPool(2<<10, 4<<10, 8<<10, 16<<10, 32<<10, 64<<10, 128<<10, 1<<20)

// Listen opens the port, so that a port which is taken stops the start.
func (s *Server) Listen() error {
	l, err := net.Listen("tcp", s.addr)
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	s.listener = connlimit.New(l, s.limit)
	return nil
}

// Addr is where the server listens, after Listen.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Serve serves until Shutdown, and then returns nil.
func (s *Server) Serve() error {
	s.unary = map[string]bool{}
	for service, info := range s.GetServiceInfo() {
		for _, m := range info.Methods {
			s.unary["/"+service+"/"+m.Name] = !m.IsClientStream && !m.IsServerStream
		}
	}
	if err := s.Server.Serve(s.listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("%s: serve: %w", s.name, err)
	}
	return nil
}

// StartDraining does nothing: clients watch health, which has told them to go
// elsewhere.
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
