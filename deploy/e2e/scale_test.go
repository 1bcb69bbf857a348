package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestNewPodsGetTheirShareAndNoCallFails(t *testing.T) {
	c := connect(t)
	defer c.keep(t)
	// Connections are asked to end at MAX_CONNECTION_AGE, give or take a tenth;
	// gRPC's answer from DNS may be 30 s old.
	limit := c.maxConnectionAge(t) + 35*time.Second
	before := c.restoreScale(t, serviceB)
	require.NoError(t, c.scale(t.Context(), serviceB, 3))
	if before != 3 {
		c.settle(t)
	}
	old := c.serving(t, serviceB)
	load := c.load(t, steady)
	load.awaitAll(t, limit, names(old))

	require.NoError(t, c.scale(t.Context(), serviceB, 6))
	c.settle(t)
	all := c.serving(t, serviceB)
	require.Len(t, all, 6)
	load.awaitAll(t, 2*limit, names(all)) // how long it took is looked at below
	for name, pod := range all {
		if _, isOld := old[name]; isOld {
			continue
		}
		for _, via := range transports {
			took := load.now(via).First[name].Sub(readySince(pod))
			t.Logf("%s answers its first call over %s %s after it was ready", name, via, took.Round(time.Second))
			assert.LessOrEqual(t, took, limit, "%s over %s", name, via)
		}
	}
	for _, via := range transports {
		t.Logf("3 → 6: %s: %s", via, load.now(via))
	}

	require.NoError(t, c.scale(t.Context(), serviceB, 2))
	c.settle(t)
	time.Sleep(5 * time.Second) // calls to a pod that is gone would fail now
	t.Log("6 → 2, and all in all:")
	load.wantNoneFailed(t)
}
