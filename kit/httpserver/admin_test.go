package httpserver_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/httpserver"
	"example.com/tandem/kit/kittest"
)

func serveAdmin(t *testing.T, o httpserver.AdminOptions) *served {
	t.Helper()
	log := &kittest.Buffer{}
	o.Name, o.Addr, o.Telemetry = "ADMIN_ADDR", "127.0.0.1:0", kittest.Telemetry(t, log)
	s := &served{Server: httpserver.NewAdmin(o), Tel: o.Telemetry, Log: log}
	s.start(t)
	return s
}

func TestAdminServesMetrics(t *testing.T) {
	t.Parallel()
	s := serveAdmin(t, httpserver.AdminOptions{})
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

func TestFaultsAreInjectedOnlyWhereTheyAreAllowed(t *testing.T) {
	t.Parallel()
	set := func(s *served) (*http.Response, string) {
		return do(t, client(t), http.MethodPut, s.URL+"/faults", strings.NewReader(`{"errorRate":1}`))
	}
	resp, body := set(serveAdmin(t, httpserver.AdminOptions{}))
	p := assertProblem(t, resp, body, 404)
	assert.Contains(t, p.Detail, "FAULTS=on")

	faults := fault.NewSwitch(true, func(bool) {})
	resp, body = set(serveAdmin(t, httpserver.AdminOptions{Faults: faults}))
	assert.Equal(t, 200, resp.StatusCode)
	assert.JSONEq(t, `{"latency":"0s","cpu":"0s","errorRate":1,"notReady":false}`, body)
	require.ErrorIs(t, faults.Strike(t.Context()), fault.ErrInjected)
}

func TestProfilesAreServedOnlyWhereTheyAreSwitchedOn(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/vars"} {
		resp, body := get(t, client(t), serveAdmin(t, httpserver.AdminOptions{}).URL+path)
		assertProblem(t, resp, body, 404)
		resp, _ = get(t, client(t), serveAdmin(t, httpserver.AdminOptions{Pprof: true}).URL+path)
		assert.Equal(t, 200, resp.StatusCode, path)
	}
}

func TestAdminsErrorsAreProblemsToo(t *testing.T) {
	t.Parallel()
	s := serveAdmin(t, httpserver.AdminOptions{})
	resp, body := do(t, client(t), http.MethodPost, s.URL+"/metrics", nil)
	assertProblem(t, resp, body, 405)
	assert.Equal(t, "GET, HEAD", resp.Header.Get("Allow"))
	resp, body = get(t, client(t), s.URL+"/api")
	assertProblem(t, resp, body, 404)
}
