package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What the restart leaves is an annotation with its time, as it would of any.
func TestARolloutOfBothServicesLosesNoCall(t *testing.T) {
	c := connect(t)
	defer c.keep(t)
	old := c.serving(t, serviceB)
	load := c.load(t, steady)
	load.awaitAll(t, c.maxConnectionAge(t)+35*time.Second, names(old))
	start := time.Now()
	_, _, err := c.kubectl(t.Context(), "", "--namespace", namespace, "rollout", "restart", "deployment/"+serviceA, "deployment/"+serviceB)
	require.NoError(t, err)
	c.settle(t)
	took := time.Since(start)
	for name := range c.serving(t, serviceB) {
		require.NotContains(t, old, name)
	}
	time.Sleep(5 * time.Second) // calls to a pod that is gone would fail now
	t.Logf("all pods of both were replaced in %s", took.Round(time.Second))
	load.wantNoneFailed(t)
}
