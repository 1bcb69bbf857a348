package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/deploy/e2e/load"
)

// spreadCalls is the number of calls by which tests see how calls spread over pods.
const spreadCalls = 300

// gRPC has one connection. Through the virtual IP it leads to one pod.
func TestGRPC_VirtualIPStaysOnOnePod(t *testing.T) {
	c := connect(t)
	defer c.saveOnFailure(t)
	other := c.createNamespace(t)
	c.allowIngressFrom(t, other)
	target := fmt.Sprintf("dns:///%s%s:%d", serviceB, qualified, grpcPort)
	const pod = "caller"
	c.startCaller(t, other, pod, pod, "SERVICE_B_GRPC_TARGET="+target)
	c.requireReachable(t, other, pod, grpcURL(serviceB+qualified))
	got, err := load.GetSpread(c.forward(t, other, pod, httpPort), "grpc", spreadCalls)
	require.NoError(t, err)
	assert.Empty(t, got.Errors)
	assert.Len(t, got.Pods, 1, "one connection, one pod")
	t.Logf("through %s, of %d pods: %v", target, len(c.readyPods(t, serviceB)), got.Pods)
}

// Through the headless name, each pod of service-a spreads its calls evenly over all
// pods of service-b.
func TestGRPC_HeadlessNameSpreadsCalls(t *testing.T) {
	c := connect(t)
	defer c.saveOnFailure(t)
	pods := sortedKeys(c.readyPods(t, serviceB))
	fair := float64(spreadCalls) / float64(len(pods))
	for _, a := range sortedKeys(c.readyPods(t, serviceA)) {
		url := c.forward(t, namespace, a, httpPort)
		start := time.Now()
		var got load.Spread
		// The pods may have changed since this pod's last DNS lookup.
		eventually(t, c.discoveryTimeout(t), "gRPC does not spread", func(is *assert.CollectT) {
			var err error
			got, err = load.GetSpread(url, "grpc", spreadCalls)
			require.NoError(is, err)
			assert.Empty(is, got.Errors)
			assert.ElementsMatch(is, pods, sortedKeys(got.Pods))
			for pod, n := range got.Pods {
				assert.InDelta(is, fair, n, fair*0.25, pod)
			}
		})
		t.Logf("from %s: %v after %s", a, got.Pods, time.Since(start).Round(100*time.Millisecond))
	}
}

// Over HTTP, calls reach all pods, because there are several connections, each to one
// pod. How evenly is random, so the test requires no share.
func TestHTTP_ReachesAllPods(t *testing.T) {
	c := connect(t)
	defer c.saveOnFailure(t)
	pods := sortedKeys(c.readyPods(t, serviceB))
	reached := map[string]int{}
	for _, a := range sortedKeys(c.readyPods(t, serviceA)) {
		got, err := load.GetSpread(c.forward(t, namespace, a, httpPort), "http", spreadCalls)
		require.NoError(t, err)
		assert.Empty(t, got.Errors)
		assert.Greater(t, len(got.Pods), 1, "%s stays on one pod", a)
		for pod, n := range got.Pods {
			reached[pod] += n
		}
		t.Logf("from %s: %v", a, got.Pods)
	}
	assert.ElementsMatch(t, pods, sortedKeys(reached))
}
