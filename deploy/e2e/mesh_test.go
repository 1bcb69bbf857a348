package e2e

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"example.com/tandem/deploy/e2e/load"
)

// The tests of overlays/kind-istio. Most claims about the mesh are those of the tests
// without it, which make e2e-istio repeats.

const (
	injectionLabel = "istio-injection"
	proxyContainer = "istio-proxy"
)

// connectMesh is connect for the tests of overlays/kind-istio. If the services have no
// sidecars, it skips the test or, with TANDEM_E2E_MESH (make e2e-istio), fails it.
func connectMesh(t *testing.T) *cluster {
	t.Helper()
	c, err := open(t.Context())
	require.NoError(t, err)
	meshed, err := c.isMeshed(t.Context())
	require.NoError(t, err)
	if !meshed {
		const advice = "namespace " + namespace + " is not in a mesh: run make istio-up deploy OVERLAY=kind-istio"
		require.False(t, inMesh(), advice)
		t.Skip(advice)
	}
	return connect(t)
}

// inMesh reports whether the tests are those of make e2e-istio.
func inMesh() bool { return os.Getenv("TANDEM_E2E_MESH") != "" }

// requireNoMesh skips a test that applies overlays of a cluster without a mesh.
func (c *cluster) requireNoMesh(t *testing.T) {
	t.Helper()
	meshed, err := c.isMeshed(t.Context())
	require.NoError(t, err)
	if meshed {
		t.Skip("it would apply overlays/kind, and the cluster runs overlays/kind-istio")
	}
}

// isMeshed reports whether new pods of the services get sidecars.
func (c *cluster) isMeshed(ctx context.Context) (bool, error) {
	ns, err := c.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
	if err != nil {
		return false, err
	}
	return ns.Labels[injectionLabel] == "enabled", nil
}

// The connection of a caller without a sidecar is reset, and a caller in the mesh with
// another ServiceAccount is denied, although a NetworkPolicy lets both in.
func TestMesh_RejectsOtherCallers(t *testing.T) {
	c := connectMesh(t)
	defer c.saveOnFailure(t)
	const pod = "caller"
	for _, caller := range []struct {
		name, injection string
		class           string // of service-a's error
	}{
		{"without a sidecar", "disabled", "unavailable"},
		{"with another ServiceAccount", "enabled", "denied"},
	} {
		t.Run(caller.name, func(t *testing.T) {
			other := c.createNamespace(t, injectionLabel, caller.injection)
			c.allowIngressFrom(t, other)
			c.startCaller(t, other, pod, pod,
				"SERVICE_B_HTTP_URL="+httpURL(serviceB+qualified, servicePort, ""),
				fmt.Sprintf("SERVICE_B_GRPC_TARGET=dns:///%s%s:%d", headless, qualified, grpcPort))
			url := c.forward(t, other, pod, httpPort)
			for _, via := range transports {
				var problem struct{ Class, Detail string }
				eventually(t, time.Minute, via+" is not rejected", func(is *assert.CollectT) {
					status := getJSON(is, url+"/api/data?via="+via, nil, &problem)
					assert.GreaterOrEqual(is, status, 500)
					assert.Equal(is, caller.class, problem.Class, problem.Detail)
				})
				t.Logf("%s: class %s: %s", via, problem.Class, problem.Detail)
			}
		})
	}
}

// A pod's sidecar starts before the service and stops after it, so that the service can
// make and finish calls for as long as it runs.
func TestMesh_SidecarOutlivesService(t *testing.T) {
	c := connectMesh(t)
	defer c.saveOnFailure(t)
	pod := firstOf(c.readyPods(t, serviceB))
	started := containerStatus(t, pod, serviceB).State.Running.StartedAt
	proxyStarted := containerStatus(t, pod, proxyContainer).State.Running.StartedAt
	assert.False(t, started.Time.Before(proxyStarted.Time), "the service started at %s, the sidecar at %s", started, proxyStarted)

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	events, err := c.CoreV1().Pods(namespace).Watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", pod.Name).String()})
	require.NoError(t, err)
	defer events.Stop()
	require.NoError(t, c.CoreV1().Pods(namespace).Delete(t.Context(), pod.Name, metav1.DeleteOptions{}))
	for event := range events.ResultChan() {
		if last, ok := event.Object.(*corev1.Pod); ok {
			pod = *last
		}
		if event.Type == watch.Deleted {
			break
		}
	}
	require.NoError(t, ctx.Err(), "the pod is not deleted")
	service, proxy := containerStatus(t, pod, serviceB).State.Terminated, containerStatus(t, pod, proxyContainer).State.Terminated
	require.NotNil(t, service, "the service has not ended")
	require.NotNil(t, proxy, "the sidecar has not ended")
	assert.Zero(t, service.ExitCode, "the service did not drain in time")
	assert.False(t, proxy.FinishedAt.Time.Before(service.FinishedAt.Time), "the service ended at %s, the sidecar at %s", service.FinishedAt, proxy.FinishedAt)
	t.Logf("the service ended %s after the pod's deletion, the sidecar %s after the service",
		service.FinishedAt.Sub(deletedAt(pod)), proxy.FinishedAt.Sub(service.FinishedAt.Time))
}

