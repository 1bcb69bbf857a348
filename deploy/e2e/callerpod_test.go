package e2e

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

// createNamespace creates a namespace without policies. labels are pairs of a key and a
// value.
func (c *cluster) createNamespace(t *testing.T, labels ...string) string {
	t.Helper()
	all := map[string]string{testLabel: "true"}
	for pair := range slices.Chunk(labels, 2) {
		all[pair[0]] = pair[1]
	}
	created, err := c.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		GenerateName: namespace + "-e2e-", Labels: all,
	}}, metav1.CreateOptions{})
	require.NoError(t, err)
	restore(t, "namespace "+created.Name, func(ctx context.Context) error {
		return c.CoreV1().Namespaces().Delete(ctx, created.Name, metav1.DeleteOptions{})
	})
	return created.Name
}

// allowIngressFrom lets the pods of a namespace reach service-b, as
// components/cross-namespace does. The policies of the base remain as they are.
func (c *cluster) allowIngressFrom(t *testing.T, from string) {
	t.Helper()
	policies := c.NetworkingV1().NetworkPolicies(namespace)
	httpName, grpcName := intstr.FromString("http"), intstr.FromString("grpc")
	_, err := policies.Create(t.Context(), &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: from, Labels: map[string]string{testLabel: "true"}},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{nameLabel: serviceB}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From: []networkingv1.NetworkPolicyPeer{{
					NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: from}},
				}},
				Ports: []networkingv1.NetworkPolicyPort{{Port: &httpName}, {Port: &grpcName}},
			}},
		},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	restore(t, "policy "+from, func(ctx context.Context) error { return policies.Delete(ctx, from, metav1.DeleteOptions{}) })
}

// startCaller starts a pod of service-a's image and waits until it is ready; callerPod
// describes it.
func (c *cluster) startCaller(t *testing.T, ns, name, label string, environ ...string) {
	t.Helper()
	c.startPod(t, c.callerPod(t, ns, name, label, environ...))
}

// callerPod returns a pod of service-a's image, with the same restrictions as service-a.
// label is the value of its nameLabel. Each of environ is a variable, such as
// SERVICE_B_GRPC_TARGET=dns:///….
func (c *cluster) callerPod(t *testing.T, ns, name, label string, environ ...string) *corev1.Pod {
	t.Helper()
	template := c.deployment(t, serviceA).Spec.Template.Spec
	container := template.Containers[0]
	container.EnvFrom = nil      // the ConfigMap is in the other namespace
	container.VolumeMounts = nil // the pod is not to have service-a's token
	container.StartupProbe, container.LivenessProbe, container.Lifecycle = nil, nil, nil
	container.ReadinessProbe.PeriodSeconds = 1
	for _, pair := range environ {
		key, value, _ := strings.Cut(pair, "=")
		container.Env = append(container.Env, corev1.EnvVar{Name: key, Value: value})
	}
	no, now := false, int64(0)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: map[string]string{nameLabel: label, testLabel: "true"}},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{container}, SecurityContext: template.SecurityContext,
			AutomountServiceAccountToken: &no, EnableServiceLinks: &no, TerminationGracePeriodSeconds: &now,
		},
	}
}

// startPod creates a pod and waits until it is ready.
func (c *cluster) startPod(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	pods := c.CoreV1().Pods(pod.Namespace)
	_, err := pods.Create(t.Context(), pod, metav1.CreateOptions{})
	require.NoError(t, err)
	restore(t, "pod "+pod.Name, func(ctx context.Context) error { return pods.Delete(ctx, pod.Name, metav1.DeleteOptions{}) })
	eventually(t, 2*time.Minute, "pod "+pod.Name+" does not start", func(is *assert.CollectT) {
		p, err := pods.Get(context.Background(), pod.Name, metav1.GetOptions{})
		require.NoError(is, err)
		assert.NotZero(is, readySince(*p), p.Status)
	})
}

// forward returns a URL of this machine that leads to a pod's port, as kubectl
// port-forward does. Such connections come from the pod's own node, so no policy
// applies.
func (c *cluster) forward(t *testing.T, ns, pod string, port int) string {
	t.Helper()
	transport, upgrader, err := spdy.RoundTripperFor(c.config)
	require.NoError(t, err)
	url := c.CoreV1().RESTClient().Post().Resource("pods").Namespace(ns).Name(pod).SubResource("portforward").URL()
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	stop, ready, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	forwarder, err := portforward.New(dialer, []string{fmt.Sprintf("0:%d", port)}, stop, ready, nil, nil)
	require.NoError(t, err)
	go func() { ended <- forwarder.ForwardPorts() }()
	t.Cleanup(func() { close(stop) })
	select {
	case <-ready:
	case err := <-ended:
		require.NoError(t, err, "port-forward to %s", pod)
	case <-time.After(time.Minute):
		require.Fail(t, "port-forward takes too long", pod)
	}
	ports, err := forwarder.GetPorts()
	require.NoError(t, err)
	return fmt.Sprintf("http://127.0.0.1:%d", ports[0].Local)
}
