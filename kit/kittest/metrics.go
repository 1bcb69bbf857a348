package kittest

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/telemetry"
)

// Scrape returns the metrics in Prometheus's text format. The test fails if a metric
// breaks Prometheus's naming conventions.
func Scrape(t testing.TB, tel *telemetry.Telemetry) string {
	t.Helper()
	problems, err := testutil.GatherAndLint(tel.Metrics)
	require.NoError(t, err)
	assert.Empty(t, problems)
	w := httptest.NewRecorder()
	promhttp.HandlerFor(tel.Metrics, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return w.Body.String()
}
