package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// busy load has 50 calls in flight over each transport when something happens
// to a pod: service-b takes answerTime for each call, and the callers make no
// pause.
var busy = offer{callers: 50}

// answerTime is how long service-b takes for a call in the rows of
// docs/reliability.md. It decides how many calls a second busy load is: 2,000,
// of which two cores that are all nodes have some left.
const answerTime = 50 * time.Millisecond

// slowFault is the fault that makes a pod take answerTime, for FAULT and the fault
// switch; more is added to it, such as `,"errorRate":0.3`.
func slowFault(more string) string { return fmt.Sprintf(`{"latency":%q%s}`, answerTime, more) }

// connectBusy is connect for busy load. Pods that start later are slow too,
// because the fault is a setting of the Deployment; it stays until a test
// connects without it, so that consecutive rows share one rollout.
func connectBusy(t *testing.T) *cluster {
	t.Helper()
	return connectWith(t, slowFault(""))
}

// connectWith waits until the pair is at rest, with FAULT of service-b as
// given; "" is without.
func connectWith(t *testing.T, fault string) *cluster {
	t.Helper()
	c, err := open(t.Context())
	require.NoError(t, err)
	c.settle(t)
	if d := c.deployment(t, serviceB); faultOf(d) != fault {
		start := time.Now()
		c.replaceFault(t, d, fault)
		t.Logf("service-b restarted with FAULT=%q in %s", fault, time.Since(start).Round(time.Second))
	}
	return c
}

// faultOf is the FAULT that a Deployment sets.
func faultOf(d *appsv1.Deployment) string {
	for _, v := range d.Spec.Template.Spec.Containers[0].Env {
		if v.Name == "FAULT" {
			return v.Value
		}
	}
	return ""
}

// replaceFault restarts service-b with another FAULT, without the time that
// minReadySeconds would take: nothing is measured meanwhile.
func (c *cluster) replaceFault(t *testing.T, d *appsv1.Deployment, fault string) {
	t.Helper()
	defer func() {
		patch := fmt.Sprintf(`{"spec":{"minReadySeconds":%d}}`, d.Spec.MinReadySeconds)
		_, err := c.AppsV1().Deployments(namespace).Patch(context.Background(), serviceB, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		assert.NoError(t, err, "put back minReadySeconds")
		c.settle(t)
	}()
	require.NoError(t, c.setFault(t.Context(), fault, `"minReadySeconds":0,`))
	c.settle(t)
	if fault == "" {
		return
	}
	for pod := range c.serving(t, serviceB) {
		now := throw(t, c.debug(t, pod), "GET", "")
		require.Contains(t, now, fmt.Sprintf(`"latency":%q`, answerTime), "fault of %s: does it know the setting FAULT?", pod)
	}
}

// setFault begins a rollout of service-b with another FAULT, and with more in
// its spec.
func (c *cluster) setFault(ctx context.Context, fault, more string) error {
	value := fmt.Sprintf(`"value":%q`, fault)
	if fault == "" {
		value = `"$patch":"delete"`
	}
	patch := fmt.Sprintf(`{"spec":{%s"template":{"spec":{"containers":[{"name":%q,"env":[{"name":"FAULT",%s}]}]}}}}`, more, serviceB, value)
	_, err := c.AppsV1().Deployments(namespace).Patch(ctx, serviceB, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	return err
}

// removeFault puts back what connectBusy has changed; the rollout goes on
// after the tests have ended.
func (c *cluster) removeFault(ctx context.Context) error {
	d, err := c.AppsV1().Deployments(namespace).Get(ctx, serviceB, metav1.GetOptions{})
	if err != nil || faultOf(d) == "" {
		return err
	}
	return c.setFault(ctx, "", "")
}
