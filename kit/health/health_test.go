package health_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"example.com/tandem/kit/health"
	"example.com/tandem/kit/instance"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var me = instance.Instance{Service: "service-b", Version: "v1", Pod: "service-b-7d", Zone: "z1"}

// get sends a GET request to a handler.
func get(h http.HandlerFunc) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h(w, httptest.NewRequest(http.MethodGet, "/", nil))
	return w
}

// report is the response of /health.
type report struct {
	Status, Version, ServiceID, Output string
	Instance                           instance.Instance
	Checks                             map[string][]struct {
		Status, Output string
		Time           time.Time
	}
}

func getHealth(t *testing.T, h *health.Health) (int, report) {
	t.Helper()
	w := get(h.ServeHealth)
	assert.Equal(t, "application/health+json", w.Header().Get("Content-Type"))
	assert.Equal(t, "no-store", w.Header().Get("Cache-Control"))
	var r report
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &r))
	return w.Code, r
}

// dial serves h over gRPC and returns a client.
func dial(t *testing.T, h *health.Health) grpc_health_v1.HealthClient {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(server, h.GRPC())
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, conn.Close())
		server.Stop()
		require.NoError(t, <-served)
	})
	return grpc_health_v1.NewHealthClient(conn)
}

// /livez, /readyz, /health, gRPC and the metric show the same state, through all its changes.
func TestHealth_StatesEverywhere(t *testing.T) {
	h := health.New(me)
	h.Details = true
	metrics := prometheus.NewRegistry()
	h.Register(metrics)
	client := dial(t, h)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	watch, err := client.Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
	require.NoError(t, err)

	steps := []struct {
		name  string
		do    func()
		ready string // the body of /readyz; "ready" comes with status 200
		// notified is false if the gRPC status stays the same, so that watchers get no message.
		notified bool
	}{
		{
			name:     "before the servers listen",
			do:       func() {},
			ready:    "starting",
			notified: true,
		},
		{
			name:  "the fault switch before the servers listen",
			do:    func() { h.SetNotReady(true); h.SetNotReady(false) },
			ready: "starting",
		},
		{
			name:     "the servers listen",
			do:       h.Ready,
			ready:    "ready",
			notified: true,
		},
		{
			name:     "made not ready",
			do:       func() { h.SetNotReady(true) },
			ready:    "made not ready by the fault switch",
			notified: true,
		},
		{
			name:     "ready again",
			do:       func() { h.SetNotReady(false) },
			ready:    "ready",
			notified: true,
		},
		{
			name:     "draining",
			do:       h.Drain,
			ready:    "draining",
			notified: true,
		},
		{
			name:  "draining is final",
			do:    func() { h.Ready(); h.SetNotReady(true); h.SetNotReady(false) },
			ready: "draining",
		},
	}
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) {
			s.do()
			code, status, serving := 503, "fail", grpc_health_v1.HealthCheckResponse_NOT_SERVING
			output := s.ready
			if s.ready == "ready" {
				code, status, serving, output = 200, "pass", grpc_health_v1.HealthCheckResponse_SERVING, ""
			}

			live := get(h.ServeLivez)
			assert.Equal(t, 200, live.Code, "a restart would fix none of these states")
			assert.Equal(t, "live\n", live.Body.String())

			ready := get(h.ServeReadyz)
			assert.Equal(t, code, ready.Code)
			assert.Equal(t, s.ready+"\n", ready.Body.String())
			assert.Equal(t, "text/plain; charset=utf-8", ready.Header().Get("Content-Type"))

			got, rep := getHealth(t, h)
			assert.Equal(t, code, got)
			assert.Equal(t, report{Status: status, Version: "v1", ServiceID: "service-b", Output: output, Instance: me}, rep)

			gauge := "0"
			if code == 200 {
				gauge = "1"
			}
			require.NoError(t, testutil.GatherAndCompare(metrics, strings.NewReader("# HELP health_ready 1 while this instance is ready; 0 while it starts, drains, or is made not ready.\n# TYPE health_ready gauge\nhealth_ready "+gauge+"\n")))

			check, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
			require.NoError(t, err)
			assert.Equal(t, serving, check.GetStatus())
			if s.notified {
				change, err := watch.Recv()
				require.NoError(t, err)
				assert.Equal(t, serving, change.GetStatus())
			}
		})
	}
}

// A failed check is a warning in /health, and does not change readiness or liveness.
func TestCheck_FailureIsWarning(t *testing.T) {
	h := health.New(me)
	h.Details = true
	h.Ready()
	runs := 0
	h.Check("service-b", func(context.Context) error { runs++; return errors.New("connection refused") })
	h.Check("disk", func(context.Context) error { return nil })

	assert.Equal(t, 200, get(h.ServeReadyz).Code)
	assert.Equal(t, 200, get(h.ServeLivez).Code)
	assert.Zero(t, runs, "readiness and liveness must not run checks")

	code, rep := getHealth(t, h)
	assert.Equal(t, 200, code)
	assert.Equal(t, "warn", rep.Status)
	require.Len(t, rep.Checks["service-b"], 1)
	assert.Equal(t, "warn", rep.Checks["service-b"][0].Status)
	assert.Equal(t, "connection refused", rep.Checks["service-b"][0].Output)
	assert.WithinDuration(t, time.Now(), rep.Checks["service-b"][0].Time, time.Minute)
	require.Len(t, rep.Checks["disk"], 1)
	assert.Equal(t, "pass", rep.Checks["disk"][0].Status)
	assert.Equal(t, 200, get(h.ServeReadyz).Code, "a failed check must not change readiness")

	h.Drain()
	code, rep = getHealth(t, h)
	assert.Equal(t, 503, code)
	assert.Equal(t, "fail", rep.Status, "fail must take precedence over warn")
}

