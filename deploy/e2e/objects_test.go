package e2e

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// tester is a test or one round of eventually.
type tester interface {
	require.TestingT
	assert.TestingT
}

func (c *cluster) deployment(t tester, name string) *appsv1.Deployment {
	d, err := c.AppsV1().Deployments(namespace).Get(context.Background(), name, metav1.GetOptions{})
	require.NoError(t, err)
	return d
}

// image returns the container image of a service.
func (c *cluster) image(t tester, service string) string {
	return c.deployment(t, service).Spec.Template.Spec.Containers[0].Image
}

// setting returns a value of a service's ConfigMap.
func (c *cluster) setting(t tester, service, key string) string {
	from := c.deployment(t, service).Spec.Template.Spec.Containers[0].EnvFrom
	require.NotEmpty(t, from)
	m, err := c.CoreV1().ConfigMaps(namespace).Get(context.Background(), from[0].ConfigMapRef.Name, metav1.GetOptions{})
	require.NoError(t, err)
	require.Contains(t, m.Data, key)
	return m.Data[key]
}

// callTimeout returns how long service-a gives one call of service-b.
func (c *cluster) callTimeout(t tester) time.Duration {
	d, err := time.ParseDuration(c.setting(t, serviceA, "CALL_TIMEOUT"))
	require.NoError(t, err)
	return d
}

// maxConnectionAge returns how long a connection to service-b stays on its pod.
func (c *cluster) maxConnectionAge(t tester) time.Duration {
	age, err := time.ParseDuration(c.setting(t, serviceB, "MAX_CONNECTION_AGE"))
	require.NoError(t, err)
	return age
}

// discoveryTimeout returns after how long callers use a new set of pods at the latest:
// connections are closed at MAX_CONNECTION_AGE, give or take a tenth, and gRPC's
// DNS response may be 30 s old.
func (c *cluster) discoveryTimeout(t tester) time.Duration {
	return c.maxConnectionAge(t) + 35*time.Second
}

// pods returns the pods of a service by name, starting and terminating ones included.
func (c *cluster) pods(t tester, service string) map[string]corev1.Pod {
	out := c.podsIn(t, namespace, service)
	maps.DeleteFunc(out, func(_ string, p corev1.Pod) bool {
		return p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded
	})
	return out
}

// podsIn returns all pods of a service in a namespace by name, ended ones included.
func (c *cluster) podsIn(t tester, ns, service string) map[string]corev1.Pod {
	list, err := c.CoreV1().Pods(ns).List(context.Background(), metav1.ListOptions{LabelSelector: nameLabel + "=" + service})
	require.NoError(t, err)
	out := map[string]corev1.Pod{}
	for _, p := range list.Items {
		out[p.Name] = p
	}
	return out
}

// recentLogs returns what a pod of a service logged in the last minute.
func (c *cluster) recentLogs(t tester, pod, service string) string {
	since := int64(60)
	logs, err := c.CoreV1().Pods(namespace).GetLogs(pod, &corev1.PodLogOptions{Container: service, SinceSeconds: &since}).DoRaw(context.Background())
	require.NoError(t, err)
	return string(logs)
}

// readyPods returns the pods of a service that are ready and not terminating.
func (c *cluster) readyPods(t tester, service string) map[string]corev1.Pod {
	out := c.pods(t, service)
	maps.DeleteFunc(out, func(_ string, p corev1.Pod) bool { return !isReady(p) })
	return out
}

func isReady(p corev1.Pod) bool { return p.DeletionTimestamp == nil && !readySince(p).IsZero() }

// readySince returns when a pod became ready, rounded down to a second, or zero if it
// is not ready.
func readySince(p corev1.Pod) time.Time {
	for _, condition := range p.Status.Conditions {
		if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue {
			return condition.LastTransitionTime.Time
		}
	}
	return time.Time{}
}

// restarts returns the number of container restarts of each service.
func (c *cluster) restarts(t tester) map[string]int {
	out := map[string]int{}
	for _, service := range services {
		for _, p := range c.pods(t, service) {
			for _, status := range p.Status.ContainerStatuses {
				out[service] += int(status.RestartCount)
			}
		}
	}
	return out
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// firstOf returns the pod whose name sorts first.
func firstOf(pods map[string]corev1.Pod) corev1.Pod { return pods[sortedKeys(pods)[0]] }

// endpoints returns the names of the pods to which a Service sends connections.
func (c *cluster) endpoints(t tester, service string) []string {
	list, err := c.DiscoveryV1().EndpointSlices(namespace).List(context.Background(), metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=" + service})
	require.NoError(t, err)
	var out []string
	for _, slice := range list.Items {
		for _, e := range slice.Endpoints {
			if e.TargetRef != nil && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
				out = append(out, e.TargetRef.Name)
			}
		}
	}
	slices.Sort(out)
	return out
}

// scale sets the number of pods of a service.
func (c *cluster) scale(ctx context.Context, service string, replicas int32) error {
	return c.scaleDeployment(ctx, namespace, service, replicas)
}

func (c *cluster) scaleDeployment(ctx context.Context, ns, name string, replicas int32) error {
	patch := fmt.Sprintf(`{"spec":{"replicas":%d}}`, replicas)
	_, err := c.AppsV1().Deployments(ns).Patch(ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	return err
}

// restoreScale returns the number of pods of a service, and restores it at the end of
// the test.
func (c *cluster) restoreScale(t *testing.T, service string) int32 {
	replicas := *c.deployment(t, service).Spec.Replicas
	restore(t, "scale of "+service, func(ctx context.Context) error { return c.scale(ctx, service, replicas) })
	return replicas
}
