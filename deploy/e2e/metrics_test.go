package e2e

import (
	"net/http"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
)

// Names of metrics.
const (
	residentMemory = "process_resident_memory_bytes"
	goroutines     = "go_goroutines"
)

// metric is a metric of /metrics. The value of a histogram is its number of observations.
type metric struct {
	name   string
	labels map[string]string
	value  float64
}

// scrape reads the metrics of a pod. admin is the URL of its admin port.
func scrape(t *testing.T, admin string) []metric {
	t.Helper()
	resp, err := http.Get(admin + "/metrics")
	require.NoError(t, err, "scrape a pod; has its container been restarted?")
	defer resp.Body.Close() //nolint:errcheck // read to its end
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	require.NoError(t, err)
	var out []metric
	for name, family := range families {
		for _, m := range family.GetMetric() {
			value := m.GetCounter().GetValue()
			switch family.GetType() {
			case dto.MetricType_GAUGE:
				value = m.GetGauge().GetValue()
			case dto.MetricType_HISTOGRAM:
				value = float64(m.GetHistogram().GetSampleCount())
			default:
			}
			labels := map[string]string{}
			for _, pair := range m.GetLabel() {
				labels[pair.GetName()] = pair.GetValue()
			}
			out = append(out, metric{name, labels, value})
		}
	}
	return out
}

// gauge returns the value of a metric of a pod.
func gauge(t *testing.T, admin, name string) float64 {
	t.Helper()
	for _, m := range scrape(t, admin) {
		if m.name == name {
			return m.value
		}
	}
	require.Fail(t, "no such metric", name)
	return 0
}