// Without Details, /health shows neither where the instance runs nor the errors of
// checks, which contain addresses. The status is the same.
func TestServeHealth_HidesDetailsByDefault(t *testing.T) {
	h := health.New(me)
	h.Ready()
	h.Check("service-b", func(context.Context) error { return errors.New("dial tcp 10.0.0.7:80: connection refused") })
	code, rep := getHealth(t, h)
	assert.Equal(t, 200, code)
	assert.Equal(t, "warn", rep.Status)
	assert.Equal(t, "warn", rep.Checks["service-b"][0].Status)
	assert.Equal(t, "service-b", rep.ServiceID)
	body := get(h.ServeHealth).Body.String()
	for _, hidden := range []string{"instance", me.Pod, me.Zone, "10.0.0.7"} {
		assert.NotContains(t, body, hidden)
	}
}

// AwaitRequired returns when each required check has passed once. Until then /readyz and the
// log say what is missing. A failure later is a warning.
func TestRequire_PassesOnceBeforeReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		h := health.New(me)
		h.Details = true
		wait := func(d time.Duration) { time.Sleep(d); synctest.Wait() }
		var failure atomic.Pointer[error]
		fail := func(err error) { failure.Store(&err) }
		down := errors.New("status 503")
		fail(down)
		h.Require("keys", func(context.Context) (string, error) { return "2 keys", *failure.Load() })
		h.Require("token", func(context.Context) (string, error) { return "", nil })
		awaited := make(chan error, 1)
		go func() { awaited <- h.AwaitRequired(t.Context(), slog.New(slog.NewTextHandler(&log, nil))) }()
		wait(time.Minute)
		assert.Equal(t, "starting: waiting for keys\n", get(h.ServeReadyz).Body.String())
		code, rep := getHealth(t, h)
		assert.Equal(t, 503, code)
		assert.Equal(t, "warn", rep.Checks["keys"][0].Status)
		assert.Equal(t, 1, strings.Count(log.String(), `level=WARN msg="not ready yet" missing=keys reason="status 503"`), log.String())
		fail(errors.New("no such host"))
		wait(2 * time.Second)
		assert.Contains(t, log.String(), "no such host")

		fail(nil)
		require.NoError(t, <-awaited)
		h.Ready()
		fail(down)
		wait(time.Minute)
		code, rep = getHealth(t, h)
		assert.Equal(t, 200, code)
		assert.Equal(t, "warn", rep.Status)
		assert.Equal(t, 200, get(h.ServeReadyz).Code)
	})
}

func TestCheck_ResultIsCachedForASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // with an exact clock
		h := health.New(me)
		h.Ready()
		var runs atomic.Int64
		h.Check("service-b", func(context.Context) error {
			if runs.Add(1) == 1 {
				return errors.New("down")
			}
			return nil
		})
		for _, step := range []struct {
			wait   time.Duration
			runs   int64
			status string
		}{
			{wait: 0, runs: 1, status: "warn"},
			{wait: time.Second - 1, runs: 1, status: "warn"},
			{wait: 1, runs: 2, status: "pass"},
			{wait: 0, runs: 2, status: "pass"},
		} {
			time.Sleep(step.wait)
			_, rep := getHealth(t, h)
			assert.Equal(t, step.runs, runs.Load())
			assert.Equal(t, step.status, rep.Status)
		}
	})
}

// Hanging checks delay /health by one second in all: they run at the same time.
func TestCheck_HangingEndsAfterASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := health.New(me)
		h.Details = true
		h.Ready()
		hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		h.Check("one", hang)
		h.Check("two", hang)

		start := time.Now()
		code, rep := getHealth(t, h)
		assert.Equal(t, time.Second, time.Since(start), "the checks must run at the same time")
		assert.Equal(t, 200, code)
		assert.Equal(t, "warn", rep.Status)
		assert.Equal(t, "context deadline exceeded", rep.Checks["two"][0].Output)
	})
}

// Concurrent requests to /health share one run of each check.
func TestCheck_ConcurrentRequestsShareARun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := health.New(me)
		var runs atomic.Int64
		release := make(chan struct{})
		h.Check("service-b", func(context.Context) error { runs.Add(1); <-release; return nil })
		done := make(chan struct{})
		for range 20 {
			go func() { get(h.ServeHealth); done <- struct{}{} }()
		}
		close(release)
		for range 20 {
			<-done
		}
		assert.EqualValues(t, 1, runs.Load())
	})
}
