package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
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
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	namespace = "tandem"
	serviceA  = "service-a"
	serviceB  = "service-b"
	headless  = "service-b-headless"

	systemNamespace = "kube-system"
	coreDNS         = "coredns"

	nameLabel = "app.kubernetes.io/name"
	zoneLabel = "topology.kubernetes.io/zone"
	// testLabel is on everything that a test adds to the cluster, so that the
	// next run finds what a run that was killed has left.
	testLabel = "tandem.example.com/e2e"
)

var transports = []string{"http", "grpc"}

func TestMain(m *testing.M) {
	// A busy machine is slow, and no answer at all is the same after a minute.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	c, err := open(ctx)
	if err == nil {
		err = c.usable(ctx)
	}
	cancel()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	fmt.Printf("e2e: context %s, service-a at %s\n", c.context, c.url)
	code := m.Run()
	ctx, cancel = context.WithTimeout(context.Background(), time.Minute)
	if err := c.removeFault(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: remove FAULT from service-b:", err)
		code = 1
	}
	cancel()
	os.Exit(code)
}

// cluster is where the pair runs.
type cluster struct {
	*kubernetes.Clientset
	config  *rest.Config
	context string
	// url is service-a, as seen from outside.
	url string
}

// open finds the cluster: TANDEM_E2E_CONTEXT or, if it is one of kind's, the
// kubeconfig's current context. Nobody's real cluster is scaled and drained
// because kubectl happened to point at it.
func open(ctx context.Context) (*cluster, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	kubeconfig, err := rules.Load()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	name := os.Getenv("TANDEM_E2E_CONTEXT")
	if name == "" {
		name = kubeconfig.CurrentContext
		if name != "" && !strings.HasPrefix(name, "kind-") {
			return nil, fmt.Errorf("context %s is not kind's: these tests scale, drain and break things; set TANDEM_E2E_CONTEXT=%[1]s to let them", name)
		}
	}
	if kubeconfig.Contexts[name] == nil {
		return nil, fmt.Errorf("there is no cluster (context %q): run make kind-up deploy", name)
	}
	config, err := clientcmd.NewNonInteractiveClientConfig(*kubeconfig, name, &clientcmd.ConfigOverrides{}, rules).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("context %s: %w", name, err)
	}
	config.QPS = -1 // a test may ask as often as it likes
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("context %s: %w", name, err)
	}
	url, err := outside(ctx, name)
	return &cluster{Clientset: clients, config: config, context: name, url: url}, err
}

// outside is where service-a is published: TANDEM_E2E_URL or, on kind, what the
// control plane's node maps the NodePort to.
func outside(ctx context.Context, contextName string) (string, error) {
	if url := os.Getenv("TANDEM_E2E_URL"); url != "" {
		return strings.TrimSuffix(url, "/"), nil
	}
	name, isKind := strings.CutPrefix(contextName, "kind-")
	if !isKind {
		return "", errors.New("set TANDEM_E2E_URL to where service-a is published, such as http://20.1.2.3")
	}
	out, err := exec.CommandContext(ctx, "docker", "port", name+"-control-plane", "30080/tcp").Output()
	address, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if err != nil || address == "" {
		return "", fmt.Errorf("the cluster of context %s does not answer: run make kind-up deploy", contextName)
	}
	return "http://" + address, nil
}

