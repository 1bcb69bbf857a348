package e2e

import (
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A pod outside the allowed set reaches service-b by no address and no port.
func TestPolicies_BlockOtherPods(t *testing.T) {
	c := connect(t)
	defer c.saveOnFailure(t)
	ip := firstOf(c.readyPods(t, serviceB)).Status.PodIP
	targets := map[string]string{
		"the pod's http port":  httpURL(ip, httpPort, "/health"),
		"the pod's grpc port":  grpcURL(ip),
		"the pod's admin port": httpURL(ip, adminPort, "/metrics"),
		"the Service":          serviceURLs(full)["http"],
		"the headless Service": serviceURLs(full)["grpc"],
	}
	other := c.createNamespace(t)
	const open = "open" // a pod that everybody may call
	c.startCaller(t, other, open, open)
	reachable, err := c.CoreV1().Pods(other).Get(t.Context(), open, metav1.GetOptions{})
	require.NoError(t, err)
	for _, outside := range []struct{ name, namespace, label string }{
		{"in the same namespace", namespace, "outside"},
		{"in another namespace", other, "outside"},
		// Anybody can give this label to pods in a namespace of their own.
		{"in another namespace, labelled as service-a", other, serviceA},
	} {
		t.Run(outside.name, func(t *testing.T) {
			pod := "e2e-" + outside.label
			c.startCaller(t, outside.namespace, pod, outside.label)
			if outside.namespace != namespace {
				// The pod itself can make calls: no policy limits its egress.
				c.requireReachable(t, other, pod, httpURL(reachable.Status.PodIP, httpPort, "/livez"))
			}
			c.requireBlocked(t, outside.namespace, pod, targets)
		})
	}
}

// service-a reaches only service-b's http and grpc ports, and DNS.
func TestPolicies_LimitEgressOfServiceA(t *testing.T) {
	c := connect(t)
	defer c.saveOnFailure(t)
	apiServer, err := c.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	require.NoError(t, err)
	dns, err := c.CoreV1().Pods(systemNamespace).List(t.Context(), metav1.ListOptions{LabelSelector: coreDNSSelector})
	require.NoError(t, err)
	require.NotEmpty(t, dns.Items)
	callers := c.readyPods(t, serviceA)
	require.Greater(t, len(callers), 1)
	from, sibling := sortedKeys(callers)[0], callers[sortedKeys(callers)[1]]
	ip := firstOf(c.readyPods(t, serviceB)).Status.PodIP
	other := c.createNamespace(t)
	c.startCaller(t, other, "decoy", serviceB) // the right label in the wrong namespace
	decoy, err := c.CoreV1().Pods(other).Get(t.Context(), "decoy", metav1.GetOptions{})
	require.NoError(t, err)

	for _, url := range []string{httpURL(ip, httpPort, "/health"), grpcURL(ip), serviceURLs(short)["http"]} {
		c.requireReachable(t, namespace, from, url)
	}
	c.requireBlocked(t, namespace, from, map[string]string{
		"the API server":                "https://kubernetes.default.svc/version",
		"the API server by its address": "https://" + apiServer.Spec.ClusterIP + "/version",
		"service-b's admin port":        httpURL(ip, adminPort, "/metrics"),
		"another pod of service-a":      httpURL(sibling.Status.PodIP, httpPort, "/livez"),
		"a pod of another namespace":    httpURL(decoy.Status.PodIP, httpPort, "/livez"),
		"a node's kubelet":              "https://" + c.addressOfOtherNode(t, callers[from].Spec.NodeName) + ":10250/healthz",
		"the DNS server's metrics port": httpURL(dns.Items[0].Status.PodIP, 9153, "/metrics"),
	})
}

// addressOfOtherNode returns the address of a node other than own: no policy keeps a
// pod from reaching its own node.
func (c *cluster) addressOfOtherNode(t *testing.T, own string) string {
	t.Helper()
	nodes, err := c.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	for _, node := range nodes.Items {
		if node.Name != own {
			return internalIP(node)
		}
	}
	require.Fail(t, "there is only one node")
	return ""
}
