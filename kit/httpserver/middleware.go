package httpserver

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/identity"
	"example.com/tandem/kit/limiter"
	"example.com/tandem/kit/problem"
	"example.com/tandem/kit/telemetry"
)

const (
	maxHeader      = 16 << 10 // bytes of request line and headers
	defaultMaxBody = 64 << 10 // bytes of a request's body
)

// The health routes, which kubelet and monitoring call every few seconds.
const livez, readyz, healthPath = "/livez", "/readyz", "/health"

// isProbe reports whether a path or route is one of them: those have no spans, and
// log lines only at debug.
func isProbe(path string) bool { return path == livez || path == readyz || path == healthPath }

// methods are the ones that can be a metric's label, and be allowed on a route.
var methods = []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions}

// traceRequests continues the caller's trace, or starts one.
func traceRequests(t *telemetry.Telemetry) func(http.Handler) http.Handler {
	extract := func(r *http.Request) context.Context {
		return telemetry.Propagator.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	}
	if t.Traces == nil {
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				next.ServeHTTP(w, r.WithContext(telemetry.Continue(extract(r))))
			})
		}
	}
	traced := otelhttp.NewMiddleware("http",
		otelhttp.WithTracerProvider(t.Traces),
		otelhttp.WithPropagators(telemetry.Propagator),
		otelhttp.WithMeterProvider(noop.NewMeterProvider()), // metrics go to Prometheus
	)
	return func(next http.Handler) http.Handler {
		traced := traced(next)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx := extract(r)
			if !isProbe(r.URL.Path) && r.URL.Path != fault.Path && t.Traced(trace.SpanContextFromContext(ctx)) {
				traced.ServeHTTP(w, r)
			} else {
				next.ServeHTTP(w, r.WithContext(telemetry.Continue(ctx)))
			}
		})
	}
}

// logAndMeasure logs and measures every request, and turns a panic into a 500.
func logAndMeasure(log *slog.Logger, metrics prometheus.Registerer, mustClose func(*http.Request) bool) func(http.Handler) http.Handler {
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "http_server_request_duration_seconds",
		Help:    "Time from a request's headers to the end of its response, by method, route pattern and status.",
		Buckets: prometheus.DefBuckets,
	}, []string{"method", "route", "code"})
	metrics.MustRegister(seconds)

	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			start := time.Now()
			out := &response{ResponseWriter: w, mustClose: func() bool { return mustClose(r) }}
			out.Header().Set("X-Content-Type-Options", "nosniff")
			defer func() {
				p := recover()
				sentPart := out.status != 0 || p == http.ErrAbortHandler //nolint:errorlint // net/http compares it in this way, too
				status := finish(out, r, log, p)
				took := time.Since(start)
				route := routeOf(r)
				trace.SpanFromContext(r.Context()).SetName(methodOf(r) + " " + route)
				telemetry.Observe(r.Context(), seconds.WithLabelValues(methodOf(r), route, strconv.Itoa(status)), took.Seconds())
				attrs := []slog.Attr{
					slog.String("method", telemetry.Truncate(r.Method)),
					slog.String("path", telemetry.Truncate(r.URL.Path)),
					slog.Int("status", status),
					slog.Int64("bytes", out.bytes),
					slog.Int64("duration_us", took.Microseconds()),
					slog.String("from", telemetry.Truncate(r.RemoteAddr)),
				}
				if entries := r.Header["X-Forwarded-For"]; len(entries) > 0 {
					// Behind a gateway, the last entry is the gateway's. Tail keeps it.
					attrs = append(attrs, slog.String("forwarded_for", telemetry.Tail(strings.Join(entries, ", "))))
				}
				log.LogAttrs(r.Context(), levelOf(r.Method, route, status), "http", attrs...)
				if p != nil && sentPart {
					// Closes the connection, so that the client does not take part of a
					// response for all of it.
					panic(http.ErrAbortHandler)
				}
			}()
			next.ServeHTTP(out, r)
		})
	}
}

