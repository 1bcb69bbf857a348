// Package httpserver is a chi router on a server whose time, sizes and memory
// are bounded, whatever a client sends or fails to send.
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
	"example.com/tandem/kit/internal/connlimit"
	"example.com/tandem/kit/limiter"
	"example.com/tandem/kit/telemetry"
)

// net/http sets no timeout of its own.
const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 15 * time.Second // header and body
	writeTimeout      = 30 * time.Second
	// longestRequest is how long a handler may run before its context ends: short
	// enough that the response which reports it can still be written. What takes
	// longer belongs among the Streams.
	longestRequest = 15 * time.Second
	// idleTimeout exceeds that of package httpclient (90 s), so that the client
	// closes an idle connection: if the server did, the client might be sending a
	// request at that moment.
	idleTimeout = 120 * time.Second
	// maxHeaderBytes is where net/http itself cuts off (4 KiB later, in plain
	// text). Between maxHeader and that, the response is a problem of status 431.
	maxHeaderBytes = maxHeader + 4<<10
	// quietTime is how long no connection may have begun a request before
	// Shutdown closes the idle ones. It exceeds a round trip between zones.
	quietTime = 200 * time.Millisecond
	// quietTimeout bounds that wait where new connections cannot be held off.
	quietTimeout = 2 * time.Second
	// connMemory is what all connections may hold, by package connlimit's
	// estimate: some 1,500 idle ones. With grpcserver's 32 MiB and the 30 MiB that
	// a service needs, it fits a pod of 128 MiB.
	connMemory = 24 << 20
)

// ErrDraining is why the context of a stream ends when its server drains.
var ErrDraining = errors.New("the server is draining")

// Options of a Server. Addr, Telemetry and Health are required.
type Options struct {
	// AddrVar is the variable that Addr came from; an error about it names both.
	AddrVar, Addr string
	Telemetry     *telemetry.Telemetry
	Health        *health.Health
	Faults        *fault.Switch
	// MaxConnectionAge is after how long a response asks its client to reconnect,
	// ±10 %; 0 is never.
	MaxConnectionAge time.Duration
	// Limiter is the concurrency limit, shared with the process's other servers;
	// nil is no limit.
	Limiter *limiter.Limiter
	// MaxBody is the size of the largest body that a request may have, in bytes;
	// 0 is 64 KiB. A body is read whole before its handler starts.
	MaxBody int64
}

// Server serves an API over HTTP/1.1, beside /livez, /readyz and /health.
type Server struct {
	// API takes the routes whose responses are short.
	API chi.Router
	// Streams takes the routes that respond until the client leaves: their
	// context ends when the server drains, and no timeout cuts them off.
	Streams chi.Router
	// Probes takes the routes that a load balancer or kubelet probes, beside
	// /livez, /readyz and /health. They are never shed and get no injected faults:
	// if a busy pod were restarted or became unready, the others would get its load.
	Probes chi.Router

	name     string
	http     *http.Server
	tcp      net.Listener // the port
	listener net.Listener // tcp, or what bounds its connections
	limit    *connlimit.Options
	draining atomic.Bool
	began    atomic.Int64 // while draining: when a connection last opened or began a request, Unix ns
	stopping context.Context
	stop     context.CancelFunc
	maxAge   time.Duration
}

// New makes a server; Listen and Serve start it.
func New(o Options) *Server {
	s := newServer(o.AddrVar, o.Addr, o.Telemetry)
	s.maxAge = o.MaxConnectionAge
	s.limit = &connlimit.Options{Name: "http", Budget: connMemory, PerConn: connMemory, Metrics: o.Telemetry.Metrics}

	root := chi.NewRouter()
	// A request passes these from top to bottom, its response from bottom to top.
	root.Use(
		traced(o.Telemetry),
		observed(o.Telemetry.Log, o.Telemetry.Metrics, s.closes),
		bounded(cmp.Or(o.MaxBody, defaultMaxBody)),
		middleware.GetHead, // HEAD is served wherever GET is
	)
	root.NotFound(notFound)
	root.MethodNotAllowed(methodNotAllowed)
	s.Probes = root.With(limited)
	s.Probes.Get("/livez", o.Health.ServeLivez)
	s.Probes.Get("/readyz", o.Health.ServeReadyz)
	s.Probes.Get("/health", o.Health.ServeHealth)
	s.API = root.With(limited, shedding(o.Limiter.Acquire, o.Limiter.Release), faulty(o.Faults))
	s.Streams = root.With(shedding(o.Limiter.AcquireStream, o.Limiter.ReleaseStream), faulty(o.Faults), s.streaming)
	s.http.Handler = root
	return s
}

