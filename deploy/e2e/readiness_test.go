package e2e

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// A pod that is not ready gets no calls over either transport, and gets them again
// when it is ready. No call fails.
func TestReadiness_UnreadyPodGetsNoCalls(t *testing.T) {
	c := connect(t)
	defer c.saveOnFailure(t)
	pods := sortedKeys(c.readyPods(t, serviceB))
	unready, within := pods[0], c.discoveryTimeout(t)
	faultSwitch := c.forwardFaultSwitch(t, unready)
	g := c.startLoad(t, steadyLoad)
	awaitPods(t, g, 0, within, pods)

	failed := g.Elapsed()
	injectFault(t, faultSwitch, `{"notReady":true}`)
	for _, service := range []string{serviceB, headless} {
		eventually(t, time.Minute, "the unready pod remains an endpoint of "+service, func(is *assert.CollectT) {
			assert.NotContains(is, c.endpoints(is, service), unready)
		})
		t.Logf("removed from the endpoints of %s after %s", service, (g.Elapsed() - failed).Round(100*time.Millisecond))
	}
	// 5 s without a call count as none. Open HTTP connections are used until they reach
	// their maximum age: the pod still responds.
	for _, via := range []string{"grpc", "http"} {
		eventually(t, within, "the unready pod still gets calls over "+via, func(is *assert.CollectT) {
			assert.Greater(is, g.Elapsed()-g.LastServed(via)[unready], 5*time.Second, via)
		})
		last := max(0, g.LastServed(via)[unready]-failed) // the last call may have been before the fault
		t.Logf("the last call over %s came %s after the fault", via, last.Round(100*time.Millisecond))
	}
	// gRPC clients notice by the health check, long before DNS changes.
	assert.Less(t, g.LastServed("grpc")[unready]-failed, 5*time.Second)

	ready := g.Elapsed()
	requestFault(t, faultSwitch, http.MethodDelete, "")
	for _, service := range []string{serviceB, headless} {
		eventually(t, time.Minute, "the ready pod does not become an endpoint of "+service, func(is *assert.CollectT) {
			assert.Contains(is, c.endpoints(is, service), unready)
		})
		t.Logf("an endpoint of %s again after %s", service, (g.Elapsed() - ready).Round(100*time.Millisecond))
	}
	awaitPods(t, g, ready, within, []string{unready})
	for _, via := range transports {
		t.Logf("the first call over %s came %s after the fault was removed", via, (g.FirstServed(via, ready)[unready] - ready).Round(100*time.Millisecond))
	}
	requireNoFailedCall(t, g)
}
