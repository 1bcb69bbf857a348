package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// New pods get calls soon after they are ready, and no call fails when service-b is
// scaled from 3 to 6 pods and to 2.
func TestScaling_NewPodsGetCalls(t *testing.T) {
	c := connect(t)
	defer c.saveOnFailure(t)
	limit := c.discoveryTimeout(t)
	before := c.restoreScale(t, serviceB)
	require.NoError(t, c.scale(t.Context(), serviceB, 3))
	if before != 3 {
		c.settle(t)
	}
	old := c.readyPods(t, serviceB)
	g := c.startLoad(t, steadyLoad)
	awaitPods(t, g, 0, limit, sortedKeys(old))

	require.NoError(t, c.scale(t.Context(), serviceB, 6))
	c.settle(t)
	all := c.readyPods(t, serviceB)
	require.Len(t, all, 6)
	awaitPods(t, g, 0, 2*limit, sortedKeys(all)) // the time is checked below
	for name, pod := range all {
		if _, isOld := old[name]; isOld {
			continue
		}
		for _, via := range transports {
			took := g.Started().Add(g.FirstServed(via, 0)[name]).Sub(readySince(pod))
			t.Logf("%s gets its first call over %s %s after it is ready", name, via, took.Round(time.Second))
			assert.LessOrEqual(t, took, limit, "%s over %s", name, via)
		}
	}
	for _, via := range transports {
		t.Logf("3 → 6: %s: %s", via, summary(g, via))
	}

	require.NoError(t, c.scale(t.Context(), serviceB, 2))
	c.settle(t)
	time.Sleep(5 * time.Second) // calls to a terminated pod would fail in this time
	t.Log("6 → 2, and in total:")
	requireNoFailedCall(t, g)
}
