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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// The rows of docs/reliability.md in which somebody changes something.

func TestWhenServiceBIsUpdatedNoCallIsLost(t *testing.T) {
	rollingUpdate(t, newRow(t, 1, "rolling update of service-b", "no failed call"), serviceB)
}

func TestWhenServiceAIsUpdatedNoCallIsLost(t *testing.T) {
	rollingUpdate(t, newRow(t, 2, "rolling update of service-a", "no failed call"), serviceA)
}

func TestWhenBothServicesAreUpdatedAtOnceNoCallIsLost(t *testing.T) {
	rollingUpdate(t, newRow(t, 3, "rolling update of both at once", "no failed call"), serviceA, serviceB)
}

// What a restart leaves is an annotation with its time, as it would of any.
func rollingUpdate(t *testing.T, r *row, services ...string) {
	c := connectBusy(t)
	defer c.keep(t)
	f := c.traffic(t, busy)
	f.awaitAnswers(t)
	for range either(r, 1, 3) {
		old := map[string]corev1.Pod{}
		args := []string{"--namespace", namespace, "rollout", "restart"}
		for _, service := range services {
			maps.Copy(old, c.serving(t, service))
			args = append(args, "deployment/"+service)
		}
		start := time.Now()
		_, _, err := c.kubectl(t.Context(), "", args...)
		require.NoError(t, err)
		c.settle(t)
		took := time.Since(start)
		for _, service := range services {
			for name := range c.serving(t, service) {
				require.NotContains(t, old, name)
			}
		}
		r.fact("all %d pods replaced in %s", len(old), took.Round(time.Second))
	}
	time.Sleep(5 * time.Second) // calls to a pod that is gone would fail now
	r.wantNoneLost(f)
	if r.Full {
		for _, g := range r.Figures {
			assert.GreaterOrEqual(t, g.Calls, 5000, "too few calls to say that none is lost, over %s", g.Via)
		}
	}
}

func TestWhenAPodIsDeletedNoCallIsLost(t *testing.T) {
	r := newRow(t, 4, "a service-b pod deleted, with the default grace", "no failed call")
	c := connectBusy(t)
	defer c.keep(t)
	f := c.traffic(t, busy)
	f.awaitAnswers(t)
	for range either(r, 1, 3) {
		pod := one(c.serving(t, serviceB))
		start := time.Now()
		require.NoError(t, c.CoreV1().Pods(namespace).Delete(t.Context(), pod.Name, metav1.DeleteOptions{}))
		c.settle(t)
		r.fact("gone, and another in its place, after %s", time.Since(start).Round(time.Second))
	}
	time.Sleep(5 * time.Second)
	r.wantNoneLost(f)
}

func TestWhenServiceBIsAwayCallsFailFastAndItIsFoundOnceItIsBack(t *testing.T) {
	r := newRow(t, 8, "service-b scaled to 0 for 30 s, and back",
		"every call fails far below its deadline, with a class and 503; answers within 5 s of readiness, without a restart; service-a stays ready")
	c := connectBusy(t)
	defer c.keep(t)
	replicas := c.restoreScale(t, serviceB)
	before := c.restarts(t)
	deadline := c.callTimeout(t)
	fewest := c.watchServing(t)
	f := c.traffic(t, busy)
	f.awaitAnswers(t)

	require.NoError(t, c.scale(t.Context(), serviceB, 0))
	eventually(t, 2*time.Minute, "service-b's pods stay", func(is *assert.CollectT) { assert.Empty(is, c.pods(is, serviceB)) })
	time.Sleep(2 * time.Second) // until DNS and nodes know
	from := f.now()
	time.Sleep(30 * time.Second)
	to := f.now()
	for _, via := range transports {
		g := r.measured(f.figures(via, "while there is no pod", from, to))
		assert.Equal(t, g.Calls, g.failed(), "%s: who answers?", via)
		for class := range g.Failed {
			assert.Contains(t, []string{"dns (503)", "refused (503)", "unavailable (503)"}, class, "%s: %v", via, f.why())
		}
		// A policy drops what is sent to a virtual IP without pods, so that a dial over
		// HTTP takes its 0.4 s, and a call that the budget permits to be retried two of
		// them. About one call in a hundred is.
		assert.Less(t, g.P99, ms(deadline/2+f.stalled()), "%s: well below the deadline of %s", via, deadline)
	}

	require.NoError(t, c.scale(t.Context(), serviceB, replicas))
	eventually(t, 2*time.Minute, "service-b does not come back", func(is *assert.CollectT) {
		for _, service := range []string{serviceB, headless} {
			assert.NotEmpty(is, c.endpoints(is, service), service)
		}
	})
	ready := f.now()
	c.settle(t)
	time.Sleep(5 * time.Second)
	end := f.now()
	f.stop()
	for _, via := range transports {
		back := f.lastFailure(via, ready, end)
		took := back - ready
		r.fact("%s: the last failure came %s after the first pod was ready", via, took.Round(100*time.Millisecond))
		assert.LessOrEqual(t, took, 5*time.Second+f.stalled(), via)
		assert.NotEmpty(t, f.between(via, back+1, end), "%s: no answers again", via)
	}
	assert.Equal(t, before[serviceA], c.restarts(t)[serviceA], "restarts of service-a")
	assert.Equal(t, int(*c.deployment(t, serviceA).Spec.Replicas), fewest()[serviceA], "service-a's pods that were ready, at worst")
	r.wantNoneHung(f, deadline)
	r.Bound = "What resolvers between CoreDNS and the pod cache can add to the 5 s: a resolver that remembers for 30 s that there was no address (CoreDNS with `cache 30` for the cluster's own names) keeps gRPC's headless name away for as long; HTTP's virtual IP is not concerned."
}

