package httpserver

import (
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/problem"
	"example.com/tandem/kit/telemetry"
)

// AdminOptions of the server that operators and Prometheus talk to.
type AdminOptions struct {
	Name, Addr string
	Telemetry  *telemetry.Telemetry
	// Faults may be injected if this is not nil.
	Faults *fault.Switch
	// Pprof serves profiles, which show what is in memory.
	Pprof bool
}

// NewAdmin makes the server of /metrics, /faults and /debug/pprof.
func NewAdmin(o AdminOptions) *Server {
	s := newServer(o.Name, o.Addr, o.Telemetry)
	s.http.WriteTimeout = 2 * time.Minute // a CPU profile takes 30 s by default

	root := chi.NewRouter()
	root.Use(middleware.GetHead)
	root.NotFound(notFound)
	root.MethodNotAllowed(methodNotAllowed)
	root.Method(http.MethodGet, "/metrics", promhttp.HandlerFor(o.Telemetry.Metrics, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	root.HandleFunc("/faults", func(w http.ResponseWriter, r *http.Request) {
		if o.Faults == nil {
			problem.Error(w, http.StatusNotFound, "faults are off here; FAULTS=on allows them")
			return
		}
		o.Faults.ServeHTTP(w, r)
	})
	if o.Pprof {
		root.Mount("/debug", middleware.Profiler())
	}
	s.http.Handler = root
	return s
}
