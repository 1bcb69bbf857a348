package httpserver_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/httpserver"
	"example.com/tandem/kit/kittest"
)

func serveAdmin(t *testing.T) *served {
	t.Helper()
	log := &kittest.Buffer{}
	tel := kittest.Telemetry(t, log)
	s := &served{Server: httpserver.NewAdmin("ADMIN_ADDR", "127.0.0.1:0", tel), Tel: tel, Log: log}
	s.start(t)
	return s
}

func serveDebug(t *testing.T, faults *fault.Switch, pprof bool) *served {
	t.Helper()
	s := &served{Server: httpserver.NewDebug("DEBUG_ADDR", "127.0.0.1:0", kittest.Telemetry(t, io.Discard), faults, pprof)}
	s.start(t)
	return s
}

func TestAdmin_ServesMetrics(t *testing.T) {
	t.Parallel()
	s := serveAdmin(t)
	resp, body := get(t, client(t), s.URL+"/metrics")
	assert.Equal(t, 200, resp.StatusCode)
	assert.True(t, strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain; version=0.0.4"), resp.Header)
	for _, want := range []string{"\nbuild_info{service=\"test\",version=\"test\"} 1\n", "\ngo_goroutines ", "\nprocess_start_time_seconds "} {
		assert.Contains(t, body, want)
	}
	resp, body = do(t, client(t), http.MethodHead, s.URL+"/metrics", nil)
	assert.Equal(t, 200, resp.StatusCode)
	assert.Empty(t, body)
}

// The admin port is open to Prometheus, so it serves metrics and nothing else.
func TestAdmin_ServesNothingElse(t *testing.T) {
	t.Parallel()
	s := serveAdmin(t)
	resp, body := do(t, client(t), http.MethodPost, s.URL+"/metrics", nil)
	assertProblem(t, resp, body, 405)
	assert.Equal(t, "GET, HEAD", resp.Header.Get("Allow"))
	for _, path := range []string{"/api", "/faults", "/debug/pprof/"} {
		resp, body = get(t, client(t), s.URL+path)
		assertProblem(t, resp, body, 404)
	}
}

func TestDebug_ServesFaultsOnlyIfOn(t *testing.T) {
	t.Parallel()
	set := func(s *served) (*http.Response, string) {
		return do(t, client(t), http.MethodPut, s.URL+"/faults", strings.NewReader(`{"errorRate":1}`))
	}
	resp, body := set(serveDebug(t, nil, true))
	assertProblem(t, resp, body, 404)

	faults := fault.NewSwitch(true, func(bool) {})
	resp, body = set(serveDebug(t, faults, false))
	assert.Equal(t, 200, resp.StatusCode)
	assert.JSONEq(t, `{"latency":"0s","cpu":"0s","errorRate":1,"notReady":false}`, body)
	require.ErrorIs(t, faults.Inject(t.Context()), fault.ErrInjected)
}

func TestDebug_ServesProfilesOnlyIfOn(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/vars"} {
		resp, body := get(t, client(t), serveDebug(t, nil, false).URL+path)
		assertProblem(t, resp, body, 404)
		resp, _ = get(t, client(t), serveDebug(t, nil, true).URL+path)
		assert.Equal(t, 200, resp.StatusCode, path)
	}
}