func newServer(name, addr string, t *telemetry.Telemetry) *Server {
	s := &Server{name: name}
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.http = &http.Server{
		Addr:              addr,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ConnContext:       s.noteBirth,
		ConnState:         s.noteState,
		ErrorLog:          slog.NewLogLogger(t.Log.Handler(), slog.LevelWarn),
	}
	return s
}

// Listen opens the port, so that a port which is taken stops the start.
func (s *Server) Listen() error {
	var config net.ListenConfig
	config.SetMultipathTCP(false) // Go's default for listeners, which takes no filter (see holdOffNew)
	l, err := config.Listen(context.Background(), "tcp", s.http.Addr)
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	s.tcp, s.listener = l, l
	if s.limit != nil {
		s.listener = connlimit.New(l, *s.limit)
	}
	return nil
}

// Addr is where the server listens, after Listen.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Serve serves until Shutdown, and then returns nil.
func (s *Server) Serve() error {
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("%s: serve: %w", s.name, err)
	}
	return nil
}

// StartDraining makes every response ask its client to connect elsewhere. It
// closes nothing: a request may be on its way on any open connection.
func (s *Server) StartDraining() { s.draining.Store(true) }

// Shutdown stops accepting connections, ends streams and waits for requests in
// flight. If ctx ends first, it cuts them off and returns ctx's error. After
// StartDraining it loses no request that a client sends on an open connection,
// unless the client left that connection idle for all of the drain.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	if s.draining.Load() {
		s.awaitQuiet(ctx)
	}
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(fmt.Errorf("%s: requests cut off: %w", s.name, err), s.http.Close())
	}
	return err
}

// awaitQuiet holds new connections off and waits until no open connection has
// begun a request for quietTime.
//
// net/http's Shutdown loses requests without that: closing the listener resets
// connections that the kernel has accepted and the server has not; a request
// that is read after Shutdown began is dropped, as the first one on a new
// connection may be; and an idle connection is closed while a request is on its
// way. Each open connection responds once more and closes, so that the wait
// ends even under load.
func (s *Server) awaitQuiet(ctx context.Context) {
	if s.tcp == nil { // Listen was not called, or failed
		return
	}
	holdOffNew(s.tcp)
	s.began.Store(time.Now().UnixNano()) // a handshake may be under way
	ctx, cancel := context.WithTimeout(ctx, quietTimeout)
	defer cancel()
	for ctx.Err() == nil {
		left := quietTime - time.Since(time.Unix(0, s.began.Load()))
		if left <= 0 {
			return
		}
		select {
		case <-time.After(left):
		case <-ctx.Done():
		}
	}
}

// noteState records, while draining, when a connection opens or begins a request.
func (s *Server) noteState(_ net.Conn, state http.ConnState) {
	if s.draining.Load() && (state == http.StateNew || state == http.StateActive) {
		s.began.Store(time.Now().UnixNano())
	}
}

type birthKey struct{}

// noteBirth gives a connection the moment at which it is old.
func (s *Server) noteBirth(ctx context.Context, _ net.Conn) context.Context {
	// Jitter keeps connections that were opened together, as after a rollout,
	// from being closed together ever after; gRPC does the same.
	age := time.Duration(float64(s.maxAge) * (0.9 + 0.2*rand.Float64()))
	return context.WithValue(ctx, birthKey{}, time.Now().Add(age))
}

// closes reports whether the response to r must ask its client to reconnect: the
// server drains, or the connection is old. A ClusterIP balances connections, not
// requests, so a client that keeps its connections would never meet a new pod.
func (s *Server) closes(r *http.Request) bool {
	old, _ := r.Context().Value(birthKey{}).(time.Time)
	return s.draining.Load() || s.maxAge > 0 && time.Now().After(old)
}

// streaming ends a stream's context when the server drains, and lifts the
// timeout on writing; a handler may set one of its own for each write.
func (s *Server) streaming(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancelCause(r.Context())
		defer cancel(nil)
		defer context.AfterFunc(s.stopping, func() { cancel(ErrDraining) })()
		_ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) // on net/http's connections it cannot fail
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}
