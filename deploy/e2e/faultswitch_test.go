package e2e

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

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
