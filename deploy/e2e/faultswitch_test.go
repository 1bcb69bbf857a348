package e2e

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The page sets a fault through service-a, on the pod that it names and on no other, and
// removes it. The policies of the network and of a mesh let service-a do so.
func TestFaults_SetThroughServiceA(t *testing.T) {
	const unset, fault = `"latency":"0s"`, `"latency":"5ms"`
	c := connect(t)
	defer c.saveOnFailure(t)
	switches := map[string]string{}
	for pod := range c.readyPods(t, serviceB) {
		switches[pod] = c.forwardFaultSwitch(t, pod)
		injectFault(t, switches[pod], "{}")
	}
	a := c.forward(t, namespace, firstOf(c.readyPods(t, serviceA)).Name, httpPort)
	for named := range switches {
		status, body := changeFault(t, a, http.MethodPut, named, "{"+fault+"}")
		require.Equal(t, http.StatusOK, status, body)
		for pod, url := range switches {
			want := unset
			if pod == named {
				want = fault
			}
			require.Contains(t, requestFault(t, url, http.MethodGet, ""), want, "the fault of %s after one was set on %s", pod, named)
		}
		status, body = changeFault(t, a, http.MethodDelete, named, "")
		require.Equal(t, http.StatusOK, status, body)
		require.Contains(t, requestFault(t, switches[named], http.MethodGet, ""), unset)
	}
	t.Logf("set and removed on %d pods of service-b", len(switches))
}

// changeFault requests a change of a pod's fault from service-a, as the page does.
func changeFault(t *testing.T, serviceA, method, pod, fault string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, serviceA+"/api/faults/"+pod, strings.NewReader(fault))
	require.NoError(t, err)
	req.Header.Set("X-Tandem", "1")
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close() //nolint:errcheck // read to its end
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(text)
}

// forwardFaultSwitch returns the URL of a pod's fault switch. The API server's proxy
// would not reach it, as it listens on loopback only.
func (c *cluster) forwardFaultSwitch(t *testing.T, pod string) string {
	t.Helper()
	return c.forward(t, namespace, pod, faultPort)
}

// injectFault sets a fault, and restores the previous one at the end of the test.
func injectFault(t *testing.T, url, fault string) {
	t.Helper()
	before := requestFault(t, url, http.MethodGet, "")
	requestFault(t, url, http.MethodPut, fault)
	t.Cleanup(func() { requestFault(t, url, http.MethodPut, before) }) // before the cleanup of the port-forward
}

// requestFault sends a request to a fault switch and returns the fault that is then
// set. GET reads it, PUT sets one, DELETE removes it.
func requestFault(t *testing.T, url, method, fault string) string {
	t.Helper()
	// In a cleanup, t.Context() has ended.
	req, err := http.NewRequestWithContext(context.Background(), method, url+"/faults", strings.NewReader(fault))
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close() //nolint:errcheck // read to its end
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, "the fault switch responds %s; is FAULTS on?", body)
	return string(body)
}
