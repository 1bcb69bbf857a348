package httpserver

import (
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/telemetry"
)

// NewAdmin returns the server of /metrics on addr, the value of the environment
// variable addrVar. A network policy opens this port to Prometheus, so nothing
// that changes the service or shows its memory may be served here; see NewDebug.
func NewAdmin(addrVar, addr string, t *telemetry.Telemetry) *Server {
	s, root := newInternal(addrVar, addr, t)
	root.Method(http.MethodGet, "/metrics", promhttp.HandlerFor(t.Metrics, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	return s
}

// NewDebug returns the server of the fault switch, if faults is not nil, and of
// profiles, if pprof is true. Its addr, the value of the environment variable
// addrVar, must be on loopback: a client that can connect to it can break the service
// and read its memory. kubectl port-forward connects to it from inside the pod.
func NewDebug(addrVar, addr string, t *telemetry.Telemetry, faults *fault.Switch, pprof bool) *Server {
	s, root := newInternal(addrVar, addr, t)
	s.http.WriteTimeout = 2 * time.Minute // a CPU profile takes 30 s by default
	if faults != nil {
		root.Handle(fault.Path, faults)
	}
	if pprof {
		root.Mount("/debug", middleware.Profiler())
	}
	return s
}

// newInternal returns a server without the middleware of New, and its router.
func newInternal(addrVar, addr string, t *telemetry.Telemetry) (*Server, *chi.Mux) {
	s, root := newServer(addrVar, addr, t), chi.NewRouter()
	root.Use(middleware.GetHead)
	root.NotFound(notFound)
	root.MethodNotAllowed(methodNotAllowed)
	s.http.Handler = root
	return s, root
}
