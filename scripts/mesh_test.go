package scripts_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Istio is installed after the custom resources of Gateway API, for which it looks when it starts, and after its images
// are on the nodes. The verb returns when both of its parts run.
func TestIstioUp_InstallsInOrder(t *testing.T) {
	t.Setenv("ISTIO_IMAGES", "pilot:1 proxyv2:1")
	output, calls, ok := runWithFakes(t, "mesh.sh", "istio-up", "none")
	require.True(t, ok, output)
	at := 0
	for _, call := range []string{
		"kubectl --context kind-tandem apply --server-side --force-conflicts --filename /modules/gateway-api/crd.yaml",
		"kind load docker-image --name tandem pilot:1 proxyv2:1",
		"istioctl install --context kind-tandem",
		"rollout status deployment/istiod",
		"rollout status daemonset/istio-cni-node",
		"gatewayclass/istio",
	} {
		next := strings.Index(calls[at:], call)
		require.GreaterOrEqual(t, next, 0, "%s is not called after the calls before it:\n%s", call, calls)
		at += next
	}
}

// When a program fails, nothing after it is called, and the verb fails.
func TestIstioUp_StopsAtFailure(t *testing.T) {
	for name, tc := range map[string]struct{ fail, after string }{
		"no cluster":           {"*'get nodes'*", "apply"},
		"the custom resources": {"*' apply '*", "istioctl install"},
		"istioctl":             {"'istioctl install'*", "rollout status"},
		"istiod":               {"*deployment/istiod*", "gatewayclass"},
	} {
		t.Run(name, func(t *testing.T) {
			output, calls, ok := runWithFakes(t, "mesh.sh", "istio-up", tc.fail)
			assert.False(t, ok, "it reports success:\n%s", output)
			assert.NotContains(t, calls, tc.after)
		})
	}
}