func deletedAt(pod corev1.Pod) time.Time {
	return pod.DeletionTimestamp.Add(-time.Duration(*pod.DeletionGracePeriodSeconds) * time.Second)
}

// containerStatus returns the status of a container or native sidecar.
func containerStatus(t *testing.T, pod corev1.Pod, name string) corev1.ContainerStatus {
	t.Helper()
	for _, status := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
		if status.Name == name {
			return status
		}
	}
	require.Fail(t, "pod "+pod.Name+" has no container "+name)
	return corev1.ContainerStatus{}
}

// In an outage, only service-a makes retries, within its budget; its sidecar makes none. So
// the number of requests that reach service-b is service-a's number of attempts.
func TestMesh_AttemptsAreNotMultiplied(t *testing.T) {
	const calls, most = 1000, 1100
	c := connectMesh(t)
	defer c.saveOnFailure(t)
	var admins []string
	for _, pod := range sortedKeys(c.readyPods(t, serviceB)) {
		admins = append(admins, c.forward(t, namespace, pod, adminPort))
		injectFault(t, c.forwardFaultSwitch(t, pod), `{"errorRate":1}`)
	}
	url := c.forward(t, namespace, firstOf(c.readyPods(t, serviceA)).Name, httpPort)
	for _, via := range transports {
		before := requestsServed(t, admins, via)
		got, err := load.GetSpread(url, via, calls)
		require.NoError(t, err)
		arrived := requestsServed(t, admins, via) - before
		assert.Empty(t, got.Pods, "a call succeeded in an outage")
		assert.LessOrEqual(t, got.Attempts, most, "attempts of service-a")
		assert.Equal(t, got.Attempts, arrived, "requests that reach service-b")
		t.Logf("%s: %d calls, %d attempts, %d requests reach service-b, failed %v", via, calls, got.Attempts, arrived, got.Errors)
	}
}

// requestsServed returns how many calls over a transport the pods have served. admins
// are the URLs of their admin ports.
func requestsServed(t *testing.T, admins []string, via string) int {
	t.Helper()
	total := 0
	for _, admin := range admins {
		for _, m := range scrape(t, admin) {
			if via == "http" && m.name == "http_server_request_duration_seconds" && m.labels["route"] == "/api/data" ||
				via == "grpc" && m.name == "grpc_server_handled_total" && m.labels["grpc_method"] == "GetData" {
				total += int(m.value)
			}
		}
	}
	return total
}

// With gRPC's target on the virtual IP, the sidecar spreads the calls, and no call is
// lost when a pod is deleted and another killed.
func TestMesh_VirtualIPLosesNoCall(t *testing.T) {
	c := connectMesh(t)
	c.requireKind(t)
	c.useTarget(t, fmt.Sprintf("dns:///%s:%d", serviceB, grpcPort))
	c = connectBusy(t)
	defer c.saveOnFailure(t)
	pods := sortedKeys(c.readyPods(t, serviceB))
	url := c.forward(t, namespace, firstOf(c.readyPods(t, serviceA)).Name, httpPort)
	eventually(t, time.Minute, "the sidecar does not spread the calls", func(is *assert.CollectT) {
		// Few enough for the 10 s of /api/spread, although each takes busyLatency: the sidecar counts a call that its caller's
		// deadline cuts as a 504, and would have ejected two pods when the third is deleted.
		got, err := load.GetSpread(url, "grpc", 60)
		require.NoError(is, err)
		assert.ElementsMatch(is, pods, sortedKeys(got.Pods))
		assert.Empty(is, got.Errors)
		t.Logf("spread by the sidecar: %v", got.Pods)
	})

	g := c.startBusyLoad(t)
	c.replacePod(t, pods[0])
	require.NoError(t, c.signal(t.Context(), c.pods(t, serviceB)[pods[1]], "SIGKILL"))
	time.Sleep(5 * time.Second)
	c.settle(t)
	time.Sleep(5 * time.Second) // calls to a terminated pod would fail in this time
	requireNoFailedCall(t, g)
}

// useTarget restarts service-a with another gRPC target, without minReadySeconds so that
// the rollout is short. It restores both at the end of the test.
func (c *cluster) useTarget(t *testing.T, target string) {
	t.Helper()
	minReady := c.deployment(t, serviceA).Spec.MinReadySeconds
	patch := func(ctx context.Context, value string, minReady int32) error {
		body := fmt.Sprintf(`{"spec":{"minReadySeconds":%d,"template":{"spec":{"containers":[{"name":%q,"env":[{"name":"SERVICE_B_GRPC_TARGET",%s}]}]}}}}`,
			minReady, serviceA, value)
		_, err := c.AppsV1().Deployments(namespace).Patch(ctx, serviceA, types.StrategicMergePatchType, []byte(body), metav1.PatchOptions{})
		return err
	}
	restore(t, "target of service-a", func(ctx context.Context) error { return patch(ctx, `"$patch":"delete"`, minReady) })
	require.NoError(t, patch(t.Context(), fmt.Sprintf(`"value":%q`, target), 0))
	c.settle(t)
}
