// Package health is one state of a service behind every way of asking for it:
// GET /livez and /readyz for kubelet, GET /health for people and load
// balancers, and grpc.health.v1 for gRPC clients and probes.
package health

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	grpchealth "google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"example.com/tandem/kit/instance"
)

// Health is the state of one service. It starts not ready.
type Health struct {
	// Details makes /health show where this instance runs and why a check fails.
	// Everyone who can call the service then sees pods, nodes and addresses. Set it
	// before serving.
	Details bool

	me     instance.Instance
	rpc    *grpchealth.Server
	checks []*check

	mu       sync.Mutex
	started  bool
	draining bool
	sick     bool
}

// New makes the state of an instance.
func New(me instance.Instance) *Health {
	h := &Health{me: me, rpc: grpchealth.NewServer()}
	h.tell()
	return h
}

// GRPC is the same state as grpc.health.v1, under the empty service name. Its
// Watch is what takes an instance out of its clients' choice at once.
func (h *Health) GRPC() grpc_health_v1.HealthServer { return h.rpc }

// Ready says that the servers listen: send requests.
func (h *Health) Ready() { h.set(func() { h.started = true }) }

// Drain says for good that this instance is leaving: send no new requests.
func (h *Health) Drain() { h.set(func() { h.draining = true }) }

// SetNotReady makes an instance not ready, or ready again: the fault switch.
func (h *Health) SetNotReady(sick bool) { h.set(func() { h.sick = sick }) }

func (h *Health) set(change func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
	h.tell()
}

// tell passes the state on to gRPC; h.mu is held, or no one else has h yet.
func (h *Health) tell() {
	switch {
	case h.draining:
		h.rpc.Shutdown() // NOT_SERVING for every service, and deaf to later changes
	case h.started && !h.sick:
		h.rpc.SetServingStatus("", grpc_health_v1.HealthCheckResponse_SERVING)
	default:
		h.rpc.SetServingStatus("", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	}
}

// state is the reason not to be ready; empty when there is none.
func (h *Health) state() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.draining:
		return "draining"
	case !h.started:
		return "starting"
	case h.sick:
		return "made not ready by the fault switch"
	default:
		return ""
	}
}

// check is a question about something this service depends on.
type check struct {
	name string
	ask  func(context.Context) error

	mu   sync.Mutex
	last result
}

type result struct {
	Status string    `json:"status"`
	Time   time.Time `json:"time"`
	Output string    `json:"output,omitempty"`
}

// Check adds a dependency to /health. One that is down is a warning, never a
// failure, and readiness does not ask: if it did, one service that is down
// would take down every service that calls it. Add checks before serving.
func (h *Health) Check(name string, ask func(context.Context) error) {
	h.checks = append(h.checks, &check{name: name, ask: ask})
}

const (
	checkTimeout = time.Second // a checker waits for /health: stay below its patience
	checkEvery   = time.Second // asked more often, the last answer is good enough
)

func (c *check) result() result {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.last.Time) < checkEvery {
		return c.last
	}
	// Not the asker's context: one that leaves must not spoil the answer of the next.
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	c.last = result{Status: "pass"}
	if err := c.ask(ctx); err != nil {
		c.last = result{Status: "warn", Output: err.Error()}
	}
	c.last.Time = time.Now().UTC()
	return c.last
}

// Live answers 200 for as long as the process can answer at all.
func (h *Health) Live(w http.ResponseWriter, _ *http.Request) {
	text(w, http.StatusOK, "live")
}

// IsReady answers 200 when requests are welcome, else 503 and why not.
func (h *Health) IsReady(w http.ResponseWriter, _ *http.Request) {
	if why := h.state(); why != "" {
		text(w, http.StatusServiceUnavailable, why)
		return
	}
	text(w, http.StatusOK, "ready")
}

func text(w http.ResponseWriter, status int, s string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(s + "\n")) // the asker may have left
}

// report is the form of draft-inadarei-api-health-check-06.
type report struct {
	Status   string              `json:"status"`
	Version  string              `json:"version"`
	Service  string              `json:"serviceId"`
	Output   string              `json:"output,omitempty"`
	Instance *instance.Instance  `json:"instance,omitempty"`
	Checks   map[string][]result `json:"checks,omitempty"`
}

// Report answers the whole state as application/health+json: 200 with pass or
// warn, 503 with fail while this instance itself is not ready.
func (h *Health) Report(w http.ResponseWriter, _ *http.Request) {
	rep := report{Status: "pass", Version: h.me.Version, Service: h.me.Service, Checks: h.ask()}
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
	if why := h.state(); why != "" {
		status, rep.Status, rep.Output = http.StatusServiceUnavailable, "fail", why
	}
	w.Header().Set("Content-Type", "application/health+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(rep) // the asker may have left
}

// ask runs all checks side by side.
func (h *Health) ask() map[string][]result {
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