// finish completes the response of a handler that returned, or panicked with p. It
// returns the status for metrics and logs: the one sent, but 499 if the client
// disconnected before it had the whole response, and 500 if the handler aborted it.
func finish(w *response, r *http.Request, log *slog.Logger, p any) int {
	disconnected := errors.Is(r.Context().Err(), context.Canceled) && !w.complete()
	aborted := p == http.ErrAbortHandler //nolint:errorlint // net/http compares it in this way, too
	if p != nil && !aborted {
		log.ErrorContext(r.Context(), "panic", "error", fmt.Sprint(p), "stack", string(debug.Stack()))
	}
	switch {
	case disconnected:
		return call.StatusCanceled
	case p != nil && (aborted || w.status != 0):
		return http.StatusInternalServerError
	case p != nil:
		clear(w.Header()) // the handler's Content-Length and the like are not the problem's
		fail(w, r, problem.Problem{Status: http.StatusInternalServerError, Detail: "internal error; see the server log"})
	case w.status == 0:
		w.WriteHeader(http.StatusOK)
	}
	return w.status
}

// fail responds with a problem, and adds the trace id to it.
func fail(w http.ResponseWriter, r *http.Request, p problem.Problem) {
	if span := trace.SpanContextFromContext(r.Context()); span.HasTraceID() {
		p.TraceID = span.TraceID().String()
	}
	problem.Write(w, p)
}

// routeOf returns the route's pattern: the number of patterns is limited, that of
// paths is not.
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
	return "_OTHER" // OpenTelemetry's name for it
}

func levelOf(method, route string, status int) slog.Level {
	switch {
	case isProbe(route), method == http.MethodGet && route == fault.Path:
		return slog.LevelDebug
	case status >= 500:
		return slog.LevelWarn
	default:
		return slog.LevelInfo
	}
}

// limitSize refuses requests whose headers or body are too large, and reads the
// body: while a client sends it slowly, it must not count towards the concurrency
// limit.
func limitSize(maxBody int64) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if headerSize(r) > maxHeader {
				fail(w, r, problem.Problem{Status: http.StatusRequestHeaderFieldsTooLarge, Detail: fmt.Sprintf("request line and headers exceed %d bytes", maxHeader)})
				return
			}
			if r.ContentLength != 0 {
				if p, ok := readBody(w, r, maxBody); !ok {
					w.Header().Set("Connection", "close") // otherwise net/http reads the rest of the body first
					fail(w, r, p)
					return
				}
			}
			next.ServeHTTP(w, r)
		})
	}
}

func headerSize(r *http.Request) int {
	size := len(r.Method) + len(r.RequestURI) + len(r.Host)
	for name, values := range r.Header {
		for _, v := range values {
			size += len(name) + len(v) + 4 // ": " and the end of the line
		}
	}
	return size
}

