package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const calls = 300

func TestGRPCThroughTheVirtualIPStaysOnOnePod(t *testing.T) {
	c := connect(t)
	defer c.keep(t)
	elsewhere := c.otherNamespace(t)
	c.admit(t, elsewhere)
	target := "dns:///" + serviceB + qualified + ":9090"
	pod := c.caller(t, elsewhere, "caller", map[string]string{nameLabel: "caller"}, "SERVICE_B_GRPC_TARGET="+target)
	c.mayAsk(t, elsewhere, pod, "grpc://"+serviceB+qualified+":9090")
	got, err := spread(c.forward(t, elsewhere, pod, 8080), "grpc", calls)
	require.NoError(t, err)
	assert.Empty(t, got.Errors)
	assert.Len(t, got.Pods, 1, "one connection, one pod")
	t.Logf("through %s, of %d pods: %v", target, len(c.serving(t, serviceB)), got.Pods)
}

func TestGRPCThroughTheHeadlessNameSpreadsOverAllPods(t *testing.T) {
	c := connect(t)
	defer c.keep(t)
	pods := names(c.serving(t, serviceB))
	fair := float64(calls) / float64(len(pods))
	for _, a := range names(c.serving(t, serviceA)) {
		url := c.forward(t, namespace, a, 8080)
		start := time.Now()
		var got counts
		// The pods may have changed since this service-a last asked DNS.
		eventually(t, c.maxConnectionAge(t)+35*time.Second, "gRPC does not spread", func(is *assert.CollectT) {
			var err error
			got, err = spread(url, "grpc", calls)
			require.NoError(is, err)
			assert.Empty(is, got.Errors)
			assert.ElementsMatch(is, pods, names(got.Pods))
			for pod, n := range got.Pods {
				assert.InDelta(is, fair, n, fair*0.25, pod)
			}
		})
		t.Logf("from %s: %v after %s", a, got.Pods, time.Since(start).Round(100*time.Millisecond))
	}
}

// A connection stays on its pod, so HTTP spreads by having several. How evenly
// is chance, so no share is claimed.
func TestHTTPSpreadsOverAllPods(t *testing.T) {
	c := connect(t)
	defer c.keep(t)
	pods := names(c.serving(t, serviceB))
	reached := map[string]int{}
	for _, a := range names(c.serving(t, serviceA)) {
		got, err := spread(c.forward(t, namespace, a, 8080), "http", calls)
		require.NoError(t, err)
		assert.Empty(t, got.Errors)
		assert.Greater(t, len(got.Pods), 1, "%s stays on one pod", a)
		for pod, n := range got.Pods {
			reached[pod] += n
		}
		t.Logf("from %s: %v", a, got.Pods)
	}
	assert.ElementsMatch(t, pods, names(reached))
}
