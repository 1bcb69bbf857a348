package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/deploy/e2e/load"
)

var (
	// busyLoad has 50 calls in flight over each transport, as service-b takes
	// busyLatency for each and the callers make no pause. They start one after the other: a
	// hundred TLS handshakes of sidecars at once would occupy the machine for a second.
	busyLoad = load.Spec{Callers: 50, Ramp: 2 * time.Second}
	// steadyLoad is up to 150 calls a second: enough to meet every moment of a change,
	// and little beside what the change itself costs a machine that runs all nodes.
	steadyLoad = load.Spec{Callers: 2, Batch: 16, Pause: 400 * time.Millisecond}
)

// startLoad makes load until the end of the test, over both transports unless spec
// names them.
func (c *cluster) startLoad(t *testing.T, spec load.Spec) *load.Generator {
	t.Helper()
	if len(spec.Transports) == 0 {
		spec.Transports = transports
	}
	spec.Timeout = c.callTimeout(t) + 3*time.Second
	g := load.Start(c.url, spec)
	t.Cleanup(g.Stop)
	return g
}

// startBusyLoad starts busyLoad and waits until calls succeed.
func (c *cluster) startBusyLoad(t *testing.T) *load.Generator {
	t.Helper()
	g := c.startLoad(t, busyLoad)
	time.Sleep(busyLoad.Ramp)
	awaitSuccess(t, g)
	return g
}

// measureLoad makes load for a period and returns when the period began and ended.
// It begins after the first moments, in which connections are opened.
func (c *cluster) measureLoad(t *testing.T, period time.Duration, spec load.Spec) (g *load.Generator, from, to time.Duration) {
	t.Helper()
	g = c.startLoad(t, spec)
	time.Sleep(2 * time.Second)
	from = g.Elapsed()
	time.Sleep(period)
	to = g.Elapsed()
	g.Stop()
	return g, from, to
}

// awaitSuccess waits until calls over each transport succeed.
func awaitSuccess(t *testing.T, g *load.Generator) {
	t.Helper()
	from := g.Elapsed()
	eventually(t, time.Minute, "no call succeeds", func(is *assert.CollectT) {
		for _, via := range g.Spec().Transports {
			f := g.Figures(via, "", from, g.Elapsed())
			assert.Greater(is, f.Calls-f.TotalFailed(), 10, "%s: %v", via, g.Examples())
		}
	})
}

// awaitPods waits until each pod has served a call over each transport after from.
func awaitPods(t *testing.T, g *load.Generator, from, within time.Duration, pods []string) {
	t.Helper()
	eventually(t, within, "not every pod gets calls", func(is *assert.CollectT) {
		for _, via := range transports {
			assert.Subset(is, sortedKeys(g.FirstServed(via, from)), pods, via)
		}
	})
}

// requireNoFailedCall stops the load and checks that all its calls succeeded.
func requireNoFailedCall(t *testing.T, g *load.Generator) {
	t.Helper()
	g.Stop()
	for _, via := range g.Spec().Transports {
		f := g.Figures(via, "", 0, g.Elapsed())
		t.Logf("%s: %s", via, summary(g, via))
		assert.Empty(t, f.Failed, failureMessage(g, via))
		require.Positive(t, f.Calls, via)
	}
}

// getJSON sends a GET request and decodes its response. It returns the status.
func getJSON(t require.TestingT, url string, header http.Header, into any) int {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, nil)
	require.NoError(t, err)
	if header != nil {
		req.Header = header
	}
	resp, err := (&http.Client{Timeout: reachTimeout}).Do(req)
	require.NoError(t, err)
	defer resp.Body.Close() //nolint:errcheck // read to its end
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(body, into), "%s: %s", resp.Status, body)
	return resp.StatusCode
}

// summary describes the calls of a load of batches.
func summary(g *load.Generator, via string) string {
	f := g.Figures(via, "", 0, g.Elapsed())
	return fmt.Sprintf("%d calls, %d retries, failed %v", f.Calls, g.Retries(via), f.Failed)
}

func failureMessage(g *load.Generator, via string) string {
	return fmt.Sprintf("%s: failed calls, such as %v. The machine stood still for up to %s: "+
		"if that is a second or more, it is too busy to tell a late call from a lost one", via, g.Examples(), g.Stalled())
}
