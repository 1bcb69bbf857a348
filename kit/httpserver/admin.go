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

// NewAdmin returns the server of /metrics. Name is the variable that addr came
// from. A network policy opens this port to Prometheus, so nothing that changes
// the service or shows its memory may be served here; see NewDebug.
func NewAdmin(name, addr string, t *telemetry.Telemetry) *Server {
	s, root := newOperators(name, addr, t)
	root.Method(http.MethodGet, "/metrics", promhttp.HandlerFor(t.Metrics, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	return s
}

// NewDebug returns the server of the fault switch, unless that is nil, and of
// profiles if pprof is true. Its addr must be on loopback: anybody who reaches it can
// break the service and read its memory. An operator reaches it by kubectl
// port-forward, which connects from inside the pod.
func NewDebug(name, addr string, t *telemetry.Telemetry, faults *fault.Switch, pprof bool) *Server {
	s, root := newOperators(name, addr, t)
	s.http.WriteTimeout = 2 * time.Minute // a CPU profile takes 30 s by default
	if faults != nil {
		root.Handle("/faults", faults)
	}
	if pprof {
		root.Mount("/debug", middleware.Profiler())
	}
	return s
}

// newOperators returns a server without the middleware of an API, and its router.
func newOperators(name, addr string, t *telemetry.Telemetry) (*Server, *chi.Mux) {
	s, root := newServer(name, addr, t), chi.NewRouter()
	root.Use(middleware.GetHead)
	root.NotFound(notFound)
	root.MethodNotAllowed(methodNotAllowed)
	s.http.Handler = root
	return s, root
}