// readBody reads the body of r into memory and replaces it. If it cannot, it returns
// the problem to respond with, and false.
func readBody(w http.ResponseWriter, r *http.Request, maxBody int64) (problem.Problem, bool) {
	tooLarge := problem.Problem{Status: http.StatusRequestEntityTooLarge, Detail: fmt.Sprintf("the body exceeds %d bytes", maxBody)}
	if r.ContentLength > maxBody {
		return tooLarge, false
	}
	noBody := r.Method == http.MethodGet || r.Method == http.MethodHead
	if noBody {
		maxBody = 0 // the length may be unknown, and the body empty
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	_, exceeds := errors.AsType[*http.MaxBytesError](err)
	switch {
	case noBody && (exceeds || len(body) > 0):
		return problem.Problem{Status: http.StatusBadRequest, Detail: r.Method + " requests must not have a body"}, false
	case exceeds:
		return tooLarge, false
	case errors.Is(err, os.ErrDeadlineExceeded):
		return problem.Problem{Status: http.StatusRequestTimeout, Detail: fmt.Sprintf("the body did not arrive within %s", readTimeout)}, false
	case err != nil:
		return problem.Problem{Status: http.StatusBadRequest, Detail: "read the body: " + err.Error()}, false
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	return problem.Problem{}, true
}

// limitTime ends the context of a handler after longestRequest. The server's own
// timeouts do not: after them, a response cannot be written, and the handler runs on.
func limitTime(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), longestRequest)
		defer cancel()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// authenticate refuses requests without a valid token. It comes before shed, so that an
// unknown caller does not count towards the concurrency limit. The context of a stream
// ends when the token expires; another request is allowed to finish.
func authenticate(callers *identity.Verifier, stream bool) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		if callers == nil {
			return next
		}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			caller, err := callers.Verify(r.Context(), r.Header.Get("Authorization"))
			if err != nil {
				refuseCaller(w, r, err)
				return
			}
			if stream {
				ctx, cancel := context.WithDeadlineCause(r.Context(), caller.Expiry, identity.ErrExpired)
				defer cancel()
				r = r.WithContext(ctx)
			}
			next.ServeHTTP(w, r)
		})
	}
}

// refuseCaller responds to a request whose caller is not accepted (RFC 6750, section 3).
func refuseCaller(w http.ResponseWriter, r *http.Request, err error) {
	p := problem.Problem{Status: http.StatusUnauthorized, Detail: err.Error(), Class: string(call.Denied)}
	switch {
	case errors.Is(err, identity.ErrNoToken):
		w.Header().Set("WWW-Authenticate", "Bearer")
	case errors.Is(err, identity.ErrInvalidToken):
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
	case errors.Is(err, identity.ErrDenied):
		p.Status = http.StatusForbidden
	default:
		refuse(w, r, err, 0)
		return
	}
	fail(w, r, p)
}

// shed refuses requests beyond the concurrency limit.
func shed(acquire func(context.Context) error, release func()) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := acquire(r.Context()); err != nil {
				refuse(w, r, err, limiter.RetryAfter)
				return
			}
			defer release()
			next.ServeHTTP(w, r)
		})
	}
}

// injectFaults injects the faults that the switch is set to.
func injectFaults(s *fault.Switch) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := s.Inject(r.Context()); err != nil {
				refuse(w, r, err, 0)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// refuse responds 503 to a request whose handler was not called: the client may
// retry it, after the time in Retry-After. If the client has disconnected, no response is
// written.
func refuse(w http.ResponseWriter, r *http.Request, err error, retryAfter time.Duration) {
	if errors.Is(err, context.Canceled) {
		return
	}
	fail(w, r, problem.Problem{
		Status: http.StatusServiceUnavailable, Detail: err.Error(), Class: string(call.Unavailable), RetryAfter: int(retryAfter.Seconds()),
	})
}

func notFound(w http.ResponseWriter, r *http.Request) {
	fail(w, r, problem.Problem{Status: http.StatusNotFound, Detail: "no route for this path"})
}

func methodNotAllowed(w http.ResponseWriter, r *http.Request) {
	var allowed []string
	routes := chi.RouteContext(r.Context()).Routes
	path := cmp.Or(r.URL.RawPath, r.URL.Path) // the one that chi matches
	for _, m := range methods {
		routed := m
		if m == http.MethodHead {
			routed = http.MethodGet // HEAD is served wherever GET is
		}
		if routes.Match(chi.NewRouteContext(), routed, path) {
			allowed = append(allowed, m)
		}
	}
	if len(allowed) == 0 { // chi also calls this for an unknown method on a path without routes
		notFound(w, r)
		return
	}
	allow := strings.Join(allowed, ", ")
	w.Header().Set("Allow", allow)
	fail(w, r, problem.Problem{Status: http.StatusMethodNotAllowed, Detail: "allowed methods: " + allow})
}
