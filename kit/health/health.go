// Package health holds the state of a service (starting, ready, draining, or made
// not ready by the fault switch) and serves it in four ways: GET /livez and
// GET /readyz for kubelet, GET /health for people and load balancers, and
// grpc.health.v1 for gRPC clients and probes.
//
//	state                 /livez  /readyz  /health         grpc.health.v1
//	starting              200     503      503 fail        NOT_SERVING
//	ready                 200     200      200 pass, warn  SERVING
//	made not ready        200     503      503 fail        NOT_SERVING
//	draining (final)      200     503      503 fail        NOT_SERVING
package health

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	grpchealth "google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/telemetry"
)

// Health is the state of one instance of a service. It is safe for concurrent use,
// except where a comment says otherwise.
type Health struct {
	// Details adds to /health where this instance runs and the output or error of each
	// check. Every caller of the service can then read the names and addresses of pods
	// and nodes. Set it before serving.
	Details bool

	me       instance.Instance
	rpc      *grpchealth.Server
	checks   []*check
	required []*check // of checks

	mu       sync.Mutex
	started  bool
	missing  string // the required check that the start waits for
	draining bool
	notReady bool // by the fault switch
}

// New returns the state of an instance that is starting.
func New(me instance.Instance) *Health {
	h := &Health{me: me, rpc: grpchealth.NewServer()}
	h.publish()
	return h
}

// Ready marks the instance as started: its servers listen, and what it requires is there.
func (h *Health) Ready() { h.set(func() { h.started = true }) }

// Drain marks the instance as draining: it will soon refuse connections. This state
// is final.
func (h *Health) Drain() { h.set(func() { h.draining = true }) }

// SetNotReady makes the instance not ready, or ends that. The fault switch calls it.
func (h *Health) SetNotReady(notReady bool) { h.set(func() { h.notReady = notReady }) }

func (h *Health) set(change func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
	h.publish()
}

// publish passes the state on to gRPC. The caller holds h.mu, or has the only
// reference to h.
func (h *Health) publish() {
	switch {
	case h.draining:
		h.rpc.Shutdown() // NOT_SERVING for every service; later changes are ignored
	case h.started && !h.notReady:
		h.rpc.SetServingStatus("", grpc_health_v1.HealthCheckResponse_SERVING)
	default:
		h.rpc.SetServingStatus("", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	}
}

// Register registers the metric health_ready.
func (h *Health) Register(metrics prometheus.Registerer) {
	metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "health_ready",
		Help: "1 while this instance is ready; 0 while it starts, drains, or is made not ready.",
	}, func() float64 {
		if h.notReadyReason() != "" {
			return 0
		}
		return 1
	}))
}

// GRPC returns the state as grpc.health.v1, under the empty service name. Clients
// that watch it stop using an instance as soon as it is not ready.
func (h *Health) GRPC() grpc_health_v1.HealthServer { return h.rpc }

// ServeLivez serves /livez. It responds 200 in every state, because a restart would
// fix none of them.
func (h *Health) ServeLivez(w http.ResponseWriter, _ *http.Request) {
	writeText(w, http.StatusOK, "live")
}

// ServeReadyz serves /readyz. It responds 200 if the instance is ready, else 503 with
// the reason.
func (h *Health) ServeReadyz(w http.ResponseWriter, _ *http.Request) {
	if reason := h.notReadyReason(); reason != "" {
		writeText(w, http.StatusServiceUnavailable, reason)
		return
	}
	writeText(w, http.StatusOK, "ready")
}

func writeText(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text + "\n")) // the caller may have disconnected
}

// report is the body of /health, as in draft-inadarei-api-health-check-06.
type report struct {
	Status   string              `json:"status"`
	Version  string              `json:"version"`
	Service  string              `json:"serviceId"`
	Output   string              `json:"output,omitempty"`
	Instance *instance.Instance  `json:"instance,omitempty"`
	Checks   map[string][]result `json:"checks,omitempty"`
}

