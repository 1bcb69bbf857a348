package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Deploys overlays/kind-cross-namespace beside what runs, and kind again.
func TestServiceAReachesAServiceBInItsOwnNamespace(t *testing.T) {
	const otherTeams = "tandem-b"
	c := connect(t)
	defer c.keep(t)
	here, _ := c.render(t, "kind")
	there, _ := c.render(t, "kind-cross-namespace")

	t.Cleanup(func() { c.settle(t) })
	restore(t, "overlay kind", func(ctx context.Context) error {
		if _, err := c.apply(ctx, here); err != nil {
			return err
		}
		return c.deleteNamespace(ctx, otherTeams)
	})
	_, err := c.apply(t.Context(), there)
	require.NoError(t, err)
	c.settle(t) // service-a, with the other names
	pods := map[string]corev1.Pod{}
	eventually(t, 3*time.Minute, "service-b does not run in "+otherTeams, func(is *assert.CollectT) {
		list, err := c.CoreV1().Pods(otherTeams).List(context.Background(), metav1.ListOptions{LabelSelector: nameLabel + "=" + serviceB})
		require.NoError(is, err)
		assert.NotEmpty(is, list.Items)
		for _, p := range list.Items {
			assert.NotZero(is, readySince(p), p.Name)
			pods[p.Name] = p
		}
	})
	for _, via := range transports {
		var got counts
		eventually(t, c.maxConnectionAge(t)+35*time.Second, "not every service-b of "+otherTeams+" answers over "+via, func(is *assert.CollectT) {
			var err error
			got, err = spread(c.url, via, calls)
			require.NoError(is, err)
			assert.Empty(is, got.Errors)
			assert.ElementsMatch(is, names(pods), names(got.Pods))
		})
		t.Logf("%s: %v", via, got.Pods)
	}
}
