package e2e

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// connect begins a test: it waits until both services are as make deploy leaves
// them. Follow it by defer c.saveOnFailure(t).
func connect(t *testing.T) *cluster {
	t.Helper()
	return connectWith(t, "")
}

// connectBusy is connect for busyLoad: service-b takes busyLatency for each call. The
// fault is a setting of the Deployment, so pods that start later have it too. It
// remains until a test calls connect, so that consecutive rows share one rollout.
func connectBusy(t *testing.T) *cluster {
	t.Helper()
	return connectWith(t, latencyFault(""))
}

// busyLatency sets how many calls a second busyLoad makes: 100 callers make 2,000 or, in
// the mesh, 110. That leaves some of the two cores that run all nodes, which 350 calls a
// second through their four proxies saturate.
func busyLatency() time.Duration {
	if inMesh() {
		return 900 * time.Millisecond
	}
	return 50 * time.Millisecond
}

// latencyFault returns the fault of busyLatency, for FAULT and the fault switch. more is
// added to it, such as `,"errorRate":0.3`.
func latencyFault(more string) string { return fmt.Sprintf(`{"latency":%q%s}`, busyLatency(), more) }

// connectWith waits until all pods are available, and service-b has this setting
// of FAULT. "" is no setting.
func connectWith(t *testing.T, fault string) *cluster {
	t.Helper()
	c, err := open(t.Context())
	require.NoError(t, err)
	c.settle(t)
	if d := c.deployment(t, serviceB); faultSetting(d) != fault {
		start := time.Now()
		c.replaceFault(t, d, fault)
		t.Logf("service-b restarted with FAULT=%q in %s", fault, time.Since(start).Round(time.Second))
	}
	return c
}

// settle waits until each service has as many pods as it should, all of them
// available and up to date.
func (c *cluster) settle(t *testing.T) {
	t.Helper()
	eventually(t, 3*time.Minute, "the services do not become available", func(is *assert.CollectT) {
		for _, name := range services {
			d := c.deployment(is, name)
			assert.Equal(is, d.Generation, d.Status.ObservedGeneration, name)
			assert.Equal(is, *d.Spec.Replicas, d.Status.AvailableReplicas, "available pods of %s", name)
			assert.Equal(is, *d.Spec.Replicas, d.Status.UpdatedReplicas, "updated pods of %s", name)
			assert.Len(is, c.pods(is, name), int(*d.Spec.Replicas), "pods of %s, terminating ones included", name)
		}
	})
}

// faultSetting returns the FAULT that a Deployment sets, or "".
func faultSetting(d *appsv1.Deployment) string {
	for _, v := range d.Spec.Template.Spec.Containers[0].Env {
		if v.Name == "FAULT" {
			return v.Value
		}
	}
	return ""
}

// replaceFault restarts service-b with another FAULT. It does not wait for
// minReadySeconds, because nothing is measured meanwhile.
func (c *cluster) replaceFault(t *testing.T, d *appsv1.Deployment, fault string) {
	t.Helper()
	defer func() {
		patch := fmt.Sprintf(`{"spec":{"minReadySeconds":%d}}`, d.Spec.MinReadySeconds)
		_, err := c.AppsV1().Deployments(namespace).Patch(context.Background(), serviceB, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		assert.NoError(t, err, "restore minReadySeconds")
		c.settle(t)
	}()
	require.NoError(t, c.patchFault(t.Context(), fault, `"minReadySeconds":0,`))
	c.settle(t)
	if fault == "" {
		return
	}
	for pod := range c.readyPods(t, serviceB) {
		current := requestFault(t, c.forwardFaultSwitch(t, pod), http.MethodGet, "")
		require.Contains(t, current, fmt.Sprintf(`"latency":%q`, busyLatency()), "%s does not have the fault of the setting FAULT", pod)
	}
}

// patchFault starts a rollout of service-b with another FAULT. more is added to the
// Deployment's spec.
func (c *cluster) patchFault(ctx context.Context, fault, more string) error {
	value := fmt.Sprintf(`"value":%q`, fault)
	if fault == "" {
		value = `"$patch":"delete"`
	}
	patch := fmt.Sprintf(`{"spec":{%s"template":{"spec":{"containers":[{"name":%q,"env":[{"name":"FAULT",%s}]}]}}}}`, more, serviceB, value)
	_, err := c.AppsV1().Deployments(namespace).Patch(ctx, serviceB, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	return err
}

// removeFault undoes connectBusy. It does not wait for the rollout.
func (c *cluster) removeFault(ctx context.Context) error {
	d, err := c.AppsV1().Deployments(namespace).Get(ctx, serviceB, metav1.GetOptions{})
	if err != nil || faultSetting(d) == "" {
		return err
	}
	return c.patchFault(ctx, "", "")
}

// eventually repeats checks until they pass. The limit is generous, as machines may
// be busy: where a duration is a claim, the test measures it.
func eventually(t *testing.T, within time.Duration, failure string, checks func(is *assert.CollectT)) {
	t.Helper()
	require.EventuallyWithT(t, checks, within, 300*time.Millisecond, failure)
}

// restore calls undo at the end of the test, with a context that has not ended.
func restore(t *testing.T, what string, undo func(context.Context) error) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		assert.NoError(t, undo(ctx), "restore %s", what)
	})
}
