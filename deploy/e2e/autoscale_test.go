package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"example.com/tandem/deploy/e2e/load"
)

func TestAutoscaler_ScalesOutAndBack(t *testing.T) {
	c := connect(t)
	defer c.saveOnFailure(t)
	if _, err := c.RESTClient().Get().AbsPath("/apis/metrics.k8s.io/v1beta1/namespaces/" + namespace + "/pods").DoRaw(t.Context()); err != nil {
		t.Skipf("there is no metrics-server: run make kind-up METRICS_SERVER=…, with its manifest (%v)", err)
	}
	scaler := c.autoscaler(t, serviceB)
	// The overlay waits three minutes before it scales in, and its ten pods are too
	// many for one machine.
	window := int32(15)
	scaler.Spec.Behavior.ScaleDown.StabilizationWindowSeconds = &window
	scaler.Spec.Behavior.ScaleDown.Policies = []autoscalingv2.HPAScalingPolicy{{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15}}
	scaler.Spec.MaxReplicas = 5
	t.Log("the window of scaleDown is 15 s instead of the overlay's 180 s, maxReplicas 5 instead of 10; all else is as in the overlay")

	least := c.restoreScale(t, serviceB)
	require.Equal(t, least, *scaler.Spec.MinReplicas, "the autoscaler must not scale before the load begins")
	scalers := c.AutoscalingV2().HorizontalPodAutoscalers(namespace)
	restore(t, "autoscaler", func(ctx context.Context) error { return scalers.Delete(ctx, scaler.Name, metav1.DeleteOptions{}) })
	_, err := scalers.Create(t.Context(), scaler, metav1.CreateOptions{})
	require.NoError(t, err)
	var idle int32
	eventually(t, 3*time.Minute, "the autoscaler has no metrics", func(is *assert.CollectT) {
		now, err := scalers.Get(context.Background(), scaler.Name, metav1.GetOptions{})
		require.NoError(is, err)
		require.NotEmpty(is, now.Status.CurrentMetrics, now.Status.Conditions)
		require.NotNil(is, now.Status.CurrentMetrics[0].ContainerResource)
		require.NotNil(is, now.Status.CurrentMetrics[0].ContainerResource.Current.AverageUtilization)
		idle = *now.Status.CurrentMetrics[0].ContainerResource.Current.AverageUtilization
		assert.Equal(is, least, now.Status.DesiredReplicas)
	})

	start := time.Now()
	g := c.startLoad(t, load.Spec{Callers: 3, Batch: 200, Pause: 10 * time.Millisecond})
	eventually(t, 4*time.Minute, "the autoscaler does not scale out", func(is *assert.CollectT) {
		assert.Greater(is, len(c.readyPods(is, serviceB)), int(least))
	})
	out := time.Since(start)
	now, err := scalers.Get(t.Context(), scaler.Name, metav1.GetOptions{})
	require.NoError(t, err)
	t.Logf("from %d pods at %d %% to %d ready in %s, at %d %% of a target of %d %%", least, idle, len(c.readyPods(t, serviceB)),
		out.Round(time.Second), *now.Status.CurrentMetrics[0].ContainerResource.Current.AverageUtilization, *scaler.Spec.Metrics[0].ContainerResource.Target.AverageUtilization)

	g.Stop()
	for _, via := range transports {
		t.Logf("%s: %s", via, summary(g, via))
	}
	start = time.Now()
	eventually(t, 4*time.Minute, "the autoscaler does not scale in", func(is *assert.CollectT) {
		assert.Equal(is, least, *c.deployment(is, serviceB).Spec.Replicas)
		assert.Len(is, c.readyPods(is, serviceB), int(least))
	})
	t.Logf("back to %d pods %s after the load ended", least, time.Since(start).Round(time.Second))
}

// autoscaler returns the HorizontalPodAutoscaler of a service in overlays/kind-autoscaling.
func (c *cluster) autoscaler(t *testing.T, service string) *autoscalingv2.HorizontalPodAutoscaler {
	t.Helper()
	objects := parse(t, c.render(t, "kind-autoscaling"))
	for _, o := range objects {
		if o.GetKind() == "HorizontalPodAutoscaler" && o.GetName() == service {
			var scaler autoscalingv2.HorizontalPodAutoscaler
			require.NoError(t, runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &scaler))
			if scaler.Labels == nil {
				scaler.Labels = map[string]string{}
			}
			scaler.Labels[testLabel] = "true"
			return &scaler
		}
	}
	require.Fail(t, "overlays/kind-autoscaling has no HorizontalPodAutoscaler", service)
	return nil
}
