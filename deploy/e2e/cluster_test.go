package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Names and ports of deploy/base.
const (
	namespace = "tandem"
	serviceA  = "service-a"
	serviceB  = "service-b"
	headless  = "service-b-headless"

	servicePort = 80   // of the Services, for HTTP
	httpPort    = 8080 // of the pods
	grpcPort    = 9090 // of service-b's pods and Services
	adminPort   = 8081 // /metrics; of no Service
	faultPort   = 8082 // the fault switch, on a pod's loopback interface
	nodePort    = 30080

	nameLabel = "app.kubernetes.io/name"
)

// Names of Kubernetes.
const (
	systemNamespace = "kube-system"
	coreDNS         = "coredns"
	coreDNSSelector = "k8s-app=kube-dns"
	zoneLabel       = "topology.kubernetes.io/zone"
)

// testLabel marks all that a test adds to the cluster, so that the next run can
// delete what a killed run has left.
const testLabel = "tandem.example.com/e2e"

var (
	services   = []string{serviceA, serviceB}
	transports = []string{"http", "grpc"}
)

// httpURL returns the URL of a path at a Service's name or a pod's address.
func httpURL(host string, port int, path string) string {
	return "http://" + net.JoinHostPort(host, strconv.Itoa(port)) + path
}

// grpcURL returns what the probe of the services takes for a gRPC server.
func grpcURL(host string) string {
	return "grpc://" + net.JoinHostPort(host, strconv.Itoa(grpcPort))
}

func TestMain(m *testing.M) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	c, err := open(ctx)
	if err == nil {
		err = c.prepare(ctx)
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

// cluster is the cluster to which both services are deployed.
type cluster struct {
	*kubernetes.Clientset
	config  *rest.Config
	context string
	url     string // of service-a, from outside the cluster
}

// open connects to the cluster of TANDEM_E2E_CONTEXT. If it is not set, that is the
// current context, which must be one of kind: the tests must not scale and drain
// another cluster because kubectl happens to point at it.
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
			return nil, fmt.Errorf("context %s is not a kind cluster: these tests scale, drain and break things; to allow it, set TANDEM_E2E_CONTEXT=%[1]s", name)
		}
	}
	if kubeconfig.Contexts[name] == nil {
		return nil, fmt.Errorf("there is no cluster (context %q): run make kind-up deploy", name)
	}
	config, err := clientcmd.NewNonInteractiveClientConfig(*kubeconfig, name, &clientcmd.ConfigOverrides{}, rules).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("context %s: %w", name, err)
	}
	config.QPS = -1 // no limit on the client's requests
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("context %s: %w", name, err)
	}
	url, err := publishedURL(ctx, name)
	return &cluster{Clientset: clients, config: config, context: name, url: url}, err
}

// publishedURL returns TANDEM_E2E_URL or, on kind, the port of this machine that
// leads to the NodePort of service-a.
func publishedURL(ctx context.Context, contextName string) (string, error) {
	if url := os.Getenv("TANDEM_E2E_URL"); url != "" {
		return strings.TrimSuffix(url, "/"), nil
	}
	name, isKind := strings.CutPrefix(contextName, "kind-")
	if !isKind {
		return "", errors.New("set TANDEM_E2E_URL to the URL of service-a outside the cluster, such as http://20.1.2.3")
	}
	out, err := exec.CommandContext(ctx, "docker", "port", name+"-control-plane", fmt.Sprintf("%d/tcp", nodePort)).Output()
	address, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if err != nil || address == "" {
		return "", fmt.Errorf("the cluster of context %s does not respond: run make kind-up deploy", contextName)
	}
	return "http://" + address, nil
}

// prepare deletes what a killed run has left. It fails if the tests cannot start.
func (c *cluster) prepare(ctx context.Context) error {
	if _, err := exec.LookPath("kubectl"); err != nil {
		return err
	}
	for _, name := range services {
		switch _, err := c.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{}); {
		case apierrors.IsNotFound(err):
			return fmt.Errorf("%s does not run in namespace %s: run make deploy", name, namespace)
		case err != nil:
			return fmt.Errorf("the cluster of context %s does not respond: run make kind-up deploy (%w)", c.context, err)
		}
	}
	meshed, err := c.isMeshed(ctx)
	if err != nil {
		return err
	}
	if meshed {
		// Of TestGateway_ServesHTTPSAndGRPC, if it was killed.
		if _, _, err := c.kubectl(ctx, "", "--namespace", namespace, "delete", "--ignore-not-found", "httproute/https-redirect", "grpcroute/service-b"); err != nil {
			return err
		}
	}
	if err := c.deleteLeftovers(ctx); err != nil {
		return fmt.Errorf("delete what an earlier run has left: %w", err)
	}
	scalers, err := c.AutoscalingV2().HorizontalPodAutoscalers(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, s := range scalers.Items {
		if s.Labels[testLabel] == "" {
			return fmt.Errorf("autoscaler %s would scale during the tests: run kubectl --context %s --namespace %s delete horizontalpodautoscalers --all", s.Name, c.context, namespace)
		}
	}
	if dns, err := c.AppsV1().Deployments(systemNamespace).Get(ctx, coreDNS, metav1.GetOptions{}); err == nil && *dns.Spec.Replicas == 0 {
		return fmt.Errorf("a killed run has left the cluster without DNS: run kubectl --context %s --namespace %s scale deployment %s --replicas 2", c.context, systemNamespace, coreDNS)
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
			return fmt.Errorf("node %s accepts no pods: run kubectl --context %s uncordon %[1]s", node.Name, c.context)
		}
	}
	return nil
}

// deleteLeftovers deletes everything with testLabel.
func (c *cluster) deleteLeftovers(ctx context.Context) error {
	leftovers := metav1.ListOptions{LabelSelector: testLabel}
	namespacesOfTests, err := c.CoreV1().Namespaces().List(ctx, leftovers)
	if err != nil {
		return err
	}
	servicesOfTests, err := c.CoreV1().Services(namespace).List(ctx, leftovers)
	if err != nil {
		return err
	}
	var failures []error
	for _, n := range namespacesOfTests.Items {
		failures = append(failures, c.CoreV1().Namespaces().Delete(ctx, n.Name, metav1.DeleteOptions{}))
	}
	for _, s := range servicesOfTests.Items { // Services have no DeleteCollection
		failures = append(failures, c.CoreV1().Services(namespace).Delete(ctx, s.Name, metav1.DeleteOptions{}))
	}
	return errors.Join(append(failures,
		c.CoreV1().Pods(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, leftovers),
		c.CoreV1().ConfigMaps(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, leftovers),
		c.CoreV1().Secrets(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, leftovers),
		c.NetworkingV1().NetworkPolicies(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, leftovers),
		c.AutoscalingV2().HorizontalPodAutoscalers(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, leftovers),
	)...)
}

// kubectl runs kubectl, for what would be long in Go.
func (c *cluster) kubectl(ctx context.Context, stdin string, args ...string) (stdout, stderr string, err error) {
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, "kubectl", append([]string{"--context", c.context}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	if err = cmd.Run(); err != nil {
		err = fmt.Errorf("kubectl %s: %w\n%s", strings.Join(args, " "), err, errOut.String())
	}
	return out.String(), errOut.String(), err
}

// run returns the standard output of a command.
func run(ctx context.Context, name string, args ...string) (string, error) {
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, errOut.String())
	}
	return out.String(), nil
}
