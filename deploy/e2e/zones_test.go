package e2e

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// zones returns the schedulable nodes of each zone.
func (c *cluster) zones(t tester) map[string][]string {
	nodes, err := c.CoreV1().Nodes().List(context.Background(), metav1.ListOptions{LabelSelector: zoneLabel})
	require.NoError(t, err)
	out := map[string][]string{}
	for _, n := range nodes.Items {
		if !n.Spec.Unschedulable {
			out[n.Labels[zoneLabel]] = append(out[n.Labels[zoneLabel]], n.Name)
		}
	}
	return out
}

// podsByZone counts the ready pods of a service in each zone. skew is how many more
// the fullest zone has than the emptiest.
func (c *cluster) podsByZone(t tester, service string) (counts map[string]int, fullest string, skew int) {
	counts = map[string]int{}
	zoneOf := map[string]string{}
	for zone, nodes := range c.zones(t) {
		counts[zone] = 0
		for _, node := range nodes {
			zoneOf[node] = zone
		}
	}
	for _, p := range c.readyPods(t, service) {
		counts[zoneOf[p.Spec.NodeName]]++
	}
	least := 1 << 30
	for _, zone := range sortedKeys(counts) {
		if fullest == "" || counts[zone] > counts[fullest] {
			fullest = zone
		}
		least = min(least, counts[zone])
	}
	return counts, fullest, counts[fullest] - least
}

func TestZones_PodsAreSpread(t *testing.T) {
	c := connect(t)
	defer c.saveOnFailure(t)
	for _, service := range services {
		counts, _, skew := c.podsByZone(t, service)
		t.Logf("%s: %v", service, counts)
		assert.Greater(t, len(counts), 1, "number of zones")
		assert.LessOrEqual(t, skew, 1, service)
	}
}

// rebalance moves pods out of zones that have too many. Kubernetes does not: after a
// drain, all pods remain on the other nodes.
func (c *cluster) rebalance(t *testing.T) {
	for _, service := range services {
		for range 3 {
			c.settle(t)
			_, fullest, skew := c.podsByZone(t, service)
			if skew <= 1 {
				break
			}
			for name, p := range c.readyPods(t, service) {
				if slices.Contains(c.zones(t)[fullest], p.Spec.NodeName) {
					assert.NoError(t, c.CoreV1().Pods(namespace).Delete(context.Background(), name, metav1.DeleteOptions{}))
					break
				}
			}
		}
	}
	c.settle(t)
}

// watchReadyPods counts the ready pods of each service until the returned function is
// called, which returns the lowest number of each.
func (c *cluster) watchReadyPods(t *testing.T) func() map[string]int {
	ctx, stop := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	var failure error
	fewest := map[string]int{}
	watching.Go(func() {
		for ; ctx.Err() == nil && failure == nil; time.Sleep(100 * time.Millisecond) {
			for _, service := range services {
				n, err := c.countReadyPods(ctx, service)
				if err != nil {
					if ctx.Err() == nil {
						failure = fmt.Errorf("watch %s: %w", service, err)
					}
					break
				}
				if least, seen := fewest[service]; !seen || n < least {
					fewest[service] = n
				}
			}
		}
	})
	t.Cleanup(stop)
	return func() map[string]int {
		stop()
		watching.Wait()
		assert.NoError(t, failure)
		return fewest
	}
}

func (c *cluster) countReadyPods(ctx context.Context, service string) (int, error) {
	list, err := c.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: nameLabel + "=" + service})
	if err != nil {
		return 0, err
	}
	n := 0
	for _, p := range list.Items {
		if isReady(p) {
			n++
		}
	}
	return n, nil
}
