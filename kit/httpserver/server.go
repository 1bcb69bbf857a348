// Package httpserver is an HTTP/1.1 server with a chi router, and with limits on
// time, sizes and memory for whatever a client sends or fails to send.
//
// A request passes the middleware in the order in which New lists it: trace, log
// and metrics, size limits, time limit, authentication, concurrency limit, injected
// faults, handler. server.go has the server and how it drains, middleware.go the
// middleware, admin.go the servers of the admin and debug ports.
//
// The states of a server that stops:
//
//	state          entered by     new connections        responses               streams
//	serving        Serve          accepted               keep the connection     run
//	draining       StartDraining  accepted               with Connection: close  run
//	shutting down  Shutdown       dropped, then refused  with Connection: close  contexts end
//
// New connections are dropped on Linux only, until no request has arrived for
// quietTime; awaitQuiet has the reason.
//
// Do not use it for uploads: a body is read into memory before its handler runs.
package httpserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"

	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/health"
	"example.com/tandem/kit/identity"
	"example.com/tandem/kit/internal/connlimit"
	"example.com/tandem/kit/lifecycle"
	"example.com/tandem/kit/limiter"
	"example.com/tandem/kit/telemetry"
)

// Timeouts and limits. net/http has no timeouts by default.
const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 15 * time.Second // header and body
	writeTimeout      = 30 * time.Second
	// longestRequest is the time limit of a handler in API. It is shorter than
	// writeTimeout, so that the response which reports it can still be written.
	// Handlers that take longer belong in Streams.
	longestRequest = 15 * time.Second
	// idleTimeout exceeds package httpclient's (90 s), so that the client closes an
	// idle connection. If the server closed it, the client might be sending a request
	// at that moment.
	idleTimeout = 120 * time.Second
	// netHTTPMaxHeader is the value for net/http, which adds 4 KiB to it, and responds in
	// plain text. It exceeds maxHeader, so that limitSize responds first, with a problem
	// of status 431.
	netHTTPMaxHeader = maxHeader + 4<<10
	// Shutdown closes idle connections only after no request has arrived on any
	// connection for quietTime. It exceeds a round trip between zones.
	quietTime = 200 * time.Millisecond
	// quietTimeout limits that wait, for systems where holdOffNew has no effect.
	quietTimeout = 2 * time.Second
	// connMemory is how many bytes all connections may hold together, as package
	// connlimit estimates it: about 1,500 idle ones. With package grpcserver's 32 MiB
	// and the 30 MiB of a service without requests, it fits a pod of 128 MiB.
	connMemory = 24 << 20
)

// Options of a Server. Addr, Telemetry and Health are required.
type Options struct {
	// AddrVar is the environment variable that Addr came from; errors name both.
	AddrVar, Addr string
	Telemetry     *telemetry.Telemetry
	Health        *health.Health
	Faults        *fault.Switch
	// MaxConnectionAge is the age from which a connection is closed after its next
	// response, ±10 %; 0 is no limit.
	MaxConnectionAge time.Duration
	// Limiter is the concurrency limit, shared with the process's other servers;
	// nil is no limit.
	Limiter *limiter.Limiter
	// Callers says who may use API, Streams, Control and ControlStreams; nil is everybody.
	Callers *identity.Verifier
	// MaxBody is the size of the largest request body, in bytes; 0 is 64 KiB. A body
	// is read into memory before its handler runs.
	MaxBody int64
}

// Server serves HTTP/1.1: the routes that its user adds, and /livez, /readyz and
// /health.
type Server struct {
	// API is for routes that respond within 15 s.
	API chi.Router
	// Streams is for routes that respond until the client disconnects. Their context
	// ends when the server shuts down, with the cause lifecycle.ErrDraining, and when the
	// caller's token expires; they have no other time limit. For HEAD it has ended from the start.
	Streams chi.Router
	// Probes is for routes that a load balancer or kubelet probes, as it does
	// /livez, /readyz and /health. They need no token, are never shed and get no injected faults:
	// if a busy pod were restarted or removed, the others would get its load.
	Probes chi.Router
	// Control and ControlStreams are for routes by which people watch and steer this process.
	// They differ from API and Streams in that they are never shed and get no injected faults:
	// they are needed most when the process is busy or fails. A route that many clients use at once
	// must limit them itself.
	Control, ControlStreams chi.Router

	addrVar        string
	http           *http.Server
	tcp            net.Listener // the port
	listener       net.Listener // tcp, or a connlimit.Listener over it
	connLimit      *connlimit.Options
	maxAge         time.Duration // of a connection
	draining       atomic.Bool
	lastActivity   atomic.Int64    // while draining: when a connection last opened or started a request, Unix ns
	shutdownCtx    context.Context // ends when Shutdown is called
	cancelShutdown context.CancelFunc
}