// usable reports what keeps the tests from starting, and deletes what a run
// that was killed has left.
func (c *cluster) usable(ctx context.Context) error {
	if _, err := exec.LookPath("kubectl"); err != nil {
		return err
	}
	for _, name := range []string{serviceA, serviceB} {
		switch _, err := c.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{}); {
		case apierrors.IsNotFound(err):
			return fmt.Errorf("%s does not run in namespace %s: run make deploy", name, namespace)
		case err != nil:
			return fmt.Errorf("the cluster of context %s does not answer: run make kind-up deploy (%w)", c.context, err)
		}
	}
	leftovers := metav1.ListOptions{LabelSelector: testLabel}
	spaces, err := c.CoreV1().Namespaces().List(ctx, leftovers)
	if err != nil {
		return err
	}
	for _, space := range spaces.Items {
		err = errors.Join(err, c.CoreV1().Namespaces().Delete(ctx, space.Name, metav1.DeleteOptions{}))
	}
	services, failure := c.CoreV1().Services(namespace).List(ctx, leftovers)
	if failure != nil {
		return failure
	}
	for _, service := range services.Items {
		err = errors.Join(err, c.CoreV1().Services(namespace).Delete(ctx, service.Name, metav1.DeleteOptions{}))
	}
	if err := errors.Join(err,
		c.CoreV1().Pods(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, leftovers),
		c.CoreV1().ConfigMaps(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, leftovers),
		c.NetworkingV1().NetworkPolicies(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, leftovers),
		c.AutoscalingV2().HorizontalPodAutoscalers(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, leftovers),
	); err != nil {
		return fmt.Errorf("delete what a run before has left: %w", err)
	}
	scalers, err := c.AutoscalingV2().HorizontalPodAutoscalers(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, s := range scalers.Items {
		if s.Labels[testLabel] == "" {
			return fmt.Errorf("autoscaler %s would scale while tests do: run kubectl --context %s --namespace %s delete horizontalpodautoscalers --all", s.Name, c.context, namespace)
		}
	}
	if dns, err := c.AppsV1().Deployments(systemNamespace).Get(ctx, coreDNS, metav1.GetOptions{}); err == nil && *dns.Spec.Replicas == 0 {
		return fmt.Errorf("there is no DNS, as a run that was killed has left it: run kubectl --context %s --namespace %s scale deployment %s --replicas 2", c.context, systemNamespace, coreDNS)
	}
	nodes, err := c.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, node := range nodes.Items {
		if c.isKind() {
			if err := c.reconnect(ctx, node.Name); err != nil {
				return err
			}
		}
		if node.Spec.Unschedulable {
			return fmt.Errorf("node %s takes no pods: run kubectl --context %s uncordon %[1]s", node.Name, c.context)
		}
	}
	return nil
}

// connect is how a test begins: with the pair at rest, as make deploy leaves it.
// Follow it by defer c.keep(t).
func connect(t *testing.T) *cluster {
	t.Helper()
	return connectWith(t, "")
}

// settle waits until both services run as many pods as they should, and no
// others.
func (c *cluster) settle(t *testing.T) {
	t.Helper()
	eventually(t, 3*time.Minute, "the pair does not come to rest", func(is *assert.CollectT) {
		for _, name := range []string{serviceA, serviceB} {
			d := c.deployment(is, name)
			assert.Equal(is, d.Generation, d.Status.ObservedGeneration, name)
			assert.Equal(is, *d.Spec.Replicas, d.Status.AvailableReplicas, "available pods of %s", name)
			assert.Equal(is, *d.Spec.Replicas, d.Status.UpdatedReplicas, "updated pods of %s", name)
			assert.Len(is, c.pods(is, name), int(*d.Spec.Replicas), "pods of %s, those that are leaving too", name)
		}
	})
}

// eventually repeats checks until they hold. A busy machine is slow: how long
// that may take is a figure to print, and no claim unless a test says so.
func eventually(t *testing.T, within time.Duration, otherwise string, checks func(is *assert.CollectT)) {
	t.Helper()
	require.EventuallyWithT(t, checks, within, 300*time.Millisecond, otherwise)
}

// restore puts something back when the test is over, whatever became of it.
func restore(t *testing.T, what string, back func(context.Context) error) {
	t.Helper()
	t.Cleanup(func() {
		// Not the test's own context: that one has ended.
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		assert.NoError(t, back(ctx), "put back: %s", what)
	})
}

// tester is what a check is made with: the test, or one round of eventually.
type tester interface {
	require.TestingT
	assert.TestingT
}

