package e2e

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"example.com/tandem/deploy/e2e/load"
)

// The rows of docs/reliability.md in which somebody changes something.

func TestReliability_ServiceBUpdated(t *testing.T) {
	testRollingUpdate(t, newRow(t, 1, "rolling update of service-b", "no failed call"), serviceB)
}

func TestReliability_ServiceAUpdated(t *testing.T) {
	testRollingUpdate(t, newRow(t, 2, "rolling update of service-a", "no failed call"), serviceA)
}

func TestReliability_BothServicesUpdated(t *testing.T) {
	testRollingUpdate(t, newRow(t, 3, "rolling update of both services at once", "no failed call"), serviceA, serviceB)
}

// testRollingUpdate restarts Deployments. The annotation that a restart leaves is not
// removed.
func testRollingUpdate(t *testing.T, r *recorder, restarted ...string) {
	c := connectBusy(t)
	defer c.saveOnFailure(t)
	g := c.startBusyLoad(t)
	for range byForm(r, 1, 3) {
		old := map[string]corev1.Pod{}
		args := []string{"--namespace", namespace, "rollout", "restart"}
		for _, service := range restarted {
			maps.Copy(old, c.readyPods(t, service))
			args = append(args, "deployment/"+service)
		}
		start := time.Now()
		_, _, err := c.kubectl(t.Context(), "", args...)
		require.NoError(t, err)
		c.settle(t)
		took := time.Since(start)
		for _, service := range restarted {
			for name := range c.readyPods(t, service) {
				require.NotContains(t, old, name)
			}
		}
		r.addFact("all %d pods replaced in %s", len(old), took.Round(time.Second))
	}
	time.Sleep(5 * time.Second) // calls to a terminated pod would fail in this time
	r.requireNoFailedCall(g)
	if r.Full {
		for _, f := range r.Figures {
			assert.GreaterOrEqual(t, f.Calls, 5000, "too few calls over %s for this claim", f.Via)
		}
	}
}

func TestReliability_PodDeleted(t *testing.T) {
	r := newRow(t, 4, "a service-b pod deleted, with the default grace period", "no failed call")
	c := connectBusy(t)
	defer c.saveOnFailure(t)
	g := c.startBusyLoad(t)
	for range byForm(r, 1, 3) {
		pod := firstOf(c.readyPods(t, serviceB))
		start := time.Now()
		c.replacePod(t, pod.Name)
		r.addFact("replaced after %s", time.Since(start).Round(time.Second))
	}
	time.Sleep(5 * time.Second)
	r.requireNoFailedCall(g)
}

// replacePod deletes a pod, and waits until it is gone and another is available.
func (c *cluster) replacePod(t *testing.T, name string) {
	t.Helper()
	require.NoError(t, c.CoreV1().Pods(namespace).Delete(t.Context(), name, metav1.DeleteOptions{}))
	eventually(t, time.Minute, name+" is not deleted", func(is *assert.CollectT) {
		_, err := c.CoreV1().Pods(namespace).Get(context.Background(), name, metav1.GetOptions{})
		assert.True(is, apierrors.IsNotFound(err), "%v", err)
	})
	c.settle(t)
}

// Without service-b, calls fail fast. When it has pods again, calls succeed.
func TestReliability_ServiceBScaledToZero(t *testing.T) {
	r := newRow(t, 8, "service-b scaled to 0 for 30 s, and back",
		"every call fails far below its deadline, with a class and 503; calls succeed within 5 s of readiness, without a restart; service-a remains ready")
	c := connectBusy(t)
	defer c.saveOnFailure(t)
	replicas := c.restoreScale(t, serviceB)
	before := c.restarts(t)
	deadline := c.callTimeout(t)
	fewest := c.watchReadyPods(t)
	g := c.startBusyLoad(t)

	require.NoError(t, c.scale(t.Context(), serviceB, 0))
	eventually(t, 2*time.Minute, "service-b still has pods", func(is *assert.CollectT) { assert.Empty(is, c.pods(is, serviceB)) })
	time.Sleep(2 * time.Second) // until DNS and the nodes have changed
	from := g.Elapsed()
	time.Sleep(30 * time.Second)
	to := g.Elapsed()
	for _, via := range transports {
		f := r.addFigures(g.Figures(via, "without pods", from, to))
		assert.Equal(t, f.Calls, f.TotalFailed(), "%s: a call succeeded without pods", via)
		for class := range f.Failed {
			assert.Contains(t, []string{"dns (503)", "refused (503)", "unavailable (503)"}, class, "%s: %v", via, g.Examples())
		}
		// A policy drops packets to a virtual IP without pods. A dial over HTTP therefore
		// takes its timeout of 0.4 s, and a retried call two of them. The budget allows
		// about one retry in a hundred calls.
		assert.Less(t, f.P99, load.Milliseconds(deadline/2+g.Stalled()), "%s: calls fail too late for a deadline of %s", via, deadline)
	}

	require.NoError(t, c.scale(t.Context(), serviceB, replicas))
	eventually(t, 2*time.Minute, "service-b has no endpoints", func(is *assert.CollectT) {
		for _, service := range []string{serviceB, headless} {
			assert.NotEmpty(is, c.endpoints(is, service), service)
		}
	})
	ready := g.Elapsed()
	c.settle(t)
	time.Sleep(5 * time.Second)
	end := g.Elapsed()
	g.Stop()
	for _, via := range transports {
		last := g.LastFailure(via, ready, end)
		took := last - ready
		r.addFact("%s: the last failure came %s after the first pod was ready", via, took.Round(100*time.Millisecond))
		assert.LessOrEqual(t, took, 5*time.Second+g.Stalled(), via)
		assert.NotEmpty(t, g.Requests(via, last+1, end), "%s: no call succeeds again", via)
	}
	assert.Equal(t, before[serviceA], c.restarts(t)[serviceA], "restarts of service-a")
	assert.Equal(t, int(*c.deployment(t, serviceA).Spec.Replicas), fewest()[serviceA], "lowest number of ready pods of service-a")
	r.requireWithinDeadline(g, deadline)
	r.Limits = "A caching resolver between CoreDNS and the pod can add to the 5 s: if it caches for 30 s that there was no address (CoreDNS with `cache 30` for the cluster's own names), gRPC's headless name does not resolve for as long. HTTP's virtual IP is not affected."
}

