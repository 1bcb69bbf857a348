package e2e

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// debugPort is the port of a pod's fault switch. It listens on loopback only, which
// port-forward reaches.
const debugPort = 8082

// debug makes a pod's debug port reachable from here. The API server's proxy
// would not do: policies do not let it in.
func (c *cluster) debug(t *testing.T, pod string) string {
	t.Helper()
	return c.forward(t, namespace, pod, debugPort)
}

// throw uses a pod's fault switch, and returns the fault that is then set: GET
// reads it, PUT sets one, DELETE heals.
func throw(t *testing.T, debug, method, fault string) string {
	t.Helper()
	// Not the test's own context: that one has ended when things are put back.
	req, err := http.NewRequestWithContext(context.Background(), method, debug+"/faults", strings.NewReader(fault))
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close() //nolint:errcheck // it is read whole
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, "the fault switch says %s; is FAULTS on?", body)
	return string(body)
}

// sicken sets a fault until the test ends, and then the one before.
func sicken(t *testing.T, debug, fault string) {
	t.Helper()
	before := throw(t, debug, http.MethodGet, "")
	throw(t, debug, http.MethodPut, fault)
	t.Cleanup(func() { throw(t, debug, http.MethodPut, before) }) // the port-forward, made earlier, is closed later
}

func TestASickPodIsLeftOutUntilItIsHealed(t *testing.T) {
	c := connect(t)
	defer c.keep(t)
	pods := names(c.serving(t, serviceB))
	sick, patience := pods[0], c.maxConnectionAge(t)+35*time.Second
	debug := c.debug(t, sick)
	load := c.load(t, steady)
	load.awaitAll(t, patience, pods)

	start := time.Now()
	sicken(t, debug, `{"notReady":true}`)
	for _, service := range []string{serviceB, headless} {
		eventually(t, time.Minute, "it stays among the endpoints of "+service, func(is *assert.CollectT) {
			assert.NotContains(is, c.endpoints(is, service), sick)
		})
		t.Logf("out of the endpoints of %s after %s", service, time.Since(start).Round(100*time.Millisecond))
	}
	// Quiet for 5 s is left out. HTTP connections that are open go on to their
	// pod, which still answers, until they are old.
	for _, via := range []string{"grpc", "http"} {
		eventually(t, patience, "it still gets calls over "+via, func(is *assert.CollectT) {
			assert.Greater(is, time.Since(load.now(via).Last[sick]), 5*time.Second, via)
		})
		last := max(0, load.now(via).Last[sick].Sub(start)) // a call of before may have been the last
		t.Logf("the last call over %s came %s after the fault", via, last.Round(100*time.Millisecond))
	}
	// The health check is what takes it out of gRPC clients' choice, long before DNS does.
	assert.Less(t, load.now("grpc").Last[sick].Sub(start), 5*time.Second)

	load.forget(sick)
	healed := time.Now()
	throw(t, debug, http.MethodDelete, "")
	for _, service := range []string{serviceB, headless} {
		eventually(t, time.Minute, "it does not come back to "+service, func(is *assert.CollectT) {
			assert.Contains(is, c.endpoints(is, service), sick)
		})
		t.Logf("back among the endpoints of %s %s after it was healed", service, time.Since(healed).Round(100*time.Millisecond))
	}
	load.awaitAll(t, patience, []string{sick})
	for _, via := range transports {
		t.Logf("the first call over %s came %s after it was healed", via, load.now(via).First[sick].Sub(healed).Round(100*time.Millisecond))
	}
	load.wantNoneFailed(t)
}