// restarts of a service's containers, all in all.
func (c *cluster) restarts(t tester) map[string]int {
	out := map[string]int{}
	for _, service := range []string{serviceA, serviceB} {
		for _, p := range c.pods(t, service) {
			for _, status := range p.Status.ContainerStatuses {
				out[service] += int(status.RestartCount)
			}
		}
	}
	return out
}

func TestWhenASettingIsWrongTheRolloutStopsAtTheFirstPod(t *testing.T) {
	r := newRow(t, 15, "an operator's mistake: a bad value in the ConfigMap, rolled out",
		"the rollout stops at the first pod, with one clear line; nothing that runs is taken down")
	c := connectBusy(t)
	defer c.keep(t)
	old := c.serving(t, serviceB)
	deployment := c.deployment(t, serviceB)
	name := deployment.Spec.Template.Spec.Containers[0].EnvFrom[0].ConfigMapRef.Name
	maps := c.CoreV1().ConfigMaps(namespace)
	settings, err := maps.Get(t.Context(), name, metav1.GetOptions{})
	require.NoError(t, err)
	mistake := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "service-b-mistake-", Labels: map[string]string{testLabel: "true"}}, Data: settings.Data}
	mistake.Data["MAX_CONNECTION_AGE"] = "half an hour"
	mistake, err = maps.Create(t.Context(), mistake, metav1.CreateOptions{})
	require.NoError(t, err)
	restore(t, "ConfigMap", func(ctx context.Context) error { return maps.Delete(ctx, mistake.Name, metav1.DeleteOptions{}) })

	fewest := c.watchServing(t)
	f := c.traffic(t, busy)
	f.awaitAnswers(t)
	use := func(ctx context.Context, name string) error {
		patch := fmt.Sprintf(`[{"op":"replace","path":"/spec/template/spec/containers/0/envFrom/0/configMapRef/name","value":%q}]`, name)
		_, err := c.AppsV1().Deployments(namespace).Patch(ctx, serviceB, types.JSONPatchType, []byte(patch), metav1.PatchOptions{})
		return err
	}
	restore(t, "settings of service-b", func(ctx context.Context) error { return use(ctx, name) })
	require.NoError(t, use(t.Context(), mistake.Name))

	var bad string
	eventually(t, 2*time.Minute, "the new pod does not fail", func(is *assert.CollectT) {
		for pod, p := range c.pods(is, serviceB) {
			if _, was := old[pod]; was || len(p.Status.ContainerStatuses) == 0 {
				continue
			}
			last := p.Status.ContainerStatuses[0].LastTerminationState.Terminated
			if assert.NotNil(is, last, p.Status) {
				bad = pod
				assert.EqualValues(is, 2, last.ExitCode)
			}
		}
		assert.NotEmpty(is, bad)
	})
	said, err := c.CoreV1().Pods(namespace).GetLogs(bad, &corev1.PodLogOptions{}).DoRaw(t.Context())
	require.NoError(t, err)
	line, _, _ := strings.Cut(string(said), "\n")
	r.fact("the new pod says: %s", line)
	assert.Regexp(t, `\A[^\n]*MAX_CONNECTION_AGE[^\n]*half an hour[^\n]*\n\z`, string(said), "one line, that names variable and value")
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
		r.fact("kubectl rollout status reports ProgressDeadlineExceeded")
	} else {
		time.Sleep(20 * time.Second) // for what would be taken down, to be taken down
	}
	assert.Subset(t, names(c.serving(t, serviceB)), names(old), "those that ran")
	assert.Len(t, c.pods(t, serviceB), len(old)+1, "it stops at the first pod")
	for service, least := range fewest() {
		assert.Equal(t, int(*c.deployment(t, service).Spec.Replicas), least, "pods of %s that were ready, at worst", service)
	}
	r.wantNoneLost(f)
}