// New returns a server, which Listen and Serve start.
func New(o Options) *Server {
	s := newServer(o.AddrVar, o.Addr, o.Telemetry)
	s.maxAge = o.MaxConnectionAge
	s.connLimit = &connlimit.Options{Name: "http", Budget: connMemory, PerConn: connMemory, Metrics: o.Telemetry.Metrics}

	root := chi.NewRouter()
	// A request passes these from first to last, and its response from last to first.
	root.Use(
		traceRequests(o.Telemetry),
		logAndMeasure(o.Telemetry.Log, o.Telemetry.Metrics, s.mustClose),
		limitSize(cmp.Or(o.MaxBody, defaultMaxBody)),
		middleware.GetHead, // HEAD is served wherever GET is
	)
	root.NotFound(notFound)
	root.MethodNotAllowed(methodNotAllowed)
	s.Probes = root.With(limitTime)
	s.Probes.Get(livez, o.Health.ServeLivez)
	s.Probes.Get(readyz, o.Health.ServeReadyz)
	s.Probes.Get(healthPath, o.Health.ServeHealth)
	s.API = root.With(limitTime, authenticate(o.Callers, false), shed(o.Limiter.Acquire, o.Limiter.Release), injectFaults(o.Faults))
	s.Streams = root.With(authenticate(o.Callers, true), shed(o.Limiter.AcquireStream, o.Limiter.ReleaseStream), injectFaults(o.Faults), s.endOnShutdown)
	s.Control = root.With(limitTime, authenticate(o.Callers, false))
	s.ControlStreams = root.With(authenticate(o.Callers, true), s.endOnShutdown)
	s.http.Handler = root
	return s
}

// newServer returns a server without a handler.
func newServer(addrVar, addr string, t *telemetry.Telemetry) *Server {
	s := &Server{addrVar: addrVar}
	s.shutdownCtx, s.cancelShutdown = context.WithCancel(context.Background())
	s.http = &http.Server{
		Addr:              addr,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    netHTTPMaxHeader,
		ConnContext:       s.setExpiry,
		ConnState:         s.recordActivity,
		ErrorLog:          slog.NewLogLogger(t.Log.Handler(), slog.LevelWarn),
	}
	return s
}

// Listen opens the port. It is apart from Serve so that a port in use fails the
// start, before any server serves.
func (s *Server) Listen() error {
	var config net.ListenConfig
	config.SetMultipathTCP(false) // Multipath TCP, Go's default, does not support the filter of holdOffNew
	l, err := config.Listen(context.Background(), "tcp", s.http.Addr)
	if err != nil {
		return fmt.Errorf("%s: %w", s.addrVar, err)
	}
	s.tcp, s.listener = l, l
	if s.connLimit != nil {
		s.listener = connlimit.New(l, *s.connLimit)
	}
	return nil
}

// Addr returns the address of the port, after Listen.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Serve serves until Shutdown, after which it returns nil.
func (s *Server) Serve() error {
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("%s: serve: %w", s.addrVar, err)
	}
	return nil
}

// StartDraining adds Connection: close to every response, so that clients connect to
// another pod. It closes nothing: a request may be under way on any connection.
func (s *Server) StartDraining() { s.draining.Store(true) }

// Shutdown stops accepting connections, ends streams and waits for requests in
// flight. If ctx ends first, it closes their connections and returns ctx's error.
// After StartDraining no request on an open connection is lost, unless the
// connection was idle during the whole drain.
func (s *Server) Shutdown(ctx context.Context) error {
	s.cancelShutdown()
	if s.draining.Load() {
		s.awaitQuiet(ctx)
	}
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(fmt.Errorf("%s: requests canceled: %w", s.addrVar, err), s.http.Close())
	}
	return err
}

// awaitQuiet stops new connections, and waits until no request has started on an
// open one for quietTime.
//
// Without this, net/http's Shutdown loses requests. Closing the listener resets
// connections that the kernel has accepted and the server has not. A request
// that is read after Shutdown was called is dropped, which can be the first one
// on a new connection. An idle connection is closed while a request is under way.
// The wait ends even under load: each open connection closes after one response.
func (s *Server) awaitQuiet(ctx context.Context) {
	if s.tcp == nil { // Listen was not called, or failed
		return
	}
	holdOffNew(s.tcp)
	s.lastActivity.Store(time.Now().UnixNano()) // a handshake may be under way
	ctx, cancel := context.WithTimeout(ctx, quietTimeout)
	defer cancel()
	for ctx.Err() == nil {
		left := quietTime - time.Since(time.Unix(0, s.lastActivity.Load()))
		if left <= 0 {
			return
		}
		select {
		case <-time.After(left):
		case <-ctx.Done():
		}
	}
}

// recordActivity records, while draining, when a connection opens or starts a
// request.
func (s *Server) recordActivity(_ net.Conn, state http.ConnState) {
	if s.draining.Load() && (state == http.StateNew || state == http.StateActive) {
		s.lastActivity.Store(time.Now().UnixNano())
	}
}

type expiryKey struct{}

// setExpiry stores in a connection's context when it will be too old.
func (s *Server) setExpiry(ctx context.Context, _ net.Conn) context.Context {
	// With jitter, connections that were opened together, as after a rollout, are
	// not closed together; grpc-go does the same.
	age := time.Duration(float64(s.maxAge) * (0.9 + 0.2*rand.Float64()))
	return context.WithValue(ctx, expiryKey{}, time.Now().Add(age))
}

// mustClose reports whether the connection of r must close after the response: the
// server drains, or the connection is too old. A ClusterIP balances connections, not
// requests, so a client that keeps its connections would never reach a new pod.
func (s *Server) mustClose(r *http.Request) bool {
	expiry, _ := r.Context().Value(expiryKey{}).(time.Time)
	return s.draining.Load() || s.maxAge > 0 && time.Now().After(expiry)
}

// endOnShutdown ends a stream's context when the server shuts down, and removes the
// write timeout; a handler may set one for each write.
func (s *Server) endOnShutdown(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancelCause(r.Context())
		defer cancel(nil)
		defer context.AfterFunc(s.shutdownCtx, func() { cancel(lifecycle.ErrDraining) })()
		if r.Method == http.MethodHead {
			cancel(nil) // the client has the whole response with the headers, and may use the connection again
		}
		_ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) // cannot fail on net/http's connections
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}
