// Package httpserver is a chi router on a server whose limits are set: nothing
// that a client does, or fails to do, holds it for ever.
package httpserver

import (
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
	"example.com/tandem/kit/shed"
	"example.com/tandem/kit/telemetry"
)

// net/http sets no time-out of its own. These bound the slowest client that a
// service puts up with.
const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 15 * time.Second
	writeTimeout      = 30 * time.Second
	// longestRequest is how long a request may be worked on before its context
	// ends: short enough that an answer which says so can still be written.
	// What takes longer belongs among the Streams.
	longestRequest = 15 * time.Second
	// idleTimeout exceeds that of package httpclient (90 s), so that it is the
	// client who closes an idle connection: if the server does, the client may
	// just be sending a request into it.
	idleTimeout = 120 * time.Second
	// maxHeaderBytes is where net/http itself cuts off, in plain text; below
	// it, and above maxHeader, the answer is a problem of status 431.
	maxHeaderBytes = 64 << 10
)

// ErrDraining is why the context of a stream ends when its server drains.
var ErrDraining = errors.New("the server is draining")

// Options of a Server. Addr, Telemetry and Health are required.
type Options struct {
	// Name is the variable that Addr came from; an error about it names both.
	Name, Addr string
	Telemetry  *telemetry.Telemetry
	Health     *health.Health
	Faults     *fault.Switch
	// MaxConnectionAge after which an answer asks its client to reconnect, ±10 %;
	// 0 is never.
	MaxConnectionAge time.Duration
	// MaxInFlight requests are served at once, and as many streams; 0 is no limit.
	MaxInFlight int
}

// Server serves an API over HTTP/1.1, beside /livez, /readyz and /health.
type Server struct {
	// API takes the routes whose answers are short.
	API chi.Router
	// Streams takes the routes whose answers end when a client leaves: their
	// context ends when the server drains, and no time-out cuts them off.
	Streams chi.Router

	name     string
	http     *http.Server
	listener net.Listener
	draining atomic.Bool
	stopping context.Context
	stop     context.CancelFunc
	maxAge   time.Duration
}

// New makes a server; Listen and Serve start it.
func New(o Options) *Server {
	s := newServer(o.Name, o.Addr, o.Telemetry)
	s.maxAge = o.MaxConnectionAge

	root := chi.NewRouter()
	// A request passes these from top to bottom, its answer from bottom to top.
	root.Use(
		traced(o.Telemetry),
		observed(o.Telemetry.Log, o.Telemetry.Metrics),
		s.closesOldConnections,
		bounded,
		middleware.GetHead, // HEAD is answered wherever GET is
	)
	root.NotFound(notFound)
	root.MethodNotAllowed(methodNotAllowed)
	// Never shed and never faulty: an overloaded pod that is restarted for not
	// answering its probes makes an overload worse.
	root.Get("/livez", o.Health.Live)
	root.Get("/readyz", o.Health.IsReady)
	root.Get("/health", o.Health.Report)
	s.API = root.With(limited, shedding(shed.New(o.MaxInFlight)), faulty(o.Faults))
	s.Streams = root.With(shedding(shed.New(o.MaxInFlight)), faulty(o.Faults), s.streaming)
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
		ErrorLog:          slog.NewLogLogger(t.Log.Handler(), slog.LevelWarn),
	}
	return s
}

// Listen opens the port, so that a port which is taken stops the start.
func (s *Server) Listen() error {
	l, err := net.Listen("tcp", s.http.Addr)
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
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("%s: serve: %w", s.name, err)
	}
	return nil
}

// StartDraining makes every answer ask its client to connect elsewhere. It does not
// close anything: a request may be on its way on any open connection.
func (s *Server) StartDraining() { s.draining.Store(true) }

// Shutdown stops taking connections, ends streams and waits for requests in
// flight. When ctx ends first it cuts them off and returns ctx's error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(fmt.Errorf("%s: requests cut off: %w", s.name, err), s.http.Close())
	}
	return err
}

type birthKey struct{}

// noteBirth gives a connection the moment at which it is old.
func (s *Server) noteBirth(ctx context.Context, _ net.Conn) context.Context {
	// Jitter keeps connections that were opened together, as after a rollout,
	// from being closed together for ever after; gRPC does the same.
	age := time.Duration(float64(s.maxAge) * (0.9 + 0.2*rand.Float64()))
	return context.WithValue(ctx, birthKey{}, time.Now().Add(age))
}

// closesOldConnections lets newcomers have a share: a ClusterIP balances
// connections, not requests, so a client that keeps its connections alive
// never meets a new pod.
func (s *Server) closesOldConnections(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		old, _ := r.Context().Value(birthKey{}).(time.Time)
		if s.draining.Load() || s.maxAge > 0 && time.Now().After(old) {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// streaming ends a stream's context when the server drains, and lifts the
// time-out on writing; a handler may set one of its own for each write.
func (s *Server) streaming(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancelCause(r.Context())
		defer cancel(nil)
		defer context.AfterFunc(s.stopping, func() { cancel(ErrDraining) })()
		_ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) // on net/http's connections it cannot fail
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}
