package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// zones are those that pods can run in, each with its nodes.
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

// byZone is how many pods of a service each zone has; and the fullest zone, and
// by how many it has more than the emptiest.
func (c *cluster) byZone(t tester, service string) (counts map[string]int, fullest string, skew int) {
	counts = map[string]int{}
	zoneOf := map[string]string{}
	for zone, nodes := range c.zones(t) {
		counts[zone] = 0
		for _, node := range nodes {
			zoneOf[node] = zone
		}
	}
	for _, p := range c.serving(t, service) {
		counts[zoneOf[p.Spec.NodeName]]++
	}
	least := 1 << 30
	for _, zone := range names(counts) {
		if fullest == "" || counts[zone] > counts[fullest] {
			fullest = zone
		}
		least = min(least, counts[zone])
	}
	return counts, fullest, counts[fullest] - least
}

func TestPodsSpreadOverTheZones(t *testing.T) {
	c := connect(t)
	defer c.keep(t)
	for _, service := range []string{serviceA, serviceB} {
		counts, _, skew := c.byZone(t, service)
		t.Logf("%s: %v", service, counts)
		assert.Greater(t, len(counts), 1, "zones that the nodes are in")
		assert.LessOrEqual(t, skew, 1, service)
	}
}

// level moves pods to the zones that have too few, as nobody else does: where a
// pod runs is decided once, and after a drain all are on the other nodes.
func (c *cluster) level(t *testing.T) {
	for _, service := range []string{serviceA, serviceB} {
		for range 3 {
			c.settle(t)
			_, fullest, skew := c.byZone(t, service)
			if skew <= 1 {
				break
			}
			for name, p := range c.serving(t, service) {
				if strings.Contains(strings.Join(c.zones(t)[fullest], " "), p.Spec.NodeName) {
					assert.NoError(t, c.CoreV1().Pods(namespace).Delete(context.Background(), name, metav1.DeleteOptions{}))
					break
				}
			}
		}
	}
	c.settle(t)
}

// watchServing notes how few pods of each service were ever ready, until the
// function that it returns is called.
func (c *cluster) watchServing(t *testing.T) func() map[string]int {
	ctx, stop := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	var failure error
	fewest := map[string]int{}
	watching.Go(func() {
		for ctx.Err() == nil && failure == nil {
			for _, service := range []string{serviceA, serviceB} {
				list, err := c.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: nameLabel + "=" + service})
				if err != nil {
					if ctx.Err() == nil {
						failure = fmt.Errorf("watch %s: %w", service, err)
					}
					break
				}
				n := 0
				for _, p := range list.Items {
					if p.DeletionTimestamp == nil && !readySince(p).IsZero() {
						n++
					}
				}
				if least, seen := fewest[service]; !seen || n < least {
					fewest[service] = n
				}
			}
			time.Sleep(100 * time.Millisecond)
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