func (c *cluster) deployment(t tester, name string) *appsv1.Deployment {
	d, err := c.AppsV1().Deployments(namespace).Get(context.Background(), name, metav1.GetOptions{})
	require.NoError(t, err)
	return d
}

// image is what a service runs.
func (c *cluster) image(t tester, name string) string {
	return c.deployment(t, name).Spec.Template.Spec.Containers[0].Image
}

// setting is what a service's ConfigMap says.
func (c *cluster) setting(t tester, service, key string) string {
	from := c.deployment(t, service).Spec.Template.Spec.Containers[0].EnvFrom
	require.NotEmpty(t, from)
	m, err := c.CoreV1().ConfigMaps(namespace).Get(context.Background(), from[0].ConfigMapRef.Name, metav1.GetOptions{})
	require.NoError(t, err)
	require.Contains(t, m.Data, key)
	return m.Data[key]
}

// maxConnectionAge is how long callers stay on one pod of service-b.
func (c *cluster) maxConnectionAge(t tester) time.Duration {
	age, err := time.ParseDuration(c.setting(t, serviceB, "MAX_CONNECTION_AGE"))
	require.NoError(t, err)
	return age
}

// pods of a service, by name; those that are starting or leaving too.
func (c *cluster) pods(t tester, service string) map[string]corev1.Pod {
	list, err := c.CoreV1().Pods(namespace).List(context.Background(), metav1.ListOptions{LabelSelector: nameLabel + "=" + service})
	require.NoError(t, err)
	out := map[string]corev1.Pod{}
	for _, p := range list.Items {
		if p.Status.Phase != corev1.PodFailed && p.Status.Phase != corev1.PodSucceeded {
			out[p.Name] = p
		}
	}
	return out
}

// serving are the pods of a service that are ready and not leaving.
func (c *cluster) serving(t tester, service string) map[string]corev1.Pod {
	out := c.pods(t, service)
	maps.DeleteFunc(out, func(_ string, p corev1.Pod) bool { return p.DeletionTimestamp != nil || readySince(p).IsZero() })
	return out
}

// readySince is when a pod became ready, to the second below; zero if it is not.
func readySince(p corev1.Pod) time.Time {
	for _, condition := range p.Status.Conditions {
		if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue {
			return condition.LastTransitionTime.Time
		}
	}
	return time.Time{}
}

// names are a map's keys, in order.
func names[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// any of several pods.
func one(pods map[string]corev1.Pod) corev1.Pod { return pods[names(pods)[0]] }

// endpoints are the pods that a Service sends new connections to.
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

// scale sets how many pods of a service there are to be.
func (c *cluster) scale(ctx context.Context, service string, replicas int32) error {
	return c.scaleIn(ctx, namespace, service, replicas)
}

// scaleIn does the same to any Deployment.
func (c *cluster) scaleIn(ctx context.Context, namespace, name string, replicas int32) error {
	patch := fmt.Sprintf(`{"spec":{"replicas":%d}}`, replicas)
	_, err := c.AppsV1().Deployments(namespace).Patch(ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	return err
}

// restoreScale notes how many pods a service has, for when the test is over.
func (c *cluster) restoreScale(t *testing.T, service string) int32 {
	replicas := *c.deployment(t, service).Spec.Replicas
	restore(t, "scale of "+service, func(ctx context.Context) error { return c.scale(ctx, service, replicas) })
	return replicas
}

// kubectl does what readers would type, for what is long to say in Go.
func (c *cluster) kubectl(ctx context.Context, stdin string, args ...string) (stdout, stderr string, err error) {
	var out, complaints bytes.Buffer
	cmd := exec.CommandContext(ctx, "kubectl", append([]string{"--context", c.context}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &complaints
	if err = cmd.Run(); err != nil {
		err = fmt.Errorf("kubectl %s: %w\n%s", strings.Join(args, " "), err, complaints.String())
	}
	return out.String(), complaints.String(), err
}