// ServeHealth serves /health as application/health+json: 200 with status pass or, if
// a check fails, warn; 503 with fail if this instance is not ready.
func (h *Health) ServeHealth(w http.ResponseWriter, _ *http.Request) {
	rep := report{Status: "pass", Version: h.me.Version, Service: h.me.Service, Checks: h.runChecks()}
	if h.Details {
		rep.Instance = &h.me
	}
	for _, c := range rep.Checks {
		if c[0].Status == "warn" {
			rep.Status = "warn"
		}
		if !h.Details {
			c[0].Output = ""
		}
	}
	status := http.StatusOK
	if reason := h.notReadyReason(); reason != "" {
		status, rep.Status, rep.Output = http.StatusServiceUnavailable, "fail", reason
	}
	w.Header().Set("Content-Type", "application/health+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(rep) // the caller may have disconnected
}

// notReadyReason returns why the instance is not ready, or "" if it is.
func (h *Health) notReadyReason() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.draining:
		return "draining"
	case !h.started && h.missing != "":
		return "starting: waiting for " + h.missing
	case !h.started:
		return "starting"
	case h.notReady:
		return "made not ready by the fault switch"
	default:
		return ""
	}
}

// check tests a dependency of the service and caches the result.
type check struct {
	name string
	run  func(context.Context) (output string, err error)

	mu   sync.Mutex
	last result
	at   time.Time // of last
}

type result struct {
	Status string    `json:"status"`
	Time   time.Time `json:"time"`
	Output string    `json:"output,omitempty"`
}

// Check adds a dependency to /health; run returns an error if it is down. That is
// reported as a warning, and readiness ignores it: otherwise one service that is down
// would take down every service that calls it. Add checks before serving.
func (h *Health) Check(name string, run func(context.Context) error) {
	h.CheckOutput(name, func(ctx context.Context) (string, error) { return "", run(ctx) })
}

// CheckOutput is Check with an output that Details shows if there is no error.
func (h *Health) CheckOutput(name string, run func(context.Context) (output string, err error)) {
	h.checks = append(h.checks, &check{name: name, run: run})
}

// Require is CheckOutput for something without which every call fails, such as a key or a
// token. The instance is not ready until the check has passed once, so that a rollout with
// a wrong setting stops at its first pod. Later failures are warnings only. Do not require
// another service: while it is down, its callers could not start.
func (h *Health) Require(name string, run func(context.Context) (output string, err error)) {
	h.CheckOutput(name, run)
	h.required = append(h.required, h.checks[len(h.checks)-1])
}

// AwaitRequired runs each required check until it has passed once. It logs why a check
// fails, whenever the reason changes. Its error is the cause with which ctx ended.
func (h *Health) AwaitRequired(ctx context.Context, log *slog.Logger) error {
	for _, c := range h.required {
		h.set(func() { h.missing = c.name })
		for last := (result{}); ; {
			r := c.result()
			if r.Status == "pass" {
				break
			}
			if r.Output != last.Output {
				log.Warn("not ready yet", "missing", c.name, "reason", r.Output)
			}
			last = r
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(checkInterval):
			}
		}
	}
	return context.Cause(ctx)
}

// runChecks runs all checks at the same time and returns their results by name.
func (h *Health) runChecks() map[string][]result {
	results := make([]result, len(h.checks))
	var wg sync.WaitGroup
	for i, c := range h.checks {
		wg.Go(func() { results[i] = c.result() })
	}
	wg.Wait()
	out := make(map[string][]result, len(results))
	for i, c := range h.checks {
		out[c.name] = []result{results[i]}
	}
	return out
}

const (
	checkTimeout  = time.Second // shorter than the timeout of a load balancer's request to /health
	checkInterval = time.Second // a check runs at most this often, however often /health is requested
)

// result returns the cached result, or runs the check if that is older than
// checkInterval. Concurrent calls wait for one run.
func (c *check) result() result {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.at) < checkInterval {
		return c.last
	}
	// The request's context is not used: if its caller disconnects, the result is still
	// needed by the next one. Continue makes a trace that is not sampled: like the request
	// to /health itself, the calls of its checks are no spans.
	ctx, cancel := context.WithTimeout(telemetry.Continue(context.Background()), checkTimeout)
	defer cancel()
	output, err := c.run(ctx)
	c.last = result{Status: "pass", Output: output}
	if err != nil {
		c.last = result{Status: "warn", Output: err.Error()}
	}
	c.at = time.Now() // UTC drops the monotonic clock
	c.last.Time = c.at.UTC()
	return c.last
}
