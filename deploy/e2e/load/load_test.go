package load

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// serviceA responds as service-a does: calls over HTTP succeed, calls over gRPC fail.
func serviceA(t *testing.T) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/api/data", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("via") == "grpc" {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write([]byte(`{"class":"unavailable"}`))
		}
	})
	mux.HandleFunc("/api/spread", func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, `{"n":%s,"attempts":6,"pods":{"b-1":3,"b-2":1},"errors":{"timeout":1}}`, r.URL.Query().Get("n"))
	})
	mux.HandleFunc("/api/stream", func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte("retry: 1000\n\nevent: data\ndata: {\"data\":{\"servedBy\":{\"pod\":\"b-1\"}}}\n\nevent: problem\ndata: {}\n\n"))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL
}

func start(t *testing.T, spec Spec) *Generator {
	t.Helper()
	g := Start(serviceA(t), spec)
	t.Cleanup(g.Stop)
	return g
}

func TestGenerator_RecordsEachCall(t *testing.T) {
	g := start(t, Spec{Transports: []string{"http", "grpc"}, Callers: 2, Timeout: 10 * time.Second})
	require.Eventually(t, func() bool {
		return g.Figures("http", "", 0, g.Elapsed()).Calls > 10 && g.Figures("grpc", "", 0, g.Elapsed()).Calls > 1
	}, 10*time.Second, time.Millisecond)
	g.Stop()
	end := g.Elapsed()
	f := g.Figures("http", "all", 0, end)
	assert.Equal(t, "all", f.During)
	assert.Empty(t, f.Failed)
	assert.Positive(t, f.SucceededPerSecond)
	assert.LessOrEqual(t, f.P50, f.P99)
	assert.LessOrEqual(t, f.P99, f.Max)
	assert.Zero(t, g.LastFailure("http", 0, end))

	f = g.Figures("grpc", "", 0, end)
	assert.Equal(t, map[string]int{"unavailable (503)": f.Calls}, f.Failed)
	assert.Zero(t, f.SucceededPerSecond)
	assert.Positive(t, g.LastFailure("grpc", 0, end))
	assert.Contains(t, g.Examples()["unavailable (503)"], `{"class":"unavailable"}`)
}

func TestGenerator_SkipsIfCallersAreBusy(t *testing.T) {
	blocked := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	t.Cleanup(blocked.Close)
	g := Start(blocked.URL, Spec{Transports: []string{"http"}, Callers: 1, Rate: 1000, Timeout: 100 * time.Millisecond})
	t.Cleanup(g.Stop)
	require.Eventually(t, func() bool { return g.Skipped() > 0 && len(g.Examples()) > 0 }, 10*time.Second, time.Millisecond)
	assert.Contains(t, g.Examples(), NoResponse)
}

func TestGenerator_CountsTheCallsOfBatches(t *testing.T) {
	g := start(t, Spec{Transports: []string{"http"}, Callers: 1, Batch: 5, Pause: time.Millisecond})
	require.Eventually(t, func() bool { return len(g.FirstServed("http", 0)) == 2 }, 10*time.Second, time.Millisecond)
	g.Stop()
	requests := g.Requests("http", 0, g.Elapsed())
	f := g.Figures("http", "", 0, g.Elapsed())
	assert.Equal(t, 5*len(requests), f.Calls)
	assert.Equal(t, map[string]int{"timeout": len(requests)}, f.Failed)
	assert.Equal(t, len(requests), g.Retries("http"))
	last := requests[len(requests)-1].End
	assert.Equal(t, map[string]time.Duration{"b-1": last, "b-2": last}, g.LastServed("http"))
	assert.Equal(t, requests[0].End, g.FirstServed("http", 0)["b-1"])
	assert.Empty(t, g.FirstServed("http", last+1))
}

func TestStream_CountsEventsAndDisconnects(t *testing.T) {
	url := serviceA(t)
	s := Follow(url + "/api/stream")
	require.Eventually(t, func() bool { return s.Stats().Problems == 1 }, 10*time.Second, time.Millisecond)
	s.Stop()
	stats := s.Stats()
	assert.Equal(t, "b-1", stats.Pod)
	assert.Equal(t, 1, stats.Events)
	assert.Equal(t, 1, stats.Disconnects)
}
