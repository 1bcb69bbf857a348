package e2e

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"regexp"
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

// asked is what a probe came to: a class of failure or "ok", and its words.
type asked struct{ class, words string }

var failedProbe = regexp.MustCompile(`(?m)^probe: (\w+): `)

// probe has a pod (or deploy/NAME) of service-a's image ask a URL. The image
// has no shell and no curl, so it asks by a subcommand of the service.
func (c *cluster) probe(in, pod, url string, timeout time.Duration) asked {
	ctx, cancel := context.WithTimeout(context.Background(), timeout+30*time.Second)
	defer cancel()
	out, _, err := c.kubectl(ctx, "", "--namespace", in, "exec", pod, "--", "/service-a", "probe", "-timeout", timeout.String(), url)
	if err == nil {
		return asked{"ok", out}
	}
	words := out + err.Error()
	if found := failedProbe.FindStringSubmatch(err.Error()); found != nil {
		return asked{found[1], words}
	}
	return asked{"no probe", words} // kubectl's own failure
}

const (
	// patience is for calls that are to succeed, however busy the machine is.
	patience = 10 * time.Second
	// brief is for calls that are to be blocked, of which all of it is waited.
	brief = 2 * time.Second
)

// mayAsk wants a probe to succeed. It tries again, as policies and endpoints
// take effect a moment after they are changed.
func (c *cluster) mayAsk(t *testing.T, in, pod, url string) asked {
	t.Helper()
	var got asked
	eventually(t, 30*time.Second, in+"/"+pod+" cannot reach "+url, func(is *assert.CollectT) {
		got = c.probe(in, pod, url, patience)
		assert.Equal(is, "ok", got.class, got.words)
	})
	return got
}

// otherNamespace makes a namespace that no policy protects.
func (c *cluster) otherNamespace(t *testing.T) string {
	t.Helper()
	made, err := c.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		GenerateName: namespace + "-e2e-", Labels: map[string]string{testLabel: "true"},
	}}, metav1.CreateOptions{})
	require.NoError(t, err)
	restore(t, "namespace "+made.Name, func(ctx context.Context) error {
		return c.CoreV1().Namespaces().Delete(ctx, made.Name, metav1.DeleteOptions{})
	})
	return made.Name
}

// admit lets a namespace's pods in to service-b, as components/cross-namespace
// would. Policies only add, so that those of the base stay as they are.
func (c *cluster) admit(t *testing.T, from string) {
	t.Helper()
	policies := c.NetworkingV1().NetworkPolicies(namespace)
	httpPort, grpcPort := intstr.FromInt32(8080), intstr.FromInt32(9090)
	_, err := policies.Create(t.Context(), &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: from, Labels: map[string]string{testLabel: "true"}},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{nameLabel: serviceB}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From: []networkingv1.NetworkPolicyPeer{{
					NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: from}},
				}},
				Ports: []networkingv1.NetworkPolicyPort{{Port: &httpPort}, {Port: &grpcPort}},
			}},
		},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	restore(t, "policy "+from, func(ctx context.Context) error { return policies.Delete(ctx, from, metav1.DeleteOptions{}) })
}

// caller starts a pod of service-a's image, as restricted as service-a's own.
// It is in no Service of ours unless its labels say so. An environ's value is
// a name of service-b's, such as SERVICE_B_GRPC_TARGET=dns:///….
func (c *cluster) caller(t *testing.T, in, name string, labels map[string]string, environ ...string) string {
	t.Helper()
	template := c.deployment(t, serviceA).Spec.Template.Spec
	container := template.Containers[0]
	container.EnvFrom = nil // that ConfigMap is in the other namespace
	container.StartupProbe, container.LivenessProbe, container.Lifecycle = nil, nil, nil
	container.ReadinessProbe.PeriodSeconds = 1
	for _, pair := range environ {
		key, value, _ := strings.Cut(pair, "=")
		container.Env = append(container.Env, corev1.EnvVar{Name: key, Value: value})
	}
	labels = maps.Clone(labels)
	labels[testLabel] = "true"
	no, now := false, int64(0)
	pods := c.CoreV1().Pods(in)
	_, err := pods.Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{container}, SecurityContext: template.SecurityContext,
			AutomountServiceAccountToken: &no, EnableServiceLinks: &no, TerminationGracePeriodSeconds: &now,
		},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	restore(t, "pod "+name, func(ctx context.Context) error { return pods.Delete(ctx, name, metav1.DeleteOptions{}) })
	eventually(t, 2*time.Minute, "pod "+name+" does not start", func(is *assert.CollectT) {
		p, err := pods.Get(context.Background(), name, metav1.GetOptions{})
		require.NoError(is, err)
		assert.NotZero(is, readySince(*p), p.Status)
	})
	return name
}

// forward makes a pod's port reachable from here, as kubectl port-forward
// does: it comes from the pod's own node, and so passes every policy.
func (c *cluster) forward(t *testing.T, in, pod string, port int) string {
	t.Helper()
	transport, upgrader, err := spdy.RoundTripperFor(c.config)
	require.NoError(t, err)
	url := c.CoreV1().RESTClient().Post().Resource("pods").Namespace(in).Name(pod).SubResource("portforward").URL()
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
