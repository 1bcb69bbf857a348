package httpserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/problem"
	"example.com/tandem/kit/shed"
	"example.com/tandem/kit/telemetry"
)

const (
	maxHeader = 16 << 10 // bytes of request line and headers
	maxBody   = 1 << 20  // bytes of a request's body
	// maxLoggedPath is how much of a path, in bytes, goes into a log line.
	maxLoggedPath = 256
)

// probes are asked every few seconds by kubelet: no spans, and no log lines
// unless at debug.
var probes = []string{"/livez", "/readyz", "/health"}

// methods that may stand in a label or be allowed on a route.
var methods = []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions}

// traced continues the caller's trace, or begins one.
func traced(t *telemetry.Telemetry) func(http.Handler) http.Handler {
	if t.Traces == nil {
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				next.ServeHTTP(w, r.WithContext(telemetry.Continue(r.Context(), propagation.HeaderCarrier(r.Header))))
			})
		}
	}
	return otelhttp.NewMiddleware("http",
		otelhttp.WithTracerProvider(t.Traces),
		otelhttp.WithPropagators(telemetry.Propagator),
		otelhttp.WithMeterProvider(noop.NewMeterProvider()), // metrics are Prometheus's
		otelhttp.WithFilter(func(r *http.Request) bool { return !slices.Contains(probes, r.URL.Path) }),
	)
}

// observed counts, times and logs every request, and turns a panic into a 500.
func observed(log *slog.Logger, metrics prometheus.Registerer) func(http.Handler) http.Handler {
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "http_server_request_duration_seconds",
		Help:    "Time from a request's headers to the end of its answer, by method, route pattern and status.",
		Buckets: prometheus.DefBuckets,
	}, []string{"method", "route", "code"})
	metrics.MustRegister(seconds)

	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			start := time.Now()
			ww := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
			ww.Header().Set("X-Content-Type-Options", "nosniff")
			defer func() {
				p := recover()
				if p != nil && p != http.ErrAbortHandler { //nolint:errorlint // net/http compares so, too
					log.ErrorContext(r.Context(), "panic", "error", fmt.Sprint(p), "stack", string(debug.Stack()))
					if ww.Status() == 0 {
						problem.Error(ww, http.StatusInternalServerError, "a fault of ours; the log has more")
						p = nil
					}
				}
				took := time.Since(start)
				route := routeOf(r)
				status := statusOf(ww, r)
				trace.SpanFromContext(r.Context()).SetName(methodOf(r) + " " + route)
				seconds.WithLabelValues(methodOf(r), route, strconv.Itoa(status)).Observe(took.Seconds())
				log.LogAttrs(r.Context(), levelOf(route, status), "http",
					slog.String("method", r.Method),
					slog.String("path", r.URL.Path[:min(len(r.URL.Path), maxLoggedPath)]),
					slog.Int("status", status),
					slog.Int("bytes", ww.BytesWritten()),
					slog.Int64("duration_us", took.Microseconds()),
					slog.String("from", r.RemoteAddr),
				)
				if p != nil {
					// Half an answer is out: break the connection off, so that
					// the client does not take it for a whole one.
					panic(http.ErrAbortHandler)
				}
			}()
			next.ServeHTTP(ww, r)
		})
	}
}

// routeOf is the pattern that matched, which is bounded where a path is not.
func routeOf(r *http.Request) string {
	if pattern := chi.RouteContext(r.Context()).RoutePattern(); pattern != "" {
		return pattern
	}
	return "unmatched"
}

func methodOf(r *http.Request) string {
	if slices.Contains(methods, r.Method) {
		return r.Method
	}
	return "_OTHER" // as OpenTelemetry's conventions have it
}

func statusOf(w middleware.WrapResponseWriter, r *http.Request) int {
	switch {
	case w.Status() != 0:
		return w.Status()
	case errors.Is(r.Context().Err(), context.Canceled):
		return call.StatusCanceled
	default:
		return http.StatusOK
	}
}

func levelOf(route string, status int) slog.Level {
	switch {
	case slices.Contains(probes, route):
		return slog.LevelDebug
	case status >= 500:
		return slog.LevelWarn
	default:
		return slog.LevelInfo
	}
}

// bounded refuses requests that are larger than any honest one.
func bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if headerSize(r) > maxHeader {
			problem.Error(w, http.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("request line and headers exceed %d bytes", maxHeader))
			return
		}
		if r.ContentLength > maxBody {
			problem.Error(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body exceeds %d bytes", maxBody))
			return
		}
		if r.ContentLength != 0 {
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
			if r.Method == http.MethodGet || r.Method == http.MethodHead {
				// A body that says it is of unknown length may still be empty.
				if n, err := io.ReadFull(r.Body, make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
					problem.Error(w, http.StatusBadRequest, r.Method+" takes no body")
					return
				}
			}
		}
		next.ServeHTTP(w, r)
	})
}

func headerSize(r *http.Request) int {
	size := len(r.RequestURI)
	for name, values := range r.Header {
		for _, v := range values {
			size += len(name) + len(v) + 4 // ": " and the line's end
		}
	}
	return size
}

// limited ends the context of a request that is worked on for too long. The
// server's time-outs do not: past them, an answer just cannot be written.
func limited(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), longestRequest)
		defer cancel()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// shedding refuses requests beyond the limit, with 503: the request was not
// begun, so the client may repeat it, and Retry-After says when.
func shedding(limit *shed.Limiter) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := limit.Acquire(r.Context()); err != nil {
				refuse(w, err, 1)
				return
			}
			defer limit.Release()
			next.ServeHTTP(w, r)
		})
	}
}

// faulty lets the fault switch strike.
func faulty(s *fault.Switch) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := s.Strike(r.Context()); err != nil {
				refuse(w, err, 0)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// refuse answers 503 to a request that was not begun, and nothing to a client
// that has left, which the log then shows as 499.
func refuse(w http.ResponseWriter, err error, retryAfter int) {
	if errors.Is(err, context.Canceled) {
		return
	}
	problem.Write(w, problem.Problem{Status: http.StatusServiceUnavailable, Detail: err.Error(), Class: string(call.Unavailable), RetryAfter: retryAfter})
}

func notFound(w http.ResponseWriter, _ *http.Request) {
	problem.Error(w, http.StatusNotFound, "nothing is served at this path")
}

func methodNotAllowed(w http.ResponseWriter, r *http.Request) {
	var allowed []string
	routes := chi.RouteContext(r.Context()).Routes
	path := cmp.Or(r.URL.RawPath, r.URL.Path) // as chi has it
	for _, m := range methods {
		asked := m
		if m == http.MethodHead {
			asked = http.MethodGet // HEAD is answered wherever GET is
		}
		if routes.Match(chi.NewRouteContext(), asked, path) {
			allowed = append(allowed, m)
		}
	}
	if len(allowed) == 0 { // chi asks here for a method it does not know, whatever the path
		notFound(w, r)
		return
	}
	allow := strings.Join(allowed, ", ")
	w.Header().Set("Allow", allow)
	problem.Error(w, http.StatusMethodNotAllowed, "this path takes "+allow)
}
