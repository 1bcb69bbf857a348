package health_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

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

func ask(h http.HandlerFunc) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h(w, httptest.NewRequest(http.MethodGet, "/", nil))
	return w
}

type report struct {
	Status, Version, ServiceID, Output string
	Instance                           instance.Instance
	Checks                             map[string][]struct {
		Status, Output string
		Time           time.Time
	}
}

func reportOf(t *testing.T, h *health.Health) (int, report) {
	t.Helper()
	w := ask(h.Report)
	assert.Equal(t, "application/health+json", w.Header().Get("Content-Type"))
	assert.Equal(t, "no-store", w.Header().Get("Cache-Control"))
	var r report
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &r))
	return w.Code, r
}

// dial serves the health of h over gRPC and returns a client of it.
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

func TestOneStateBehindEveryWayOfAsking(t *testing.T) {
	h := health.New(me)
	h.Details = true
	client := dial(t, h)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	watch, err := client.Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
	require.NoError(t, err)

	steps := []struct {
		name  string
		do    func()
		ready string // what /readyz says; "ready" is 200
		// heard is false where the state stays what it was, so that a watcher hears nothing.
		heard bool
	}{
		{"before the servers listen", func() {}, "starting", true},
		{"the fault switch changes nothing then", func() { h.SetNotReady(true); h.SetNotReady(false) }, "starting", false},
		{"they listen", h.Ready, "ready", true},
		{"made sick", func() { h.SetNotReady(true) }, "made not ready by the fault switch", true},
		{"healed", func() { h.SetNotReady(false) }, "ready", true},
		{"told to go", h.Drain, "draining", true},
		{"there is no way back", func() { h.Ready(); h.SetNotReady(true); h.SetNotReady(false) }, "draining", false},
	}
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) {
			s.do()
			code, status, serving := 503, "fail", grpc_health_v1.HealthCheckResponse_NOT_SERVING
			output := s.ready
			if s.ready == "ready" {
				code, status, serving, output = 200, "pass", grpc_health_v1.HealthCheckResponse_SERVING, ""
			}

			live := ask(h.Live)
			assert.Equal(t, 200, live.Code, "a restart mends none of these")
			assert.Equal(t, "live\n", live.Body.String())

			ready := ask(h.IsReady)
			assert.Equal(t, code, ready.Code)
			assert.Equal(t, s.ready+"\n", ready.Body.String())
			assert.Equal(t, "text/plain; charset=utf-8", ready.Header().Get("Content-Type"))

			got, rep := reportOf(t, h)
			assert.Equal(t, code, got)
			assert.Equal(t, report{Status: status, Version: "v1", ServiceID: "service-b", Output: output, Instance: me}, rep)

			check, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
			require.NoError(t, err)
			assert.Equal(t, serving, check.GetStatus())
			if s.heard {
				change, err := watch.Recv()
				require.NoError(t, err)
				assert.Equal(t, serving, change.GetStatus())
			}
		})
	}
}

func TestADependencyThatIsDownIsAWarning(t *testing.T) {
	h := health.New(me)
	h.Details = true
	h.Ready()
	asked := 0
	h.Check("service-b", func(context.Context) error { asked++; return errors.New("connection refused") })
	h.Check("disk", func(context.Context) error { return nil })

	assert.Equal(t, 200, ask(h.IsReady).Code)
	assert.Equal(t, 200, ask(h.Live).Code)
	assert.Zero(t, asked, "neither readiness nor liveness asks")

	code, rep := reportOf(t, h)
	assert.Equal(t, 200, code)
	assert.Equal(t, "warn", rep.Status)
	require.Len(t, rep.Checks["service-b"], 1)
	assert.Equal(t, "warn", rep.Checks["service-b"][0].Status)
	assert.Equal(t, "connection refused", rep.Checks["service-b"][0].Output)
	assert.WithinDuration(t, time.Now(), rep.Checks["service-b"][0].Time, time.Minute)
	require.Len(t, rep.Checks["disk"], 1)
	assert.Equal(t, "pass", rep.Checks["disk"][0].Status)
	assert.Equal(t, 200, ask(h.IsReady).Code, "nor does a check that failed change readiness")

	h.Drain()
	code, rep = reportOf(t, h)
	assert.Equal(t, 503, code)
	assert.Equal(t, "fail", rep.Status, "not to be ready oneself is more than a warning")
}

// Without Details, /health shows neither where the instance runs nor the error of a
// check, which names addresses; the status is the same.
func TestReport_HidesDetailsByDefault(t *testing.T) {
	h := health.New(me)
	h.Ready()
	h.Check("service-b", func(context.Context) error { return errors.New("dial tcp 10.0.0.7:80: connection refused") })
	code, rep := reportOf(t, h)
	assert.Equal(t, 200, code)
	assert.Equal(t, "warn", rep.Status)
	assert.Equal(t, "warn", rep.Checks["service-b"][0].Status)
	assert.Equal(t, "service-b", rep.ServiceID)
	body := ask(h.Report).Body.String()
	for _, hidden := range []string{"instance", me.Pod, me.Zone, "10.0.0.7"} {
		assert.NotContains(t, body, hidden)
	}
}

func TestAChecksAnswerIsKeptForASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // whose clock is exact
		h := health.New(me)
		h.Ready()
		var asked atomic.Int64
		h.Check("service-b", func(context.Context) error {
			if asked.Add(1) == 1 {
				return errors.New("down")
			}
			return nil
		})
		for _, step := range []struct {
			wait   time.Duration
			asked  int64
			status string
		}{
			{0, 1, "warn"},
			{time.Second - 1, 1, "warn"},
			{1, 2, "pass"},
			{0, 2, "pass"},
		} {
			time.Sleep(step.wait)
			_, rep := reportOf(t, h)
			assert.Equal(t, step.asked, asked.Load())
			assert.Equal(t, step.status, rep.Status)
		}
	})
}

func TestChecksThatHangHoldTheReportForASecondAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := health.New(me)
		h.Details = true
		h.Ready()
		hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		h.Check("one", hang)
		h.Check("two", hang)

		start := time.Now()
		code, rep := reportOf(t, h)
		assert.Equal(t, time.Second, time.Since(start), "they are asked side by side")
		assert.Equal(t, 200, code)
		assert.Equal(t, "warn", rep.Status)
		assert.Equal(t, "context deadline exceeded", rep.Checks["two"][0].Output)
	})
}

func TestManyAskersAtOnceMakeOneQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := health.New(me)
		var asked atomic.Int64
		answer := make(chan struct{})
		h.Check("service-b", func(context.Context) error { asked.Add(1); <-answer; return nil })
		done := make(chan struct{})
		for range 20 {
			go func() { ask(h.Report); done <- struct{}{} }()
		}
		close(answer)
		for range 20 {
			<-done
		}
		assert.EqualValues(t, 1, asked.Load())
	})
}
