package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"example.com/tandem/deploy/e2e/load"
)

// With overlays/kind-cross-namespace, service-b runs in another namespace and service-a
// reaches all its pods.
func TestCrossNamespace_ReachesAllPods(t *testing.T) {
	const otherNamespace = "tandem-b"
	c := connect(t)
	defer c.saveOnFailure(t)
	c.requireNoMesh(t)
	original := c.render(t, "kind")
	changed := c.render(t, "kind-cross-namespace")

	t.Cleanup(func() { c.settle(t) })
	restore(t, "overlay kind", func(ctx context.Context) error {
		if _, err := c.apply(ctx, original); err != nil {
			return err
		}
		return c.deleteNamespace(ctx, otherNamespace)
	})
	_, err := c.apply(t.Context(), changed)
	require.NoError(t, err)
	c.settle(t) // service-a restarts with the other names
	pods := map[string]corev1.Pod{}
	eventually(t, 3*time.Minute, "service-b does not run in "+otherNamespace, func(is *assert.CollectT) {
		list, err := c.CoreV1().Pods(otherNamespace).List(context.Background(), metav1.ListOptions{LabelSelector: nameLabel + "=" + serviceB})
		require.NoError(is, err)
		assert.NotEmpty(is, list.Items)
		for _, p := range list.Items {
			assert.NotZero(is, readySince(p), p.Name)
			pods[p.Name] = p
		}
	})
	for _, via := range transports {
		var got load.Spread
		eventually(t, c.discoveryTimeout(t), "not every pod of "+otherNamespace+" gets calls over "+via, func(is *assert.CollectT) {
			var err error
			got, err = load.GetSpread(c.url, via, spreadCalls)
			require.NoError(is, err)
			assert.Empty(is, got.Errors)
			assert.ElementsMatch(is, sortedKeys(pods), sortedKeys(got.Pods))
		})
		t.Logf("%s: %v", via, got.Pods)
	}
}