func TestReliability_WrongSetting(t *testing.T) {
	r := newRow(t, 15, "a rollout with an invalid value in the ConfigMap",
		"the rollout stops at the first pod, with one clear log line; no running pod is stopped")
	c := connectBusy(t)
	defer c.saveOnFailure(t)
	old := c.readyPods(t, serviceB)
	deployment := c.deployment(t, serviceB)
	name := deployment.Spec.Template.Spec.Containers[0].EnvFrom[0].ConfigMapRef.Name
	configMaps := c.CoreV1().ConfigMaps(namespace)
	settings, err := configMaps.Get(t.Context(), name, metav1.GetOptions{})
	require.NoError(t, err)
	mistake := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{GenerateName: serviceB + "-mistake-", Labels: map[string]string{testLabel: "true"}},
		Data:       settings.Data,
	}
	mistake.Data["MAX_CONNECTION_AGE"] = "half an hour"
	mistake, err = configMaps.Create(t.Context(), mistake, metav1.CreateOptions{})
	require.NoError(t, err)
	restore(t, "ConfigMap", func(ctx context.Context) error { return configMaps.Delete(ctx, mistake.Name, metav1.DeleteOptions{}) })

	fewest := c.watchReadyPods(t)
	g := c.startBusyLoad(t)
	use := func(ctx context.Context, name string) error {
		patch := fmt.Sprintf(`[{"op":"replace","path":"/spec/template/spec/containers/0/envFrom/0/configMapRef/name","value":%q}]`, name)
		_, err := c.AppsV1().Deployments(namespace).Patch(ctx, serviceB, types.JSONPatchType, []byte(patch), metav1.PatchOptions{})
		return err
	}
	restore(t, "settings of service-b", func(ctx context.Context) error { return use(ctx, name) })
	require.NoError(t, use(t.Context(), mistake.Name))

	var failed string
	eventually(t, 2*time.Minute, "the new pod does not fail", func(is *assert.CollectT) {
		for pod, p := range c.pods(is, serviceB) {
			if _, was := old[pod]; was || len(p.Status.ContainerStatuses) == 0 {
				continue
			}
			last := p.Status.ContainerStatuses[0].LastTerminationState.Terminated
			if assert.NotNil(is, last, p.Status) {
				failed = pod
				assert.EqualValues(is, 2, last.ExitCode)
			}
		}
		assert.NotEmpty(is, failed)
	})
	logs, err := c.CoreV1().Pods(namespace).GetLogs(failed, &corev1.PodLogOptions{}).DoRaw(t.Context())
	require.NoError(t, err)
	line, _, _ := strings.Cut(string(logs), "\n")
	r.addFact("the new pod logs: %s", line)
	assert.Regexp(t, `\A[^\n]*MAX_CONNECTION_AGE[^\n]*half an hour[^\n]*\n\z`, string(logs), "one line, with the variable and the value")
	if r.Full {
		deadline := time.Duration(*deployment.Spec.ProgressDeadlineSeconds) * time.Second
		eventually(t, deadline+2*time.Minute, "the rollout is not reported as stuck", func(is *assert.CollectT) {
			var stuck appsv1.DeploymentCondition
			for _, condition := range c.deployment(is, serviceB).Status.Conditions {
				if condition.Type == appsv1.DeploymentProgressing {
					stuck = condition
				}
			}
			assert.Equal(is, "ProgressDeadlineExceeded", stuck.Reason)
		})
		r.addFact("kubectl rollout status reports ProgressDeadlineExceeded")
	} else {
		time.Sleep(20 * time.Second) // running pods would be stopped in this time
	}
	assert.Subset(t, sortedKeys(c.readyPods(t, serviceB)), sortedKeys(old), "the pods that ran before are ready")
	assert.Len(t, c.pods(t, serviceB), len(old)+1, "the rollout stops at the first pod")
	for service, least := range fewest() {
		assert.Equal(t, int(*c.deployment(t, service).Spec.Replicas), least, "lowest number of ready pods of %s", service)
	}
	r.requireNoFailedCall(g)
}
