package e2e

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Sidecars add latency and CPU time to each call, and memory to each pod. The same pods without them, with them, and with gRPC's target on the virtual IP get
// the same calls, in turn.
func TestMesh_CostOfSidecars(t *testing.T) {
	const rounds, callsPerRound = 8, 1000
	c := connectMesh(t)
	defer c.saveOnFailure(t)
	type pair struct {
		name      string
		component string
		target    string // of gRPC, if it is not the headless name
		url       string // of service-a
		namespace string
		spreads   map[string][]spreadLatency // by transport
		cpu       map[string]time.Duration   // by transport
	}
	pairs := []*pair{
		{name: "without sidecars"},
		{name: "with sidecars", component: "istio"},
		{name: "with sidecars, through the virtual IP", component: "istio", target: fmt.Sprintf("dns:///%s:%d", serviceB, grpcPort)},
	}
	for _, p := range pairs {
		p.namespace = fmt.Sprintf("%s-e2e-%06x", namespace, rand.Uint32N(1<<24))
		c.deployInto(t, p.namespace, p.component, p.target)
	}
	for _, p := range pairs {
		eventually(t, 3*time.Minute, "the pods of "+p.namespace+" do not become ready", func(is *assert.CollectT) {
			for _, service := range services {
				pods := c.podsIn(is, p.namespace, service)
				require.Len(is, pods, 1)
				assert.True(is, isReady(firstOf(pods)))
			}
		})
		p.url = c.forward(t, p.namespace, firstOf(c.podsIn(t, p.namespace, serviceA)).Name, httpPort)
		p.spreads, p.cpu = map[string][]spreadLatency{}, map[string]time.Duration{}
	}
	for round := range rounds + 1 {
		for _, via := range transports {
			for _, p := range pairs {
				before := totalCPU(c.usageOf(t, p.namespace))
				var got spreadLatency
				status := getJSON(t, fmt.Sprintf("%s/api/spread?via=%s&n=%d", p.url, via, callsPerRound), nil, &got)
				require.Equal(t, 200, status)
				require.Empty(t, got.Errors)
				if round > 0 { // the first round opens connections
					p.spreads[via] = append(p.spreads[via], got)
					p.cpu[via] += totalCPU(c.usageOf(t, p.namespace)) - before
				}
			}
		}
	}
	for _, via := range transports {
		for _, p := range pairs {
			// The minimum of the rounds, for each percentile: a mean would include other load.
			best := func(of func(spreadLatency) float64) float64 {
				return of(slices.MinFunc(p.spreads[via], func(a, b spreadLatency) int { return cmp.Compare(of(a), of(b)) }))
			}
			t.Logf("%s, %s: p50 %.2f ms, p99 %.2f ms, %d ms of CPU time for 1,000 calls", via, p.name,
				best(func(s spreadLatency) float64 { return s.LatencyMS.P50 }),
				best(func(s spreadLatency) float64 { return s.LatencyMS.P99 }),
				p.cpu[via].Milliseconds()*1000/(rounds*callsPerRound))
		}
	}
	for container, used := range c.usageOf(t, pairs[1].namespace) {
		t.Logf("memory of %s: %d MiB", container, used.memory>>20)
	}
}

// spreadLatency is part of service-a's response to /api/spread.
type spreadLatency struct {
	Errors    map[string]int
	LatencyMS struct{ P50, P99 float64 }
}

// deployInto deploys one pod of each service to a new namespace, with a component and
// another target of service-a's gRPC unless they are empty.
func (c *cluster) deployInto(t *testing.T, ns, component, target string) {
	t.Helper()
	folder := copyManifests(t)
	base := filepath.Join(folder, "base", "kustomization.yaml")
	text, err := os.ReadFile(base)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(base, []byte(strings.Replace(string(text), "\nnamespace: "+namespace, "\nnamespace: "+ns, 1)), 0o600))
	kustomization := fmt.Sprintf("resources: [../../base]\nlabels: [{pairs: {%s: \"true\"}}]\n"+
		"replicas: [{name: %s, count: 1}, {name: %s, count: 1}]\n", testLabel, serviceA, serviceB)
	if component != "" {
		kustomization += fmt.Sprintf("components: [../../components/%s]\n", component)
	}
	if target != "" {
		kustomization += fmt.Sprintf("configMapGenerator: [{name: %s, behavior: merge, literals: [SERVICE_B_GRPC_TARGET=%s]}]\n", serviceA, target)
	}
	restore(t, "namespace "+ns, func(ctx context.Context) error {
		return c.CoreV1().Namespaces().Delete(ctx, ns, metav1.DeleteOptions{})
	})
	_, err = c.apply(t.Context(), c.renderNew(t, folder, kustomization))
	require.NoError(t, err)
}

// usage is what a container has used.
type usage struct {
	cpu    time.Duration
	memory int64 // in bytes, now
}

func totalCPU(containers map[string]usage) (total time.Duration) {
	for _, u := range containers {
		total += u.cpu
	}
	return total
}

// usageOf returns the usage of the containers of a namespace's pods: by service, and
// under "SERVICE, sidecar". The nodes are those of kind.
func (c *cluster) usageOf(t *testing.T, ns string) map[string]usage {
	t.Helper()
	out := map[string]usage{}
	for _, service := range services {
		pod := firstOf(c.podsIn(t, ns, service))
		for _, status := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
			if status.State.Running == nil {
				continue
			}
			table, err := run(t.Context(), "docker", "exec", pod.Spec.NodeName, "ctr", "--namespace", "k8s.io", "tasks", "metrics",
				strings.TrimPrefix(status.ContainerID, "containerd://"))
			require.NoError(t, err)
			var u usage
			for line := range strings.Lines(table) {
				var name string
				var value int64
				if n, _ := fmt.Sscan(line, &name, &value); n < 2 {
					continue
				}
				switch name {
				case "cpuacct.usage": // cgroup v1
					u.cpu = time.Duration(value)
				case "cpu.usage_usec": // cgroup v2
					u.cpu = time.Duration(value) * time.Microsecond
				case "memory.usage_in_bytes", "memory.usage":
					u.memory = value
				}
			}
			require.NotZero(t, u.cpu, table)
			name := service
			if status.Name == proxyContainer {
				name += ", sidecar"
			}
			out[name] = u
		}
	}
	return out
}
