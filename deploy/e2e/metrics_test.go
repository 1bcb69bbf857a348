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

// metric is a counter or a gauge of /metrics.
type metric struct {
	name   string
	labels map[string]string
	value  float64
}

// scrape reads the counters and gauges of a pod. admin is the URL of its admin port.
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
			if family.GetType() == dto.MetricType_GAUGE {
				value = m.GetGauge().GetValue()
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
